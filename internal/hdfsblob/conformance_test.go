package hdfsblob

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/driver"
	"gocloud.dev/blob/drivertest"

	"github.com/org/portainer/internal/hdfsblob/webhdfstest"
)

// A harness is a cluster for gocloud's conformance tests.
type harness struct {
	t       *testing.T
	cluster *webhdfstest.Cluster
	opts    Options
}

func (h *harness) open(dir string) (driver.Bucket, error) {
	var nodes []string
	for _, n := range h.cluster.Namenodes() {
		nodes = append(nodes, "http://"+n)
	}
	return openBucket(nodes, dir, &h.opts)
}

func (h *harness) MakeDriver(context.Context) (driver.Bucket, error) { return h.open("/staging") }
func (h *harness) MakeDriverForNonexistentBucket(context.Context) (driver.Bucket, error) {
	return h.open("/missing")
}
func (h *harness) HTTPClient() *http.Client         { return nil }
func (h *harness) SupportsCopy() bool               { return true }
func (h *harness) SupportsNonSlashDelimiters() bool { return true }
func (h *harness) Close() {
	for name := range h.cluster.Files() {
		if name != "/staging" && !isBelow(name, "/staging") || strings.HasPrefix(name, "/staging/"+uploadPrefix) {
			h.t.Errorf("%s is left", name)
		}
	}
	if err := h.cluster.Close(); err != nil {
		h.t.Error(err)
	}
}

func isBelow(name, dir string) bool { return len(name) > len(dir) && name[:len(dir)+1] == dir+"/" }

func TestConformance(t *testing.T) {
	for name, opts := range map[string]webhdfstest.Options{
		"plain":   {},
		"HA":      {Namenodes: 2, Datanodes: 2},
		"gateway": {NoRenameOptions: true},
	} {
		t.Run(name, func(t *testing.T) {
			drivertest.RunConformanceTests(t, func(context.Context, *testing.T) (drivertest.Harness, error) {
				c, err := webhdfstest.Start(opts)
				if err != nil {
					return nil, err
				}
				c.Activate(opts.Namenodes / 2) // the second of two
				if err := c.Mkdir("/staging", "alice"); err != nil {
					return nil, err
				}
				return &harness{t: t, cluster: c, opts: Options{User: "alice"}}, nil
			}, []drivertest.AsTest{asRemoteError{}})
		})
	}
}

// asRemoteError checks that a caller gets to the exception of an error.
type asRemoteError struct{}

func (asRemoteError) Name() string                   { return "a RemoteError" }
func (asRemoteError) BucketCheck(*blob.Bucket) error { return nil }
func (asRemoteError) ErrorCheck(b *blob.Bucket, err error) error {
	var remote *RemoteError
	if !b.ErrorAs(err, &remote) || remote.Exception != "FileNotFoundException" {
		return err
	}
	return nil
}
func (asRemoteError) BeforeRead(func(any) bool) error          { return nil }
func (asRemoteError) BeforeWrite(func(any) bool) error         { return nil }
func (asRemoteError) BeforeCopy(func(any) bool) error          { return nil }
func (asRemoteError) BeforeDelete(func(any) bool) error        { return nil }
func (asRemoteError) BeforeList(func(any) bool) error          { return nil }
func (asRemoteError) BeforeSign(func(any) bool) error          { return nil }
func (asRemoteError) AttributesCheck(*blob.Attributes) error   { return nil }
func (asRemoteError) ReaderCheck(*blob.Reader) error           { return nil }
func (asRemoteError) ListObjectCheck(o *blob.ListObject) error { return nil }

func BenchmarkDriver(b *testing.B) {
	c, err := webhdfstest.Start(webhdfstest.Options{})
	require.NoError(b, err)
	defer c.Close()
	bucket, err := OpenBucket([]string{"http://" + c.Namenodes()[0]}, "/", &Options{User: "hdfs"})
	require.NoError(b, err)
	defer bucket.Close()
	drivertest.RunBenchmarks(b, bucket)
}
