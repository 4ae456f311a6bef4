package test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/hdfsblob/webhdfstest"
	"github.com/org/portainer/internal/storagetest"
)

// A storage is a running storage server, or none, as users of the program name it.
type storage struct {
	uri     string
	missing string // a bucket that is not there
	env     map[string]string
	wrong   map[string]string // an environment with wrong credentials; nil where there are none
}

// relayed starts a server behind an address that stays.
func relayed(t *testing.T, start func(r *storagetest.Relay) (*storagetest.Server, error)) *storagetest.Relay {
	t.Helper()
	r, err := storagetest.NewRelay()
	require.NoError(t, err)
	t.Cleanup(r.Close)
	s, err := start(r)
	require.NoError(t, err)
	t.Cleanup(s.Kill)
	r.To(s.Network, s.Address)
	return r
}

// startS3 also returns a second address of the same server.
func startS3(t *testing.T) (s storage, other *storagetest.Relay) {
	t.Helper()
	dir, err := os.MkdirTemp("", "s3-") //nolint:usetesting // short: a socket is in it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	other, err = storagetest.NewRelay()
	require.NoError(t, err)
	t.Cleanup(other.Close)
	r := relayed(t, func(*storagetest.Relay) (*storagetest.Server, error) {
		s, err := storagetest.StartS3(t.Context(), dir)
		if err == nil {
			other.To(s.Network, s.Address)
		}
		return s, err
	})
	return storage{
		uri: storagetest.S3URL(r.Addr(), "staging"), missing: storagetest.S3URL(r.Addr(), "nothing"),
		env: storagetest.S3Env(true), wrong: storagetest.S3Env(false),
	}, other
}

func startAzure(t *testing.T) storage {
	t.Helper()
	dir := t.TempDir()
	r := relayed(t, func(*storagetest.Relay) (*storagetest.Server, error) {
		return storagetest.StartAzurite(t.Context(), dir)
	})
	return storage{
		uri: "azblob://staging", missing: "azblob://nothing", env: storagetest.AzureEnv(r.Addr(), true), wrong: storagetest.AzureEnv(r.Addr(), false),
	}
}

func startGCS(t *testing.T) storage {
	t.Helper()
	dir := t.TempDir()
	r := relayed(t, func(r *storagetest.Relay) (*storagetest.Server, error) {
		return storagetest.StartGCS(t.Context(), dir, r.Addr())
	})
	return storage{uri: storagetest.GCSURL("staging"), missing: storagetest.GCSURL("nothing"), env: storagetest.GCSEnv(r.Addr())}
}

func startHDFS(t *testing.T, scheme string) storage {
	t.Helper()
	c, err := webhdfstest.Start(webhdfstest.Options{Namenodes: 2, Datanodes: 2})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	c.Activate(1)
	require.NoError(t, c.Mkdir("/staging", "someone"))
	return storage{uri: c.URL(scheme, "/staging?user=someone"), missing: c.URL(scheme, "/nothing?user=someone"), wrong: map[string]string{}}
}

// withEnv has the program run in an environment.
func withEnv(t *testing.T, env map[string]string) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
}

// executorWith is an executor in an environment of its own: agents pass none of theirs
// on.
func executorWith(t *testing.T, env map[string]string) string {
	t.Helper()
	script := "#!/bin/sh\n"
	for name, value := range env {
		script += fmt.Sprintf("export %s='%s'\n", name, value)
	}
	path := filepath.Join(t.TempDir(), "executor")
	require.NoError(t, os.WriteFile(path, []byte(script+"exec '"+program+"' executor\n"), 0o755))
	return path
}

// sources are a build context that no other test has.
func sources(t *testing.T, name string) string {
	t.Helper()
	return write(t, map[string]string{
		"Dockerfile": "# portainer: repository=test/storage-" + name + "\nFROM busybox\nCOPY data /data\nRUN test \"$(cat /data/name)\" = " + name + "\n",
		"data/name":  name + "\n",
		"data/big":   strings.Repeat(name+" ", 100_000),
	})
}

// TestStorageKinds builds with contexts that go through each kind of storage, whose
// credentials, if any, the agents have, too.
func TestStorageKinds(t *testing.T) {
	daemon := startDaemon(t)
	s3, _ := startS3(t)
	kinds := []struct {
		name  string
		flags []string
		storage
	}{
		{"file", nil, storage{uri: (&url.URL{Scheme: "file", Path: t.TempDir()}).String()}},
		{"s3", []string{"--staging-sign", "never"}, s3},
		{"azblob", []string{"--staging-sign", "never"}, startAzure(t)},
		{"gs", nil, startGCS(t)},
		{"hdfs", nil, startHDFS(t, "hdfs")},
		{"webhdfs", nil, startHDFS(t, "webhdfs")},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			withEnv(t, k.env)
			dir := sources(t, k.name)
			flags := append([]string{"build", "--to", registry, "--from", registry, "--docker-host", daemon.Host, "--staging-uri", k.uri, dir}, k.flags...)
			if k.env != nil {
				flags = append(flags, "--executor-uri", executorWith(t, k.env))
			}
			before := look(t)
			p := cli(t, 0, flags...)
			pushed(t, refOf(t, p, "test/storage-"+k.name))
			before.nothingLeft(t, p)

			// What it has left is used again, and then goes.
			p = cli(t, 0, append(flags, "--staging-ttl", "0")...)
			require.Contains(t, p.stderr.String(), "is staged already")
			list := cli(t, 0, "staging", "ls", "--staging-uri", k.uri).stdout.String()
			require.Equal(t, 2, strings.Count(list, "\n"), "%s", list)
			require.Contains(t, list, " in 24 hours ")
			cli(t, 0, "staging", "gc", "--staging-uri", k.uri, "--older-than", "0s")
			require.Empty(t, cli(t, 0, "staging", "ls", "--staging-uri", k.uri).stdout.String())

			// A mistake is told in a sentence, and soon.
			refused := func(uri, why string) {
				t.Helper()
				began := time.Now()
				p := cli(t, 3, "build", "--to", registry, "--from", registry, "--docker-host", daemon.Host, "--staging-uri", uri, "--tag", "never", dir)
				require.Less(t, time.Since(began), time.Minute)
				require.Len(t, ownMessages(p), 1, "%v", ownMessages(p))
				require.Regexp(t, why, ownMessages(p)[0])
				notPushed(t, registry+"/test/storage-"+k.name+":never")
			}
			if k.missing != "" {
				refused(k.missing, "not found: ")
			}
			if k.wrong != nil {
				withEnv(t, k.wrong)
				refused(strings.ReplaceAll(k.uri, "user=someone", "user=another"), "permission denied|SignatureDoesNotMatch|RESPONSE 403")
			}
		})
	}
}

// TestAgentsWithoutCredentials builds on agents that cannot open the bucket: they
// fetch the executor and read the context at signed URLs, and at another address than
// the program has.
func TestAgentsWithoutCredentials(t *testing.T) {
	c := startCluster(t)
	_, err := dockertest.PushBusybox(t.Context(), c.registry)
	require.NoError(t, err)
	daemon := startDaemon(t)
	s3, other := startS3(t)
	elsewhere := storagetest.S3URL(other.Addr(), "staging")
	kinds := []struct {
		name  string
		flags []string
		storage
	}{
		{"s3", nil, s3},
		{"s3-elsewhere", []string{"--staging-agent-url", elsewhere, "--staging-sign", "always"}, s3},
		{"azblob", []string{"--staging-sign", "always"}, startAzure(t)},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			withEnv(t, k.env)
			served := other.Served()
			p := cli(t, 0, append([]string{"build", "--mesos-master", c.master, "--to", c.registry, "--from", c.registry, "--docker-host", daemon.Host,
				"--staging-uri", k.uri, sources(t, k.name)}, k.flags...)...)
			pushed(t, refOf(t, p, "test/storage-"+k.name))
			require.Equal(t, k.name == "s3-elsewhere", other.Served() > served, "where agents went")
			for _, secret := range []string{"X-Amz-Signature", "sig="} {
				require.NotContains(t, p.stderr.String(), secret)
			}
		})
	}

	// Without signed URLs they cannot.
	withEnv(t, s3.env)
	p := cli(t, 3, "build", "--mesos-master", c.master, "--to", c.registry, "--from", c.registry, "--docker-host", daemon.Host, "--retries", "0",
		"--staging-uri", s3.uri, "--staging-sign", "never", "--tag", "never", sources(t, "s3"))
	require.Len(t, ownMessages(p), 1)
	require.Contains(t, ownMessages(p)[0], "portainer/contexts/")
	c.stop()
}

// TestAgentsWithAnotherMount has agents find the staging directory at another path.
func TestAgentsWithAnotherMount(t *testing.T) {
	here, there := t.TempDir(), filepath.Join(t.TempDir(), "mount")
	args := []string{"build", "--to", registry, "--from", registry, "--staging-uri", here, "--retries", "0", "--staging-agent-url", there, sources(t, "mount")}
	p := cli(t, 3, args...)
	require.Contains(t, fmt.Sprint(ownMessages(p)), there+"/portainer/contexts/")
	require.NoError(t, os.RemoveAll(there))
	require.NoError(t, os.Symlink(here, there))
	pushed(t, refOf(t, cli(t, 0, args...), "test/storage-mount"))
}

// TestCacheInS3 has the cache of a build in an S3 bucket: on an engine that has nothing the
// next build takes its steps from there.
func TestCacheInS3(t *testing.T) {
	withBuildkitd(t)
	_, at := startS3(t)
	place := "type=s3,endpoint_url=http://" + at.Addr() + ",use_path_style=true,region=us-east-1,bucket=staging,prefix=cache/,name=team,access_key_id=someone,secret_access_key="
	dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nRUN echo made at $(cat /proc/uptime) >/made\nRUN cp /made /copied\n"})
	build := func(code int, secret, tag string, flags ...string) *process {
		t.Helper()
		// What is on a command line everybody can see; files are not.
		args := append([]string{"build", "--to", registry, "--from", registry, "--engine", "buildkitd", "--repository", "test/cache", "--tag", tag, "--retries", "0"}, flags...)
		for i, a := range args {
			args[i] = strings.ReplaceAll(a, "SECRET", secret)
		}
		file := filepath.Join(write(t, map[string]string{"arguments": strings.Join(append(args, dir), "\n")}), "arguments")
		return cli(t, code, "@"+file)
	}
	first := build(0, "right", "first", "--cache-to", place+"SECRET,mode=max")
	require.NotContains(t, first.stderr.String(), "CACHED")
	second := build(0, "right", "second", "--cache-from", place+"SECRET")
	require.Equal(t, content(t, first.refs()[0])["copied"], content(t, second.refs()[0])["copied"], "it was made once")
	require.Contains(t, second.stderr.String(), "CACHED")

	// With a wrong key there is no cache, and none is written.
	third := build(0, "guessed", "third", "--cache-from", place+"SECRET")
	require.NotEqual(t, content(t, first.refs()[0])["copied"], content(t, third.refs()[0])["copied"])
	require.NotContains(t, third.stderr.String(), "guessed")
	build(1, "guessed", "never", "--cache-to", place+"SECRET")
}
