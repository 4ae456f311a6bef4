package testmesos_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/testmesos"
)

// probeShards is how many clusters share the cases that need nothing special.
// Most of their time is waiting.
const probeShards = 8

var (
	probeCase    = regexp.MustCompile(`^(\S+)(?: \(-(\w+)\))?$`)
	probeSummary = regexp.MustCompile(`(\d+) passed, (\d+) failed`)
)

// TestMesosprobe holds the conversations that were recorded from Apache Mesos
// with clusters of ours.
func TestMesosprobe(t *testing.T) {
	probe := filepath.Join(t.TempDir(), "mesosprobe")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", probe, "./mesosprobe").CombinedOutput()
	require.NoError(t, err, "%s", out)
	golden, err := filepath.Abs(filepath.Join("mesosprobe", "golden"))
	require.NoError(t, err)

	out, err = exec.CommandContext(t.Context(), probe, "-list").Output()
	require.NoError(t, err)
	groups := map[string][]string{}
	n := 0
	for line := range strings.Lines(string(out)) {
		m := probeCase.FindStringSubmatch(strings.TrimSpace(line))
		require.NotNil(t, m, "case %q", line)
		name, group := m[1], m[2]
		if group == "" {
			group = fmt.Sprintf("shard-%d", n%probeShards)
			n++
		}
		groups[group] = append(groups[group], name)
	}
	require.Contains(t, groups, "slow")
	require.Contains(t, groups, "auth")

	// Subtests in parallel would be as many as there are processors, and these
	// mostly wait.
	type result struct {
		out []byte
		err error
	}
	results := map[string]chan result{}
	for group, cases := range groups {
		cfg := testmesos.Config{Agents: []testmesos.AgentConfig{{}}}
		args := []string{"-golden", golden, "-case", "^(" + strings.Join(cases, "|") + ")$"}
		switch group {
		case "slow":
			cfg.RegistrationTimeout = 5 * time.Second
			args = append(args, "-slow")
		case "auth":
			cfg.Credentials = map[string]string{"probe": "secret"}
			args = append(args, "-auth", "probe:secret")
		}
		c := start(t, cfg)
		cmd := exec.CommandContext(t.Context(), probe, append(args, "-master", c.Master())...)
		done := make(chan result, 1)
		results[group] = done
		go func() {
			out, err := cmd.CombinedOutput()
			done <- result{out, err}
		}()
	}
	passed, failed := 0, 0
	for group, cases := range groups {
		t.Run(group, func(t *testing.T) {
			r := <-results[group]
			m := probeSummary.FindSubmatch(r.out)
			require.NotNil(t, m, "%s", r.out)
			passed += count(t, m[1])
			failed += count(t, m[2])
			require.NoError(t, r.err, "%s", r.out)
			require.Equal(t, len(cases), count(t, m[1]), "cases run")
		})
	}
	t.Logf("%d passed, %d failed", passed, failed)
}

func count(t *testing.T, digits []byte) int {
	n, err := strconv.Atoi(string(digits))
	require.NoError(t, err)
	return n
}

// start starts a cluster that ends with the test.
func start(t testing.TB, cfg testmesos.Config) *testmesos.Cluster {
	t.Helper()
	c, err := testmesos.Start(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}
