package main

import (
	"github.com/spf13/cobra"

	"github.com/org/portainer/internal/agentrun"
)

// newExecutor is the command that agents start where no executor of its own is
// given.
func newExecutor() *cobra.Command {
	return &cobra.Command{
		Use:    "executor",
		Short:  "Serve as Mesos executor",
		Hidden: true,
		Args:   noArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return agentrun.Run(cmd.Context()) },
	}
}
