package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/org/portainer"
)

// sshAgents reads --ssh, each "default|ID[=SOCKET|KEY[,KEY…]]" as docker buildx has
// it: a socket of an ssh agent, files with private keys, or else the agent that
// SSH_AUTH_SOCK names.
func (g *globals) sshAgents(flags []string) (map[string]portainer.SSHAgent, error) {
	agents := make(map[string]portainer.SSHAgent)
	for _, flag := range flags {
		id, places, _ := strings.Cut(flag, "=")
		if id == "" {
			return nil, usagef("--ssh takes default or ID, then perhaps =SOCKET or =KEY,KEY, not %q", flag)
		}
		if _, twice := agents[id]; twice {
			return nil, usagef("--ssh: %q is given twice", id)
		}
		a, err := g.sshAgent(places)
		if err != nil {
			return nil, usagef("--ssh %s: %w", id, err)
		}
		agents[id] = a
	}
	return agents, nil
}

func (g *globals) sshAgent(places string) (portainer.SSHAgent, error) {
	if places == "" {
		socket, ok := g.env("SSH_AUTH_SOCK")
		if !ok || socket == "" {
			return nil, errors.New("SSH_AUTH_SOCK is not set: start an ssh agent, or give its socket or the files of keys")
		}
		places = socket
	}
	paths := strings.Split(places, ",")
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if info.Mode()&os.ModeSocket == 0 {
			continue
		}
		if len(paths) > 1 {
			return nil, fmt.Errorf("%s is a socket: give one socket, or files of keys", path)
		}
		return socketAgent(path), nil
	}
	return keyAgent(paths)
}

func socketAgent(path string) portainer.SSHAgent {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
}

// keyAgent is an ssh agent in this process, with the private keys of some files.
func keyAgent(paths []string) (portainer.SSHAgent, error) {
	keys := agent.NewKeyring()
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		key, err := ssh.ParseRawPrivateKey(text)
		if missing := (*ssh.PassphraseMissingError)(nil); errors.As(err, &missing) {
			return nil, fmt.Errorf("%s: the key has a passphrase: add it to an ssh agent and give that", path)
		}
		if err == nil {
			err = keys.Add(agent.AddedKey{PrivateKey: key, Comment: path})
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return func(context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		c := &servedConn{Conn: here, ended: make(chan struct{})}
		go func() {
			defer close(c.ended)
			// It ends with the connection.
			_ = agent.ServeAgent(keys, there)
			_ = there.Close()
		}()
		return c, nil
	}, nil
}

// A servedConn is a connection to an agent in this process. Close ends the agent's
// end, too, and waits for it.
type servedConn struct {
	net.Conn
	ended chan struct{}
}

// Close implements net.Conn.
func (c *servedConn) Close() error {
	err := c.Conn.Close()
	<-c.ended
	return err
}
