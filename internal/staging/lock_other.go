//go:build !unix

package staging

import (
	"errors"
	"os"
)

// tryLock cannot lock here; then nothing is kept, either.
func tryLock(*os.File) (bool, error) { return false, errors.ErrUnsupported }
