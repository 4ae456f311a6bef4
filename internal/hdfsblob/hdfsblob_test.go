package hdfsblob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/memblob"
	"gocloud.dev/gcerrors"

	"github.com/org/portainer/internal/hdfsblob"
	"github.com/org/portainer/internal/hdfsblob/webhdfstest"
)

// start runs a cluster until the test ends.
func start(t testing.TB, opts webhdfstest.Options) *webhdfstest.Cluster {
	t.Helper()
	c, err := webhdfstest.Start(opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// open opens a bucket of all of a cluster as its superuser, until the test ends.
func open(t testing.TB, c *webhdfstest.Cluster, dir string, opts hdfsblob.Options) *blob.Bucket {
	t.Helper()
	var nodes []string
	for _, n := range c.Namenodes() {
		nodes = append(nodes, "http://"+n)
	}
	if opts.User == "" && opts.Token == "" {
		opts.User = "hdfs"
	}
	b, err := hdfsblob.OpenBucket(nodes, dir, &opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

// onceOn returns an injection of one fault, into the first request that matches.
func onceOn(op string, datanode bool, fault webhdfstest.Fault) func(webhdfstest.Request) *webhdfstest.Fault {
	var once sync.Once
	return func(r webhdfstest.Request) (f *webhdfstest.Fault) {
		if r.Op == op && r.Datanode == datanode {
			once.Do(func() { f = &fault })
		}
		return f
	}
}

// alwaysOn is onceOn without an end.
func alwaysOn(op string, datanode bool, fault webhdfstest.Fault) func(webhdfstest.Request) *webhdfstest.Fault {
	return func(r webhdfstest.Request) *webhdfstest.Fault {
		if r.Op == op && r.Datanode == datanode {
			return &fault
		}
		return nil
	}
}

// exercise does everything once and checks what comes of it.
func exercise(ctx context.Context, b *blob.Bucket) error {
	content := random(100_000)
	opts := &blob.WriterOptions{ContentType: "text/x-test", Metadata: map[string]string{"k": "v"}}
	if err := b.WriteAll(ctx, "some/dir/a", content, opts); err != nil {
		return err
	}
	attrs, err := b.Attributes(ctx, "some/dir/a")
	if err != nil {
		return err
	}
	if attrs.ContentType != "text/x-test" || attrs.Metadata["k"] != "v" || attrs.Size != 100_000 {
		return fmt.Errorf("attributes %+v", attrs)
	}
	r, err := b.NewRangeReader(ctx, "some/dir/a", 1000, 50_000, nil)
	if err != nil {
		return err
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if !bytes.Equal(content[1000:51_000], got) {
		return errors.New("other bytes came back")
	}
	if err := b.Copy(ctx, "some/other/b", "some/dir/a", nil); err != nil {
		return err
	}
	var keys []string
	for o, err := range all(ctx, b, &blob.ListOptions{Prefix: "some/"}) {
		if err != nil {
			return err
		}
		keys = append(keys, o.Key)
	}
	if !slices.Equal(keys, []string{"some/dir/a", "some/other/b"}) {
		return fmt.Errorf("keys %q", keys)
	}
	return errors.Join(b.Delete(ctx, "some/dir/a"), b.Delete(ctx, "some/other/b"))
}

func all(ctx context.Context, b *blob.Bucket, opts *blob.ListOptions) func(yield func(*blob.ListObject, error) bool) {
	return func(yield func(*blob.ListObject, error) bool) {
		for it := b.List(opts); ; {
			o, err := it.Next(ctx)
			if errors.Is(err, io.EOF) || !yield(o, err) || err != nil {
				return
			}
		}
	}
}

func TestEveryRequestIsTriedAgain(t *testing.T) {
	type point struct {
		op       string
		datanode bool
	}
	points := []point{
		{"GETFILESTATUS", false}, {"LISTSTATUS", false}, {"CREATE", false}, {"CREATE", true}, {"SETXATTR", false}, {"RENAME", false},
		{"MKDIRS", false}, {"GETXATTRS", false}, {"OPEN", false}, {"OPEN", true}, {"DELETE", false},
	}
	faults := map[string]webhdfstest.Fault{
		"status 500":         {Status: 500, Exception: "java.lang.NullPointerException", Message: "oops"},
		"status 503":         {Status: 503},
		"told to":            {Status: 403, Exception: "org.apache.hadoop.ipc.RetriableException", Message: "try again"},
		"safe mode":          {Status: 403, Exception: "org.apache.hadoop.hdfs.server.namenode.SafeModeException", Message: "starting up"},
		"broken before":      {Break: true},
		"broken after":       {BreakReply: true},
		"silence":            {Stall: true},
		"broken in the file": {BreakAfter: 30_000},
	}
	for _, p := range points {
		for name, fault := range faults {
			if p.op == "OPEN" && fault.BreakAfter > 0 {
				continue // an error of the Reader
			}
			t.Run(fmt.Sprintf("%s of %s, datanode %v", name, p.op, p.datanode), func(t *testing.T) {
				t.Parallel()
				c := start(t, webhdfstest.Options{Datanodes: 2})
				b := open(t, c, "/made", hdfsblob.Options{CreateDir: true, StallTimeout: 500 * time.Millisecond})
				c.Inject(onceOn(p.op, p.datanode, fault))
				require.NoError(t, exercise(t.Context(), b))
				require.Empty(t, c.Files())
			})
		}
	}
}

func TestHighAvailability(t *testing.T) {
	t.Run("the second is active", func(t *testing.T) {
		c := start(t, webhdfstest.Options{Namenodes: 2})
		c.Activate(1)
		b := open(t, c, "/", hdfsblob.Options{Retries: -1})
		require.NoError(t, exercise(t.Context(), b))
		standby := 0
		for _, r := range c.Requests() {
			if !r.Datanode && r.Node == 0 {
				standby++
			}
		}
		require.Equal(t, 1, standby, "who has found the active one stays with it")
	})
	t.Run("the active one dies", func(t *testing.T) {
		c := start(t, webhdfstest.Options{Namenodes: 3})
		b := open(t, c, "/", hdfsblob.Options{Retries: -1})
		require.NoError(t, exercise(t.Context(), b))
		require.NoError(t, c.StopNamenode(0))
		c.Activate(2)
		require.NoError(t, exercise(t.Context(), b))
	})
	t.Run("none is active for a while", func(t *testing.T) {
		c := start(t, webhdfstest.Options{Namenodes: 2})
		c.Activate(-1)
		b := open(t, c, "/", hdfsblob.Options{})
		asked := make(chan struct{})
		var once sync.Once
		n := 0
		c.Inject(func(webhdfstest.Request) *webhdfstest.Fault {
			if n++; n > 4 { // requests come one after the other
				once.Do(func() { close(asked) })
			}
			return nil
		})
		done := make(chan error, 1)
		go func() {
			done <- b.WriteAll(t.Context(), "a", []byte("x"), &blob.WriterOptions{ContentType: "a/b"})
		}()
		<-asked
		c.Activate(1)
		require.NoError(t, <-done)
	})
	t.Run("none ever", func(t *testing.T) {
		c := start(t, webhdfstest.Options{Namenodes: 2})
		c.Activate(-1)
		b := open(t, c, "/", hdfsblob.Options{Retries: 2})
		_, err := b.ReadAll(t.Context(), "a")
		require.ErrorContains(t, err, "StandbyException")
		require.Equal(t, gcerrors.FailedPrecondition, gcerrors.Code(err))
	})
	t.Run("all are dead", func(t *testing.T) {
		c := start(t, webhdfstest.Options{Namenodes: 2})
		require.NoError(t, c.StopNamenode(0))
		require.NoError(t, c.StopNamenode(1))
		b := open(t, c, "/", hdfsblob.Options{Retries: 1})
		err := b.WriteAll(t.Context(), "a", []byte("x"), nil)
		require.ErrorContains(t, err, "connection refused")
	})
}

func TestDeadDatanodeIsLeftOut(t *testing.T) {
	c := start(t, webhdfstest.Options{Datanodes: 2})
	require.NoError(t, c.StopDatanode(0))
	b := open(t, c, "/", hdfsblob.Options{Retries: 1})
	for range 3 { // whichever is named first
		require.NoError(t, exercise(t.Context(), b))
	}
}

func TestOnlyDatanodeIsAskedAgain(t *testing.T) {
	c := start(t, webhdfstest.Options{})
	b := open(t, c, "/", hdfsblob.Options{Retries: 3})
	c.Inject(onceOn("CREATE", true, webhdfstest.Fault{Break: true}))
	require.NoError(t, exercise(t.Context(), b))
}

func TestLargeUploadIsAllOrNothing(t *testing.T) {
	content := random(3 << 20)
	write := func(ctx context.Context, b *blob.Bucket) error {
		return b.WriteAll(ctx, "dir/large", content, &blob.WriterOptions{ContentType: "a/b", BufferSize: 64 << 10})
	}
	tests := map[string]struct {
		fault   webhdfstest.Fault
		options webhdfstest.Options
		want    string
	}{
		"broken connection": {fault: webhdfstest.Fault{BreakAfter: 1 << 20}, want: "more had been sent than"},
		"silence":           {fault: webhdfstest.Fault{StallAfter: 1 << 20}, want: "no progress for 500ms"},
		"lost answer":       {fault: webhdfstest.Fault{BreakReply: true}, want: "more had been sent than"},
		"full disk":         {options: webhdfstest.Options{Capacity: 2 << 20}, want: "could only be written to 0 of the 1 minReplication nodes"},
		"server error":      {fault: webhdfstest.Fault{Status: 500, Exception: "java.lang.OutOfMemoryError", Message: "Java heap space"}, want: "Java heap space"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t, tt.options)
			b := open(t, c, "/", hdfsblob.Options{StallTimeout: 500 * time.Millisecond, Retries: 2})
			c.Inject(alwaysOn("CREATE", true, tt.fault))
			require.ErrorContains(t, write(t.Context(), b), tt.want)
			require.Empty(t, c.Files())
			c.Inject(nil)
			c.SetCapacity(0)
			require.NoError(t, write(t.Context(), b))
			require.Equal(t, map[string][]byte{"/dir/large": content}, c.Files())
		})
	}
}

func TestNamenodeKilledDuringUpload(t *testing.T) {
	c := start(t, webhdfstest.Options{})
	b := open(t, c, "/", hdfsblob.Options{Retries: 3})
	w, err := b.NewWriter(t.Context(), "a", &blob.WriterOptions{ContentType: "a/b", BufferSize: 1})
	require.NoError(t, err)
	_, err = w.Write(random(100_000))
	require.NoError(t, err)
	require.NoError(t, c.StopNamenode(0))
	began := time.Now()
	require.ErrorContains(t, w.Close(), "connection refused")
	require.Less(t, time.Since(began), 30*time.Second)
}

func TestCancelledAnywhere(t *testing.T) {
	content := random(300_000)
	for _, buffer := range []int{1 << 20, 10_000} {
		for at, requests := 1, 100; at <= requests; at++ {
			t.Run(fmt.Sprintf("buffer %d, at request %d", buffer, at), func(t *testing.T) {
				c := start(t, webhdfstest.Options{})
				b := open(t, c, "/", hdfsblob.Options{})
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				why := errors.New("interrupted")
				var mu sync.Mutex
				n := 0
				c.Inject(func(webhdfstest.Request) *webhdfstest.Fault {
					mu.Lock()
					defer mu.Unlock()
					if n++; n == at {
						cancel(why)
					}
					return nil
				})
				err := b.WriteAll(ctx, "dir/a", content, &blob.WriterOptions{ContentType: "a/b", BufferSize: buffer})
				mu.Lock()
				last := n < at
				mu.Unlock()
				if last {
					requests = at // there are no more
					require.NoError(t, err)
				}
				if err != nil {
					require.ErrorIs(t, err, context.Canceled)
				}
				files := c.Files()
				if err == nil || len(files) > 0 { // it came too late
					require.Equal(t, map[string][]byte{"/dir/a": content}, files)
				}
			})
		}
	}
}

func TestCancelBeforeClose(t *testing.T) {
	for _, size := range []int{0, 10, 200_000} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			c := start(t, webhdfstest.Options{})
			b := open(t, c, "/", hdfsblob.Options{})
			ctx, cancel := context.WithCancel(t.Context())
			w, err := b.NewWriter(ctx, "a", &blob.WriterOptions{ContentType: "a/b", BufferSize: 1000})
			require.NoError(t, err)
			_, err = w.Write(random(size))
			require.NoError(t, err)
			cancel()
			require.ErrorIs(t, w.Close(), context.Canceled)
			require.Empty(t, c.Files())
		})
	}
}

func TestReadErrors(t *testing.T) {
	c := start(t, webhdfstest.Options{})
	b := open(t, c, "/", hdfsblob.Options{StallTimeout: 300 * time.Millisecond, Retries: 1})
	content := random(500_000)
	require.NoError(t, b.WriteAll(t.Context(), "a", content, nil))
	for name, fault := range map[string]webhdfstest.Fault{
		"broken": {BreakAfter: 200_000},
		"silent": {StallAfter: 200_000},
	} {
		t.Run(name, func(t *testing.T) {
			c.Inject(alwaysOn("OPEN", true, fault))
			r, err := b.NewReader(t.Context(), "a", nil)
			require.NoError(t, err)
			defer r.Close()
			got, err := io.ReadAll(r)
			require.Error(t, err)
			require.Equal(t, content[:len(got)], got, "what came is right")
			require.NotEmpty(t, got)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		c.Inject(alwaysOn("OPEN", true, webhdfstest.Fault{StallAfter: 200_000}))
		ctx, cancel := context.WithCancel(t.Context())
		r, err := b.NewReader(ctx, "a", nil)
		require.NoError(t, err)
		defer r.Close()
		cancel()
		_, err = io.ReadAll(r)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestRanges(t *testing.T) {
	c := start(t, webhdfstest.Options{})
	b := open(t, c, "/", hdfsblob.Options{})
	content := random(1000)
	require.NoError(t, b.WriteAll(t.Context(), "a", content, nil))
	for _, offset := range []int{0, 1, 999, 1000, 5000} {
		for _, length := range []int{-1, 0, 1, 500, 1000, 5000} {
			r, err := b.NewRangeReader(t.Context(), "a", int64(offset), int64(length), nil)
			require.NoError(t, err)
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			require.NoError(t, r.Close())
			want := content[min(offset, 1000):]
			if length >= 0 {
				want = want[:min(length, len(want))]
			}
			require.True(t, bytes.Equal(want, got), "offset %d, length %d", offset, length)
			require.Equal(t, int64(1000), r.Size())
		}
	}
}

func TestCredentials(t *testing.T) {
	const token = "KAAKSm9i-sEcReT_tOkEn"
	secure := webhdfstest.Options{Token: token, TokenUser: "alice", AnyoneWrites: true}
	plain := webhdfstest.Options{}
	tests := map[string]struct {
		cluster webhdfstest.Options
		options hdfsblob.Options
		want    gcerrors.ErrorCode
		message string
	}{
		"right token":                {secure, hdfsblob.Options{Token: token}, gcerrors.OK, ""},
		"right token and a user":     {secure, hdfsblob.Options{Token: token, User: "bob"}, gcerrors.OK, ""},
		"wrong token":                {secure, hdfsblob.Options{Token: token + "x"}, gcerrors.PermissionDenied, "InvalidToken"},
		"user where a token belongs": {secure, hdfsblob.Options{User: "alice"}, gcerrors.PermissionDenied, "Authentication required"},
		"other user":                 {plain, hdfsblob.Options{User: "bob"}, gcerrors.PermissionDenied, "user=bob, access=WRITE"},
		"impossible user":            {plain, hdfsblob.Options{User: "no one"}, gcerrors.InvalidArgument, "no one"},
		"owner":                      {plain, hdfsblob.Options{User: "hdfs"}, gcerrors.OK, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := start(t, tt.cluster)
			b := open(t, c, "/", tt.options)
			began := time.Now()
			err := exercise(t.Context(), b)
			if tt.want == gcerrors.OK {
				require.NoError(t, err)
				return
			}
			require.Equal(t, tt.want, gcerrors.Code(err), "%v", err)
			require.ErrorContains(t, err, tt.message)
			require.Less(t, time.Since(began), 10*time.Second, "nothing to wait for")
			require.Empty(t, c.Files())
		})
	}
}

func TestErrorsKeepTheTokenSecret(t *testing.T) {
	const token = "KAAKSm9i-sEcReT_tOkEn"
	c := start(t, webhdfstest.Options{Token: token, TokenUser: "alice", AnyoneWrites: true})
	b := open(t, c, "/", hdfsblob.Options{Token: token, Retries: -1, StallTimeout: 200 * time.Millisecond})
	for _, fault := range []webhdfstest.Fault{{Break: true}, {BreakReply: true}, {Stall: true}, {Status: 500}, {Status: 404}} {
		for _, datanode := range []bool{false, true} {
			c.Inject(alwaysOn("CREATE", datanode, fault))
			err := b.WriteAll(t.Context(), "a", []byte("x"), nil)
			require.Error(t, err)
			require.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), token)
		}
	}
	require.NoError(t, c.StopNamenode(0))
	_, err := b.ReadAll(t.Context(), "a")
	require.ErrorContains(t, err, "connection refused")
	require.NotContains(t, err.Error(), token)
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, err = b.ReadAll(ctx, "a")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotContains(t, err.Error(), token)
}

func TestMissingDirectory(t *testing.T) {
	c := start(t, webhdfstest.Options{})
	b := open(t, c, "/no/such", hdfsblob.Options{})
	err := b.WriteAll(t.Context(), "a", []byte("x"), nil)
	require.Equal(t, gcerrors.NotFound, gcerrors.Code(err), "%v", err)
	require.ErrorContains(t, err, "create_dir=true")
	ok, err := b.IsAccessible(t.Context())
	require.NoError(t, err)
	require.False(t, ok)
	for _, r := range c.Requests() {
		require.NotContains(t, []string{"CREATE", "MKDIRS"}, r.Op)
	}

	made := open(t, c, "/no/such", hdfsblob.Options{CreateDir: true})
	for range all(t.Context(), made, nil) {
		require.Fail(t, "there is nothing yet")
	}
	require.NoError(t, exercise(t.Context(), made))
}

func TestNotWebHDFS(t *testing.T) {
	c := start(t, webhdfstest.Options{})
	c.Inject(func(webhdfstest.Request) *webhdfstest.Fault { return &webhdfstest.Fault{Status: 404} })
	_, err := open(t, c, "/", hdfsblob.Options{}).ReadAll(t.Context(), "a")
	require.ErrorContains(t, err, "dfs.webhdfs.enabled")
}

func TestKeyBelowAFile(t *testing.T) {
	c := start(t, webhdfstest.Options{})
	b := open(t, c, "/", hdfsblob.Options{})
	require.NoError(t, b.WriteAll(t.Context(), "a/b", []byte("x"), nil))
	err := b.WriteAll(t.Context(), "a/b/c", []byte("y"), nil)
	require.Equal(t, gcerrors.FailedPrecondition, gcerrors.Code(err), "%v", err)
	err = b.WriteAll(t.Context(), "a", []byte("y"), nil)
	require.Error(t, err, "it is a directory")
	require.Equal(t, map[string][]byte{"/a/b": []byte("x")}, c.Files())
	require.Equal(t, gcerrors.NotFound, gcerrors.Code(b.Delete(t.Context(), "a")))
	err = b.WriteAll(t.Context(), strings.Repeat("x", 256), []byte("y"), nil)
	require.Equal(t, gcerrors.InvalidArgument, gcerrors.Code(err), "%v", err)
	require.Equal(t, map[string][]byte{"/a/b": []byte("x")}, c.Files())
}

func TestMetadata(t *testing.T) {
	opts := &blob.WriterOptions{ContentType: "text/plain", Metadata: map[string]string{"a": "b"}}
	t.Run("skipped", func(t *testing.T) {
		c := start(t, webhdfstest.Options{})
		b := open(t, c, "/", hdfsblob.Options{SkipMetadata: true})
		require.NoError(t, b.WriteAll(t.Context(), "a", []byte("x"), opts))
		attrs, err := b.Attributes(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, "application/octet-stream", attrs.ContentType)
		require.Empty(t, attrs.Metadata)
		for _, r := range c.Requests() {
			require.NotContains(t, r.Op, "XATTR")
		}
	})
	t.Run("nowhere to keep it", func(t *testing.T) {
		c := start(t, webhdfstest.Options{NoXAttrs: true})
		b := open(t, c, "/", hdfsblob.Options{})
		require.ErrorContains(t, b.WriteAll(t.Context(), "a", []byte("x"), opts), "metadata=skip")
		require.Empty(t, c.Files())
		plain := &blob.WriterOptions{ContentType: "application/octet-stream"}
		require.NoError(t, b.WriteAll(t.Context(), "a", []byte("x"), plain), "there is nothing to keep")
		got, err := b.ReadAll(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, "x", string(got))
	})
}

func TestLeftoversAreRemoved(t *testing.T) {
	c := start(t, webhdfstest.Options{})
	require.NoError(t, c.WriteFile("/dir/.upload-old", []byte("x"), time.Now().Add(-8*24*time.Hour)))
	require.NoError(t, c.WriteFile("/dir/.upload-new", []byte("x"), time.Now().Add(-24*time.Hour)))
	require.NoError(t, c.WriteFile("/dir/odd name", []byte("x"), time.Now()))
	b := open(t, c, "/dir", hdfsblob.Options{})
	for o := range all(t.Context(), b, nil) {
		require.Fail(t, "no blob", o.Key)
	}
	require.NoError(t, b.WriteAll(t.Context(), "a", []byte("x"), nil))
	require.Equal(t, []string{"/dir/.upload-new", "/dir/a", "/dir/odd name"}, slices.Sorted(maps.Keys(c.Files())))
}

// TestListLikeMemory compares listings with those of gocloud's own bucket in memory.
func TestListLikeMemory(t *testing.T) {
	const seed = 4
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := start(t, webhdfstest.Options{})
	b, mem := open(t, c, "/", hdfsblob.Options{}), memblob.OpenBucket(nil)
	defer mem.Close()
	names := []string{"a", "b", "a-", "a.", "ab", "", "ä", "A", "_", "..", " "}
	for range 60 {
		parts := make([]string, 1+rnd.IntN(4))
		for i := range parts {
			parts[i] = names[rnd.IntN(len(names))]
		}
		key := strings.Join(parts, "/")
		if key == "" || b.WriteAll(t.Context(), key, []byte(key), nil) != nil {
			continue // a file where another key has a directory, or the reverse
		}
		require.NoError(t, mem.WriteAll(t.Context(), key, []byte(key), nil))
	}
	require.NoError(t, c.Mkdir("/empty/dir", "hdfs"))
	n := 0
	for _, prefix := range []string{"", "a", "a/", "a/a", "a//", "/", "//", "ab/b", "../", ".", "nothing", "nothing/", "empty/"} {
		for _, delimiter := range []string{"", "/", "a", "/a"} {
			for _, size := range []int{1, 3, 1000} {
				opts := &blob.ListOptions{Prefix: prefix, Delimiter: delimiter}
				want, got := pages(t, mem, size, opts), pages(t, b, size, opts)
				require.Equal(t, want, got, "prefix %q, delimiter %q, pages of %d, seed %d", prefix, delimiter, size, seed)
				n += len(want)
			}
		}
	}
	require.Greater(t, n, 500)
}

// pages lists a bucket in pages and returns the keys.
func pages(t *testing.T, b *blob.Bucket, size int, opts *blob.ListOptions) []string {
	keys := []string{}
	for token := blob.FirstPageToken; len(token) > 0; {
		objects, next, err := b.ListPage(t.Context(), token, size, opts)
		require.NoError(t, err)
		require.LessOrEqual(t, len(objects), size)
		for _, o := range objects {
			keys = append(keys, fmt.Sprintf("%s %v %d", o.Key, o.IsDir, o.Size))
		}
		token = next
	}
	return keys
}

func TestUsersShareABucket(t *testing.T) {
	c := start(t, webhdfstest.Options{AnyoneWrites: true})
	for _, user := range []string{"alice", "bob"} {
		b := open(t, c, "/", hdfsblob.Options{User: user})
		require.NoError(t, b.WriteAll(t.Context(), "shared/by/"+user, []byte("x"), nil))
		for o, err := range all(t.Context(), b, nil) {
			require.NoError(t, err)
			got, err := b.ReadAll(t.Context(), o.Key)
			require.NoError(t, err)
			require.Equal(t, "x", string(got))
		}
	}
	require.Len(t, c.Files(), 2)
}

// TestDeleteMakesRoom deletes blobs while others are written beside them: the
// directory comes and goes, and no write may suffer.
func TestDeleteMakesRoom(t *testing.T) {
	c := start(t, webhdfstest.Options{})
	b := open(t, c, "/", hdfsblob.Options{})
	const writers = 8
	errs := make(chan error, writers)
	for i := range writers {
		go func() {
			key := fmt.Sprintf("deep/down/%d", i)
			for range 10 {
				if err := errors.Join(b.WriteAll(t.Context(), key, []byte("x"), nil), b.Delete(t.Context(), key)); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		require.NoError(t, <-errs)
	}
	require.NoError(t, b.WriteAll(t.Context(), "deep", []byte("x"), nil), "no directory is left")
}

func TestIfNotExistHasOneWinner(t *testing.T) {
	for name, options := range map[string]webhdfstest.Options{"namenode": {}, "gateway": {NoRenameOptions: true}} {
		t.Run(name, func(t *testing.T) {
			c := start(t, options)
			b := open(t, c, "/", hdfsblob.Options{})
			const writers = 8
			errs := make(chan error, writers)
			for i := range writers {
				go func() {
					errs <- b.WriteAll(t.Context(), "a", fmt.Append(nil, i), &blob.WriterOptions{ContentType: "a/b", IfNotExist: true})
				}()
			}
			won := 0
			for range writers {
				if err := <-errs; err == nil {
					won++
				} else {
					require.Equal(t, gcerrors.FailedPrecondition, gcerrors.Code(err), "%v", err)
				}
			}
			require.Equal(t, 1, won)
			require.Len(t, c.Files(), 1)
		})
	}
}

func TestURLs(t *testing.T) {
	c := start(t, webhdfstest.Options{Namenodes: 2, AnyoneWrites: true})
	c.Activate(1)
	t.Setenv("HDFS_TEST_TOKEN", "tok\n")
	for _, url := range []string{
		c.URL("hdfs", "/some/where?user=alice&create_dir=true"),
		c.URL("webhdfs", "/some/where?user=alice&create_dir=true&metadata=skip"),
		strings.Replace(c.URL("hdfs", "?create_dir=false"), "://", "://alice@", 1),
		c.URL("hdfs", "/?prefix=a/b/&user=alice"),
		c.URL("hdfs", "/?delegation_env=HDFS_TEST_TOKEN"),
	} {
		b, err := blob.OpenBucket(t.Context(), url)
		require.NoError(t, err, url)
		require.NoError(t, b.WriteAll(t.Context(), "a", []byte("x"), nil), url)
		require.NoError(t, b.Delete(t.Context(), "a"), url)
		require.NoError(t, b.Close())
	}
	for rest, want := range map[string]string{
		"h?bogus=1":                       "unknown parameter bogus",
		"h?user=a&user=b":                 "given 2 times",
		"h?create_dir=yes":                "true or false",
		"h?metadata=keep":                 "only value is skip",
		"h?delegation_env=NOT_SET_AT_ALL": "NOT_SET_AT_ALL",
		"h?delegation=a&delegation_env=HDFS_TEST_TOKEN": "exclude each other",
		"/dir":     "host is missing",
		"h,/dir":   "host is missing",
		"h/a/../b": "absolute path",
	} {
		_, err := blob.OpenBucket(t.Context(), "hdfs://"+rest)
		require.ErrorContains(t, err, want, rest)
		require.NotContains(t, err.Error(), "delegation=a&")
	}
}

func TestDefaultPorts(t *testing.T) {
	for address, want := range map[string]string{
		"hdfs://127.0.0.1/":          "127.0.0.1:9870",
		"swebhdfs://127.0.0.1/":      "127.0.0.1:9871",
		"webhdfs://127.0.0.1:1/":     "127.0.0.1:1",
		"hdfs://127.0.0.1:1/?user=a": "127.0.0.1:1",
	} {
		t.Run(address, func(t *testing.T) {
			opener := &hdfsblob.URLOpener{Options: hdfsblob.Options{Retries: -1}}
			u, err := url.Parse(address)
			require.NoError(t, err)
			b, err := opener.OpenBucketURL(t.Context(), u)
			require.NoError(t, err)
			defer b.Close()
			_, err = b.ReadAll(t.Context(), "a")
			require.ErrorContains(t, err, want)
		})
	}
}

func TestTLS(t *testing.T) {
	c := start(t, webhdfstest.Options{TLS: true, Datanodes: 2, AnyoneWrites: true})
	u, err := url.Parse(c.URL("swebhdfs", "/?user=alice"))
	require.NoError(t, err)
	trusting := &hdfsblob.URLOpener{Options: hdfsblob.Options{Client: c.Client()}}
	b, err := trusting.OpenBucketURL(t.Context(), u)
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, exercise(t.Context(), b))

	wary, err := blob.OpenBucket(t.Context(), u.String())
	require.NoError(t, err)
	defer wary.Close()
	began := time.Now()
	require.ErrorContains(t, wary.WriteAll(t.Context(), "a", []byte("x"), nil), "certificate")
	require.Less(t, time.Since(began), 10*time.Second, "another attempt does not mend it")
}

func TestOpenBucketRefuses(t *testing.T) {
	for _, nodes := range [][]string{nil, {"nn:9870"}, {"ftp://nn"}, {"http://"}} {
		_, err := hdfsblob.OpenBucket(nodes, "/", nil)
		require.Error(t, err, "%q", nodes)
	}
	for _, dir := range []string{"", "a", "/a/../b", "/a/./b", "/a//b"} {
		_, err := hdfsblob.OpenBucket([]string{"http://nn:9870"}, dir, nil)
		require.Error(t, err, dir)
	}
}

func BenchmarkThroughput(b *testing.B) {
	const size = 64 << 20
	content := random(size)
	c := start(b, webhdfstest.Options{})
	bucket := open(b, c, "/", hdfsblob.Options{})
	b.Run("upload", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			w, err := bucket.NewWriter(b.Context(), "a", &blob.WriterOptions{ContentType: "application/octet-stream"})
			require.NoError(b, err)
			_, err = io.Copy(w, bytes.NewReader(content))
			require.NoError(b, err)
			require.NoError(b, w.Close())
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			r, err := bucket.NewReader(b.Context(), "a", nil)
			require.NoError(b, err)
			n, err := io.Copy(io.Discard, r)
			require.NoError(b, err)
			require.Equal(b, int64(size), n)
			require.NoError(b, r.Close())
		}
	})
}
