package storagetest_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
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
	env   func(t testing.TB, r *relay, right bool) map[string]string
	start func(testing.TB, *relay) *server
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

	patient bool // it tries again for longer than a test can wait, or as long as its context lasts
}

var kinds = map[string]kind{
	"mem": {start: func(testing.TB, *relay) *server {
		return &server{bucket: func(t testing.TB) *blob.Bucket { return openURL(t, "mem://") }}
	}},
	"file":   {start: startFile},
	"s3":     {start: startS3, env: envS3},
	"azblob": {start: startAzure, env: envAzure},
	"gs":     {start: startGCS, env: envGCS},
	"hdfs":   {start: startHDFS},
}

// setenv prepares the environment for a kind.
func (k kind) setenv(t testing.TB, r *relay, right bool) {
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

func startFile(t testing.TB, _ *relay) *server {
	dir := t.TempDir()
	open := func(t testing.TB, dir, options string) *blob.Bucket {
		return openURL(t, (&url.URL{Scheme: "file", Path: filepath.ToSlash(dir), RawQuery: options}).String())
	}
	return &server{
		bucket: func(t testing.TB) *blob.Bucket { return open(t, dir, "no_tmp_dir=true&metadata=skip") },
	}
}

// through has a relay do what can be done to a server. start starts it, again, and
// returns where it listens.
func (s *server) through(t testing.TB, r *relay, start func(testing.TB) (p *process, network, address string)) {
	var mu sync.Mutex
	var running *process
	s.revive = func(t testing.TB) {
		p, network, address := start(t)
		mu.Lock()
		running = p
		mu.Unlock()
		// Connections to the dead one must not come to an end under new requests.
		require.Eventually(t, r.idle, startTime, 5*time.Millisecond)
		r.to(network, address)
	}
	s.dieAfter = func(n int64) {
		r.after(up, n, func() {
			mu.Lock()
			p := running
			mu.Unlock()
			p.kill()
			r.cut()
		})
	}
	s.breakReads = func(n int64, times int) {
		var again func()
		left := times // only the alarm that rings touches it
		again = func() {
			r.cut()
			if left--; left > 0 {
				r.after(down, n, again)
			}
		}
		r.after(down, n, again)
	}
	s.revive(t)
}

func envS3(_ testing.TB, _ *relay, right bool) map[string]string {
	env := map[string]string{
		"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "guessed", "AWS_SESSION_TOKEN": "", "AWS_REGION": "us-east-1",
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	}
	if right {
		env["AWS_SECRET_ACCESS_KEY"] = "right"
	}
	return env
}

// startS3 runs Versity's gateway over a directory.
func startS3(t testing.TB, r *relay) *server {
	program, err := storagetest.GoTool(t.Context(), "github.com/versity/versitygw/cmd/versitygw")
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "s3-") //nolint:usetesting // short: a socket is in it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	for _, d := range []string{"data/staging", "meta"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o777))
	}
	open := func(t testing.TB, bucket string) *blob.Bucket {
		return openURL(t, "s3://"+bucket+"?use_path_style=true&endpoint="+url.QueryEscape("http://"+r.addr()))
	}
	k := &server{
		bucket:    func(t testing.TB) *blob.Bucket { return open(t, "staging") },
		wrong:     func(t testing.TB) *blob.Bucket { return open(t, "staging") },
		wrongCode: gcerrors.Unknown, // gocloud classes few of S3's errors
		missing:   func(t testing.TB) *blob.Bucket { return open(t, "nothing") },
	}
	k.through(t, r, func(t testing.TB) (*process, string, string) {
		socket := filepath.Join(dir, "socket")
		os.Remove(socket) // of one that was killed
		p := startProcess(t, nil, program, "--access", "someone", "--secret", "right", "--port", socket, "--quiet", "--keep-alive",
			"posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
		p.waitForListener(t, "unix", socket)
		return p, "unix", socket
	})
	return k
}

// The account that every Azurite has (Azurite's README).
const (
	azureAccount = "devstoreaccount1"
	azureKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

var azuritePattern = regexp.MustCompile(`listens on http://(\S+)`)

func envAzure(_ testing.TB, r *relay, right bool) map[string]string {
	env := map[string]string{
		"AZURE_STORAGE_ACCOUNT": azureAccount, "AZURE_STORAGE_KEY": "Z3Vlc3NlZA==", "AZURE_STORAGE_DOMAIN": r.addr(), "AZURE_STORAGE_PROTOCOL": "http",
	}
	if right {
		env["AZURE_STORAGE_KEY"] = azureKey
	}
	return env
}

// startAzure runs Azurite.
func startAzure(t testing.TB, r *relay) *server {
	dir, err := storagetest.NPM(t.Context(), "azurite", "3.35.0")
	require.NoError(t, err)
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
	k.through(t, r, func(t testing.TB) (*process, string, string) {
		p := startProcess(t, nil, "node", filepath.Join(dir, "node_modules", "azurite", "dist", "src", "blob", "main.js"),
			"--blobHost", "127.0.0.1", "--blobPort", "0", "--location", location, "--disableTelemetry", "--skipApiVersionCheck")
		p.waitFor(t, "address", func() bool { return azuritePattern.MatchString(p.output.String()) })
		address := azuritePattern.FindStringSubmatch(p.output.String())[1]
		// Each time: Azurite writes what it knows to disk now and then, so one that
		// is killed may have forgotten its newest container, and that blobs are gone.
		createContainer(t, address, "staging")
		return p, "tcp", address
	})
	return k
}

// createContainer makes a container in Azurite, unless there is one, by a request that is signed as
// Azure's "Authorize with Shared Key" tells.
func createContainer(t testing.TB, address, name string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+address+"/"+azureAccount+"/"+name+"?restype=container", nil)
	require.NoError(t, err)
	date := time.Now().UTC().Format(http.TimeFormat)
	req.Header.Set("X-Ms-Date", date)
	req.Header.Set("X-Ms-Version", "2021-12-02")
	key, err := base64.StdEncoding.DecodeString(azureKey)
	require.NoError(t, err)
	mac := hmac.New(sha256.New, key)
	// Twelve headers in between are not set.
	fmt.Fprintf(mac, "PUT%sx-ms-date:%s\nx-ms-version:2021-12-02\n/%s/%[3]s/%[4]s\nrestype:container", strings.Repeat("\n", 12), date, azureAccount, name)
	req.Header.Set("Authorization", "SharedKey "+azureAccount+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Contains(t, []int{http.StatusCreated, http.StatusConflict}, resp.StatusCode)
}

func envGCS(_ testing.TB, r *relay, _ bool) map[string]string {
	return map[string]string{"STORAGE_EMULATOR_HOST": r.addr()}
}

// startGCS runs fake-gcs-server, which takes any credentials.
func startGCS(t testing.TB, r *relay) *server {
	program, err := storagetest.GoTool(t.Context(), "github.com/fsouza/fake-gcs-server")
	require.NoError(t, err)
	root := t.TempDir()
	open := func(t testing.TB, name string) *blob.Bucket {
		return openURL(t, "gs://"+name+"?anonymous=true")
	}
	k := &server{
		bucket:  func(t testing.TB) *blob.Bucket { return open(t, "staging") },
		missing: func(t testing.TB) *blob.Bucket { return open(t, "nothing") },
		patient: true,
	}
	k.through(t, r, func(t testing.TB) (*process, string, string) {
		host, port := freePort(t)
		p := startProcess(t, nil, program, "-scheme", "http", "-host", host, "-port", port, "-backend", "filesystem", "-filesystem-root", root,
			"-external-url", "http://"+r.addr(), "-public-host", r.addr(), "-log-level", "warn")
		p.waitForListener(t, "tcp", host+":"+port)
		return p, "tcp", host + ":" + port
	})
	resp, err := http.Post("http://"+r.addr()+"/storage/v1/b?project=test", "application/json", strings.NewReader(`{"name": "staging"}`))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)
	return k
}

// startHDFS runs our own test cluster, whose nodes break down by themselves.
func startHDFS(t testing.TB, _ *relay) *server {
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
