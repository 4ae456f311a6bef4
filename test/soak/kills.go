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
	slots int // how many executors there are when there is no lack of builds
	rand  *rand.Rand
	every time.Duration // between two of its acts, on average
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

// startKiller starts a killer.
func startKiller(ctx context.Context, mesos *testmesos.Cluster, s settings) *killer {
	k := &killer{mesos: mesos, slots: s.atOnce, rand: rand.New(rand.NewPCG(s.seed, 0)), every: s.every, done: make(chan struct{})}
	k.kinds = []*kill{
		{name: "executors", weight: 85, do: k.executor},
		{name: "agents", weight: 10, do: k.agent},
		{name: "scheduler streams", weight: 3, do: k.stream},
		{name: "masters", weight: 2, do: k.master},
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

// executor sends SIGKILL to an executor, whose danger does not grow when there
// are few: the last builds must end, too.
func (k *killer) executor(context.Context) (bool, error) {
	slot := k.rand.IntN(k.slots)
	for _, agent := range k.mesos.Agents() {
		for _, x := range agent.Executors() {
			if x.PID == 0 {
				continue
			}
			if slot == 0 {
				// It may have just ended by itself.
				return agent.KillExecutor(x.ID) == nil, nil
			}
			slot--
		}
	}
	return false, nil
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
