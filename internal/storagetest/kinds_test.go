package storagetest_test

import (
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/azureblob"
	_ "gocloud.dev/blob/fileblob"
	_ "gocloud.dev/blob/gcsblob"
	_ "gocloud.dev/blob/memblob"
	_ "gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"

	"github.com/org/portainer/internal/hdfsblob"
	"github.com/org/portainer/internal/hdfsblob/webhdfstest"
	"github.com/org/portainer/internal/storagetest"
)

// A kind of storage is known by its URL scheme.
type kind struct {
	// env is the environment that clients of a server behind a relay need, with a right
	// or a wrong secret.
	env   func(t testing.TB, r *storagetest.Relay, right bool) map[string]string
	start func(testing.TB, *storagetest.Relay) *server
}

// A server is running storage of one kind.
type server struct {
	bucket  func(testing.TB) *blob.Bucket // empty at first
	wrong   func(testing.TB) *blob.Bucket // the same in an environment, or for a user, that is wrong; nil where that cannot be
	missing func(testing.TB) *blob.Bucket // one that does not exist; nil where that cannot be

	wrongCode gcerrors.ErrorCode // of the error that wrong leads to

	// breakReads breaks the connection every time that n more bytes have come from the
	// server, times times. dieAfter kills the server when n more bytes have come to it;
	// revive starts it again. nil where there is no server.
	breakReads func(n int64, times int)
	dieAfter   func(n int64)
	revive     func(testing.TB)

	url string // of the bucket; "" where nothing needs it

	patient bool // it tries again for longer than a test can wait, or as long as its context lasts
}

var kinds = map[string]kind{
	"mem": {start: func(testing.TB, *storagetest.Relay) *server {
		return &server{bucket: func(t testing.TB) *blob.Bucket { return openURL(t, "mem://") }}
	}},
	"file":   {start: startFile},
	"s3":     {start: startS3, env: envS3},
	"azblob": {start: startAzure, env: envAzure},
	"gs":     {start: startGCS, env: envGCS},
	"hdfs":   {start: startHDFS},
}

// setenv prepares the environment for a kind.
func (k kind) setenv(t testing.TB, r *storagetest.Relay, right bool) {
	if k.env == nil {
		return
	}
	for name, value := range k.env(t, r, right) {
		t.Setenv(name, value)
	}
}

func openURL(t testing.TB, u string) *blob.Bucket {
	t.Helper()
	b, err := blob.OpenBucket(t.Context(), u)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func startFile(t testing.TB, _ *storagetest.Relay) *server {
	dir := t.TempDir()
	open := func(t testing.TB, dir, options string) *blob.Bucket {
		return openURL(t, (&url.URL{Scheme: "file", Path: filepath.ToSlash(dir), RawQuery: options}).String())
	}
	return &server{
		bucket: func(t testing.TB) *blob.Bucket { return open(t, dir, "no_tmp_dir=true&metadata=skip") },
	}
}

// through has a relay do what can be done to a server. start starts it, again.
func (s *server) through(t testing.TB, r *storagetest.Relay, start func() (*storagetest.Server, error)) {
	var mu sync.Mutex
	var running *storagetest.Server
	s.revive = func(t testing.TB) {
		p, err := start()
		require.NoError(t, err)
		t.Cleanup(func() {
			p.Kill()
			if t.Failed() {
				t.Logf("the server said:\n%s", p.Output())
			}
		})
		mu.Lock()
		running = p
		mu.Unlock()
		// Connections to the dead one must not come to an end under new requests.
		require.Eventually(t, r.Idle, startTime, 5*time.Millisecond)
		r.To(p.Network, p.Address)
	}
	s.dieAfter = func(n int64) {
		r.After(storagetest.Up, n, func() {
			mu.Lock()
			p := running
			mu.Unlock()
			p.Kill()
			r.Cut()
		})
	}
	s.breakReads = func(n int64, times int) {
		var again func()
		left := times // only the alarm that rings touches it
		again = func() {
			r.Cut()
			if left--; left > 0 {
				r.After(storagetest.Down, n, again)
			}
		}
		r.After(storagetest.Down, n, again)
	}
	s.revive(t)
}

// startTime is what a server may take to let go of its clients on a busy machine.
const startTime = time.Minute

func envS3(_ testing.TB, _ *storagetest.Relay, right bool) map[string]string {
	return storagetest.S3Env(right)
}

func startS3(t testing.TB, r *storagetest.Relay) *server {
	dir, err := os.MkdirTemp("", "s3-") //nolint:usetesting // short: a socket is in it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	open := func(t testing.TB, bucket string) *blob.Bucket { return openURL(t, storagetest.S3URL(r.Addr(), bucket)) }
	k := &server{
		bucket:    func(t testing.TB) *blob.Bucket { return open(t, "staging") },
		wrong:     func(t testing.TB) *blob.Bucket { return open(t, "staging") },
		wrongCode: gcerrors.Unknown, // gocloud classes few of S3's errors
		missing:   func(t testing.TB) *blob.Bucket { return open(t, "nothing") },
		url:       storagetest.S3URL(r.Addr(), "staging"),
	}
	k.through(t, r, func() (*storagetest.Server, error) { return storagetest.StartS3(t.Context(), dir) })
	return k
}

func envAzure(_ testing.TB, r *storagetest.Relay, right bool) map[string]string {
	return storagetest.AzureEnv(r.Addr(), right)
}

func startAzure(t testing.TB, r *storagetest.Relay) *server {
	location := t.TempDir()
	open := func(t testing.TB, name string) *blob.Bucket {
		// The default opener of azblob:// reads the environment once in a process.
		opener := &azureblob.URLOpener{MakeClient: azureblob.NewDefaultClient, ServiceURLOptions: *azureblob.NewDefaultServiceURLOptions()}
		b, err := opener.OpenBucketURL(t.Context(), &url.URL{Scheme: azureblob.Scheme, Host: name})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		return b
	}
	k := &server{
		bucket:    func(t testing.TB) *blob.Bucket { return open(t, "staging") },
		wrong:     func(t testing.TB) *blob.Bucket { return open(t, "staging") },
		wrongCode: gcerrors.Unknown, // of Azurite's AuthorizationFailure, where Azure says AuthenticationFailed
		missing:   func(t testing.TB) *blob.Bucket { return open(t, "nothing") },
		patient:   true,
	}
	k.through(t, r, func() (*storagetest.Server, error) { return storagetest.StartAzurite(t.Context(), location) })
	return k
}

func envGCS(_ testing.TB, r *storagetest.Relay, _ bool) map[string]string {
	return storagetest.GCSEnv(r.Addr())
}

func startGCS(t testing.TB, r *storagetest.Relay) *server {
	root := t.TempDir()
	k := &server{
		bucket:  func(t testing.TB) *blob.Bucket { return openURL(t, storagetest.GCSURL("staging")) },
		missing: func(t testing.TB) *blob.Bucket { return openURL(t, storagetest.GCSURL("nothing")) },
		patient: true,
	}
	k.through(t, r, func() (*storagetest.Server, error) { return storagetest.StartGCS(t.Context(), root, r.Addr()) })
	return k
}

// startHDFS runs our own test cluster, whose nodes break down by themselves.
func startHDFS(t testing.TB, _ *storagetest.Relay) *server {
	c, err := webhdfstest.Start(webhdfstest.Options{Namenodes: 2, Datanodes: 2})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	c.Activate(1)
	require.NoError(t, c.Mkdir("/staging", "someone"))
	open := func(t testing.TB, address string) *blob.Bucket {
		u, err := url.Parse(address)
		require.NoError(t, err)
		b, err := (&hdfsblob.URLOpener{Options: hdfsblob.Options{Retries: 4}}).OpenBucketURL(t.Context(), u)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		return b
	}
	return &server{
		bucket:    func(t testing.TB) *blob.Bucket { return open(t, c.URL("hdfs", "/staging?user=someone")) },
		wrong:     func(t testing.TB) *blob.Bucket { return open(t, c.URL("hdfs", "/staging?user=another")) },
		wrongCode: gcerrors.PermissionDenied,
		missing:   func(t testing.TB) *blob.Bucket { return open(t, c.URL("webhdfs", "/nothing?user=someone")) },
		breakReads: func(n int64, times int) {
			var mu sync.Mutex
			c.Inject(func(r webhdfstest.Request) *webhdfstest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if times == 0 || r.Op != "OPEN" || !r.Datanode {
					return nil
				}
				times--
				return &webhdfstest.Fault{BreakAfter: n}
			})
		},
		dieAfter: func(n int64) {
			var mu sync.Mutex
			dead := false
			c.Inject(func(r webhdfstest.Request) *webhdfstest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if dead {
					return &webhdfstest.Fault{Break: true}
				}
				if r.Op == "CREATE" && r.Datanode {
					dead = true
					return &webhdfstest.Fault{BreakAfter: n}
				}
				return nil
			})
		},
		revive: func(testing.TB) { c.Inject(nil) },
	}
}
