package hdfsblob

import (
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestEscapePath(t *testing.T) {
	for key, want := range map[string]string{
		"portainer/contexts/0f.tar.zst": "portainer/contexts/0f.tar.zst",
		"a b":                           "a__0x20__b",
		"a:b":                           "a__0x3a__b",
		"größe/日本":                      "größe/日本",
		"☺":                             "__0x263a__",
		"/a":                            "__0x__/a",
		"a//b/":                         "a/__0x__/b/__0x__",
		"../.snapshot/..a":              "__0x2e__./__0x2e__snapshot/__0x2e__.a",
		".upload-A":                     "__0x2e__upload-A",
		"__0x__":                        "__0x5f___0x__",
		"__0x20__":                      "__0x5f___0x20__",
		"___0x20__":                     "___0x5f___0x20__",
		"_:_":                           "___0x3a___",
	} {
		require.Equal(t, want, escapePath(key), key)
	}
}

func TestUnescapeNameRefusesForeignNames(t *testing.T) {
	for _, name := range []string{uploadPrefix + "A", "a b", "..", "__0x", "__0x2f", "__0x2f__", "__0x41__", "__0xzz__", "__0x-1__", "__0x2E__a", "a__0x2e__", "\xff"} {
		_, ok := unescapeName(name)
		require.False(t, ok, "%q", name)
	}
}

func FuzzEscapePath(f *testing.F) {
	for _, key := range []string{"a", "a/b", "//", "__0x2f__/___0x__", "..", "\x00\u2028", "_/_0x_", "ａ"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if !utf8.ValidString(key) || key == "" {
			return
		}
		p := escapePath(key)
		if path.Join("/r", p) != "/r/"+p {
			t.Fatalf("%q: the path %q is not clean", key, p)
		}
		var names []string
		for name := range strings.SplitSeq(p, "/") {
			if strings.HasPrefix(name, ".") || strings.ContainsAny(name, ":\\%+; ") {
				t.Fatalf("%q: the name %q", key, name)
			}
			s, ok := unescapeName(name)
			if !ok {
				t.Fatalf("%q: the name %q is refused", key, name)
			}
			names = append(names, s)
		}
		if back := strings.Join(names, "/"); back != key {
			t.Fatalf("%q became %q", key, back)
		}
	})
}
