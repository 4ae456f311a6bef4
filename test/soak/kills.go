//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/org/portainer/internal/testmesos"
)

// A killer kills at random, by a seed.
type killer struct {
	mesos *testmesos.Cluster
	rand  *rand.Rand
	every time.Duration
	kinds []*kill

	cancel context.CancelFunc
	done   chan struct{}
	err    error // once done
}

// A kill is something that a killer does.
type kill struct {
	name   string
	weight int // how often, beside the others
	do     func(context.Context) (bool, error)
	count  int
}

// startKiller starts a killer; every is the mean time between two of its acts.
func startKiller(ctx context.Context, mesos *testmesos.Cluster, seed uint64, every time.Duration) *killer {
	k := &killer{mesos: mesos, rand: rand.New(rand.NewPCG(seed, 0)), every: every, done: make(chan struct{})}
	k.kinds = []*kill{
		{name: "executors", weight: 70, do: k.executor},
		{name: "scheduler streams", weight: 10, do: k.stream},
		{name: "agents", weight: 14, do: k.agent},
		{name: "masters", weight: 6, do: k.master},
	}
	ctx, k.cancel = context.WithCancel(ctx)
	go func() {
		defer close(k.done)
		k.err = k.run(ctx)
	}()
	return k
}

// stop ends the killer. Everything that it killed is up again but the executors.
func (k *killer) stop() error {
	k.cancel()
	<-k.done
	return k.err
}

// String is what was killed. The killer must have stopped.
func (k *killer) String() string {
	var parts []string
	sum := 0
	for _, kind := range k.kinds {
		sum += kind.count
		parts = append(parts, fmt.Sprintf("%d %s", kind.count, kind.name))
	}
	return fmt.Sprintf("%d: %s", sum, strings.Join(parts, ", "))
}

func (k *killer) run(ctx context.Context) error {
	if k.every == 0 {
		return nil
	}
	for {
		if !wait(ctx, time.Duration(k.rand.Int64N(2*int64(k.every)))) {
			return nil
		}
		kind := k.choose()
		did, err := kind.do(ctx)
		if err != nil {
			return fmt.Errorf("kill %s: %w", kind.name, err)
		}
		if did {
			kind.count++
		}
	}
}

func (k *killer) choose() *kill {
	sum := 0
	for _, kind := range k.kinds {
		sum += kind.weight
	}
	n := k.rand.IntN(sum)
	i := slices.IndexFunc(k.kinds, func(kind *kill) bool {
		n -= kind.weight
		return n < 0
	})
	return k.kinds[i]
}

// wait reports whether d has passed before ctx was done.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (k *killer) anyAgent() *testmesos.Agent {
	all := k.mesos.Agents()
	return all[k.rand.IntN(len(all))]
}

// executor sends SIGKILL to an executor. Nothing is done if it finds none.
func (k *killer) executor(context.Context) (bool, error) {
	agent := k.anyAgent()
	running := slices.DeleteFunc(agent.Executors(), func(x testmesos.RunningExecutor) bool { return x.PID == 0 })
	if len(running) == 0 {
		return false, nil
	}
	// It may have just ended by itself.
	return agent.KillExecutor(running[k.rand.IntN(len(running))].ID) == nil, nil
}

// agent kills an agent and starts it again a moment later.
func (k *killer) agent(ctx context.Context) (bool, error) {
	agent := k.anyAgent()
	agent.Kill()
	wait(ctx, time.Duration(k.rand.Int64N(int64(time.Second))))
	return true, agent.Restart()
}

// master kills the leading master; the other one is elected.
func (k *killer) master(context.Context) (bool, error) { return true, k.mesos.FailOver() }

// stream breaks the connection between framework and master.
func (k *killer) stream(context.Context) (bool, error) {
	k.mesos.SeverScheduler("")
	return true, nil
}
