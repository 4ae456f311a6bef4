//go:build !linux

package storagetest

import "os/exec"

func dieWithUs(*exec.Cmd) {}
