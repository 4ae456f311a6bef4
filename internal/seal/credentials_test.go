package seal_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/seal"
)

var credentials = seal.Credentials{
	Registries: map[string]seal.RegistryAuth{
		"registry.example:5000": {Username: "robot", Password: "pa55word-one"},
		"docker.io":             {Username: "robot", IdentityToken: "identity-two"},
		"ghcr.io":               {RegistryToken: "bearer-three"},
		"quay.io":               {},
	},
	Secrets: map[string][]byte{"npmrc": []byte("token-four"), "empty": nil},
}

var values = []string{"pa55word-one", "identity-two", "bearer-three", "token-four"}

// TestManyURLsFitOneMessage: a context of many gigabytes is in hundreds of packs.
func TestManyURLsFitOneMessage(t *testing.T) {
	c := seal.Credentials{URLs: map[string]string{}}
	random := rand.NewChaCha8([32]byte{})
	token := make([]byte, 600)
	random.Read(token)
	for range 4000 {
		name, signature := make([]byte, 32), make([]byte, 32)
		random.Read(name)
		random.Read(signature)
		key := fmt.Sprintf("portainer/packs/%x", name)
		c.URLs[key] = fmt.Sprintf("https://builds.s3.eu-west-1.amazonaws.com/%s?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=3600&"+
			"X-Amz-Security-Token=%x&X-Amz-Signature=%x", key, token, signature)
	}
	key, err := seal.NewKey()
	require.NoError(t, err)
	binding := seal.Binding{Task: "b-1", Attempt: 1}
	plain, err := c.Encode()
	require.NoError(t, err)
	sealed, err := seal.Seal(key.Public(), binding, plain)
	require.NoError(t, err)
	plain, err = key.Open(binding, sealed)
	require.NoError(t, err)
	got, err := seal.DecodeCredentials(plain)
	require.NoError(t, err)
	require.Equal(t, c.URLs, got.URLs)
	require.Equal(t, "URLs of 4000 staged objects [redacted]", got.String())
	for _, text := range shown(t, got) {
		require.NotContains(t, text, "X-Amz-Signature")
	}
	_, err = seal.DecodeCredentials([]byte(`{"version":1,"urls":"AAAA"}`))
	require.ErrorContains(t, err, "malformed credentials")
}

func TestCredentialsShowNoValue(t *testing.T) {
	auth := credentials.Registries["registry.example:5000"]
	for _, v := range []any{credentials, &credentials, auth, &auth, struct{ C seal.Credentials }{credentials}} {
		for _, text := range append(shown(t, v), fmt.Sprintf("%x %d %q", v, v, v)) {
			for _, value := range values {
				require.NotContains(t, text, value)
				require.NotContains(t, text, fmt.Sprintf("%x", value))
			}
		}
	}
	require.Equal(t, `registry docker.io: identity token [redacted], registry ghcr.io: bearer token [redacted], `+
		`registry quay.io: anonymous, registry registry.example:5000: user "robot" [redacted], `+
		`secret empty: [redacted], secret npmrc: [redacted]`, credentials.String())
	require.Equal(t, credentials.String(), fmt.Sprintf("%#v", credentials))
	require.Equal(t, "no credentials", seal.Credentials{}.String())
}

func TestCredentialsEncode(t *testing.T) {
	for _, c := range []seal.Credentials{{}, credentials} {
		data, err := c.Encode()
		require.NoError(t, err)
		got, err := seal.DecodeCredentials(data)
		require.NoError(t, err)
		require.Empty(t, got.Secrets["empty"])
		if c.Empty() {
			require.True(t, got.Empty())
			continue
		}
		require.Equal(t, c.Registries, got.Registries)
		require.Len(t, got.Secrets, 2)
		require.Equal(t, c.Secrets["npmrc"], got.Secrets["npmrc"])
	}
}

// TestCredentialsFormat keeps what an executor of another release reads.
func TestCredentialsFormat(t *testing.T) {
	golden := filepath.Join("testdata", "credentials.v1.json")
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	got, err := seal.DecodeCredentials(want)
	require.NoError(t, err)
	require.Equal(t, credentials.Registries, got.Registries)
	data, err := credentials.Encode()
	require.NoError(t, err)
	require.JSONEq(t, string(want), string(data))
}

func TestDecodeCredentialsRefuses(t *testing.T) {
	tests := []struct{ name, data, says string }{
		{"nothing", "", "malformed credentials"},
		{"no JSON", "hunter2", "malformed credentials"},
		{"no version", "{}", "version 0"},
		{"another version", `{"version":2,"registries":[]}`, "version 2, but this executor understands version 1"},
		{"another shape", `{"version":1,"registries":"hunter2"}`, "malformed credentials"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := seal.DecodeCredentials([]byte(tt.data))
			require.ErrorContains(t, err, tt.says)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func FuzzDecodeCredentials(f *testing.F) {
	data, err := credentials.Encode()
	require.NoError(f, err)
	f.Add(data)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := seal.DecodeCredentials(data)
		if err != nil {
			return
		}
		again, err := c.Encode()
		require.NoError(t, err)
		back, err := seal.DecodeCredentials(again)
		require.NoError(t, err)
		require.Equal(t, c.Registries, back.Registries)
		require.Len(t, back.Secrets, len(c.Secrets))
		seal.NewMasker(c).Mask(data)
	})
}
