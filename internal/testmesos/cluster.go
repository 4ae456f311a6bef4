package testmesos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// A Cluster is masters and agents in this process. Its methods may be called
// from any goroutine.
type Cluster struct {
	cfg      Config
	workDir  string
	tempDir  bool
	masters  []*Master
	agents   []*Agent
	faults   *faults
	registry *registry
	fetcher  *fetcher
	workers  sync.WaitGroup // all goroutines but those of servers

	mu        sync.Mutex
	lead      *Master // as far as anybody knows; nil if none is elected
	closed    bool
	closeErr  error
	closeDone chan struct{}
}

// Start starts a cluster. The caller closes it.
func Start(cfg Config) (*Cluster, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("testmesos: %w", err)
	}
	c := &Cluster{
		cfg:       cfg.withDefaults(),
		registry:  newRegistry(),
		fetcher:   &fetcher{client: &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}},
		closeDone: make(chan struct{}),
	}
	c.faults = &faults{clock: newActor(&c.workers)}
	if err := c.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("testmesos: %w", err), c.Close())
	}
	return c, nil
}

func (c *Cluster) start() error {
	if err := c.makeWorkDir(); err != nil {
		return err
	}
	for i := range c.cfg.Masters {
		h := &Master{c: c, index: i}
		addr := c.cfg.MasterAddr
		if i > 0 {
			addr = "127.0.0.1:0"
		}
		s, err := newServer(addr, c.cfg.TLS, c.cfg.Logger, h)
		if err != nil {
			return fmt.Errorf("master %d: %w", i, err)
		}
		h.server = s
		h.boot()
		c.masters = append(c.masters, h)
	}
	for i, cfg := range c.cfg.Agents {
		if err := c.addAgent(i, cfg); err != nil {
			return err
		}
	}
	c.Elect(c.masters[0])
	return c.awaitAgents()
}

// makeWorkDir makes the directory for all agents. Its path is real, so that a
// process's working directory looks the same from inside and outside.
func (c *Cluster) makeWorkDir() error {
	dir := c.cfg.WorkDir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "testmesos-"); err != nil {
			return err
		}
		c.tempDir = true
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	c.workDir = dir
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	c.workDir = dir
	return nil
}

func (c *Cluster) addAgent(i int, cfg AgentConfig) error {
	a, err := newAgent(c, i, cfg)
	if err != nil {
		return err
	}
	if a.server, err = newServer(cfg.Addr, c.cfg.TLS, a.log, a); err != nil {
		return fmt.Errorf("agent %d: %w", i, err)
	}
	c.agents = append(c.agents, a)
	return nil
}

// startTimeout bounds how long the agents may take to register.
const startTimeout = 30 * time.Second

// awaitAgents waits until all agents are registered.
func (c *Cluster) awaitAgents() error {
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	for _, a := range c.agents {
		select {
		case <-a.ready:
		case <-deadline.C:
			return fmt.Errorf("agent %d did not register within %v", a.index, startTimeout)
		}
	}
	return nil
}

// Master returns the base URL of the leading master, or of the first one if
// none leads.
func (c *Cluster) Master() string {
	if h := c.leader(); h != nil {
		return h.URL()
	}
	return c.masters[0].URL()
}

// Masters returns all masters.
func (c *Cluster) Masters() []*Master { return slices.Clone(c.masters) }

// Agents returns all agents.
func (c *Cluster) Agents() []*Agent { return slices.Clone(c.agents) }

// leader returns the master that is elected; it may be down.
func (c *Cluster) leader() *Master {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lead
}

// Elect makes a master the leader, or nobody for nil. The agents follow it.
// A leader that is replaced while it is up restarts, as a real one does, and
// forgets everything.
func (c *Cluster) Elect(h *Master) {
	var m *master
	if h != nil {
		m = h.current()
	}
	if m != nil {
		m.lead()
	}
	c.mu.Lock()
	old := c.lead
	c.lead = h
	c.mu.Unlock()
	if old != nil && old != h && old.current() != nil {
		old.Kill()
		if err := old.Restart(); err != nil {
			c.cfg.Logger.Error("master did not come back", "err", err)
		}
	}
	for _, a := range c.agents {
		a.post(func() { a.follow(m) })
	}
}

// Close shuts down all executors, SIGKILLs those that do not go within the grace
// they have, Config.CloseGrace at most, and waits for every process and goroutine.
func (c *Cluster) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.closeDone
		return c.closeErr
	}
	c.closed = true
	c.mu.Unlock()
	defer close(c.closeDone)

	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.CloseGrace)
	defer cancel()
	var wg sync.WaitGroup
	for _, a := range c.agents {
		wg.Go(func() { a.stopContainers(ctx) })
	}
	wg.Wait()
	for _, a := range c.agents {
		a.server.stop()
	}
	for _, h := range c.masters {
		h.server.stop()
	}
	for _, a := range c.agents {
		a.close()
	}
	for _, h := range c.masters {
		h.halt()
	}
	c.faults.clock.close()
	for _, a := range c.agents {
		a.server.stopAndWait()
	}
	for _, h := range c.masters {
		h.server.stopAndWait()
	}
	c.workers.Wait()
	c.fetcher.client.CloseIdleConnections()
	if c.tempDir {
		c.closeErr = os.RemoveAll(c.workDir)
	}
	return c.closeErr
}

// boot starts a new life of a master.
func (h *Master) boot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cur = newMaster(h.c, h)
}

// halt ends the present life of a master.
func (h *Master) halt() {
	h.mu.Lock()
	m := h.cur
	h.cur = nil
	h.mu.Unlock()
	if m != nil {
		m.close()
		close(m.done)
	}
}

// Kill ends a master as SIGKILL does: its connections break and its memory is
// gone. If it led, the others go on to redirect to it until another one is
// elected.
func (h *Master) Kill() {
	h.server.stop()
	h.halt()
	h.server.stopAndWait()
}

// Restart starts a master that was killed. If it is still the elected leader it
// leads again, with an empty memory.
func (h *Master) Restart() error {
	h.boot()
	if err := h.server.restart(); err != nil {
		h.halt()
		return err
	}
	if h.c.leader() == h {
		h.c.Elect(h)
	}
	return nil
}

// FailOver kills the leader and elects the next master, or the same one again
// if there is no other. The agents register with it; it remembers nothing but
// the list of agents.
func (c *Cluster) FailOver() error {
	old := c.leader()
	if old == nil {
		c.Elect(c.masters[0])
		return nil
	}
	if len(c.masters) == 1 {
		old.Kill()
		return old.Restart()
	}
	c.Elect(c.masters[(old.index+1)%len(c.masters)])
	return nil
}
