package portainer

import (
	"context"
	"sync"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/org/portainer/internal/schedapi"
)

// connect runs the loop over one framework id.
func (l *loop) connect(ctx, alive context.Context) error {
	client, err := l.f.newClient(l.frameworkID)
	if err != nil {
		return err
	}
	l.client = client
	listening, hangUp := context.WithCancel(alive)
	l.answerCtx = listening
	events := make(chan schedapi.Event)
	rejected := make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		rejected <- client.Run(listening, func(ev schedapi.Event) {
			select {
			case events <- ev:
			case <-listening.Done():
			}
		})
	})
	err = l.run(ctx, events, rejected)
	hangUp()
	reader.Wait()
	return err
}

// newClient makes the connection to the master.
func (f *Framework) newClient(id string) (*schedapi.Client, error) {
	cfg := &f.cfg
	checkpoint, failover := true, cfg.FailoverTimeout.Seconds()
	info := &mesos.FrameworkInfo{
		User:            cfg.User,
		Name:            cfg.Name,
		Roles:           []string{cfg.Role},
		Checkpoint:      &checkpoint,
		FailoverTimeout: &failover,
		Capabilities: []mesos.FrameworkInfo_Capability{
			{Type: mesos.FrameworkInfo_Capability_MULTI_ROLE},
			{Type: mesos.FrameworkInfo_Capability_PARTITION_AWARE},
			{Type: mesos.FrameworkInfo_Capability_TASK_KILLING_STATE},
		},
	}
	if cfg.GPUs {
		info.Capabilities = append(info.Capabilities, mesos.FrameworkInfo_Capability{Type: mesos.FrameworkInfo_Capability_GPU_RESOURCES})
	}
	if id != "" {
		info.ID = &mesos.FrameworkID{Value: id}
	}
	if cfg.WebUIURL != "" {
		info.WebUiURL = &cfg.WebUIURL
	}
	if cfg.Principal != "" {
		info.Principal = &cfg.Principal
	}
	return schedapi.New(schedapi.Config{
		Masters:   f.masters,
		Framework: info,
		// Suppressed at first, so that no offer comes before it can be used; the
		// ledger revives as soon as a build waits.
		Suppressed: func() []string { return []string{cfg.Role} },
		Principal:  cfg.Principal,
		Secret:     cfg.Secret,
		TLS:        cfg.TLS,
		Logger:     cfg.Logger,
	})
}
