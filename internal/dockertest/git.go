package dockertest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// A GitServer serves git repositories over http, as git's own http-backend does it.
type GitServer struct {
	URL string // of the directory with the repositories

	dir      string
	server   *httptest.Server
	listener net.Listener // of ServeGit; nil until then
	serving  sync.WaitGroup
}

// StartGit serves repositories that lie in dir, which must exist. With a token, only
// who shows it gets in: as the password of any user, or as a bearer token. The caller
// stops the server.
func StartGit(ctx context.Context, dir, token string) (*GitServer, error) {
	libexec, err := exec.CommandContext(ctx, "git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("git: %w: scripts/setup installs it", err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(libexec)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"},

		Stderr: io.Discard, // the client sees it
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		if token != "" && password != token && r.Header.Get("Authorization") != "Bearer "+token {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	return &GitServer{URL: server.URL, dir: dir, server: server}, nil
}

// AddRepository makes the repository name, which ends in ".git", of commits on its
// branch master, which old engines take for the default of all; each has the given
// files and nothing else. They are tagged v1, v2 and so on.
func (g *GitServer) AddRepository(ctx context.Context, name string, commits ...map[string]string) error {
	work, err := os.MkdirTemp("", "git-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	git := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "git", append([]string{"-C", work, "-c", "user.name=t", "-c", "user.email=t@example"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := git("init", "--quiet", "--initial-branch=master"); err != nil {
		return err
	}
	for i, files := range commits {
		if i > 0 {
			if err := git("rm", "-r", "--quiet", "."); err != nil {
				return err
			}
		}
		for path, text := range files {
			path = filepath.Join(work, filepath.FromSlash(path))
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				return err
			}
		}
		for _, args := range [][]string{{"add", "--all"}, {"commit", "--quiet", "--message", "one"}, {"tag", fmt.Sprintf("v%d", i+1)}} {
			if err := git(args...); err != nil {
				return err
			}
		}
	}
	return git("clone", "--quiet", "--bare", ".", filepath.Join(g.dir, name))
}

// ServeGit serves the same repositories by git's own protocol and returns the URL of
// their directory. It is called once.
func (g *GitServer) ServeGit() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed by Stop
	if err != nil {
		return "", err
	}
	g.listener = l
	g.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			g.serving.Go(func() {
				defer conn.Close()
				cmd := exec.Command("git", "daemon", "--inetd", "--export-all", "--base-path="+g.dir)
				cmd.Stdin, cmd.Stdout = conn, conn
				_ = cmd.Run() // the client sees how it ended
			})
		}
	})
	return "git://" + l.Addr().String(), nil
}

// Stop stops the servers.
func (g *GitServer) Stop() error {
	g.server.Close()
	var err error
	if g.listener != nil {
		err = g.listener.Close()
	}
	g.serving.Wait()
	return err
}
