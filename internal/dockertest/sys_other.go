//go:build !linux

package dockertest

import "syscall"

func sysProcAttr() *syscall.SysProcAttr { return nil }

func unmountBelow(string) error { return nil }

func lockFile(string) (unlock func() error, err error) { return func() error { return nil }, nil }
