//go:build unix

package main

import (
	"github.com/spf13/cobra"

	"github.com/org/portainer/internal/agentrun"
)

// addPlatformCommands adds the commands that need this kind of system.
func addPlatformCommands(root *cobra.Command, g *globals) {
	root.AddCommand(newLocal(g), newExecutor(g))
}

// newExecutor is the command that agents start where no executor of its own is
// given.
func newExecutor(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:    "executor",
		Short:  "Serve as Mesos executor",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return agentrun.Run(cmd.Context())
		},
	}
}
