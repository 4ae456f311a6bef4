package engine

import (
	"context"
	"fmt"
	"io"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/sshforward"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// An SSHFunc is an ssh agent: it answers the requests of one client of it, which
// come over conn, until there are no more.
type SSHFunc func(ctx context.Context, conn io.ReadWriter) error

// sshAgents lends ssh agents to the steps that mount them.
type sshAgents struct {
	sshforward.UnimplementedSSHServer
	agents map[string]SSHFunc
}

var _ session.Attachable = sshAgents{}

// Register implements session.Attachable.
func (s sshAgents) Register(server *grpc.Server) { sshforward.RegisterSSHServer(server, s) }

func (s sshAgents) agent(id string) (SSHFunc, error) {
	if id == "" {
		id = sshforward.DefaultID
	}
	if agent := s.agents[id]; agent != nil {
		return agent, nil
	}
	return nil, fmt.Errorf("no ssh agent %q: the build was given none of that name", id)
}

// CheckAgent implements sshforward.SSHServer.
func (s sshAgents) CheckAgent(_ context.Context, req *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	if _, err := s.agent(req.ID); err != nil {
		return nil, err
	}
	return &sshforward.CheckAgentResponse{}, nil
}

// ForwardAgent implements sshforward.SSHServer.
func (s sshAgents) ForwardAgent(stream grpc.BidiStreamingServer[sshforward.BytesMessage, sshforward.BytesMessage]) error {
	var id string
	if md, ok := metadata.FromIncomingContext(stream.Context()); ok && len(md[sshforward.KeySSHID]) > 0 {
		id = md[sshforward.KeySSHID][0]
	}
	agent, err := s.agent(id)
	if err != nil {
		return err
	}
	return agent(stream.Context(), &sshConn{stream: stream})
}

// An sshConn is the connection of one client.
type sshConn struct {
	stream grpc.BidiStreamingServer[sshforward.BytesMessage, sshforward.BytesMessage]
	unread []byte
}

// Read implements io.Reader.
func (c *sshConn) Read(b []byte) (int, error) {
	for len(c.unread) == 0 {
		message, err := c.stream.Recv()
		if err != nil {
			return 0, err
		}
		c.unread = message.Data
	}
	n := copy(b, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

// Write implements io.Writer.
func (c *sshConn) Write(b []byte) (int, error) {
	if err := c.stream.Send(&sshforward.BytesMessage{Data: b}); err != nil {
		return 0, err
	}
	return len(b), nil
}
