package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

func TestExpandArgs(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return "@" + path
	}
	files := write("files", "a/Dockerfile\r\n\n# not these\n#b/Dockerfile\nc d/Dockerfile\n")
	both := write("both", "--tag\nv1\n"+files+"\n")
	loop := "@" + filepath.Join(dir, "loop")
	write("loop", loop+"\n")

	got, err := expandArgs([]string{"build", both, "x", "--", files})
	require.NoError(t, err)
	require.Equal(t, []string{"build", "--tag", "v1", "a/Dockerfile", "c d/Dockerfile", "x", "--", files}, got)

	_, err = expandArgs([]string{loop})
	require.ErrorContains(t, err, "within each other")
	require.Equal(t, exitUsage, exitCode(err))
	_, err = expandArgs([]string{"@" + filepath.Join(dir, "missing")})
	require.ErrorContains(t, err, "missing")
	require.Equal(t, exitUsage, exitCode(err))
}

func TestFlagsFromEnv(t *testing.T) {
	set := func(env map[string]string, args ...string) (*pflag.FlagSet, error) {
		f := pflag.NewFlagSet("test", pflag.ContinueOnError)
		f.String("mesos-master", "local", "")
		f.StringArray("build-arg", []string{"default"}, "")
		f.StringSlice("tag", nil, "")
		f.Int("retries", 3, "")
		require.NoError(t, f.Parse(args))
		return f, flagsFromEnv(f, func(name string) (string, bool) {
			v, ok := env[name]
			return v, ok
		})
	}
	env := map[string]string{
		"PORTAINER_MESOS_MASTER": "mesos:5050",
		"PORTAINER_BUILD_ARG":    "A=1,2\nB=3",
		"PORTAINER_TAG":          "v1,v2",
	}
	f, err := set(env, "--tag", "v3")
	require.NoError(t, err)
	master, err := f.GetString("mesos-master")
	require.NoError(t, err)
	require.Equal(t, "mesos:5050", master)
	require.False(t, f.Changed("mesos-master"), "only the command line counts as explicit")
	args, err := f.GetStringArray("build-arg")
	require.NoError(t, err)
	require.Equal(t, []string{"A=1,2", "B=3"}, args)
	tags, err := f.GetStringSlice("tag")
	require.NoError(t, err)
	require.Equal(t, []string{"v3"}, tags, "the command line wins")

	_, err = set(map[string]string{"PORTAINER_RETRIES": "many"})
	require.ErrorContains(t, err, "PORTAINER_RETRIES")
	require.Equal(t, exitUsage, exitCode(err))
	_, err = set(map[string]string{"PORTAINER_RETRIES": ""})
	require.NoError(t, err, "empty is the same as unset")
}
