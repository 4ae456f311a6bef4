package engine_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
)

// A shelf keeps outputs by their index.
type shelf map[int][]byte

func (s shelf) save(_ context.Context, i int, r io.Reader) error {
	data, err := io.ReadAll(r)
	if err == nil {
		s[i] = data
	}
	return err
}

// archive returns the regular files of a tar archive.
func archive(t *testing.T, data []byte) files {
	t.Helper()
	fs := files{}
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fs
		}
		require.NoError(t, err)
		if hdr.Typeflag == tar.TypeReg {
			text, err := io.ReadAll(tr)
			require.NoError(t, err)
			fs[strings.TrimPrefix(hdr.Name, "./")] = string(text)
		}
	}
}

// loaded returns the files of the image in what docker save writes, and its names.
func loaded(t *testing.T, data []byte) (files, []string) {
	t.Helper()
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	image, err := tarball.Image(opener, nil)
	require.NoError(t, err)
	manifest, err := tarball.LoadManifest(opener)
	require.NoError(t, err)
	require.Len(t, manifest, 1)
	return fileSystem(t, image), manifest[0].RepoTags
}

func TestOutputs(t *testing.T) {
	r := theRig(t)
	const docker, tarball, oci, registry = portainer.OutputDocker, portainer.OutputTar, portainer.OutputOCI, portainer.OutputRegistry
	tests := []struct {
		way     string
		kind    string
		mount   string
		outputs []string
		named   bool
		refused string
	}{
		{"classic", engine.KindDocker, "", []string{docker}, true, ""},
		{"classic", engine.KindDocker, "", []string{docker, registry}, true, ""},
		{"classic", engine.KindDocker, "", []string{docker}, false, ""},
		{"buildkit of docker", engine.KindDocker, "--mount=type=cache,target=/cache ", []string{tarball}, false, ""},
		{"buildkit of docker", engine.KindDocker, "", []string{tarball, docker, registry}, true, ""},
		{"docker", engine.KindDocker, "", []string{oci}, true, "output type=oci"},
		{"buildkitd", engine.KindBuildkitd, "", []string{oci, docker, tarball}, false, ""},
		{"buildkitd", engine.KindBuildkitd, "", []string{tarball, registry, docker, oci}, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.way+" "+strings.Join(tt.outputs, " "), func(t *testing.T) {
			t.Parallel()
			kept := shelf{}
			log := &recorder{}
			cfg := r.config(t, tt.kind, log)
			cfg.Save = kept.save
			e := open(t, cfg)
			req := r.request(t, "FROM BUSYBOX\nRUN "+tt.mount+"cat /proc/sys/kernel/random/uuid >/id\n")
			if !tt.named {
				req.Registry, req.Repository, req.Tags = "", "", nil
			}
			for _, o := range tt.outputs {
				req.Outputs = append(req.Outputs, portainer.Output{Type: o})
			}
			res, err := e.Build(testContext(t), req)
			if tt.refused != "" {
				require.ErrorIs(t, err, portainer.ErrInvalid)
				require.ErrorContains(t, err, tt.refused)
				require.Empty(t, kept)
				return
			}
			require.NoError(t, err)
			ref := req.Registry + "/" + req.Repository + ":v1"
			ids := map[string]bool{}
			for i, o := range tt.outputs {
				switch o {
				case registry:
					ids[fileSystem(t, pull(t, res.Refs[0]))["id"]] = true
				case docker:
					fs, names := loaded(t, kept[i])
					ids[fs["id"]] = true
					if tt.named {
						require.Equal(t, []string{ref}, names)
					} else {
						require.Empty(t, names)
					}
				case tarball:
					ids[archive(t, kept[i])["id"]] = true
				case oci:
					fs := archive(t, kept[i])
					var index struct {
						Manifests []struct {
							Digest      string
							Annotations map[string]string
						}
					}
					require.NoError(t, json.Unmarshal([]byte(fs["index.json"]), &index))
					require.Len(t, index.Manifests, 1)
					require.Contains(t, fs, "blobs/sha256/"+strings.TrimPrefix(index.Manifests[0].Digest, "sha256:"))
					if tt.named {
						require.Equal(t, ref, index.Manifests[0].Annotations["io.containerd.image.name"])
					}
					if len(res.Refs) == 0 {
						require.Equal(t, index.Manifests[0].Digest, res.Digest)
					}
				}
			}
			require.Len(t, ids, 1, "it was built more than once")
			require.NotContains(t, ids, "")
			if !req.Pushes() {
				require.Empty(t, res.Refs)
				if tt.named {
					_, err := name.ParseReference(ref, name.Insecure)
					require.NoError(t, err)
				}
			}
			if tt.outputs[0] != tarball || len(tt.outputs) > 1 {
				require.Regexp(t, "^sha256:[0-9a-f]{64}$", res.ConfigDigest)
			}
			require.Len(t, log.lines("saved "), len(kept))
		})
	}
}

// TestOutputFails checks that a failed build keeps nothing, and that what cannot be
// kept is why a build fails.
func TestOutputFails(t *testing.T) {
	r := theRig(t)
	full := &portainer.BuildError{Phase: portainer.PhaseBuild, Class: portainer.ClassStaging, Err: errors.New("bucket is full")}
	for _, way := range []struct{ kind, output string }{
		{engine.KindDocker, portainer.OutputDocker}, {engine.KindDocker, portainer.OutputTar}, {engine.KindBuildkitd, portainer.OutputOCI},
	} {
		t.Run(way.kind+" "+way.output, func(t *testing.T) {
			t.Parallel()
			kept := shelf{}
			cfg := r.config(t, way.kind, nil)
			cfg.Save = kept.save
			req := r.request(t, "FROM BUSYBOX\nRUN exit 3\n")
			req.Outputs = []portainer.Output{{Type: way.output}}
			e := open(t, cfg)
			_, err := e.Build(testContext(t), req)
			require.ErrorIs(t, err, portainer.ErrFailed)
			require.ErrorContains(t, err, "exit code 3")
			require.Empty(t, kept)
			require.NoError(t, e.Close(testContext(t)))

			cfg.Save = func(_ context.Context, _ int, r io.Reader) error {
				if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
					return err
				}
				return full
			}
			req.Source = []byte("FROM " + r.busybox + "\nRUN echo x >/x\n")
			_, err = open(t, cfg).Build(testContext(t), req)
			require.ErrorIs(t, err, portainer.ErrStaging)
			require.ErrorContains(t, err, "bucket is full")
		})
	}
}
