package seal_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/seal"
)

func masker(secrets ...string) *seal.Masker {
	c := seal.Credentials{Secrets: map[string][]byte{}}
	for i, s := range secrets {
		c.Secrets[fmt.Sprint(i)] = []byte(s)
	}
	return seal.NewMasker(c)
}

func TestMask(t *testing.T) {
	key := "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw\nabc12\n}\n----\n-----END KEY-----\n"
	tests := []struct {
		name    string
		secrets []string
		line    string
		want    string
	}{
		{"nothing", []string{"hunter2"}, "hunter1 hunter", "hunter1 hunter"},
		{"empty", []string{"hunter2"}, "", ""},
		{"in the middle", []string{"hunter2"}, "pass=hunter2;", "pass=***;"},
		{"alone", []string{"hunter2"}, "hunter2", "***"},
		{"twice", []string{"hunter2"}, "hunter2 hunter2", "*** ***"},
		{"side by side", []string{"hunter2"}, "<hunter2hunter2>", "<***>"},
		{"of four bytes", []string{"abcd"}, "abcd", "***"},
		{"of three bytes", []string{"abc"}, "abc", "abc"},
		{"with a newline", []string{"hunter2\n"}, "pass=hunter2", "pass=***"},
		{"overlapping", []string{"abcdef", "defghi"}, "(abcdefghi)", "(***)"},
		{"one within another", []string{"abcdefgh", "cdef"}, "(abcdefgh) (cdef)", "(***) (***)"},
		{"one ahead of another", []string{"abcdef", "abcdefgh"}, "(abcdefgh) (abcdefx)", "(***) (***x)"},
		{"a line of several", []string{key}, "+ MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw", "+ ***"},
		{"a short line of several", []string{key}, "+ abc12 } ----", "+ *** } ----"},
		{"escaped for a query", []string{"p@ss w/rd+1"}, "?t=" + url.QueryEscape("p@ss w/rd+1") + "&", "?t=***&"},
		{"escaped for a path", []string{"p@ss w/rd+1"}, "/" + url.PathEscape("p@ss w/rd+1") + "/", "/***/"},
		{"escaped in lower case", []string{"p@ss w/rd+1"}, "p%40ss+w%2frd%2b1", "***"},
		{"escaped for JSON", []string{"pa\"ss\\<word>\""}, `{"t":"pa\"ss\\<word>\""}`, `{"t":"***"}`},
		{"escaped for JSON and HTML", []string{"pa\"ss\\<word>"}, `{"t":"pa\"ss\\\u003cword\u003e"}`, `{"t":"***"}`},
		{"several lines in JSON", []string{"line one\nline two\n"}, `"line one\nline two\n"`, `"***\n"`},
		{"not UTF-8", []string{"\xff\xfe\xfd\xfc\xfb"}, "<\xff\xfe\xfd\xfc\xfb>", "<***>"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			line := []byte(tt.line)
			require.Equal(t, tt.want, string(masker(tt.secrets...).Mask(line)))
			require.Equal(t, tt.line, string(line), "the argument was changed")
		})
	}
}

func TestMaskBase64(t *testing.T) {
	const secret = "correct horse battery"
	m := masker(secret)
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
		for ahead := range 4 {
			for behind := range 4 {
				text := enc.EncodeToString([]byte("xyz"[:ahead%4] + secret + "xyz"[:behind%4]))
				got := string(m.Mask([]byte(text)))
				require.Contains(t, got, "***")
				require.LessOrEqual(t, len(got), len("***")+4+6, "%s", got)
			}
		}
	}
}

func TestMaskLongSecrets(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	raw := make([]byte, 3000)
	for i := range raw {
		raw[i] = byte(random.UintN(256))
	}
	secret := base64.RawURLEncoding.EncodeToString(raw)
	m := masker(secret, string(raw))
	require.Equal(t, "a *** b", string(m.Mask([]byte("a "+secret+" b"))))
	require.Equal(t, "***", string(m.Mask([]byte(secret[64:192]))), "a part")

	// base64(1) and openssl wrap what they write.
	encoded := base64.StdEncoding.EncodeToString(raw)
	for _, width := range []int{64, 76} {
		for at := 0; at < len(encoded); at += width {
			line := encoded[at:min(at+width, len(encoded))]
			require.Equal(t, "***", string(m.Mask([]byte(line))), "width %d, offset %d", width, at)
		}
	}
}

func TestMaskCredentials(t *testing.T) {
	m := seal.NewMasker(credentials)
	basic := base64.StdEncoding.EncodeToString([]byte("robot:pa55word-one"))
	config, err := json.Marshal(map[string]string{"username": "robot", "password": "pa55word-one"})
	require.NoError(t, err)
	header := base64.URLEncoding.EncodeToString(config) // X-Registry-Auth
	for _, text := range append([]string{"Authorization: Basic " + basic, string(config), header}, values...) {
		got := string(m.Mask([]byte(text)))
		require.Contains(t, got, "***")
		for _, value := range append([]string{basic}, values...) {
			require.NotContains(t, got, value)
		}
	}
	require.Equal(t, "Authorization: Basic ***", string(m.Mask([]byte("Authorization: Basic "+basic))))
	require.Equal(t, "robot", string(m.Mask([]byte("robot"))))
}

func TestMaskerOfNothing(t *testing.T) {
	for _, m := range []*seal.Masker{nil, masker(), masker("", "abc"), seal.NewMasker(seal.Credentials{})} {
		require.Nil(t, m)
		line := []byte("some line")
		require.Equal(t, "some line", string(m.Mask(line)))
		var out bytes.Buffer
		w := m.Writer(&out)
		_, err := w.Write(line)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		require.Equal(t, "some line", out.String())
	}
}

func TestMaskAllocatesOnlyForSecrets(t *testing.T) {
	m := masker("hunter2", "correct horse battery")
	line := []byte("#12 0.113 fetch https://dl-cdn.alpinelinux.org/alpine/v3.20/main/x86_64/APKINDEX.tar.gz")
	require.Zero(t, testing.AllocsPerRun(100, func() { m.Mask(line) }))
}

func TestMaskWriter(t *testing.T) {
	long := strings.Repeat("0123456789", 50)
	m := masker("hunter2", long)
	input := "one hunter2\ntwo\n" + strings.Repeat("x", 70<<10) + "hunter2" + strings.Repeat("y", 150<<10) + long + "\r\nhunter2 and no end: hunt"
	want := "one ***\ntwo\n" + strings.Repeat("x", 70<<10) + "***" + strings.Repeat("y", 150<<10) + "***\r\n*** and no end: hunt"
	for _, size := range []int{1, 3, 7, 1000, 65536, 65535, len(input)} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			var out bytes.Buffer
			w := m.Writer(&out)
			for rest := input; rest != ""; {
				n, err := w.Write([]byte(rest[:min(size, len(rest))]))
				require.NoError(t, err)
				rest = rest[n:]
			}
			require.NoError(t, w.Close())
			requireText(t, want, out.String())
		})
	}
}

// TestMaskWriterCutsNoSecret moves a secret over every place where a long line is
// cut.
func TestMaskWriterCutsNoSecret(t *testing.T) {
	secret := strings.Repeat("0123456789abcdef", 10)
	m := masker(secret)
	for step := range 134 {
		at := 3 * step
		pad := strings.Repeat(".", 64<<10-200+at)
		var out bytes.Buffer
		w := m.Writer(&out)
		for _, piece := range []string{pad + secret[:50], secret[50:], "tail"} {
			_, err := w.Write([]byte(piece))
			require.NoError(t, err)
		}
		require.NoError(t, w.Close())
		requireText(t, pad+"***tail", out.String())
	}
}

func TestMaskWriterPassesLinesOnAtOnce(t *testing.T) {
	var out bytes.Buffer
	w := masker("hunter2").Writer(&out)
	_, err := w.Write([]byte("one\nhunter"))
	require.NoError(t, err)
	require.Equal(t, "one\n", out.String())
	_, err = w.Write([]byte("2\nthree"))
	require.NoError(t, err)
	require.Equal(t, "one\n***\n", out.String())
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestMaskWriterReturnsErrors(t *testing.T) {
	broken := errors.New("broken")
	w := masker("hunter2").Writer(brokenWriter{broken})
	_, err := w.Write([]byte("no line yet"))
	require.NoError(t, err)
	_, err = w.Write([]byte("\n"))
	require.ErrorIs(t, err, broken)
	_, err = w.Write(make([]byte, 100<<10))
	require.ErrorIs(t, err, broken)
	require.ErrorIs(t, w.Close(), broken)
}

func FuzzMask(f *testing.F) {
	f.Add("hunter2", "abcdef", "xx hunter2 abcdef", 3)
	f.Add("aaaaaaaa", "aaaab", strings.Repeat("a", 100), 1)
	f.Add(strings.Repeat("ab", 100), "abab", strings.Repeat("ab", 200), 64)
	f.Fuzz(func(t *testing.T, a, b, line string, size int) {
		a, b = strings.TrimSpace(a), strings.TrimSpace(b)
		m := masker(a, b)
		got := m.Mask([]byte(line))
		if !strings.Contains(a+b, "***") && !strings.ContainsAny(a+b, "*\n\r") {
			for _, secret := range []string{a, b} {
				if len(secret) >= 4 && strings.Count(secret, secret[:1]) < len(secret) {
					require.NotContains(t, string(got), secret)
				}
			}
		}
		var out bytes.Buffer
		w := m.Writer(&out)
		size = max(1, size)
		for rest := line; rest != ""; {
			n, err := w.Write([]byte(rest[:min(size, len(rest))]))
			require.NoError(t, err)
			rest = rest[n:]
		}
		require.NoError(t, w.Close())
		var byLine []byte
		for l := range strings.Lines(line) {
			byLine = append(byLine, m.Mask([]byte(l))...)
		}
		require.Equal(t, string(byLine), out.String())
	})
}

func BenchmarkMask(b *testing.B) {
	line := []byte("#12 0.113 fetch https://dl-cdn.alpinelinux.org/alpine/v3.20/main/x86_64/APKINDEX.tar.gz")
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{20, 2000, 400_000} {
		b.Run(fmt.Sprintf("secret=%d", size), func(b *testing.B) {
			raw := make([]byte, size)
			for i := range raw {
				raw[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[random.IntN(36)]
			}
			m := masker(string(raw), "hunter2")
			b.SetBytes(int64(len(line)))
			b.ReportAllocs()
			for b.Loop() {
				m.Mask(line)
			}
		})
	}
}

func BenchmarkNewMasker(b *testing.B) {
	secret := make([]byte, 400_000)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range secret {
		secret[i] = byte(random.UintN(256))
	}
	c := seal.Credentials{Secrets: map[string][]byte{"a": secret}}
	b.ReportAllocs()
	for b.Loop() {
		seal.NewMasker(c)
	}
}

// requireText compares long texts, of which a failure shows the lengths alone.
func requireText(t *testing.T, want, got string) {
	t.Helper()
	if got != want {
		t.Fatalf("%d bytes that differ from the %d expected", len(got), len(want))
	}
}
