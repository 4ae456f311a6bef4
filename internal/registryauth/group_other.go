//go:build !unix

package registryauth

import "os/exec"

// ownGroup has cmd killed alone when its context ends.
func ownGroup(*exec.Cmd) {}
