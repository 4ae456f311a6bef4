package portainer

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestStateTidies checks that the mark of a log does not outlive its build, where
// it would hide the log of another by the same name.
func TestStateTidies(t *testing.T) {
	dir := t.TempDir()
	s, err := openState(dir)
	require.NoError(t, err)
	require.NoError(t, s.put([]record{{ID: "known"}}))
	for _, id := range []BuildID{"known", "stray"} {
		mark, err := s.openMark(id)
		require.NoError(t, err)
		require.NoError(t, mark.set(1, 100))
		require.NoError(t, mark.close())
	}
	require.NoError(t, s.close())

	f := newTestFramework(t, func(cfg *Config) { cfg.StateDir = dir })
	defer f.state.close()
	_, err = os.Stat(f.state.logPath("known"))
	require.NoError(t, err)
	_, err = os.Stat(f.state.logPath("stray"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
