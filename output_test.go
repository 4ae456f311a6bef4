package portainer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/wire"
)

func TestParseOutput(t *testing.T) {
	for text, want := range map[string]Output{
		"type=registry":                 {Type: OutputRegistry},
		"type=image,push=true":          {Type: OutputRegistry, Attrs: map[string]string{}},
		"type=oci,dest=a.tar":           {Type: OutputOCI, Dest: "a.tar"},
		"dest=-,TYPE=docker":            {Type: OutputDocker, Dest: "-"},
		`type=tar,"dest=a,b"`:           {Type: OutputTar, Dest: "a,b"},
		"out/dir":                       {Type: OutputLocal, Dest: "out/dir"},
		"-":                             {Type: OutputTar, Dest: "-"},
		"type=oci,tar=false,dest=x":     {Type: OutputOCI, Dest: "x", Attrs: map[string]string{"tar": "false"}},
		"type=registry,annotation.a=b":  {Type: OutputRegistry, Attrs: map[string]string{"annotation.a": "b"}},
		"type=local,dest=d,push=false":  {},
		"type=image":                    {},
		"type=registry,push=false":      {},
		"type=registry,dest=x":          {},
		"type=docker":                   {},
		"type=local,dest=-":             {},
		"type=oci,tar=false,dest=-":     {},
		"type=tar,tar=false,dest=x":     {},
		"type=oci,name=other,dest=x":    {},
		"type=cacheonly":                {},
		"type=squashfs,dest=x":          {},
		"type=oci,dest":                 {},
		`type=oci,"dest=x`:              {},
		"type=oci,dest=x,whatever=this": {},
	} {
		got, err := ParseOutput(text)
		if want.Type == "" {
			require.ErrorIs(t, err, ErrInvalid, text)
			require.ErrorContains(t, err, strconv.Quote(text), text)
			continue
		}
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
}

// pack makes a tar archive of headers whose Uname, if any, is their content.
func pack(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.Uname
		h.Uname, h.Size = "", int64(len(content))
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1000, 0)
		}
		require.NoError(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mine"), []byte("mine"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "old"), []byte("longer than the new one"), 0o400))
	data := pack(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeDir, Name: "sealed/", Mode: 0o500, ModTime: time.Unix(86400, 0)},
		tar.Header{Typeflag: tar.TypeReg, Name: "sealed/file", Mode: 0o4711, Uname: "content"},
		tar.Header{Typeflag: tar.TypeReg, Name: "old", Mode: 0o640, Uname: "new"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/etc/passwd"},
		tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "old"},
	)
	for range 2 { // again, into what is there
		require.NoError(t, unpack(t.Context(), bytes.NewReader(data), dir))
		for name, want := range map[string]string{"mine": "mine", "old": "new", "hard": "new", "sealed/file": "content"} {
			got, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			require.Equal(t, want, string(got))
		}
		info, err := os.Stat(filepath.Join(dir, "sealed/file"))
		require.NoError(t, err)
		require.Equal(t, os.ModeSetuid|0o711, info.Mode())
		info, err = os.Stat(filepath.Join(dir, "sealed"))
		require.NoError(t, err)
		require.Equal(t, os.ModeDir|0o500, info.Mode())
		require.Equal(t, int64(86400), info.ModTime().Unix())
		target, err := os.Readlink(filepath.Join(dir, "link"))
		require.NoError(t, err)
		require.Equal(t, "/etc/passwd", target)
	}
}

// TestUnpackStaysInside checks that nothing outside of the directory is touched.
func TestUnpackStaysInside(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"dots":             {{Typeflag: tar.TypeReg, Name: "../victim", Uname: "x"}},
		"dots within":      {{Typeflag: tar.TypeReg, Name: "a/../../victim", Uname: "x"}},
		"through a link":   {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: ".."}, {Typeflag: tar.TypeReg, Name: "l/victim", Uname: "x"}},
		"through theirs":   {{Typeflag: tar.TypeReg, Name: "theirs/victim", Uname: "x"}},
		"hard link":        {{Typeflag: tar.TypeLink, Name: "h", Linkname: "../victim"}},
		"hard through one": {{Typeflag: tar.TypeLink, Name: "h", Linkname: "theirs/victim"}},
		"a device":         {{Typeflag: tar.TypeChar, Name: "null"}},
		"absolute":         {{Typeflag: tar.TypeReg, Name: "/victim", Uname: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "dir")
			require.NoError(t, os.Mkdir(dir, 0o755))
			require.NoError(t, os.Symlink("..", filepath.Join(dir, "theirs")))
			require.NoError(t, os.WriteFile(filepath.Join(parent, "victim"), []byte("whole"), 0o644))
			require.Error(t, unpack(t.Context(), bytes.NewReader(pack(t, entries...)), dir))
			got, err := os.ReadFile(filepath.Join(parent, "victim"))
			require.NoError(t, err)
			require.Equal(t, "whole", string(got))
			require.NoFileExists(t, filepath.Join(dir, "h"))
		})
	}
}

// stagedFor puts outputs into the bucket of f as an executor does.
func stagedFor(t *testing.T, f *Framework, d *delivery, contents ...[]byte) {
	t.Helper()
	for i, data := range contents {
		o, err := f.stager.store.PutOutput(t.Context(), d.prefix+"1-"+strconv.Itoa(i), bytes.NewReader(data))
		require.NoError(t, err)
		d.staged = append(d.staged, wire.Delivered{Output: i, Key: o.Key, Size: o.Size, Digest: o.Digest})
	}
}

func TestDeliver(t *testing.T) {
	f, _, _ := stagingFramework(t, nil)
	var stdout bytes.Buffer
	f.cfg.Stdout = &stdout
	dir := t.TempDir()
	files := pack(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644, Uname: "a"})
	d := &delivery{prefix: "portainer/outputs/x/", outputs: []Output{
		{Type: OutputOCI, Dest: filepath.Join(dir, "a.tar")},
		{Type: OutputTar, Dest: "-"},
		{Type: OutputLocal, Dest: filepath.Join(dir, "new", "dir")},
		{Type: OutputOCI, Dest: filepath.Join(dir, "layout"), Attrs: map[string]string{"tar": "false"}},
		{Type: OutputRegistry},
	}}
	stagedFor(t, f, d, []byte("archive"), []byte("to stdout"), files, files)
	var told []string
	written, failure := f.deliver(t.Context(), d, func(s string) { told = append(told, s) })
	require.Nil(t, failure)
	require.Len(t, written, 4)
	require.Len(t, told, 4)
	require.Equal(t, Written{Type: OutputOCI, Dest: d.outputs[0].Dest, Size: 7, Digest: d.staged[0].Digest}, written[0])
	require.Equal(t, "to stdout", stdout.String())
	for _, name := range []string{"new/dir/a", "layout/a"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, "a", string(got))
	}
	for _, in := range []string{".", "new/dir", "layout"} {
		left, err := filepath.Glob(filepath.Join(dir, in, ".*"))
		require.NoError(t, err)
		require.Empty(t, left, "temporary files are left")
	}
	_, err := f.cfg.Staging.List(nil).Next(t.Context())
	require.ErrorIs(t, err, io.EOF, "something is left in the bucket")
}

func TestDeliverFails(t *testing.T) {
	full := errors.New("disk full")
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, f *Framework, d *delivery, cancel context.CancelCauseFunc)
		class Class
	}{
		"damaged": {func(t *testing.T, f *Framework, d *delivery, _ context.CancelCauseFunc) {
			require.NoError(t, f.cfg.Staging.WriteAll(t.Context(), d.staged[0].Key, []byte("ARCHIVE"), nil))
		}, ClassStaging},
		"gone": {func(t *testing.T, f *Framework, d *delivery, _ context.CancelCauseFunc) {
			require.NoError(t, f.cfg.Staging.Delete(t.Context(), d.staged[0].Key))
		}, ClassStaging},
		"not written": {func(_ *testing.T, _ *Framework, d *delivery, _ context.CancelCauseFunc) { d.staged = nil }, ClassInvalid},
		"no such directory": {func(t *testing.T, _ *Framework, d *delivery, _ context.CancelCauseFunc) {
			require.NoError(t, os.Remove(filepath.Dir(d.outputs[0].Dest)))
		}, ClassDisk},
		"stdout": {func(_ *testing.T, f *Framework, d *delivery, _ context.CancelCauseFunc) {
			d.outputs[0].Dest, f.cfg.Stdout = "-", brokenWriter{full}
		}, ClassDisk},
		"cancelled": {func(_ *testing.T, _ *Framework, _ *delivery, cancel context.CancelCauseFunc) { cancel(full) }, ClassCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			f, _, _ := stagingFramework(t, nil)
			dir := filepath.Join(t.TempDir(), "dir")
			require.NoError(t, os.Mkdir(dir, 0o755))
			d := &delivery{prefix: "portainer/outputs/x/", outputs: []Output{{Type: OutputOCI, Dest: filepath.Join(dir, "a")}}}
			stagedFor(t, f, d, []byte("archive"))
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			tt.spoil(t, f, d, cancel)
			_, failure := f.deliver(ctx, d, func(string) {})
			require.NotNil(t, failure)
			require.Equal(t, tt.class, failure.Class, failure)
			require.Equal(t, PhaseOutput, failure.Phase)
			left, err := filepath.Glob(filepath.Join(dir, "*"))
			require.NoError(t, err)
			require.Empty(t, left)
			left, err = filepath.Glob(filepath.Join(dir, ".*"))
			require.NoError(t, err)
			require.Empty(t, left)
			_, err = f.cfg.Staging.List(nil).Next(t.Context())
			require.ErrorIs(t, err, io.EOF)
		})
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

// TestPrepareOutputs checks what outputs make of a build, and what is refused before
// anything is sent.
func TestPrepareOutputs(t *testing.T) {
	f, _, _ := stagingFramework(t, nil)
	bare := newTestFramework(t, nil)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))

	archive := Output{Type: OutputLocal, Dest: filepath.Join(dir, "new")}
	spec, err := f.prepare(t.Context(), Request{Source: source(), Outputs: []Output{archive}})
	require.NoError(t, err)
	require.Empty(t, spec.image)
	require.Empty(t, spec.task.Registry)
	require.Empty(t, spec.task.Tags)
	require.Empty(t, spec.registries)
	require.Equal(t, []wire.Output{{Type: "tar"}}, spec.task.Outputs)
	require.Equal(t, "mem://builds", spec.task.Delivery.BucketURL)
	require.Regexp(t, "^portainer/outputs/[A-Z2-7]+/$", spec.task.Delivery.Prefix)
	require.NoDirExists(t, archive.Dest)

	spec, err = f.prepare(t.Context(), Request{Repository: "app", Source: source(), Outputs: []Output{archive, {Type: OutputRegistry}}})
	require.NoError(t, err)
	require.Equal(t, "config.example/app", spec.image)

	for name, tt := range map[string]struct {
		on   *Framework
		req  Request
		want string
	}{
		"no bucket":       {bare, Request{Outputs: []Output{archive}}, "staging bucket"},
		"no repository":   {f, Request{Outputs: []Output{archive, {Type: OutputRegistry}}}, "no repository to push to"},
		"tag alone":       {f, Request{Tags: []string{"v1"}, Outputs: []Output{archive}}, "a tag needs a repository"},
		"twice":           {f, Request{Outputs: []Output{archive, archive}}, "the same dest"},
		"registry twice":  {f, Request{Repository: "a", Outputs: []Output{{Type: OutputRegistry}, {Type: OutputRegistry}}}, "twice"},
		"stdout":          {f, Request{Outputs: []Output{{Type: OutputTar, Dest: "-"}}}, "no standard output"},
		"a directory":     {f, Request{Outputs: []Output{{Type: OutputTar, Dest: dir}}}, "it is to be a file"},
		"a file":          {f, Request{Outputs: []Output{{Type: OutputLocal, Dest: file}}}, "it is to be a directory"},
		"no directory":    {f, Request{Outputs: []Output{{Type: OutputTar, Dest: filepath.Join(dir, "none", "a")}}}, "no such file"},
		"unknown type":    {f, Request{Outputs: []Output{{Type: "squashfs", Dest: "x"}}}, "squashfs"},
		"several to load": {f, Request{Options: Options{Platforms: []string{"linux/amd64", "linux/arm64"}}, Outputs: []Output{{Type: OutputDocker, Dest: filepath.Join(dir, "x")}}}, "several platforms"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.req.Source = source()
			_, err := tt.on.prepare(t.Context(), tt.req)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, tt.want)
		})
	}
	f.cfg.Engine = Engine{Kind: "dockerd"}
	req := Request{Source: source(), Outputs: []Output{{Type: OutputOCI, Dest: filepath.Join(dir, "x")}}}
	_, err = f.prepare(t.Context(), req)
	require.ErrorContains(t, err, "engine dockerd cannot do this: output type=oci; these can: buildkitd")
	require.ErrorContains(t, f.cfg.Engine.Check(req), "output type=oci")
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	require.Empty(t, left)
}
