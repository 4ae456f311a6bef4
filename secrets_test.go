package portainer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/seal"
)

// TestSecretsAfterRestart checks that an executor never builds without the build
// secrets of its build, just because the framework has forgotten them.
func TestSecretsAfterRestart(t *testing.T) {
	f := newTestFramework(t, func(cfg *Config) {
		cfg.Credentials = func(context.Context, ...string) (map[string]RegistryAuth, error) {
			return map[string]RegistryAuth{"config.example": {Username: "robot"}}, nil
		}
	})
	key, err := seal.NewKey()
	require.NoError(t, err)
	ask := seal.Ask{Binding: seal.Binding{Task: "b-1", Attempt: 1}, Key: key.Public(), Serial: 1}
	for _, tt := range []struct {
		name    string
		secrets map[string][]byte
		refused bool
	}{
		{name: "build secrets", secrets: map[string][]byte{"token": []byte("t")}, refused: true},
		{name: "credentials alone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec, err := f.prepare(t.Context(), Request{Repository: "app", Source: source(), Secrets: tt.secrets})
			require.NoError(t, err)
			answer, err := f.secretsFor(t.Context(), ask, spec, false)
			require.NoError(t, err)
			require.Empty(t, answer.Refusal)

			data, err := json.Marshal((&build{buildSpec: *spec}).record())
			require.NoError(t, err)
			var r record
			require.NoError(t, json.Unmarshal(data, &r))
			l := newLedger(policy{}, Spread{}, nil)
			l.restore(time.Now(), []record{r})
			b := l.builds[spec.id]
			require.True(t, b.restored)
			answer, err = f.secretsFor(t.Context(), ask, &b.buildSpec, true)
			require.NoError(t, err)
			require.Equal(t, tt.refused, answer.Refusal != "")
		})
	}
}

func TestSecretsDoNotShow(t *testing.T) {
	req := Request{Repository: "app", Secrets: Secrets{"token": []byte("hunter2"), "key": []byte("hunter3")}}
	encoded, err := json.Marshal(req.Secrets)
	require.NoError(t, err)
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("build", "secrets", req.Secrets, "request", req)
	for _, text := range []string{
		string(encoded), log.String(), fmt.Sprint(req), fmt.Sprintf("%+v", req), fmt.Sprintf("%#v", req), fmt.Sprintf("%s %x %q", req.Secrets, req.Secrets, req.Secrets),
	} {
		require.Contains(t, text, "[key token]")
		require.NotContains(t, text, "hunter")
		require.NotContains(t, text, fmt.Sprintf("%x", "hunter"))
		require.NotContains(t, text, fmt.Sprint([]byte("hunter"))[1:20])
	}
}

func TestCredentialsOfACancelledBuild(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := newTestFramework(t, func(cfg *Config) {
		cfg.Credentials = func(ctx context.Context, _ ...string) (map[string]RegistryAuth, error) {
			cancel()
			return nil, ctx.Err()
		}
	})
	_, err := f.prepare(ctx, Request{Repository: "app", Source: source()})
	var failure *BuildError
	require.ErrorAs(t, err, &failure)
	require.Equal(t, ClassCancelled, failure.Class)
	require.NotErrorIs(t, err, ErrFailed)
}
