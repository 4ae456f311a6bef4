package main

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"

	"github.com/org/portainer/internal/staging"
)

func TestContextLs(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile": "FROM scratch\n", ".dockerignore": "# nothing of these\n*.log\n", "big": string(make([]byte, 2048)), "x.log": "x",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	got := portainerWith(t, nil, "context", "ls", dir)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Regexp(t, `^ +2KiB  big\n`, got.stdout, "the largest first")
	require.Contains(t, got.stdout, "  Dockerfile\n")
	require.NotContains(t, got.stdout, "x.log")
	require.Regexp(t, `  in all\n$`, got.stdout)
	require.Contains(t, got.stderr, "a build sends none of it")

	copies := filepath.Join(dir, "copies.Dockerfile")
	require.NoError(t, os.WriteFile(copies, []byte("FROM scratch\nCOPY big /\n"), 0o644))
	require.Empty(t, portainerWith(t, nil, "context", "ls", copies).stderr)

	got = portainerWith(t, nil, "context", "ls", "--why", filepath.Join(dir, "Dockerfile"))
	require.Regexp(t, `(?m)^  left out  x\.log\t.*\.dockerignore:2: \*\.log$`, got.stdout)

	got = portainerWith(t, nil, "context", "ls", filepath.Join(dir, "none"))
	require.Equal(t, exitUsage, got.code)
	require.Equal(t, exitUsage, portainerWith(t, nil, "context", "ls").code)
}

func TestStagingLsAndGC(t *testing.T) {
	dir := t.TempDir()
	url, err := stagingURL("--staging-uri", dir)
	require.NoError(t, err)
	bucket, err := blob.OpenBucket(t.Context(), url)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "executor")
	require.NoError(t, os.WriteFile(file, []byte("an executor"), 0o755))
	key, err := staging.New(bucket).PutFile(t.Context(), file)
	require.NoError(t, err)
	one := func(_ context.Context, w io.Writer) error { return tar.NewWriter(w).Close() }
	used, _, err := staging.New(bucket).PutContext(t.Context(), one)
	require.NoError(t, err)
	require.NoError(t, bucket.Close())

	got := portainerWith(t, nil, "staging", "ls", "--staging-uri", dir)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Regexp(t, `(?m)^SIZE +USED +USERS +EXPIRES +NAME$`, got.stdout)
	require.Regexp(t, `(?m)^11B +Less than a second ago +- +in \d days +`+key+`$`, got.stdout)
	got = portainerWith(t, nil, "staging", "gc", "--staging-uri", dir)
	require.Empty(t, got.stdout, "too young")
	got = portainerWith(t, nil, "staging", "ls", "--staging-uri", dir)
	require.Regexp(t, `(?m)^.* ago +1 +not while used +`+used.Key+`$`, got.stdout)
	got = portainerWith(t, map[string]string{"PORTAINER_STAGING_URI": dir}, "staging", "gc", "--older-than", "0s")
	require.Contains(t, got.stdout, key)
	got = portainerWith(t, nil, "staging", "ls", "--staging-uri", dir)
	require.Empty(t, got.stdout)

	require.Equal(t, exitUsage, portainerWith(t, nil, "staging", "ls").code)
	require.Equal(t, exitTrouble, portainerWith(t, nil, "staging", "ls", "--staging-uri", filepath.Join(file, "below")).code)
	missing := filepath.Join(dir, "missing")
	got = portainerWith(t, nil, "staging", "ls", "--staging-uri", missing)
	require.Equal(t, exitTrouble, got.code)
	require.Contains(t, got.stderr, missing)
	require.NoDirExists(t, missing, "looking made it")
}
