package buildctx_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bk "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"

	"github.com/org/portainer/internal/buildctx"
	"github.com/org/portainer/internal/dockertest"
)

// docker is a daemon of our own, and ways of building with it.
type docker struct {
	started  time.Time
	compared int    // trees so far
	classic  int    // of these, by the classic builder
	cli      string // a docker client with BuildKit built in
	env      []string
	bk       *bk.Client // the client that docker build is made of today
}

func startDocker(t *testing.T) *docker {
	t.Helper()
	daemon, err := dockertest.StartDaemon(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, daemon.Stop()) })
	d := &docker{started: time.Now(), cli: "/usr/bin/docker"}
	if _, err := os.Stat(d.cli); err != nil {
		d.cli, err = exec.LookPath("docker")
		require.NoError(t, err)
	}
	d.env = append(os.Environ(), "DOCKER_HOST="+daemon.Host, "DOCKER_CONFIG="+t.TempDir())
	socket := strings.TrimPrefix(daemon.Host, "unix://")
	d.bk, err = bk.New(t.Context(), "",
		bk.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return upgrade(ctx, socket, "/grpc", "h2c", nil)
		}),
		bk.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			return upgrade(ctx, socket, "/session", proto, meta)
		}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.bk.Close()) })
	return d
}

// upgrade makes a connection to one of the daemon's endpoints that speak something
// other than HTTP/1.
func upgrade(ctx context.Context, socket, path, proto string, meta map[string][]string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker"+path, nil)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	maps.Copy(req.Header, meta)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", proto)
	if err := req.Write(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, errors.Join(fmt.Errorf("POST %s: %s", path, resp.Status), conn.Close())
	}
	return &upgraded{conn, in}, nil
}

// An upgraded is a connection of which something may have been read ahead.
type upgraded struct {
	net.Conn
	in *bufio.Reader
}

func (u *upgraded) Read(b []byte) (int, error) { return u.in.Read(b) }

const copyAll = "FROM scratch\nCOPY . /\n"

// byCommand returns what the docker build of this machine makes of dir.
func (d *docker) byCommand(t *testing.T, dir, dockerfile string) (map[string]node, error) {
	t.Helper()
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), d.cli, "build", "--no-cache", "-q", "-o", "type=local,dest="+out, "-f", dockerfile, dir)
	cmd.Env = append(d.env, "DOCKER_BUILDKIT=1")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("docker build: %w: %s", err, text)
	}
	return nodes(t, out), nil
}

// byDirectory returns what today's docker build makes of dir: its client is
// BuildKit's, which reads the tree and applies the ignore file.
func (d *docker) byDirectory(t *testing.T, dir, dockerfile string) (map[string]node, error) {
	t.Helper()
	context, err := fsutil.NewFS(dir)
	require.NoError(t, err)
	return d.solve(t, filepath.Dir(dockerfile), context, nil)
}

// byPack returns what docker makes of the tar stream of Pack.
func (d *docker) byPack(t *testing.T, opt buildctx.Options, dockerfile string) (map[string]node, error) {
	t.Helper()
	var buf bytes.Buffer
	if err := buildctx.Pack(t.Context(), &buf, opt); err != nil {
		return nil, err
	}
	df := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(df, "Dockerfile"), []byte(dockerfile), 0o644))
	return d.solve(t, df, nil, &buf)
}

func copyAllFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "Dockerfile")
	require.NoError(t, os.WriteFile(name, []byte(copyAll), 0o644))
	return name
}

// solve builds the Dockerfile in the directory df and returns the image's files.
// The context is dir or, where that is nil, the tar stream.
func (d *docker) solve(t *testing.T, df string, dir fsutil.FS, stream io.Reader) (map[string]node, error) {
	t.Helper()
	dfs, err := fsutil.NewFS(df)
	require.NoError(t, err)
	out := t.TempDir()
	opt := bk.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: map[string]string{"filename": "Dockerfile"},
		LocalMounts:   map[string]fsutil.FS{"dockerfile": dfs},
		Exports:       []bk.ExportEntry{{Type: bk.ExporterLocal, OutputDir: out}},
	}
	if dir != nil {
		opt.LocalMounts["context"] = dir
	} else {
		up := uploadprovider.New()
		opt.FrontendAttrs["context"] = up.Add(io.NopCloser(stream))
		opt.FrontendAttrs["dockerfilekey"] = "dockerfile"
		opt.Session = []session.Attachable{up}
	}
	status := make(chan *bk.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range status {
		}
	}()
	_, err = d.bk.Solve(t.Context(), nil, opt, status)
	<-done
	if err != nil {
		return nil, err
	}
	return nodes(t, out), nil
}

// A node is all that can be told of a file.
type node struct {
	Mode     fs.FileMode
	Size     int64
	Time     time.Time
	UID, GID uint32
	Rdev     uint64
	Link     string
	Same     string // first of the names of the same file
	Content  string
}

// nodes returns everything below dir, by path.
func nodes(t *testing.T, dir string) map[string]node {
	t.Helper()
	all := map[string]node{}
	first := map[uint64]string{}
	require.NoError(t, filepath.WalkDir(dir, func(full string, e fs.DirEntry, err error) error {
		if err != nil || full == dir {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		rel, err := filepath.Rel(dir, full)
		if err != nil {
			return err
		}
		n := node{Mode: fi.Mode(), Time: fi.ModTime().UTC(), UID: st.Uid, GID: st.Gid, Rdev: st.Rdev}
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(full)
			if err != nil {
				return err
			}
			n.Size, n.Content = fi.Size(), string(data)
			if st.Nlink > 1 {
				if _, seen := first[st.Ino]; !seen {
					first[st.Ino] = rel
				}
				n.Same = first[st.Ino]
			}
		case fi.Mode()&fs.ModeSymlink != 0:
			if n.Link, err = os.Readlink(full); err != nil {
				return err
			}
		}
		all[rel] = n
		return nil
	}))
	return all
}

// differences lists where got is not want. about adds what is known of a path.
//
// emptied tells of files that docker's client sends without their content: its
// walk finds them not to be ignored, but when it opens them it asks again, in
// another way, that may come to the other conclusion, and then it sends nothing
// (tonistiigi/fsutil filter.go, Open, and send.go, sendFile). We send them whole.
func (d *docker) differences(want, got map[string]node, emptied func(string) bool, about func(string) string) error {
	var all []error
	for p, w := range want {
		g, ok := got[p]
		if !ok {
			all = append(all, fmt.Errorf("%q is missing\n%s", p, about(p)))
			continue
		}
		// The exporter of older docker commands gives directories the time of
		// the build.
		if w.Mode.IsDir() && g.Mode.IsDir() && w.Time.After(d.started) {
			w.Time = g.Time
		}
		if w.Size == 0 && g.Size > 0 && emptied(p) {
			w.Size, w.Content = g.Size, g.Content
		}
		if w != g {
			if w.Content != g.Content {
				all = append(all, fmt.Errorf("%q has other content", p))
			}
			w.Content, g.Content = "", ""
			all = append(all, fmt.Errorf("%q\nwant %+v\n got %+v", p, w, g))
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			all = append(all, fmt.Errorf("%q should not be there\n%s", p, about(p)))
		}
	}
	return errors.Join(all...)
}

func lines(l []string) string { return fmt.Sprintf("ignore file: %q", l) }
