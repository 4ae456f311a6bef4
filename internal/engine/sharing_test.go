package engine_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/org/portainer/internal/dockertest"
)

// TestBuildsAtOnce has several executors build on one given daemon, again and again: the
// same, so that each finds an image in the cache that another is about to remove; or to
// the same name, which each borrows for its own image.
func TestBuildsAtOnce(t *testing.T) {
	r := theRig(t)
	const executors, times = 4, 5
	for _, w := range ways[:2] {
		for _, shared := range []string{"steps", "name"} {
			if shared == "name" && w.mount != "" {
				continue // as with the other builder
			}
			t.Run(w.name+" "+shared, func(t *testing.T) {
				t.Parallel()
				d, err := dockertest.StartDaemon(testContext(t), t.TempDir())
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, d.Stop()) })
				var builds errgroup.Group
				for i := range executors {
					cfg := r.given(nil)
					cfg.Host = d.Host
					e := open(t, cfg)
					value := "the same"
					req := r.request(t, "")
					if shared == "name" {
						value = fmt.Sprint(i)
					} else {
						req.Repository += fmt.Sprintf("-%d", i)
					}
					req.Source = fmt.Appendf(nil, "FROM %s\nRUN %strue\nENV WHAT=%q\n", r.busybox, w.mount, value)
					builds.Go(func() error {
						for range times {
							res, err := e.Build(testContext(t), req)
							if err != nil {
								return err
							}
							image, err := find(testContext(t), res.Image+"@"+res.Digest)
							if err != nil {
								return err
							}
							config, err := image.ConfigFile()
							if err != nil {
								return err
							}
							if got := config.Config.Env[len(config.Config.Env)-1]; got != "WHAT="+value {
								return fmt.Errorf("%s has %s", res.Image, got)
							}
						}
						return nil
					})
				}
				require.NoError(t, builds.Wait())
				// Every name was given back. What has none is the cache of the first step.
				out, err := exec.CommandContext(testContext(t), "docker", "--host", d.Host, "images", "--all", "--digests", "--format", "{{.Repository}} {{.Tag}} {{.Digest}} {{.ID}}").Output()
				require.NoError(t, err)
				for line := range strings.Lines(string(out)) {
					require.Regexp(t, `^(?:<none> <none> <none>|\S+/busybox latest sha256:\S+) \S+\n$`, line)
				}
			})
		}
	}
}
