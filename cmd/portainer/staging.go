package main

import (
	"context"
	"fmt"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/staging"
)

func newStaging(g *globals) *cobra.Command {
	var uri string
	cmd := &cobra.Command{
		Use:   "staging",
		Short: "Look at, and clean, a staging bucket",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&uri, "staging-uri", "", "the staging bucket")
	list := func(ctx context.Context, objects func(context.Context, *staging.Store) ([]staging.Object, error)) error {
		if uri == "" {
			return usagef("--staging-uri is missing: it names the bucket to look at")
		}
		s := &site{}
		if err := s.openBucket(ctx, uri); err != nil {
			return err
		}
		found, err := objects(ctx, staging.New(s.bucket))
		if err != nil {
			err = fmt.Errorf("%w: %w", portainer.ErrStaging, err)
		}
		for _, o := range found {
			state := ""
			switch {
			case o.Pending:
				state = "\tbeing staged"
			case o.Leases > 0:
				state = fmt.Sprintf("\tused by %d", o.Leases)
			}
			fmt.Fprintf(g.stdout, "%10s  %s  %s%s\n", units.BytesSize(float64(o.Size)), o.Used.UTC().Format(time.DateTime), o.Key, state)
		}
		if closeErr := s.close(); err == nil {
			err = closeErr
		}
		return err
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "ls --staging-uri URI",
		Short: "List what is staged: size, last use, name",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(cmd.Context(), func(ctx context.Context, s *staging.Store) ([]staging.Object, error) { return s.List(ctx) })
		},
	})
	var age time.Duration
	gc := &cobra.Command{
		Use:   "gc --staging-uri URI [--older-than AGE]",
		Short: "Remove what nobody has used for some time, and list it",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(cmd.Context(), func(ctx context.Context, s *staging.Store) ([]staging.Object, error) { return s.GC(ctx, age) })
		},
	}
	gc.Flags().DurationVar(&age, "older-than", 24*time.Hour, "for how long")
	cmd.AddCommand(gc)
	return cmd
}
