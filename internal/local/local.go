// Package local runs a whole cluster on one machine: a Mesos master and agents
// that speak Mesos's own protocol and start real executor processes, and a real
// registry. All of it listens on loopback addresses unless told otherwise.
package local

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/org/portainer/internal/scratch"
	"github.com/org/portainer/internal/testmesos"
)

// A Config says what the cluster is made of. The zero value is one agent that
// has the whole machine, without a registry.
type Config struct {
	// Agents is their number. Zero means 1.
	Agents int
	// Resources are what each agent has, in Mesos's notation:
	// "cpus:4;mem:8192;disk:20000;ports:[31000-32000]". "" means an equal share
	// of this machine, but room for a build with the default resources.
	Resources string
	// MasterAddr is where the master listens. "" means a free port on loopback.
	MasterAddr string
	// Registry says whether there is a registry, and RegistryAddr where it
	// listens. "" means a free port on loopback.
	Registry     bool
	RegistryAddr string
	// DockerSocket is that of a Docker daemon, in which the agents run executors
	// that ask for a container. "" means /var/run/docker.sock. It takes a docker
	// client in PATH: without one, nobody runs such executors.
	DockerSocket string
	// WorkDir holds sandboxes and images. "" means a temporary directory that
	// Close removes.
	WorkDir string
	// Logger receives what the master and the agents do. nil discards it.
	Logger *slog.Logger
}

// TempPrefix begins the name of a cluster's temporary directory, which scratch made.
const TempPrefix = "portainer-local-"

// recoveryTimeout is how long executors wait for an agent that is gone. The agents
// are part of this process: when they are gone, it was killed, and they do not come
// back.
const recoveryTimeout = 2 * time.Second

// loopback takes a free port.
const loopback = "127.0.0.1:0"

// A Cluster is a running cluster.
type Cluster struct {
	mesos    *testmesos.Cluster
	registry *Registry    // nil without one
	temp     *scratch.Dir // nil if the caller gave the directory

	once     sync.Once
	closeErr error
}

// Start brings up a cluster. The caller closes it.
func Start(cfg Config) (_ *Cluster, err error) {
	if cfg.Agents < 0 {
		return nil, fmt.Errorf("local cluster: %d agents", cfg.Agents)
	}
	agents := max(cfg.Agents, 1)
	c := &Cluster{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("local cluster: %w", err), c.Close())
		}
	}()

	dir := cfg.WorkDir
	if dir == "" {
		if c.temp, err = scratch.Make(TempPrefix); err != nil {
			return nil, err
		}
		dir = c.temp.Path()
	} else if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if cfg.Registry {
		c.registry, err = StartRegistry(cmp.Or(cfg.RegistryAddr, loopback), filepath.Join(dir, "registry"))
		if err != nil {
			return nil, err
		}
	}
	resources := cfg.Resources
	if resources == "" {
		if resources, err = share(dir, agents); err != nil {
			return nil, err
		}
	}
	mesosConfig := testmesos.Config{
		MasterAddr: cmp.Or(cfg.MasterAddr, loopback),
		WorkDir:    dir,
		// An agent's executors inherit its environment unless it is told
		// otherwise (mesos docs/configuration/agent.md,
		// --executor_environment_variables). These are what finding and running
		// an engine takes.
		ExecutorEnvironment: environment("PATH", "HOME"),
		RecoveryTimeout:     recoveryTimeout,
		Logger:              cfg.Logger,
	}
	agent := testmesos.AgentConfig{Resources: resources, DockerSocket: cfg.DockerSocket}
	if docker, err := exec.LookPath("docker"); err == nil {
		agent.Docker = docker
	}
	for range agents {
		mesosConfig.Agents = append(mesosConfig.Agents, agent)
	}
	c.mesos, err = testmesos.Start(mesosConfig)
	return c, err
}

// environment returns those of the variables that this process has.
func environment(names ...string) map[string]string {
	env := map[string]string{}
	for _, name := range names {
		if value, ok := os.LookupEnv(name); ok {
			env[name] = value
		}
	}
	return env
}

// Master returns the address of the master, "http://HOST:PORT".
func (c *Cluster) Master() string { return c.mesos.Master() }

// Agents returns the addresses of the agents, "http://HOST:PORT".
func (c *Cluster) Agents() []string {
	var urls []string
	for _, agent := range c.mesos.Agents() {
		urls = append(urls, agent.URL())
	}
	return urls
}

// Registry returns the address of the registry as references spell it, or "".
func (c *Cluster) Registry() string {
	if c.registry == nil {
		return ""
	}
	return c.registry.Addr()
}

// Close ends every executor, then the agents, the master and the registry, and
// waits for all of them.
func (c *Cluster) Close() error {
	c.once.Do(func() {
		var errs []error
		if c.mesos != nil {
			errs = append(errs, c.mesos.Close())
		}
		if c.registry != nil {
			errs = append(errs, c.registry.Close())
		}
		if c.temp != nil {
			errs = append(errs, c.temp.Remove())
		}
		if err := errors.Join(errs...); err != nil {
			c.closeErr = fmt.Errorf("close local cluster: %w", err)
		}
	})
	return c.closeErr
}
