package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
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
		Args:  cobra.ArbitraryArgs,
		RunE:  commandNeeded,
	}
	cmd.PersistentFlags().StringVar(&uri, "staging-uri", "", "the staging bucket")
	list := func(ctx context.Context, objects func(context.Context, *staging.Store) ([]staging.Object, error)) error {
		if uri == "" {
			return usagef("--staging-uri is missing: it names the bucket to look at")
		}
		s := &site{}
		if err := s.openThere(ctx, uri); err != nil {
			return err
		}
		found, err := objects(ctx, staging.New(s.bucket))
		if err != nil {
			err = fmt.Errorf("%w: %w", portainer.ErrStaging, err)
		}
		if printErr := printStaged(g.stdout, found); err == nil {
			err = printErr
		}
		if closeErr := s.close(); err == nil {
			err = closeErr
		}
		return err
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "ls --staging-uri URI",
		Short: "List what is staged: size, last use, how many use it, when it expires, name",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(cmd.Context(), func(ctx context.Context, s *staging.Store) ([]staging.Object, error) { return s.List(ctx) })
		},
	})
	var age time.Duration
	gc := &cobra.Command{
		Use:   "gc --staging-uri URI [--older-than AGE]",
		Short: "Remove what has expired, or what nobody has used for some time, and list it",
		Long: `gc removes the contexts whose time is over: their last build has ended longer ago
than its --staging-ttl. Every portainer does the same when it starts. With
--older-than it removes what nobody has staged or used for that long, even if
some process says that it uses it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(cmd.Context(), func(ctx context.Context, s *staging.Store) ([]staging.Object, error) {
				if cmd.Flags().Changed("older-than") {
					return s.GC(ctx, age)
				}
				s.TTL = stagingTTL // of what belongs to no context
				return s.Expire(ctx)
			})
		},
	}
	gc.Flags().DurationVar(&age, "older-than", 0, "for how long (default: what has expired)")
	cmd.AddCommand(gc)
	return cmd
}

// stagingTTL is how long contexts are kept unless it is said otherwise.
const stagingTTL = 24 * time.Hour

// printStaged prints a table of objects, if there are any.
func printStaged(out io.Writer, objects []staging.Object) error {
	if len(objects) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SIZE\tUSED\tUSERS\tEXPIRES\tNAME")
	for _, o := range objects {
		users := strconv.Itoa(o.Leases)
		switch {
		case o.Pending:
			users += ", being staged"
		case o.Digest == "":
			users = "-" // of an executor nobody knows
		}
		fmt.Fprintf(w, "%s\t%s ago\t%s\t%s\t%s\n", bytesOf(o.Size), units.HumanDuration(time.Since(o.Used)), users, expiry(&o), o.Key)
	}
	return w.Flush()
}

// expiry says when o may be removed.
func expiry(o *staging.Object) string {
	left := time.Until(o.Expires)
	switch {
	case o.Leases > 0:
		return "not while used"
	case left <= 0:
		return "now"
	}
	return "in " + units.HumanDuration(left)
}
