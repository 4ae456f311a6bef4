package storagetest_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"

	"github.com/org/portainer/internal/staging"
)

// putVariable makes this test binary a program that stages a context in the bucket it
// names.
const putVariable = "STORAGETEST_PUT"

// The context that such a program stages: four packs, the last of them small.
const (
	killedSeed = 6
	killedSize = 56 << 20
	killedTTL  = time.Hour
)

func TestMain(m *testing.M) {
	if bucket := os.Getenv(putVariable); bucket != "" {
		if err := put(context.Background(), bucket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func put(ctx context.Context, bucketURL string) error {
	b, err := blob.OpenBucket(ctx, bucketURL)
	if err != nil {
		return err
	}
	content, err := archive(killedSeed, killedSize)
	if err != nil {
		return err
	}
	s := staging.New(b)
	s.TTL = killedTTL
	pass := 0
	_, _, err = s.PutContext(ctx, func(_ context.Context, w io.Writer) error {
		if pass++; pass == 2 { // the one that sends
			if _, err := w.Write(content[:len(content)*3/4]); err != nil {
				return err
			}
			select {} // until it is killed
		}
		_, err := w.Write(content)
		return err
	})
	return err
}

// TestUploadOfAKilledProgramIsResumed kills a program in the middle of its upload. What
// it has sent whole need not be sent again, and nothing else is taken for it.
func TestUploadOfAKilledProgramIsResumed(t *testing.T) {
	r := newRelay(t)
	kinds["s3"].setenv(t, r, true)
	server := kinds["s3"].start(t, r)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), putVariable+"="+server.url)
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	b := server.bucket(t)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for len(packsIn(t, b)) < 2 {
		select {
		case err := <-ended:
			require.FailNow(t, "the program ended", "%v: %s", err, &output)
		case <-tick.C:
		}
	}
	require.NoError(t, cmd.Process.Kill())
	<-ended

	requireNoContext(t, b)
	s := staging.New(b)
	s.TTL = killedTTL
	var there int64
	for _, key := range packsIn(t, b) {
		attrs, err := b.Attributes(t.Context(), key)
		require.NoError(t, err)
		there += attrs.Size
	}
	write, content := bundle(t, killedSeed, killedSize)
	ref, stats, err := s.PutContext(t.Context(), write)
	require.NoError(t, err)
	require.True(t, stats.Uploaded)
	require.InDelta(t, int64(len(content))-there, stats.Sent, 1<<20, "%d bytes were there", there)
	requireContext(t, s, ref, content)
}

func packsIn(t *testing.T, b *blob.Bucket) []string {
	t.Helper()
	return slices.DeleteFunc(keys(t, b), func(key string) bool { return !strings.HasPrefix(key, staging.PackPrefix) })
}
