package portainer

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"

	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/sshforward"
)

// An SSHAgent connects to an ssh agent, such as the one whose socket SSH_AUTH_SOCK
// names. It is called for each request of an ssh client in the build, from many
// goroutines; the connection is closed after the answer.
type SSHAgent func(ctx context.Context) (net.Conn, error)

// errNoAgent is what executors are told that ask for an agent which is not here.
var errNoAgent = errors.New("the framework was restarted and no longer has the ssh agents of this build")

// answerSSH puts the request of a build to an ssh agent. The answer is sealed to the
// executor's key, which the request for secrets told.
func (l *loop) answerSSH(ask sshforward.Ask, task string, agent AgentID) {
	at := l.asking(task, agent, seal.Binding{Task: ask.Task, Attempt: ask.Attempt})
	if at == nil || at.sealKey == "" {
		return
	}
	if at.ssh == nil {
		at.ssh = &sshforward.Desk{}
	}
	desk, key, dial, client, ctx := at.ssh, at.sealKey, at.build.ssh[ask.Agent], l.client, l.answerCtx
	l.cleanup.Go(func() {
		answer, err := sshAnswer(ctx, desk, ask, key, dial)
		if err != nil {
			if !errors.Is(err, sshforward.ErrBusy) {
				l.f.cfg.Logger.Warn("ssh agent's answer not sent", "task", task, "err", err)
			}
			return
		}
		client.Send(calls.Message(string(agent), task, answer.Encode()))
	})
}

// sshAnswer makes the answer to ask.
func sshAnswer(ctx context.Context, desk *sshforward.Desk, ask sshforward.Ask, key string, dial SSHAgent) (sshforward.Answer, error) {
	if dial == nil {
		return sshforward.Answer{Serial: ask.Serial, Failure: errNoAgent.Error()}, nil
	}
	said, err := desk.Answer(ctx, ask, dial)
	switch {
	case errors.Is(err, sshforward.ErrBusy):
		return sshforward.Answer{}, err
	case err != nil:
		return sshforward.Answer{Serial: ask.Serial, Failure: err.Error()}, nil
	}
	sealed, err := seal.Seal(key, seal.Binding{Task: ask.Task, Attempt: ask.Attempt}, said.Encode())
	if err != nil {
		return sshforward.Answer{}, fmt.Errorf("ssh agent %s: %w", ask.Agent, err)
	}
	return sshforward.Answer{Serial: ask.Serial, Sealed: sealed}, nil
}
