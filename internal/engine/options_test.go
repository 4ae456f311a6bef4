package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
	"github.com/org/portainer/internal/script"
	"github.com/org/portainer/internal/wire"
)

func TestOptions(t *testing.T) {
	r := theRig(t)
	const classic, old, standalone = "given docker classic", "given docker buildkit", "own buildkitd"
	file := func(path, want string) func(*testing.T, string) {
		return func(t *testing.T, ref string) { require.Equal(t, want, fileSystem(t, pull(t, ref))[path]) }
	}
	attested := func(t *testing.T, ref, kind string) map[string]any {
		t.Helper()
		predicate := attestations(t, ref)[kind]
		require.NotNil(t, predicate, kind)
		return predicate
	}
	buildConfig := func(t *testing.T, ref string) any { // each step
		definition := attested(t, ref, "https://slsa.dev/provenance/v1")["buildDefinition"].(map[string]any)
		return definition["internalParameters"].(map[string]any)["buildConfig"]
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
		{"provenance min", "RUN true", portainer.Options{Provenance: "min"}, standalone, func(t *testing.T, ref string) {
			require.Nil(t, buildConfig(t, ref))
		}},
		{"provenance max", "RUN true", portainer.Options{Provenance: "max"}, standalone, func(t *testing.T, ref string) {
			require.NotNil(t, buildConfig(t, ref))
		}},
		{"sbom", "RUN echo x >/x", portainer.Options{SBOM: r.scanner(t)}, standalone, func(t *testing.T, ref string) {
			require.Equal(t, "seen by the scanner: bin dev etc proc root sys tmp x", strings.TrimSpace(attested(t, ref, "https://spdx.dev/Document")["name"].(string)))
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
		{"add-host", "RUN cat /etc/hosts >/h", portainer.Options{}, classic + old + standalone, func(t *testing.T, ref string) {
			require.Regexp(t, `192\.0\.2\.7\s+db\.example`, fileSystem(t, pull(t, ref))["h"])
		}},
		{"network none", "RUN sed '1,2d;s/:.*//;s/ //g' /proc/net/dev >/n", portainer.Options{}, classic + old + standalone, func(t *testing.T, ref string) {
			require.Equal(t, "lo\n", fileSystem(t, pull(t, ref))["n"])
		}},
		{"network", "RUN sed '1,2d; s/:.*//; s/ //g' /proc/net/dev >/n", portainer.Options{}, classic + old + standalone, func(t *testing.T, ref string) {
			require.NotEqual(t, "lo\n", fileSystem(t, pull(t, ref))["n"])
		}},
		{"secret", "RUN --mount=type=secret,id=key cat /run/secrets/key >/s", portainer.Options{}, classic + old + standalone, file("s", "the key")},
		{"squash", "RUN true", portainer.Options{Squash: true}, "", nil}, // see TestSquash,
	}
	secret := func(_ context.Context, id string) ([]byte, error) { return []byte("the " + id), nil }
	requests := map[string]func(*portainer.Request){
		"add-host":     func(req *portainer.Request) { req.AddHosts = []string{"db.example:192.0.2.7"} },
		"network none": func(req *portainer.Request) { req.Network = "none" },
	}
	for _, w := range ways {
		// One engine for all of the table, which has them at the same time.
		log := &recorder{}
		cfg := r.config(t, w.kind, log)
		cfg.Bundler, cfg.Secrets = files{"a": "a"}, secret
		e := open(t, cfg)
		// Another daemon of the same version can do the same.
		as := strings.Replace(w.name, "own dockerd", "given docker", 1)
		for i, tt := range tests {
			t.Run(w.name+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				req := r.request(t, "FROM BUSYBOX\n"+strings.Replace(tt.source, "RUN ", "RUN "+w.mount, 1)+"\n")
				if len(tt.options.Platforms) > 0 {
					req = r.request(t, "FROM scratch\nCOPY a /a\n")
				}
				req.ID = portainer.BuildID(fmt.Sprintf("b%d", i))
				req.Options = tt.options
				if change := requests[tt.name]; change != nil {
					change(&req)
				}
				res, err := e.Build(testContext(t), req)
				// What a daemon before 23 can do with one of its builders it does.
				can := strings.Contains(tt.by, as) || w.kind != engine.KindBuildkitd && w.mount == "" && strings.Contains(tt.by, old)
				if !can {
					require.ErrorIs(t, err, portainer.ErrInvalid)
					for _, ev := range log.all() {
						require.False(t, ev.Build == req.ID && strings.Contains(ev.Step.Name, "pushing"), "%v", ev)
					}
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

// TestSquash has daemons in experimental mode: one that is given, and one of our own
// that auto takes because of that.
func TestSquash(t *testing.T) {
	r := theRig(t)
	daemon, err := dockertest.StartDaemon(testContext(t), t.TempDir(), "--experimental")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, daemon.Stop()) })
	given := r.given(nil)
	given.Host = daemon.Host
	own := r.own(t, engine.KindAuto, nil)
	own.Asked = &ability.Build{Script: script.Read(nil), Options: wire.Options{Squash: true}}
	for name, cfg := range map[string]engine.Config{"given": given, "own": own} {
		t.Run(name, func(t *testing.T) { testSquash(t, r, open(t, cfg)) })
	}
}

func testSquash(t *testing.T, r *rig, e *engine.Engine) {
	t.Helper()
	req := r.request(t, "FROM BUSYBOX\nRUN echo a >/a\nRUN rm /a && echo b >/b\n")
	var layers []int
	for _, squash := range []bool{false, true} {
		req.Options.Squash = squash
		res, err := e.Build(testContext(t), req)
		require.NoError(t, err)
		image := pull(t, res.Refs[0])
		all, err := image.Layers()
		require.NoError(t, err)
		layers = append(layers, len(all))
		got := fileSystem(t, image)
		require.Equal(t, "b\n", got["b"])
		require.NotContains(t, got, "a")
	}
	require.Equal(t, []int{3, 2}, layers)
}

// scanner pushes an image that finds out what is in another: the names at its root. It
// does so as BuildKit has it (buildkit docs/attestations/sbom-protocol.md).
func (r *rig) scanner(t *testing.T) string {
	t.Helper()
	const script = `echo '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document",` +
		`"predicate":{"name":"seen by the scanner: '$(ls $BUILDKIT_SCAN_SOURCE)'"}}' >$BUILDKIT_SCAN_DESTINATION/scan.spdx.json`
	image, err := mutate.Config(pull(t, r.busybox), v1.Config{Entrypoint: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}})
	require.NoError(t, err)
	tag, err := name.ParseReference(r.registry.Addr+"/scanner:v1", name.Insecure)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, image, remote.WithContext(testContext(t))))
	return tag.Name()
}

// attestations returns the predicates that were attested of the image that the
// registry has under ref, by their types.
func attestations(t *testing.T, ref string) map[string]map[string]any {
	t.Helper()
	tag, err := name.ParseReference(ref, name.Insecure)
	require.NoError(t, err)
	all := map[string]map[string]any{}
	for _, m := range index(t, ref).Manifests {
		if m.Annotations["vnd.docker.reference.type"] != "attestation-manifest" {
			continue
		}
		image, err := remote.Image(tag.Context().Digest(m.Digest.String()), remote.WithContext(testContext(t)))
		require.NoError(t, err)
		layers, err := image.Layers()
		require.NoError(t, err)
		for _, l := range layers {
			var statement struct {
				PredicateType string         `json:"predicateType"`
				Predicate     map[string]any `json:"predicate"`
			}
			r, err := l.Uncompressed()
			require.NoError(t, err)
			require.NoError(t, errors.Join(json.NewDecoder(r).Decode(&statement), r.Close()))
			all[statement.PredicateType] = statement.Predicate
		}
	}
	return all
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
