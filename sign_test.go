package portainer

import (
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/seal"
)

// signingBucket is a directory whose URLs a server at base would understand.
func signingBucket(t *testing.T, dir, base string) *blob.Bucket {
	t.Helper()
	u, err := url.Parse(base)
	require.NoError(t, err)
	bucket, err := fileblob.OpenBucket(dir, &fileblob.Options{URLSigner: fileblob.NewURLSignerHMAC(u, []byte("key")), NoTempDir: true, Metadata: fileblob.MetadataDontWrite})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bucket.Close()) })
	return bucket
}

// TestSignedContexts checks that an executor is told where to read its contexts, and
// nothing else, and only in what is sealed for it.
func TestSignedContexts(t *testing.T) {
	dir, staged := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY . /\nCOPY --from=lib . /\n"), 0o600))
	lib := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(lib, "file"), []byte("content"), 0o600))
	f := newTestFramework(t, func(cfg *Config) {
		cfg.Staging, cfg.StagingURL = signingBucket(t, staged, "https://here.example/"), "s3://builds"
		cfg.StagingSigner = signingBucket(t, staged, "https://agents.example/")
	})
	req := Request{Repository: "app", Dir: dir, Options: Options{BuildContexts: map[string]string{"lib": lib}}}
	spec, err := f.prepare(t.Context(), req)
	require.NoError(t, err)
	require.True(t, spec.task.Secrets)
	require.True(t, spec.task.Context.Signed)
	require.True(t, spec.task.Contexts["lib"].Signed)
	data, err := spec.task.Encode()
	require.NoError(t, err)
	require.NotContains(t, string(data), "agents.example")

	other := req
	other.Source = []byte("FROM scratch\nCOPY . /another/\n")
	other.Options.BuildContexts = nil
	require.NoError(t, os.WriteFile(filepath.Join(dir, "more"), []byte("another content"), 0o600))
	_, err = f.prepare(t.Context(), other)
	require.NoError(t, err)

	key, err := seal.NewKey()
	require.NoError(t, err)
	ask := seal.Ask{Binding: seal.Binding{Task: "b-1", Attempt: 1}, Key: key.Public(), Serial: 1}
	// Unlike build secrets, URLs are there again after a restart.
	for _, restarted := range []bool{false, true} {
		answer, err := f.secretsFor(t.Context(), ask, spec, restarted)
		require.NoError(t, err)
		require.Empty(t, answer.Refusal)
		plain, err := key.Open(ask.Binding, answer.Sealed)
		require.NoError(t, err)
		c, err := seal.DecodeCredentials(plain)
		require.NoError(t, err)
		keys := slices.Sorted(maps.Keys(c.URLs))
		require.Len(t, keys, 4, "two recipes, a pack each")
		require.Contains(t, keys, spec.task.Context.Key)
		require.Contains(t, keys, spec.task.Contexts["lib"].Key)
		for _, u := range c.URLs {
			require.True(t, strings.HasPrefix(u, "https://agents.example/?"), u)
		}
	}
}

func TestSigningModes(t *testing.T) {
	tests := []struct {
		name, mode string
		signs      bool // the bucket does
		signed     bool
		fails      bool
	}{
		{name: "auto", signs: true, signed: true},
		{name: "auto with a bucket that cannot sign", mode: "auto"},
		{name: "never", mode: "never", signs: true},
		{name: "always", mode: "always", signs: true, signed: true},
		{name: "always with a bucket that cannot sign", mode: "always", fails: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bucket := memblob.OpenBucket(nil)
			defer bucket.Close()
			if tt.signs {
				bucket = signingBucket(t, t.TempDir(), "https://here.example/")
			}
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY . /\n"), 0o600))
			f := newTestFramework(t, func(cfg *Config) { cfg.Staging, cfg.StagingURL, cfg.StagingSign = bucket, "s3://builds", tt.mode })
			spec, err := f.prepare(t.Context(), Request{Repository: "app", Dir: dir})
			if tt.fails {
				require.ErrorIs(t, err, ErrStaging)
				require.ErrorContains(t, err, "the staging bucket cannot sign URLs")
				objects, err := f.stager.store.List(t.Context())
				require.NoError(t, err)
				require.Empty(t, objects)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.signed, spec.task.Context.Signed)
			require.Equal(t, tt.signed, spec.task.Secrets)
		})
	}
}
