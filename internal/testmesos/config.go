package testmesos

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// A Config describes a Cluster. The zero value of a field is the default of
// Mesos; a Config without agents makes a master that has none.
type Config struct {
	// Masters is how many masters there are, 1 by default. The first leads.
	Masters int
	// MasterAddr is where the first master listens, "127.0.0.1:0" by default.
	MasterAddr string
	Agents     []AgentConfig
	// WorkDir holds the work directories of the agents. By default it is a
	// temporary directory that Close removes.
	WorkDir string

	AllocationInterval         time.Duration // between offers of what became free, 1 s
	HeartbeatInterval          time.Duration // of schedulers, 15 s
	ExecutorHeartbeatInterval  time.Duration // of executors, 30 min
	StatusUpdateRetryMin       time.Duration // until an update is sent again, doubling up to 10 min; 10 s
	RegistrationTimeout        time.Duration // from launch, fetching included, until an executor subscribed; 1 min
	ReregistrationTimeout      time.Duration // until executors subscribed to an agent that restarted, 2 s
	RecoveryTimeout            time.Duration // until executors give up an agent that is gone (--recovery_timeout), 15 min
	ShutdownGrace              time.Duration // between SHUTDOWN and SIGKILL unless ExecutorInfo says otherwise, 5 s
	CloseGrace                 time.Duration // the most that Cluster.Close gives an executor after SHUTDOWN, 10 s
	AgentReregistrationTimeout time.Duration // until agents found a new leader, 10 min
	AgentPingTimeout           time.Duration // until an agent whose connection broke is unreachable, 75 s
	OfferTimeout               time.Duration // until an unanswered offer is rescinded; 0: never

	// Credentials are principals and secrets of frameworks. If there are any,
	// the scheduler API wants basic authentication.
	Credentials map[string]string
	// AgentCredentials are principals and secrets for the agents' files and
	// operator API, which want basic authentication if there are any.
	AgentCredentials map[string]string
	// TLS makes masters and agents serve https.
	TLS *tls.Config
	// ExecutorEnvironment is added to the environment of executors
	// (--executor_environment_variables).
	ExecutorEnvironment map[string]string
	// ExecutorSecret makes executors authenticate: each gets a token signed
	// with this key in MESOS_EXECUTOR_AUTHENTICATION_TOKEN.
	ExecutorSecret []byte
	// Logger is silent by default.
	Logger *slog.Logger
}

// An AgentConfig describes one agent.
type AgentConfig struct {
	// Hostname is what offers show, "127.0.0.1" by default.
	Hostname string
	// Addr is where the agent listens, "127.0.0.1:0" by default.
	Addr string
	// Resources are as in the flag --resources, such as
	// "cpus:4;cpus(role):2;mem:8192;disk:20000;ports:[31000-32000]", which is
	// also the default but for the reserved cpus.
	Resources string
	// Attributes are as in the flag --attributes, such as "rack:a;os:linux".
	Attributes string
	// Docker is the path of a docker client. If set, executors whose
	// ContainerInfo is of type DOCKER run through it; without it nobody takes
	// them. DockerSocket is the daemon's, "/var/run/docker.sock" by default.
	Docker       string
	DockerSocket string
	// Simulate, if set, stands for the executors of this agent: there are no
	// processes and no sandboxes. It is called for each task after TASK_RUNNING
	// was reported, in a goroutine of its own, and what it returns becomes the
	// task's last status update. ctx is done when the task is to be killed.
	Simulate func(ctx context.Context, task *mesos.TaskInfo) Outcome
}

// An Outcome is how a simulated task ended.
type Outcome struct {
	State   mesos.TaskState // TASK_FINISHED by default, TASK_KILLED after a kill
	Message string
	Data    []byte
}

// defaultResources are those of an agent about which nothing is said.
const defaultResources = "cpus:4;mem:8192;disk:20000;ports:[31000-32000]"

func (c Config) withDefaults() Config {
	c.Masters = cmp.Or(c.Masters, 1)
	c.MasterAddr = cmp.Or(c.MasterAddr, "127.0.0.1:0")
	c.AllocationInterval = cmp.Or(c.AllocationInterval, time.Second)
	c.HeartbeatInterval = cmp.Or(c.HeartbeatInterval, 15*time.Second)
	c.ExecutorHeartbeatInterval = cmp.Or(c.ExecutorHeartbeatInterval, 30*time.Minute)
	c.StatusUpdateRetryMin = cmp.Or(c.StatusUpdateRetryMin, 10*time.Second)
	c.RegistrationTimeout = cmp.Or(c.RegistrationTimeout, time.Minute)
	c.ReregistrationTimeout = cmp.Or(c.ReregistrationTimeout, 2*time.Second)
	c.RecoveryTimeout = cmp.Or(c.RecoveryTimeout, 15*time.Minute)
	c.ShutdownGrace = cmp.Or(c.ShutdownGrace, 5*time.Second)
	c.CloseGrace = cmp.Or(c.CloseGrace, 10*time.Second)
	c.AgentReregistrationTimeout = cmp.Or(c.AgentReregistrationTimeout, 10*time.Minute)
	c.AgentPingTimeout = cmp.Or(c.AgentPingTimeout, 75*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	agents := make([]AgentConfig, len(c.Agents))
	for i, a := range c.Agents {
		a.Hostname = cmp.Or(a.Hostname, "127.0.0.1")
		a.Addr = cmp.Or(a.Addr, "127.0.0.1:0")
		a.DockerSocket = cmp.Or(a.DockerSocket, "/var/run/docker.sock")
		a.Resources = cmp.Or(a.Resources, defaultResources)
		agents[i] = a
	}
	c.Agents = agents
	return c
}

func (c Config) validate() error {
	var errs []error
	if c.Masters < 0 {
		errs = append(errs, says("Masters is %d, want at least 1", c.Masters))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"AllocationInterval", c.AllocationInterval},
		{"HeartbeatInterval", c.HeartbeatInterval},
		{"ExecutorHeartbeatInterval", c.ExecutorHeartbeatInterval},
		{"StatusUpdateRetryMin", c.StatusUpdateRetryMin},
		{"RegistrationTimeout", c.RegistrationTimeout},
		{"ReregistrationTimeout", c.ReregistrationTimeout},
		{"RecoveryTimeout", c.RecoveryTimeout},
		{"ShutdownGrace", c.ShutdownGrace},
		{"CloseGrace", c.CloseGrace},
		{"AgentReregistrationTimeout", c.AgentReregistrationTimeout},
		{"AgentPingTimeout", c.AgentPingTimeout},
		{"OfferTimeout", c.OfferTimeout},
	} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("%s is %v, want a positive duration", d.name, d.value))
		}
	}
	return errors.Join(errs...)
}
