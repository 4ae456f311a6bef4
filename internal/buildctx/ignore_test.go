package buildctx

import (
	"slices"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/stretchr/testify/require"
)

// checkIgnore compares our reading of an ignore file with moby's.
func checkIgnore(t *testing.T, text, path string) {
	t.Helper()
	ig, err := parseIgnore("F", []byte(text))
	want, wantErr := ignorefile.ReadAll(strings.NewReader(text))
	if wantErr != nil {
		require.Error(t, err)
		return
	}
	m, matcherErr := patternmatcher.New(want)
	require.Equal(t, matcherErr != nil, err != nil, "%q: %v", text, err)
	if err != nil {
		return
	}
	var got []string
	for _, r := range ig.rules {
		got = append(got, r.Pattern)
	}
	require.Equal(t, want, got, "%q", text)
	path = strings.Trim(strings.ReplaceAll(path, "//", "/"), "/")
	if path == "" || strings.ContainsAny(path, "\x00\\") || slices.Contains(strings.Split(path, "/"), "..") {
		return
	}
	ig.explain(path)
	var info patternmatcher.MatchInfo
	var out bool
	for i := range path + "/" {
		if i < len(path) && path[i] != '/' || i == 0 {
			continue
		}
		wantOut, wantInfo, wantErr := m.MatchesUsingParentResults(path[:i], info)
		var err error
		out, info, err = ig.match(path[:i], info)
		require.Equal(t, wantErr != nil, err != nil)
		if ig.matcher != nil {
			require.Equal(t, wantOut, out, "%q: %q", text, path[:i])
			require.Equal(t, wantInfo, info)
		}
	}
}

func TestExplainRules(t *testing.T) {
	ig, err := parseIgnore("F", []byte("# first\n*.md\n\n!README.md\nsecret\nREADME.m?\n"))
	require.NoError(t, err)
	for path, want := range map[string]string{
		"a.md": "F:2: *.md", "README.md": "F:6: README.m?", "secret/a/b": "F:5: secret", "a.c": "",
	} {
		r, ok := ig.explain(path)
		require.Equal(t, want != "", ok, path)
		if ok {
			require.Equal(t, want, r.String())
		}
	}
}
