//go:build !unix

package staging

import "errors"

var errNoSpace = errors.New("no space left on device")
