package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/org/portainer"
)

func newAttach(g *globals) *cobra.Command {
	c := &frameworkCommand{globals: g}
	cmd := &cobra.Command{
		Use:   "attach --state-dir DIR [flags]",
		Short: "Take over the builds of a portainer that was killed",
		Long: `attach takes over the builds that "portainer build --state-dir DIR" left when it
was killed, and goes on as it would have: the rest of the output, the references
of what is pushed, the exit code. Give it the same flags.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.stateDir == "" {
				return usagef("--state-dir is missing: it must name the directory that build was given")
			}
			if err := c.check(); err != nil {
				return err
			}
			if _, err := os.Stat(c.stateDir); err != nil {
				return usagef("--state-dir: %w", err)
			}
			return c.run(cmd.Context(), c.recovered)
		},
	}
	groups := flagGroups{}
	c.addFlags(groups)
	groups.addTo(cmd, c.console.columns)
	cmd.Flags().SetNormalizeFunc(normalizeFlag)
	return cmd
}

// recovered are the builds that an earlier framework left.
func (c *frameworkCommand) recovered(framework *portainer.Framework) []*job {
	var jobs []*job
	for _, id := range framework.Recovered() {
		jobs = append(jobs, &job{build: func(ctx context.Context, f *portainer.Framework) (*portainer.Result, error) {
			return f.Attach(ctx, id)
		}})
	}
	if len(jobs) == 0 {
		complain(c.stderr, fmt.Errorf("--state-dir %s: no build is left to take over", c.stateDir))
	}
	return jobs
}
