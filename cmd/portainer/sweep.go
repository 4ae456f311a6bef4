package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/org/portainer/internal/agentrun"
	"github.com/org/portainer/internal/scratch"
)

// sweepTime is how long executors of a killed program may take to end by
// themselves: their agents are gone, so they are about to.
const sweepTime = 10 * time.Second

// sweep removes what earlier runs of this program have left on this machine that
// were killed. It works while the builds do, and is waited for when s is closed.
func (s *site) sweep(ctx context.Context, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sweepTime)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		if err := removeAbandoned(ctx, log); err != nil {
			log.Warn("leftovers of a killed run not removed", "err", err)
		}
	}()
	s.closers = append(s.closers, func() error {
		<-done
		return nil // it was about others
	})
}

// removeAbandoned ends the executors of killed runs, which then are no more than
// engines without an owner, removes those, and at last the directories that all of
// it was in.
func removeAbandoned(ctx context.Context, log *slog.Logger) error {
	clusters, clustersErr := scratch.Abandoned(clusterPrefix)
	buckets, bucketsErr := scratch.Abandoned(stagingPrefix)
	dirs := slices.Concat(clusters, buckets)
	var errs []error
	for _, dir := range clusters {
		log.Info("removing a cluster whose program was killed", "dir", dir.Path())
		errs = append(errs, dir.End(ctx))
	}
	errs = append(errs, agentrun.Sweep(context.WithoutCancel(ctx), log))
	dispose := (*scratch.Dir).Remove
	if errors.Join(errs...) != nil {
		dispose = (*scratch.Dir).Leave // what is still mounted there must not be emptied
	}
	for _, dir := range dirs {
		errs = append(errs, dispose(dir))
	}
	return errors.Join(append(errs, clustersErr, bucketsErr)...)
}
