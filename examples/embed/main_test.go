package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestBuildAllBuildsEveryDirectoryAFewAtATime(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"a", "b", "c/d", "e"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, dir, "Dockerfile"), []byte("FROM scratch\n"), 0o644))
	}
	broken := errors.New("no such step")
	var atOnce, most atomic.Int32
	builder := portainer.BuilderFunc(func(_ context.Context, req portainer.Request) (*portainer.Result, error) {
		defer atOnce.Add(-1)
		if n := atOnce.Add(1); n > most.Load() {
			most.Store(n)
		}
		name := filepath.Base(req.Dir)
		if name == "b" {
			return nil, broken
		}
		return &portainer.Result{Refs: []string{fmt.Sprintf("registry/%s:latest", name)}}, nil
	})
	var out strings.Builder
	err := buildAll(t.Context(), builder, root, 2, &out)
	require.ErrorIs(t, err, broken)
	require.Equal(t, "registry/a:latest\nregistry/d:latest\nregistry/e:latest\n", out.String())
	require.LessOrEqual(t, most.Load(), int32(2))
}
