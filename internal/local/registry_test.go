package local_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/local"
)

func TestRegistryKeepsWhatIsPushed(t *testing.T) {
	dir := t.TempDir()
	registry, err := local.StartRegistry("127.0.0.1:0", dir)
	require.NoError(t, err)
	defer registry.Close()

	image, err := random.Image(1<<20, 2)
	require.NoError(t, err)
	want, err := image.Digest()
	require.NoError(t, err)
	ref, err := name.ParseReference(registry.Addr()+"/team/app:v1", name.Insecure)
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, image, remote.WithContext(t.Context())))

	// The next one on the same directory has it.
	require.NoError(t, registry.Close())
	registry, err = local.StartRegistry("127.0.0.1:0", dir)
	require.NoError(t, err)
	defer registry.Close()
	ref, err = name.ParseReference(registry.Addr()+"/team/app:v1", name.Insecure)
	require.NoError(t, err)
	got, err := remote.Head(ref, remote.WithContext(t.Context()))
	require.NoError(t, err)
	require.Equal(t, want, got.Digest)
}

func TestRegistryCloseFreesTheAddress(t *testing.T) {
	registry, err := local.StartRegistry("127.0.0.1:0", t.TempDir())
	require.NoError(t, err)
	resp, err := http.Get("http://" + registry.Addr() + "/v2/")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)

	require.NoError(t, registry.Close())
	require.NoError(t, registry.Close(), "a second Close changes nothing")
	again, err := local.StartRegistry(registry.Addr(), t.TempDir())
	require.NoError(t, err)
	require.NoError(t, again.Close())
}

func TestRegistrySaysWhichAddressIsTaken(t *testing.T) {
	first, err := local.StartRegistry("127.0.0.1:0", t.TempDir())
	require.NoError(t, err)
	defer first.Close()
	_, err = local.StartRegistry(first.Addr(), t.TempDir())
	require.ErrorContains(t, err, first.Addr())
}
