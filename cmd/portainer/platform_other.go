//go:build !unix

package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

// addPlatformCommands adds nothing: agents and executors need Unix processes.
func addPlatformCommands(*cobra.Command, *globals) {}

func (s *site) startLocal(int, *globals) error {
	return usagef("--mesos-master local needs a Unix system, not %s: give the address of a master", runtime.GOOS)
}
