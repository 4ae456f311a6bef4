package engine

import (
	"context"
	"net"

	dockerclient "github.com/docker/docker/client"
)

// hijackDialer makes connections by upgrading an HTTP request to the daemon.
func hijackDialer(cli *dockerclient.Client, path, proto string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) { return cli.DialHijack(ctx, path, proto, nil) }
}

// plainDialer makes connections with dial whatever the address.
func plainDialer(dial func(context.Context) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }
}

// sessionDialer makes the connection by which the daemon's BuildKit asks us for
// files and secrets.
func sessionDialer(cli *dockerclient.Client) func(context.Context, string, map[string][]string) (net.Conn, error) {
	return func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
		return cli.DialHijack(ctx, "/session", proto, meta)
	}
}
