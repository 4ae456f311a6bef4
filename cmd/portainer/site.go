package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"gocloud.dev/blob"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/scratch"
	"github.com/org/portainer/internal/staging"
)

// A site is where builds run: a cluster, a staging bucket, and an executor that
// the agents can start.
type site struct {
	master          string
	bucket          *blob.Bucket
	agentURL        string       // what agents open as the bucket
	signer          *blob.Bucket // the bucket as agents reach it; nil if it is only there for them
	ownBucket       bool         // a temporary directory, which goes with the site
	executorURI     string
	executorCommand string

	closers []func() error // called last first
}

func (s *site) close() error {
	var errs []error
	for _, closer := range slices.Backward(s.closers) {
		errs = append(errs, closer())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// openSite brings up or finds everything that a build needs. The caller closes
// the site.
func (c *frameworkCommand) openSite(ctx context.Context) (_ *site, err error) {
	s := &site{master: c.master}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	agents, isLocal, err := localAgents(c.master)
	if err != nil {
		return nil, err
	}
	here := isLocal || onThisMachine(c.master) // agents see our files
	if c.stagingURI == "" && !here {
		return nil, usagef("--staging-uri is missing: with the master at %s it must say where agents can read what is built, such as s3://bucket or file:///mnt/shared", redactMaster(c.master))
	}
	ownDir := c.stagingURI == ""
	uri := c.stagingURI
	if ownDir && c.stateDir != "" {
		uri = filepath.Join(c.stateDir, "staging") // who takes over finds it there
	}
	if err := s.openBucket(ctx, uri); err != nil {
		return nil, err
	}
	if c.agentURL != "" {
		if err := s.openForAgents(ctx, c.agentURL); err != nil {
			return nil, err
		}
	}
	s.sweep(ctx, c.logger)
	if isLocal {
		if err := s.startLocal(agents, c.globals); err != nil {
			return nil, err
		}
	}
	// A container does not see this program where it lies.
	asItLies := (isLocal || here && ownDir) && c.container.Image == ""
	return s, s.chooseExecutor(ctx, c.executorURI, asItLies)
}

// stagingPrefix begins the name of a temporary staging directory.
const stagingPrefix = "portainer-staging-"

// localAgents reads "local" and "local:N".
func localAgents(master string) (n int, isLocal bool, err error) {
	if master == "local" {
		return 1, true, nil
	}
	count, ok := strings.CutPrefix(master, "local:")
	if !ok {
		return 0, false, nil
	}
	n, err = strconv.Atoi(count)
	if err != nil || n < 1 || n > 1000 {
		return 0, false, usagef("--mesos-master %s: after local: stands the number of agents, 1 to 1000", master)
	}
	return n, true, nil
}

// onThisMachine reports whether all masters listen on a loopback address.
func onThisMachine(master string) bool {
	if strings.HasPrefix(master, "zk://") {
		return false
	}
	for one := range strings.SplitSeq(master, ",") {
		if !strings.Contains(one, "://") {
			one = "http://" + one
		}
		u, err := url.Parse(strings.TrimSpace(one))
		if err != nil {
			return false
		}
		host := u.Hostname()
		ip := net.ParseIP(host)
		if host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

// redactMaster hides the password that a zk:// address may hold.
func redactMaster(master string) string {
	scheme, rest, ok := strings.Cut(master, "://")
	if !ok {
		return master
	}
	if at := strings.LastIndex(rest, "@"); at >= 0 {
		rest = "…" + rest[at:]
	}
	return scheme + "://" + rest
}

// openBucket opens the staging bucket at uri, or a temporary one.
func (s *site) openBucket(ctx context.Context, uri string) error {
	if uri == "" {
		dir, err := scratch.Make(stagingPrefix)
		if err != nil {
			return fmt.Errorf("%w: temporary staging directory: %w", portainer.ErrStaging, err)
		}
		s.closers = append(s.closers, dir.Remove)
		uri, s.ownBucket = dir.Path(), true
	}
	full, err := stagingURL("--staging-uri", uri)
	if err != nil {
		return err
	}
	return s.openURL(ctx, uri, full)
}

// openThere opens the staging bucket at uri to look at it. A directory that is not there
// is not made: most likely it is another one that is meant.
func (s *site) openThere(ctx context.Context, uri string) error {
	full, err := stagingURL("--staging-uri", uri)
	if err != nil {
		return err
	}
	u, err := url.Parse(full)
	if err != nil {
		return usagef("--staging-uri: %w", err)
	}
	q := u.Query()
	q.Del("create_dir")
	u.RawQuery = q.Encode()
	return s.openURL(ctx, uri, u.String())
}

// openURL opens the staging bucket at full, of which the user gave uri.
func (s *site) openURL(ctx context.Context, uri, full string) error {
	bucket, err := blob.OpenBucket(ctx, full)
	if err != nil {
		return fmt.Errorf("%w: --staging-uri %s: %w", portainer.ErrStaging, redactURL(uri), err)
	}
	s.closers = append(s.closers, bucket.Close)
	s.bucket, s.signer, s.agentURL = bucket, bucket, full
	return nil
}

// openForAgents notes that agents reach the bucket at another address, which is opened
// here only to sign URLs for them.
func (s *site) openForAgents(ctx context.Context, uri string) error {
	full, err := stagingURL("--staging-agent-url", uri)
	if err != nil {
		return err
	}
	s.agentURL, s.signer = full, nil
	if isFileURL(full) {
		return nil // a directory of theirs
	}
	s.signer, err = blob.OpenBucket(ctx, full)
	if err != nil {
		return fmt.Errorf("%w: --staging-agent-url %s: %w", portainer.ErrStaging, redactURL(uri), err)
	}
	s.closers = append(s.closers, s.signer.Close)
	return nil
}

func isFileURL(uri string) bool { return strings.HasPrefix(uri, "file://") }

// stagingURL completes what a user gave with a flag as a bucket: a plain directory
// becomes a file URL, and file URLs get the options that staging needs.
func stagingURL(flag, uri string) (string, error) {
	if !strings.Contains(uri, "://") {
		dir, err := filepath.Abs(uri)
		if err != nil {
			return "", usagef("%s: %w", flag, err)
		}
		uri = fileURL(dir)
	}
	u, err := url.Parse(uri)
	if err != nil {
		return "", usagef("%s: %w", flag, err)
	}
	switch u.Scheme {
	case "mem":
		return "", usagef("%s %s: only this process can see it; give a directory or a bucket that the agents can read", flag, uri)
	case "file":
		q := u.Query()
		// Temporary files elsewhere could not be renamed into place, and nothing
		// reads the side files of attributes.
		q.Set("no_tmp_dir", "true")
		q.Set("metadata", "skip")
		q.Set("create_dir", "true")
		u.RawQuery = q.Encode()
	}
	return u.String(), nil
}

func fileURL(path string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/…
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// redactURL hides a password, and the query, which may hold credentials.
func redactURL(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return "…"
	}
	u.RawQuery = ""
	return u.Redacted()
}

// executorLife is how long an agent may take to fetch a staged executor by a
// signed URL: as long as a build may sensibly wait in the queue.
const executorLife = 7 * 24 * time.Hour

// chooseExecutor decides what agents run. Without a given executor it is this
// program: where it lies if the agents can start it there, else staged.
func (s *site) chooseExecutor(ctx context.Context, uri string, asItLies bool) error {
	if uri != "" {
		s.executorURI = uri
		return nil
	}
	if runtime.GOOS != "linux" {
		return usagef("--executor-uri is missing: executors run on Linux, so this program for %s cannot be one; make one with \"make executor\"", runtime.GOOS)
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program to serve as executor: %w", err)
	}
	if asItLies {
		s.executorCommand = shellQuote(program) + " executor"
		return nil
	}
	key, err := staging.New(s.bucket).PutFile(ctx, program)
	if err != nil {
		return fmt.Errorf("%w: stage the executor: %w", portainer.ErrStaging, err)
	}
	s.executorCommand = "./portainer-executor executor"
	s.executorURI, err = s.urlOf(ctx, key)
	return err
}

// urlOf returns an address of a blob that Mesos's fetcher understands.
func (s *site) urlOf(ctx context.Context, key string) (string, error) {
	if u, err := url.Parse(s.agentURL); err == nil && u.Scheme == "file" {
		// The fetcher takes what follows the scheme as it stands (mesos
		// src/slave/containerizer/fetcher.cpp, uriToLocalPath).
		return "file://" + path.Join(u.Path, key), nil
	}
	signed, err := s.signer.SignedURL(ctx, key, &blob.SignedURLOptions{Expiry: executorLife})
	if err != nil {
		return "", fmt.Errorf("%w: address of the staged executor: %w; give --executor-uri instead", portainer.ErrStaging, err)
	}
	return signed, nil
}

// shellQuote makes s one word of a shell command.
func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
