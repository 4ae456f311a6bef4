package testmesos_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/testmesos"
)

func TestStartRefusesBadConfigs(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  testmesos.Config
		want string
	}{
		{"resources", testmesos.Config{Agents: []testmesos.AgentConfig{{Resources: "cpus"}}}, `agent 0: resource "cpus": want name:value`},
		{"ports", testmesos.Config{Agents: []testmesos.AgentConfig{{Resources: "ports:[2-1]"}}}, "begin > end"},
		{"number", testmesos.Config{Agents: []testmesos.AgentConfig{{Resources: "cpus:many"}}}, `value "many" is no number`},
		{"attributes", testmesos.Config{Agents: []testmesos.AgentConfig{{}, {Attributes: "rack"}}}, `agent 1: attribute "rack"`},
		{"address", testmesos.Config{MasterAddr: "127.0.0.1:x"}, "master 0"},
		{"duration", testmesos.Config{AllocationInterval: -1}, "AllocationInterval is -1ns"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := testmesos.Start(tt.cfg)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestCloseEndsEverything(t *testing.T) {
	cfg := fast(2)
	cfg.ShutdownGrace = 200 * time.Millisecond
	c, err := testmesos.Start(cfg)
	require.NoError(t, err)
	f := subscribed(t, c, nil)
	o := f.offer()
	f.accept(o, taskFor(o, "t1", "stubborn"), taskFor(o, "t2", "child"), commandFor(o, "t3", "trap '' TERM; sleep 100"))
	f.acked("t1", mesos.TASK_RUNNING)
	child := atoi(t, string(f.acked("t2", mesos.TASK_RUNNING).Data))
	f.acked("t3", mesos.TASK_STARTING)
	f.acked("t3", mesos.TASK_RUNNING)
	var pids []int
	var dirs []string
	for _, a := range c.Agents() {
		dirs = append(dirs, a.WorkDir())
		for _, x := range a.Executors() {
			pids = append(pids, x.PID)
		}
	}
	require.Len(t, pids, 3)
	require.NoError(t, c.Close())
	for _, pid := range append(pids, child) {
		require.False(t, alive(pid), "process %d", pid)
	}
	for _, dir := range dirs {
		require.NoDirExists(t, dir)
	}
	require.NoError(t, c.Close(), "twice")
	f.unanswered(&scheduler.Call{Type: scheduler.Call_REVIVE})
}

func TestCloseEndsSimulatedTasks(t *testing.T) {
	cfg := fast(1)
	cfg.Agents[0].Simulate = func(ctx context.Context, _ *mesos.TaskInfo) testmesos.Outcome {
		<-ctx.Done()
		return testmesos.Outcome{}
	}
	c, err := testmesos.Start(cfg)
	require.NoError(t, err)
	f := subscribed(t, c, nil)
	f.launch("t1", "run")
	require.NoError(t, c.Close())
}

func TestCloseKeepsAGivenWorkDir(t *testing.T) {
	cfg := fast(1)
	cfg.WorkDir = filepath.Join(t.TempDir(), "work")
	c, err := testmesos.Start(cfg)
	require.NoError(t, err)
	f := subscribed(t, c, nil)
	f.launch("t1", "run")
	sandbox := c.Agents()[0].Executors()[0].Sandbox
	require.NoError(t, c.Close())
	require.FileExists(t, filepath.Join(sandbox, "stderr"))
	latest, err := filepath.EvalSymlinks(filepath.Join(filepath.Dir(sandbox), "latest"))
	require.NoError(t, err)
	require.Equal(t, sandbox, latest)
}

func TestGoroutinesEnd(t *testing.T) {
	http.DefaultClient.CloseIdleConnections()
	before := runtime.NumGoroutine()
	c, err := testmesos.Start(fast(3))
	require.NoError(t, err)
	f := subscribed(t, c, nil)
	f.launch("t1", "run")
	require.NoError(t, c.Close())
	f.close()
	// The condition has a goroutine of its own.
	eventually(t, "goroutines have ended", func() bool { return runtime.NumGoroutine() <= before+1 })
}

// resourceText prints resources as "cpus(role):2", sorted.
func resourceText(rs []mesos.Resource) string {
	var out []string
	for _, r := range rs {
		name := r.Name
		if role := r.GetRole(); role != "*" {
			name += "(" + role + ")"
		}
		switch r.GetType() {
		case mesos.SCALAR:
			out = append(out, fmt.Sprintf("%s:%v", name, r.Scalar.Value))
		case mesos.RANGES:
			for _, p := range r.Ranges.Range {
				out = append(out, fmt.Sprintf("%s:[%d-%d]", name, p.Begin, p.End))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, ";")
}

func roles(names ...string) func(*mesos.FrameworkInfo) {
	return func(info *mesos.FrameworkInfo) {
		info.Roles = names
		info.Capabilities = []mesos.FrameworkInfo_Capability{{Type: mesos.FrameworkInfo_Capability_MULTI_ROLE}}
	}
}

func TestOffersOfReservedResources(t *testing.T) {
	cfg := fast(1)
	cfg.Agents[0] = testmesos.AgentConfig{
		Resources:  "cpus:1;cpus(a):2;mem:1024;mem(a):512;mem(b):256;ports(a):[1-2]",
		Attributes: "rack:r1;cores:8",
		Hostname:   "agent.example",
	}
	c := start(t, cfg)
	for _, tt := range []struct {
		roles []string
		want  []string
	}{
		{[]string{"*"}, []string{"cpus:1;mem:1024"}},
		{[]string{"a"}, []string{"cpus(a):2;cpus:1;mem(a):512;mem:1024;ports(a):[1-2]"}},
		{[]string{"a/team"}, []string{"cpus(a):2;cpus:1;mem(a):512;mem:1024;ports(a):[1-2]"}},
		{[]string{"b", "a"}, []string{"cpus(a):2;cpus:1;mem(a):512;mem:1024;ports(a):[1-2]", "mem(b):256"}},
	} {
		f := subscribed(t, c, roles(tt.roles...))
		var got []string
		for range tt.want {
			o := f.offer()
			got = append(got, resourceText(o.Resources))
			require.Contains(t, tt.roles, o.AllocationInfo.GetRole())
			for _, r := range o.Resources {
				require.Equal(t, o.AllocationInfo.GetRole(), r.AllocationInfo.GetRole())
			}
			require.Equal(t, "agent.example", o.Hostname)
			require.Len(t, o.Attributes, 2)
		}
		require.Equal(t, tt.want, got, "roles %v", tt.roles)
		f.call(&scheduler.Call{Type: scheduler.Call_TEARDOWN})
		require.ErrorIs(t, f.end(), io.EOF)
	}
}

func TestLaunchOnReservedResources(t *testing.T) {
	cfg := fast(1)
	cfg.Agents[0].Resources = "cpus:1;cpus(a):2;mem:1024"
	c := start(t, cfg)
	f := subscribed(t, c, roles("a"))
	o := f.offer()
	t1 := taskFor(o, "t1", "run")
	t1.Resources = []mesos.Resource{scalar("cpus", 2), scalar("mem", 32)}
	t1.Resources[0].Role = new("a")
	f.accept(o, t1)
	f.acked("t1", mesos.TASK_RUNNING)
	o = f.offer()
	require.Equal(t, "cpus:0.9;mem:960", resourceText(o.Resources))
}

func TestGPUsOnlyForThoseWhoCan(t *testing.T) {
	cfg := fast(2)
	cfg.Agents[0].Resources = "cpus:1;mem:1024;gpus:2"
	c := start(t, cfg)
	f := subscribed(t, c, nil)
	require.Equal(t, c.Agents()[1].ID(), f.offer().AgentID.Value)
	f.none(scheduler.Event_OFFERS, 100*time.Millisecond)
	g := subscribed(t, c, func(info *mesos.FrameworkInfo) {
		info.Capabilities = []mesos.FrameworkInfo_Capability{{Type: mesos.FrameworkInfo_Capability_GPU_RESOURCES}}
	})
	require.Equal(t, c.Agents()[0].ID(), g.offer().AgentID.Value)
}

func TestFairShare(t *testing.T) {
	c := start(t, fast(2))
	a := subscribed(t, c, roles("a"))
	busy, free := a.offer(), a.offer()
	a.accept(busy, taskFor(busy, "t1", "run"))
	a.acked("t1", mesos.TASK_RUNNING)
	a.offerOf(busy.AgentID.Value)
	b := subscribed(t, c, roles("b"))
	b.none(scheduler.Event_OFFERS, 100*time.Millisecond)
	// Nothing keeps a from getting this again, but b has less.
	a.decline(free, 0)
	require.Equal(t, free.AgentID, b.offer().AgentID)
}

func TestSeveralExecutorsAndPortsInOneAccept(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, nil)
	o := f.offer()
	withPort := func(id string, port uint64) mesos.TaskInfo {
		ti := taskFor(o, id, "run")
		ti.Resources = append(ti.Resources, mesos.Resource{Name: "ports", Type: new(mesos.RANGES),
			Ranges: &mesos.Value_Ranges{Range: []mesos.Value_Range{{Begin: port, End: port}}}})
		return ti
	}
	f.accept(o, withPort("t1", 31005), withPort("t2", 31006), withPort("t3", 31005))
	f.acked("t1", mesos.TASK_RUNNING)
	f.acked("t2", mesos.TASK_RUNNING)
	s := f.update("t3")
	require.Equal(t, mesos.TASK_ERROR, s.GetState())
	require.Contains(t, s.GetMessage(), "is more than available")
	require.Equal(t, "cpus:3.6;disk:20000;mem:8064;ports:[31000-31004];ports:[31007-32000]", resourceText(f.offer().Resources))
}

func TestKillBeforeTheExecutorSubscribed(t *testing.T) {
	c := start(t, fast(1))
	hold := c.Interfere(testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "SUBSCRIBE", Action: testmesos.Delay, Delay: 300 * time.Millisecond})
	f := subscribed(t, c, nil)
	o := f.offer()
	f.accept(o, taskFor(o, "t1", "run"))
	eventually(t, "the executor subscribes", func() bool { return hold.Hits() > 0 })
	f.kill("t1")
	s := f.acked("t1", mesos.TASK_KILLED)
	require.Equal(t, mesos.REASON_TASK_KILLED_DURING_LAUNCH, s.GetReason())
	require.Equal(t, "Killed before delivery to the executor", s.GetMessage())
	// The executor is told to go and never hears of the task.
	require.Equal(t, int32(0), *f.expect(scheduler.Event_FAILURE).Failure.Status)
	require.Empty(t, c.Agents()[0].Executors())
}

func TestRegistrationTimeoutIncludesFetching(t *testing.T) {
	cfg := fast(1)
	cfg.RegistrationTimeout = 200 * time.Millisecond
	c := start(t, cfg)
	stop := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}))
	defer web.Close()
	defer close(stop)
	f := subscribed(t, c, nil)
	o := f.offer()
	ti := taskFor(o, "t1", "run")
	ti.Executor.Command.URIs = []mesos.CommandInfo_URI{{Value: web.URL + "/slow"}}
	f.accept(o, ti)
	s := f.acked("t1", mesos.TASK_FAILED)
	require.Equal(t, mesos.REASON_EXECUTOR_REGISTRATION_TIMEOUT, s.GetReason())
	require.Equal(t, "Executor did not register within 200ms", s.GetMessage())
	f.expect(scheduler.Event_FAILURE)
}

func TestCommandTaskKilled(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, func(info *mesos.FrameworkInfo) {
		info.Capabilities = []mesos.FrameworkInfo_Capability{{Type: mesos.FrameworkInfo_Capability_TASK_KILLING_STATE}}
	})
	o := f.offer()
	stubborn := commandFor(o, "t2", "trap '' TERM; echo ready; while :; do sleep 1; done")
	stubborn.KillPolicy = &mesos.KillPolicy{GracePeriod: &mesos.DurationInfo{Nanoseconds: 1e8}}
	f.accept(o, commandFor(o, "t1", "exec sleep 100"), stubborn)
	for _, id := range []string{"t1", "t2"} {
		f.acked(id, mesos.TASK_STARTING)
		f.acked(id, mesos.TASK_RUNNING)
	}
	f.kill("t1")
	f.acked("t1", mesos.TASK_KILLING)
	require.Equal(t, "Command terminated with signal Terminated", f.acked("t1", mesos.TASK_KILLED).GetMessage())
	eventually(t, "t2 is ready", func() bool { return sandboxFile(t, c.Agents()[0], f, "t2", "stdout") == "ready\n" })
	f.kill("t2")
	f.acked("t2", mesos.TASK_KILLING)
	require.Equal(t, "Command terminated with signal Killed", f.acked("t2", mesos.TASK_KILLED).GetMessage())
}

func TestUpdateFramework(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, roles("a"))
	o := f.offer()
	update := func(change func(*mesos.FrameworkInfo)) (int, string) {
		info := *f.info
		change(&info)
		resp, err := f.post(t.Context(), &scheduler.Call{Type: scheduler.Call_UPDATE_FRAMEWORK,
			UpdateFramework: &scheduler.Call_UpdateFramework{FrameworkInfo: info}})
		require.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(b)
	}
	code, text := update(func(info *mesos.FrameworkInfo) { info.Checkpoint = new(false) })
	require.Equal(t, http.StatusBadRequest, code)
	require.Equal(t, "FrameworkInfo update is not valid: Updating 'FrameworkInfo.checkpoint' is unsupported;"+
		" attempted to update from 'true' to 'false'", text)
	code, _ = update(func(info *mesos.FrameworkInfo) { info.Roles = []string{"b"} })
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, o.ID, f.expect(scheduler.Event_RESCIND).Rescind.OfferID)
	require.Equal(t, "b", f.offer().AllocationInfo.GetRole())
}

func TestFrameworkCredentials(t *testing.T) {
	cfg := fast(1)
	cfg.Credentials = map[string]string{"builder": "secret"}
	c := start(t, cfg)
	f := newFramework(t, c, nil)
	f.user = "builder:wrong"
	require.ErrorContains(t, f.open(), "401 Unauthorized")
	f.user = "builder:secret"
	f.subscribe()
	f.launch("t1", "run")
}

func TestAgentCredentials(t *testing.T) {
	cfg := fast(1)
	cfg.AgentCredentials = map[string]string{"operator": "secret"}
	c := start(t, cfg)
	get := func(path, password string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.Agents()[0].URL()+path, nil)
		require.NoError(t, err)
		if password != "" {
			req.SetBasicAuth("operator", password)
		}
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Www-Authenticate")
	}
	code, challenge := get("/files/read?path=/x", "")
	require.Equal(t, http.StatusUnauthorized, code)
	require.Equal(t, `Basic realm="mesos-agent-readonly"`, challenge)
	_, challenge = get("/api/v1", "wrong")
	require.Equal(t, `Basic realm="mesos-agent-readwrite"`, challenge)
	code, _ = get("/files/read?path=/x", "secret")
	require.Equal(t, http.StatusNotFound, code)
	f := subscribed(t, c, nil)
	f.launch("t1", "run") // executors need no credentials
}

func TestExecutorToken(t *testing.T) {
	cfg := fast(1)
	cfg.ExecutorSecret = []byte("key")
	c := start(t, cfg)
	f := subscribed(t, c, nil)
	f.launch("t1", "run")
	a := c.Agents()[0]
	post := func(token string) (int, string) {
		body := `{"type":"MESSAGE","framework_id":{"value":"` + f.info.ID.Value + `"},"executor_id":{"value":"x-t1"},"message":{"data":"aGk="}}`
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL()+"/api/v1/executor", strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(b)
	}
	code, _ := post("")
	require.Equal(t, http.StatusUnauthorized, code)
	code, _ = post("a.b.c")
	require.Equal(t, http.StatusUnauthorized, code)

	o := f.offer()
	ti := commandFor(o, "t2", "printf %s $MESOS_EXECUTOR_AUTHENTICATION_TOKEN; sleep 100")
	f.accept(o, ti)
	f.acked("t2", mesos.TASK_STARTING)
	f.acked("t2", mesos.TASK_RUNNING)
	var other []byte
	eventually(t, "the token is there", func() bool {
		i := slices.IndexFunc(a.Executors(), func(x testmesos.RunningExecutor) bool { return x.ID == "t2" })
		var err error
		other, err = os.ReadFile(filepath.Join(a.Executors()[i].Sandbox, "stdout"))
		return err == nil && len(other) > 0
	})
	code, text := post(string(other))
	require.Equal(t, http.StatusForbidden, code, text)
}

// serverTLS makes a certificate for 127.0.0.1.
func serverTLS(t *testing.T) (server *tls.Config, roots *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "testmesos"},
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, roots
}

func TestTLS(t *testing.T) {
	cfg := fast(1)
	var roots *x509.CertPool
	cfg.TLS, roots = serverTLS(t)
	c := start(t, cfg)
	require.True(t, strings.HasPrefix(c.Master(), "https://"), c.Master())
	f := newFramework(t, c, nil)
	f.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	f.subscribe()
	o := f.offer()
	f.accept(o, commandFor(o, "t1", "exit 0"))
	f.acked("t1", mesos.TASK_STARTING)
	f.acked("t1", mesos.TASK_RUNNING)
	f.acked("t1", mesos.TASK_FINISHED)
	resp, err := f.client.Get(c.Agents()[0].URL() + "/state")
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, "HTTP/1.1", resp.Proto)
}

func TestSimulatedAgents(t *testing.T) {
	cfg := fast(3)
	for i := range cfg.Agents {
		cfg.Agents[i].Simulate = func(ctx context.Context, task *mesos.TaskInfo) testmesos.Outcome {
			if string(task.Data) == "run" {
				<-ctx.Done()
			}
			return testmesos.Outcome{Data: []byte("done " + task.TaskID.Value)}
		}
	}
	c := start(t, cfg)
	f := subscribed(t, c, nil)
	o := f.offer()
	f.accept(o, taskFor(o, "t1", "finish"), taskFor(o, "t2", "run"))
	f.acked("t1", mesos.TASK_RUNNING)
	require.Equal(t, "done t1", string(f.acked("t1", mesos.TASK_FINISHED).Data))
	f.acked("t2", mesos.TASK_RUNNING)
	i := slices.IndexFunc(c.Agents(), func(a *testmesos.Agent) bool { return a.ID() == o.AgentID.Value })
	require.NoError(t, c.Agents()[i].Restart())
	f.killUntilGone("t2")
	require.NoDirExists(t, filepath.Join(c.Agents()[i].WorkDir(), "slaves"))
}

// killUntilGone repeats KILL until the task is TASK_KILLED.
func (f *framework) killUntilGone(task string) {
	f.t.Helper()
	eventually(f.t, task+" is killed", func() bool {
		s := f.killUntil(task)
		return s != nil && s.GetState() == mesos.TASK_KILLED
	})
}

func TestFetcher(t *testing.T) {
	var archive bytes.Buffer
	gz := gzip.NewWriter(&archive)
	tw := tar.NewWriter(gz)
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "d/link", Typeflag: tar.TypeSymlink, Linkname: "file"}))
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "d/file", Mode: 0o755, Size: 3}))
	_, err := tw.Write([]byte("tar"))
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	require.NoError(t, gz.Close())

	var zipped bytes.Buffer
	zw := zip.NewWriter(&zipped)
	w, err := zw.Create("z/file")
	require.NoError(t, err)
	_, err = w.Write([]byte("zip"))
	require.NoError(t, err)
	require.NoError(t, zw.Close())

	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/a.tar.gz":
			_, _ = w.Write(archive.Bytes())
		case "/b.zip":
			_, _ = w.Write(zipped.Bytes())
		case "/moved":
			http.Redirect(w, r, "/tool", http.StatusFound)
		case "/tool":
			_, _ = w.Write([]byte("#!/bin/sh\necho tool\n"))
		default:
			http.NotFound(w, r)
		}
	}))
	defer web.Close()

	c := start(t, fast(1))
	f := subscribed(t, c, nil)
	run := func(id, shell string, uris ...mesos.CommandInfo_URI) (*mesos.TaskStatus, string) {
		o := f.offer()
		ti := commandFor(o, id, shell)
		ti.Command.URIs = uris
		f.accept(o, ti)
		for {
			s := f.update(id)
			f.acknowledge(s)
			if s.GetState() == mesos.TASK_FINISHED || s.GetState() == mesos.TASK_FAILED {
				return s, sandboxFile(t, c.Agents()[0], f, id, "stdout")
			}
		}
	}
	s, out := run("t1", "cat d/link z/file && ./bin/tool && ls -l a.tar.gz",
		mesos.CommandInfo_URI{Value: web.URL + "/a.tar.gz"},
		mesos.CommandInfo_URI{Value: web.URL + "/b.zip"},
		mesos.CommandInfo_URI{Value: web.URL + "/moved", OutputFile: new("bin/tool"), Executable: new(true)})
	require.Equal(t, mesos.TASK_FINISHED, s.GetState(), s.GetMessage())
	require.True(t, strings.HasPrefix(out, "tarziptool\n"), out)

	s, _ = run("t2", "true", mesos.CommandInfo_URI{Value: web.URL + "/missing"})
	require.Equal(t, mesos.REASON_CONTAINER_LAUNCH_FAILED, s.GetReason())
	require.Contains(t, sandboxFile(t, c.Agents()[0], f, "t2", "stderr"), "unexpected HTTP response code: 404")
	s, _ = run("t3", "true", mesos.CommandInfo_URI{Value: "s3://bucket/object"})
	require.Equal(t, mesos.REASON_CONTAINER_LAUNCH_FAILED, s.GetReason())
}

func TestFetcherStaysInTheSandbox(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: filepath.Dir(outside)}))
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "link/outside", Mode: 0o644, Size: 1}))
	_, err := tw.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	file := filepath.Join(t.TempDir(), "evil.tar")
	require.NoError(t, os.WriteFile(file, archive.Bytes(), 0o644))

	c := start(t, fast(1))
	f := subscribed(t, c, nil)
	o := f.offer()
	ti := commandFor(o, "t1", "true")
	ti.Command.URIs = []mesos.CommandInfo_URI{{Value: file}}
	f.accept(o, ti)
	require.Equal(t, mesos.REASON_CONTAINER_LAUNCH_FAILED, f.acked("t1", mesos.TASK_FAILED).GetReason())
	require.NoFileExists(t, outside)
}

// sandboxFile reads a file of the latest run of an executor over HTTP.
func sandboxFile(t *testing.T, a *testmesos.Agent, f *framework, executor, name string) string {
	t.Helper()
	path := "/frameworks/" + f.info.ID.Value + "/executors/" + executor + "/runs/latest/" + name
	text, _ := getJSON(t, a.URL()+"/files/read?offset=0&path="+url.QueryEscape(path))["data"].(string)
	return text
}

func TestStateAndPage(t *testing.T) {
	c := start(t, fast(2))
	f := subscribed(t, c, func(info *mesos.FrameworkInfo) { info.Name = "builds <of> images" })
	o := f.launch("t1", "run")
	state := getJSON(t, c.Master()+"/master/state")
	require.Len(t, state["slaves"], 2)
	fw := state["frameworks"].([]any)[0].(map[string]any)
	require.Equal(t, "builds <of> images", fw["name"])
	task := fw["tasks"].([]any)[0].(map[string]any)
	require.Equal(t, "TASK_RUNNING", task["state"])
	require.Equal(t, o.AgentID.Value, task["slave_id"])

	resp, err := http.Get(c.Master() + "/")
	require.NoError(t, err)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	for _, want := range []string{"builds &lt;of&gt; images", "TASK_RUNNING", o.AgentID.Value, "x-t1"} {
		require.Contains(t, string(page), want)
	}

	for _, a := range c.Agents() {
		if a.ID() != o.AgentID.Value {
			continue
		}
		fws := getJSON(t, a.URL()+"/slave(1)/state")["frameworks"].([]any)
		x := fws[0].(map[string]any)["executors"].([]any)[0].(map[string]any)
		require.Equal(t, a.Executors()[0].Sandbox, x["directory"])
	}

	resp, err = http.PostForm(c.Master()+"/master/teardown", url.Values{"frameworkId": {f.info.ID.Value}})
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.ErrorIs(t, f.end(), io.EOF)
	state = getJSON(t, c.Master()+"/state")
	require.Empty(t, state["frameworks"])
	require.Len(t, state["completed_frameworks"], 1)
}
