// Demo goes the whole way on one machine: it starts a registry, builds the
// examples and the project's own image on an embedded cluster of two agents,
// pulls every manifest back and compares digests, and runs one of the images.
// Nothing of it is left at the end.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/org/portainer/internal/dockertest"
)

// dockerfiles are built, all of them at once.
var dockerfiles = []string{
	"examples/hello/Dockerfile",
	"examples/tree/a/Dockerfile",
	"examples/tree/b/Dockerfile",
	"examples/multistage/Dockerfile",
	"Dockerfile",
}

// patience is how long a program may take to end after an interrupt.
const patience = 30 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := demo(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("the Docker daemons that build and run images need root: run it as root")
	}
	dir, err := os.MkdirTemp("", "portainer-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	say("the programs")
	portainer := filepath.Join(dir, "portainer")
	if err := show(ctx, nil, "go", "build", "-o", portainer, "./cmd/portainer"); err != nil {
		return err
	}
	env := []string{"FORCE=1", "PLATFORMS=linux/" + runtime.GOARCH}
	if err := show(ctx, env, "scripts/executor"); err != nil {
		return err
	}

	say("a registry, with a base image made of this machine's busybox")
	registry, err := dockertest.StartRegistry(ctx, filepath.Join(dir, "registry"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Stop()) }()
	base, err := dockertest.PushBusybox(ctx, registry.Addr)
	if err != nil {
		return err
	}
	fmt.Println(base)

	say("the builds, on two agents")
	args := []string{"build", "--mesos-master", "local:2", "--to", registry.Addr, "--from", registry.Addr, "--tag", "demo"}
	refs, err := build(ctx, portainer, append(args, dockerfiles...))
	if err != nil {
		return err
	}
	if len(refs) != len(dockerfiles) {
		return fmt.Errorf("%d Dockerfiles, but %d references", len(dockerfiles), len(refs))
	}

	say("what the registry has")
	for _, ref := range refs {
		if err := compare(ctx, ref); err != nil {
			return err
		}
		fmt.Println("ok", ref)
	}

	say("a container of examples/hello")
	return runHello(ctx, filepath.Join(dir, "docker"), refs)
}

func say(what string) { fmt.Printf("\n=== %s\n", what) }

// show prints a command and runs it.
func show(ctx context.Context, env []string, name string, args ...string) error {
	return command(ctx, os.Stdout, env, name, args...)
}

// build runs portainer and returns the references that it printed.
func build(ctx context.Context, portainer string, args []string) ([]string, error) {
	var out bytes.Buffer
	if err := command(ctx, &out, nil, portainer, args...); err != nil {
		return nil, err
	}
	var refs []string
	for lines := bufio.NewScanner(&out); lines.Scan(); {
		refs = append(refs, lines.Text())
	}
	return refs, nil
}

// command prints a command line and runs it. An interrupt is passed on.
func command(ctx context.Context, stdout io.Writer, env []string, name string, args ...string) error {
	fmt.Println("$", strings.Join(append(append(env, filepath.Base(name)), args...), " "))
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = stdout, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = patience
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return nil
}

// compare pulls the manifest of ref, "host/repository:tag@sha256:…", by its tag
// and checks that it has the digest.
func compare(ctx context.Context, ref string) error {
	name, digest, ok := strings.Cut(ref, "@")
	host, rest, ok2 := strings.Cut(name, "/")
	colon := strings.LastIndex(rest, ":")
	if !ok || !ok2 || colon < 0 {
		return fmt.Errorf("%q is not a reference with tag and digest", ref)
	}
	url := fmt.Sprintf("http://%s/v2/%s/manifests/%s", host, rest[:colon], rest[colon+1:])
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header["Accept"] = []string{
		"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
		"application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json",
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	manifest, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", url, resp.Status, manifest)
	}
	sum := sha256.Sum256(manifest)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != digest {
		return fmt.Errorf("%s: the registry has %s", ref, got)
	}
	return nil
}

// runHello runs the image of examples/hello with a Docker daemon of its own.
func runHello(ctx context.Context, dir string, refs []string) (err error) {
	var hello string
	for _, ref := range refs {
		if strings.Contains(ref, "/examples/hello:") {
			hello = ref
		}
	}
	daemon, err := dockertest.StartDaemon(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.Stop()) }()
	var out bytes.Buffer
	err = command(ctx, io.MultiWriter(os.Stdout, &out), nil, "docker", "--host", daemon.Host, "run", "--rm", "--network", "none", hello, "cluster")
	if err != nil {
		return err
	}
	if got := out.String(); got != "Hello, cluster!\n" {
		return fmt.Errorf("%s printed %q", hello, got)
	}
	return nil
}
