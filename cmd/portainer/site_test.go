package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestLocalAgents(t *testing.T) {
	for master, want := range map[string]int{"local": 1, "local:3": 3} {
		n, isLocal, err := localAgents(master)
		require.NoError(t, err)
		require.True(t, isLocal)
		require.Equal(t, want, n)
	}
	for _, master := range []string{"localhost:5050", "mesos:5050", "zk://local:2181/mesos"} {
		_, isLocal, err := localAgents(master)
		require.NoError(t, err)
		require.False(t, isLocal, master)
	}
	for _, master := range []string{"local:", "local:0", "local:-1", "local:many", "local:1001"} {
		_, _, err := localAgents(master)
		require.Equal(t, exitUsage, exitCode(err), master)
	}
}

func TestOnThisMachine(t *testing.T) {
	for master, want := range map[string]bool{
		"127.0.0.1:5050":                   true,
		"localhost:5050":                   true,
		"http://127.0.0.1:5050":            true,
		"https://[::1]:5050/":              true,
		"127.0.0.1:5050,127.0.0.2:5050":    true,
		"127.0.0.1:5050,10.0.0.1:5050":     false,
		"10.0.0.1:5050":                    false,
		"mesos.example:5050":               false,
		"zk://127.0.0.1:2181/mesos":        false,
		"localhost.example.com:5050":       false,
		"http://user:127.0.0.1@far.x:5050": false,
	} {
		require.Equal(t, want, onThisMachine(master), master)
	}
}

func TestStagingURL(t *testing.T) {
	here, err := os.Getwd()
	require.NoError(t, err)
	const options = "?create_dir=true&metadata=skip&no_tmp_dir=true"
	for uri, want := range map[string]string{
		"/mnt/a b":                        "file:///mnt/a%20b" + options,
		"staging":                         "file://" + filepath.Join(here, "staging") + options,
		"file:///mnt/x":                   "file:///mnt/x" + options,
		"file:///mnt/x?dir_file_mode=448": "file:///mnt/x?create_dir=true&dir_file_mode=448&metadata=skip&no_tmp_dir=true",
		"s3://bucket?region=eu-west-1":    "s3://bucket?region=eu-west-1",
	} {
		got, err := stagingURL("--staging-uri", uri)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestExecutorURL(t *testing.T) {
	s := &site{}
	dir := filepath.Join(t.TempDir(), "a b")
	require.NoError(t, s.openBucket(t.Context(), dir))
	defer s.close()
	uri, err := s.urlOf(t.Context(), "portainer/executors/x")
	require.NoError(t, err)
	require.Equal(t, "file://"+filepath.Dir(dir)+"/a b/portainer/executors/x", uri, "Mesos's fetcher takes the path as it stands")
}

func TestBucketThatCannotBeOpened(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	s := &site{}
	err := s.openBucket(t.Context(), filepath.Join(file, "below"))
	require.ErrorIs(t, err, portainer.ErrStaging)
	require.ErrorContains(t, err, file)
	require.NoError(t, s.close())
}

func TestRedaction(t *testing.T) {
	require.Equal(t, "zk://…@zk1,zk2/mesos", redactMaster("zk://me:hunter2@zk1,zk2/mesos"))
	require.Equal(t, "10.0.0.1:5050", redactMaster("10.0.0.1:5050"))
	require.Equal(t, "s3://bucket", redactURL("s3://bucket?secret=hunter2"))
	require.NotContains(t, redactURL("hdfs://me:hunter2@nn/x"), "hunter2")
}

func TestShellQuote(t *testing.T) {
	for _, s := range []string{"/usr/bin/portainer", "/a b/c", "it's", `"$HOME" \ *`, "two\nlines"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+shellQuote(s)).Output()
		require.NoError(t, err)
		require.Equal(t, s, string(out))
	}
}

func TestCacheDir(t *testing.T) {
	env := func(vars map[string]string) func(string) (string, bool) {
		return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	}
	require.Equal(t, "/cache/portainer", cacheDir(env(map[string]string{"XDG_CACHE_HOME": "/cache", "HOME": "/home/me"})))
	require.Equal(t, "/home/me/.cache/portainer", cacheDir(env(map[string]string{"XDG_CACHE_HOME": "relative", "HOME": "/home/me"})))
	require.Empty(t, cacheDir(env(nil)))
}
