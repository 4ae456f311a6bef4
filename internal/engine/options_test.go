package engine_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
)

func TestOptions(t *testing.T) {
	r := theRig(t)
	const classic, old, standalone = "given docker classic", "given docker buildkit", "own buildkitd"
	file := func(path, want string) func(*testing.T, string) {
		return func(t *testing.T, ref string) { require.Equal(t, want, fileSystem(t, pull(t, ref))[path]) }
	}
	tests := []struct {
		name    string
		source  string
		options portainer.Options
		by      string // the ways that can, the others refuse
		check   func(t *testing.T, ref string)
	}{
		{"ulimit", "RUN ulimit -n >/n", portainer.Options{Ulimits: []string{"nofile=321:321"}}, classic + standalone, file("n", "321\n")},
		{"shm-size", "RUN df -k /dev/shm | awk 'NR==2{print $2}' >/n", portainer.Options{ShmSize: 8 << 20}, classic + standalone, file("n", "8192\n")},
		{"annotation", "RUN true", portainer.Options{Annotations: map[string]string{"org.example.who": "me"}}, standalone, func(t *testing.T, ref string) {
			m, err := pull(t, ref).Manifest()
			require.NoError(t, err)
			require.Equal(t, "me", m.Annotations["org.example.who"])
		}},
		{"compression", "RUN echo x >/x", portainer.Options{Compression: "zstd", CompressionLevel: 3}, standalone, func(t *testing.T, ref string) {
			m, err := pull(t, ref).Manifest()
			require.NoError(t, err)
			require.Len(t, m.Layers, 2)
			for _, l := range m.Layers {
				require.Equal(t, "application/vnd.oci.image.layer.v1.tar+zstd", string(l.MediaType))
			}
		}},
		{"source-date-epoch", "RUN echo x >/x", portainer.Options{SourceDateEpoch: "86400"}, standalone, func(t *testing.T, ref string) {
			c, err := pull(t, ref).ConfigFile()
			require.NoError(t, err)
			require.Equal(t, int64(86400), c.Created.Unix())
		}},
		{"provenance", "RUN true", portainer.Options{Provenance: "min"}, standalone, func(t *testing.T, ref string) {
			types := map[string]string{}
			for _, m := range index(t, ref).Manifests {
				types[m.Annotations["vnd.docker.reference.type"]] = m.Platform.String()
			}
			require.Contains(t, types, "attestation-manifest")
		}},
		{"platforms", "", portainer.Options{Platforms: []string{"linux/amd64", "linux/arm64"}}, standalone, func(t *testing.T, ref string) {
			var platforms []string
			for _, m := range index(t, ref).Manifests {
				platforms = append(platforms, m.Platform.String())
			}
			require.Equal(t, []string{"linux/amd64", "linux/arm64"}, platforms)
		}},
		{"platform", "", portainer.Options{Platforms: []string{"linux/arm64"}}, old + standalone, func(t *testing.T, ref string) {
			c, err := pull(t, ref).ConfigFile()
			require.NoError(t, err)
			require.Equal(t, "arm64", c.Architecture)
		}},
		{"build-context", "COPY --from=other /etc/passwd /p", portainer.Options{BuildContexts: map[string]string{"other": "docker-image://" + r.busybox}},
			standalone, func(t *testing.T, ref string) { require.Contains(t, fileSystem(t, pull(t, ref))["p"], "root:") }},
		{"cache-from nothing", "RUN true", portainer.Options{CacheFrom: []string{r.registry.Addr + "/no/cache:here"}}, classic + old + standalone, nil},
		{"squash", "RUN true", portainer.Options{Squash: true}, "", nil},
	}
	for _, w := range ways {
		if w.kind == engine.KindDockerd {
			continue // as with a given one
		}
		for _, tt := range tests {
			t.Run(w.name+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				log := &recorder{}
				cfg := r.config(t, w.kind, log)
				cfg.Bundler = files{"a": "a"}
				e := open(t, cfg)
				req := r.request(t, "FROM BUSYBOX\n"+strings.Replace(tt.source, "RUN ", "RUN "+w.mount, 1)+"\n")
				if len(tt.options.Platforms) > 0 {
					req = r.request(t, "FROM scratch\nCOPY a /a\n")
				}
				req.Options = tt.options
				res, err := e.Build(testContext(t), req)
				// What a daemon before 23 can do with one of its builders it does.
				can := strings.Contains(tt.by, w.name) || w.kind == engine.KindDocker && w.mount == "" && strings.Contains(tt.by, old)
				if !can {
					require.ErrorIs(t, err, portainer.ErrInvalid)
					require.NotContains(t, fmt.Sprint(log.all()), "pushing")
					return
				}
				require.NoError(t, err)
				if tt.check != nil {
					tt.check(t, res.Refs[0])
				}
			})
		}
	}
}

// index returns the index that the registry has under ref.
func index(t *testing.T, ref string) *v1.IndexManifest {
	t.Helper()
	tag, err := name.ParseReference(ref, name.Insecure)
	require.NoError(t, err)
	index, err := remote.Index(tag, remote.WithContext(testContext(t)))
	require.NoError(t, err)
	m, err := index.IndexManifest()
	require.NoError(t, err)
	return m
}

func TestRegistryCache(t *testing.T) {
	r := theRig(t)
	cache := "type=registry,mode=max,ref=" + r.registry.Addr + "/cache:" + fmt.Sprint(time.Now().UnixNano())
	var digests []string
	for i, options := range []portainer.Options{{CacheTo: []string{cache}}, {CacheFrom: []string{cache}}} {
		log := &recorder{}
		e := open(t, r.own(t, engine.KindBuildkitd, log)) // another agent, as it were
		req := r.request(t, "FROM BUSYBOX AS one\nRUN cat /proc/sys/kernel/random/uuid >/id\nFROM BUSYBOX\nCOPY --from=one /id /id\n")
		req.Options = options
		res, err := e.Build(testContext(t), req)
		require.NoError(t, err)
		digests = append(digests, fileSystem(t, pull(t, res.Refs[0]))["id"])
		require.Equal(t, i == 1, log.done(t, "COPY --from=one").Cached)
	}
	require.Equal(t, digests[0], digests[1])
}

func TestNoCacheFilter(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		if w.mount == "" && w.kind != engine.KindBuildkitd {
			continue // it makes it BuildKit's
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			e := open(t, r.config(t, w.kind, nil))
			req := r.request(t, "FROM BUSYBOX AS one\nRUN "+w.mount+"cat /proc/sys/kernel/random/uuid >/id\n"+
				"FROM BUSYBOX AS two\nRUN sed s/-/:/g /proc/sys/kernel/random/uuid >/id\nFROM scratch\nCOPY --from=one /id /one\nCOPY --from=two /id /two\n")
			var built []files
			for range 2 {
				res, err := e.Build(testContext(t), req)
				require.NoError(t, err)
				built = append(built, fileSystem(t, pull(t, res.Refs[0])))
				req.Options.NoCacheFilter = []string{"two"}
			}
			require.Equal(t, built[0]["one"], built[1]["one"])
			require.NotEqual(t, built[0]["two"], built[1]["two"])
		})
	}
}

func TestBadOptions(t *testing.T) {
	r := theRig(t)
	e := open(t, r.given(nil))
	req := r.request(t, "FROM BUSYBOX\n")
	req.Options = portainer.Options{Compression: "xz"}
	_, err := e.Build(testContext(t), req)
	require.ErrorIs(t, err, portainer.ErrInvalid)
	require.ErrorContains(t, err, `compression "xz"`)
	req.Options, req.Network = portainer.Options{}, "bridge"
	_, err = e.Build(testContext(t), req)
	require.ErrorIs(t, err, portainer.ErrInvalid)
	require.ErrorContains(t, err, `network "bridge"`)
}
