package seal_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/seal"
)

var task = seal.Binding{Task: "b1-2", Attempt: 2}

func newKey(t testing.TB) *seal.Key {
	t.Helper()
	key, err := seal.NewKey()
	require.NoError(t, err)
	return key
}

func TestSealOpens(t *testing.T) {
	key := newKey(t)
	for _, plain := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("secret"), 1000), make([]byte, seal.MaxPlaintext)} {
		sealed, err := seal.Seal(key.Public(), task, plain)
		require.NoError(t, err)
		require.LessOrEqual(t, len(sealed), seal.MaxSealed)
		if len(plain) > 1 {
			require.NotContains(t, string(sealed), string(plain))
		}
		got, err := key.Open(task, sealed)
		require.NoError(t, err)
		require.True(t, bytes.Equal(plain, got))

		again, err := seal.Seal(key.Public(), task, plain)
		require.NoError(t, err)
		require.NotEqual(t, sealed, again)
	}
}

func TestOpenRefuses(t *testing.T) {
	key := newKey(t)
	sealed, err := seal.Seal(key.Public(), task, []byte("hunter2"))
	require.NoError(t, err)

	bare := func(plain string) []byte {
		r, err := age.ParseX25519Recipient(key.Public())
		require.NoError(t, err)
		out := bytes.NewBufferString("portainer-sealed/1\n")
		w, err := age.Encrypt(out, r)
		require.NoError(t, err)
		_, err = w.Write([]byte(plain))
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return out.Bytes()
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1

	tests := []struct {
		name   string
		key    *seal.Key
		own    seal.Binding
		sealed []byte
		want   error
	}{
		{"another key", newKey(t), task, sealed, seal.ErrSealed},
		{"another task", key, seal.Binding{Task: "b2-2", Attempt: 2}, sealed, seal.ErrBinding},
		{"another attempt", key, seal.Binding{Task: "b1-2", Attempt: 1}, sealed, seal.ErrBinding},
		{"changed", key, task, flipped, seal.ErrSealed},
		{"cut", key, task, sealed[:len(sealed)-3], seal.ErrSealed},
		{"longer", key, task, append(bytes.Clone(sealed), 0), seal.ErrSealed},
		{"empty", key, task, nil, seal.ErrSealed},
		{"not sealed", key, task, []byte(`{"registries":{}}`), seal.ErrSealed},
		{"another version", key, task, bytes.Replace(sealed, []byte("/1\n"), []byte("/2\n"), 1), seal.ErrVersion},
		{"too long", key, task, append([]byte("portainer-sealed/1\n"), make([]byte, seal.MaxSealed)...), seal.ErrSealed},
		{"no binding", key, task, bare(""), seal.ErrSealed},
		{"half a binding", key, task, bare("\x04b1-"), seal.ErrSealed},
		{"no attempt", key, task, bare("\x04b1-2"), seal.ErrSealed},
		{"huge binding", key, task, bare("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), seal.ErrSealed},
		{"huge attempt", key, task, bare("\x04b1-2\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), seal.ErrSealed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plain, err := tt.key.Open(tt.own, tt.sealed)
			require.ErrorIs(t, err, tt.want)
			require.Nil(t, plain)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func TestSealRefuses(t *testing.T) {
	public := newKey(t).Public()
	tests := []struct {
		name, public string
		to           seal.Binding
		plain        []byte
		says         string
	}{
		{"no key", "", task, nil, "public key of the executor"},
		{"a broken key", public[:len(public)-1], task, nil, "public key of the executor"},
		{"too much", public, task, make([]byte, seal.MaxPlaintext+1), "1048577 bytes of secrets, at most 1048576"},
		{"no task", public, seal.Binding{Attempt: 1}, nil, "no such task"},
		{"an endless task", public, seal.Binding{Task: strings.Repeat("b", 2000), Attempt: 1}, nil, "no such task"},
		{"no attempt", public, seal.Binding{Task: "b1-0"}, nil, "no such task"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := seal.Seal(tt.public, tt.to, tt.plain)
			require.ErrorContains(t, err, tt.says)
		})
	}
}

func TestKeyShowsItsPublicHalfOnly(t *testing.T) {
	key := newKey(t)
	require.Regexp(t, "^age1[0-9a-z]{50,70}$", key.Public())
	for _, text := range shown(t, key) {
		require.NotContains(t, strings.ToUpper(text), "AGE-SECRET-KEY")
		require.Contains(t, text, key.Public())
	}
}

// shown is v printed, logged and marshalled in all usual ways.
func shown(t *testing.T, v any) []string {
	t.Helper()
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("text", "value", v)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("json", "value", v)
	encoded, err := json.Marshal(v)
	require.NoError(t, err)
	inside, err := json.Marshal(map[string]any{"value": []any{v}})
	require.NoError(t, err)
	texts := []string{log.String(), string(encoded), string(inside), fmt.Sprint(v), fmt.Sprintf("%+v", []any{v})}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		texts = append(texts, fmt.Sprintf(verb, v))
	}
	return texts
}

func FuzzOpen(f *testing.F) {
	key := newKey(f)
	for _, plain := range []string{"", "secret"} {
		sealed, err := seal.Seal(key.Public(), task, []byte(plain))
		require.NoError(f, err)
		f.Add(sealed)
	}
	f.Add([]byte("portainer-sealed/1\nage-encryption.org/v1\n-> X25519 x\n\n---\n"))
	f.Add([]byte("portainer-sealed/2\n"))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		// Seeds are sealed for a key of another run of this test.
		_, err := key.Open(task, sealed)
		if err == nil {
			again, err := key.Open(task, sealed)
			require.NoError(t, err)
			_, err = seal.DecodeCredentials(again)
			require.Error(t, err)
		}
	})
}

func FuzzSeal(f *testing.F) {
	key := newKey(f)
	f.Add("b1-1", 1, []byte("secret"))
	f.Add("", 0, []byte(nil))
	f.Fuzz(func(t *testing.T, id string, attempt int, plain []byte) {
		to := seal.Binding{Task: id, Attempt: attempt}
		sealed, err := seal.Seal(key.Public(), to, plain)
		if err != nil {
			return
		}
		got, err := key.Open(to, sealed)
		if attempt > 1<<31 {
			require.ErrorIs(t, err, seal.ErrSealed)
			return
		}
		require.NoError(t, err)
		require.True(t, bytes.Equal(plain, got))
	})
}
