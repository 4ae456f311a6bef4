package wire_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/wire"
)

var update = flag.Bool("update", false, "rewrite the golden files of the present version; only before it is released")

var (
	task = wire.Task{
		Version: 1, Build: "b0123456789", Attempt: 2,
		Registry: "registry.example:5000", Repository: "team/app", Tags: []string{"latest", "v1"},
		Dockerfile: []byte("FROM scratch\nCOPY <a> /\n"), Name: "app/Dockerfile",
		Context: &wire.Context{
			BucketURL: "s3://builds?region=eu-west-1", Key: "portainer/contexts/ab/cd", Size: 4711, Digest: "sha256:abcd",
		},
		Contexts: map[string]*wire.Context{"lib": {BucketURL: "s3://builds", Key: "portainer/contexts/ef", Size: 12, Digest: "sha256:ef", Signed: true}},
		Remote:   "https://git.example/team/app.git#main:dir",
		Engine:   wire.Engine{Kind: "docker", Host: "tcp://10.0.0.1:2376", TLS: true, CA: []byte("PEM"), ClientCert: true},
		Insecure: []string{"registry.example:5000"},
		Registries: []wire.Registry{
			{Host: "registry.example:5000", CA: []byte("PEM"), ClientCert: true, Mirrors: []string{"mirror.example/hub"}},
		},
		SSH:    []string{"default", "deploy"},
		Target: "final", Args: map[string]string{"VERSION": "1", "EMPTY": ""}, Labels: map[string]string{"a": "b"},
		Network: "host", AddHosts: []string{"db:10.0.0.1"}, NoCache: true, Pull: true, Options: wire.Options{Platforms: []string{"linux/arm64"}, CacheFrom: []string{"registry.example:5000/team/app"}, ShmSize: 64 << 20, CgroupParent: "/builds", Squash: true},
		Outputs:  []wire.Output{{Type: "registry"}, {Type: "oci", Attrs: map[string]string{"compression": "zstd"}}},
		Delivery: &wire.Delivery{BucketURL: "s3://builds?region=eu-west-1", Prefix: "portainer/outputs/ABC/"},
		Secrets:  true, LogRoute: true, CPUs: 1.5, MemMB: 1024, DiskMB: 2048,
	}
	smallTask = wire.Task{
		Version: 1, Build: "b1", Attempt: 1, Registry: "r", Repository: "app", Tags: []string{"latest"},
		Dockerfile: []byte("FROM scratch\n"), Name: "Dockerfile", Engine: wire.Engine{Kind: "auto"}, CPUs: 1, MemMB: 1024,
	}
	success = wire.Outcome{
		Version: 1, Digest: "sha256:1234", Refs: []string{"registry.example/app:v1@sha256:1234"}, Engine: "buildkitd 0.12.5",
		ConfigDigest: "sha256:5678", Descriptor: wire.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: "sha256:1234", Size: 1024, Annotations: map[string]string{"a": "b"}},
		Outputs: []wire.Delivered{{Output: 1, Key: "portainer/outputs/ABC/2-1", Size: 4096, Digest: "sha256:9abc"}},
		LogSize: 99, Started: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Ended: time.Date(2026, 1, 2, 3, 5, 5, 0, time.UTC),
	}
	failure = wire.Outcome{
		Version: 1, LogSize: 12, Started: success.Started, Ended: success.Ended,
		Failure: &wire.Failure{Class: "user", Phase: "build", Step: "RUN make", Line: 12, Message: "exit code: 2"},
	}
	hint = wire.Hint{Version: 1, LogSize: 4096, Waiting: true}
	step = wire.Step{Name: "[2/3] RUN make", Line: 7, Cached: true, Took: 1500 * time.Millisecond, Error: "exit code: 2"}
)

// TestGolden checks that what was written by a release of version 1 is read as it
// was meant, and that this release writes the very same.
func TestGolden(t *testing.T) {
	tests := []struct {
		name   string
		want   any
		encode func() ([]byte, error)
		decode func([]byte) (any, error)
	}{
		{"task", &task, task.Encode, func(b []byte) (any, error) { return wire.DecodeTask(b) }},
		{"task-small", &smallTask, smallTask.Encode, func(b []byte) (any, error) { return wire.DecodeTask(b) }},
		{"outcome-success", &success, success.Encode, func(b []byte) (any, error) { return wire.DecodeOutcome(b) }},
		{"outcome-failure", &failure, failure.Encode, func(b []byte) (any, error) { return wire.DecodeOutcome(b) }},
		{"hint", &hint, hint.Encode, func(b []byte) (any, error) { return wire.DecodeHint(b) }},
		{"step", step, func() ([]byte, error) { return step.Encode(), nil }, func(b []byte) (any, error) { return wire.DecodeStep(b) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join("testdata", "v1", tt.name+".json")
			data, err := tt.encode()
			require.NoError(t, err)
			if *update {
				var b bytes.Buffer
				require.NoError(t, json.Indent(&b, data, "", "  "))
				b.WriteByte('\n')
				require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
				require.NoError(t, os.WriteFile(file, b.Bytes(), 0o644))
			}
			golden, err := os.ReadFile(file)
			require.NoError(t, err)
			require.JSONEq(t, string(golden), string(data))
			got, err := tt.decode(golden)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

// TestGoldenComplete checks that the golden files hold every field, so that none
// can change its name unnoticed.
func TestGoldenComplete(t *testing.T) {
	for file, v := range map[string]any{"task": &wire.Task{}, "hint": &wire.Hint{}, "step": &wire.Step{}} {
		var fields map[string]json.RawMessage
		golden, err := os.ReadFile(filepath.Join("testdata", "v1", file+".json"))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(golden, &fields))
		require.Len(t, fields, numFields(v), "%s: add the new field to the golden value", file)
	}
}

func TestUnknownFieldIsIgnored(t *testing.T) {
	got, err := wire.DecodeHint([]byte(`{"version":1,"log_size":7,"of_a_later_release":{"x":[1]}}`))
	require.NoError(t, err)
	require.Equal(t, &wire.Hint{Version: 1, LogSize: 7}, got)
}

func TestOtherVersionIsNamed(t *testing.T) {
	decoders := map[string]func([]byte) error{
		"task":    func(b []byte) error { _, err := wire.DecodeTask(b); return err },
		"outcome": func(b []byte) error { _, err := wire.DecodeOutcome(b); return err },
		"hint":    func(b []byte) error { _, err := wire.DecodeHint(b); return err },
	}
	for what, decode := range decoders {
		for _, data := range []string{
			`{"version":2}`,
			`{"version":2,"build":{"of":"another shape"},"log_size":"too"}`,
		} {
			require.ErrorContains(t, decode([]byte(data)), what+" has version 2, but this ", data)
		}
		require.ErrorContains(t, decode([]byte(`{}`)), "version 0", what)
		for _, data := range []string{``, `{`, `[]`, `"x"`, `{"version":"1"}`} {
			require.ErrorContains(t, decode([]byte(data)), what+": ", "%q", data)
		}
	}
	require.ErrorContains(t, decoders["task"]([]byte(`{"version":1,"attempt":"one"}`)), "task: ")
}

func TestOutcomeStaysSmall(t *testing.T) {
	long := failure
	long.Failure = &wire.Failure{Class: "user", Phase: "build", Message: "begin " + strings.Repeat("€", 1<<20) + " end"}
	data, err := long.Encode()
	require.NoError(t, err)
	require.Less(t, len(data), 10<<10)
	require.Len(t, long.Failure.Message, 3<<20+10, "the caller's message was changed")

	got, err := wire.DecodeOutcome(data)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(got.Failure.Message, "begin €"))
	require.True(t, strings.HasSuffix(got.Failure.Message, "€ end"))
	require.Contains(t, got.Failure.Message, "[…]")
	require.NotContains(t, got.Failure.Message, string(utf8.RuneError), "cut within a character")
}

func FuzzDecodeTask(f *testing.F) {
	for _, seed := range []*wire.Task{&task, &smallTask} {
		data, err := seed.Encode()
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte(`{"version":1,"context":null,"dockerfile":"not base64!"}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := wire.DecodeTask(data)
		if err != nil {
			require.Nil(t, got)
			return
		}
		again, err := got.Encode()
		require.NoError(t, err)
		same, err := wire.DecodeTask(again)
		require.NoError(t, err)
		once, err := same.Encode()
		require.NoError(t, err)
		require.Equal(t, string(again), string(once))
	})
}

func TestFrameRoundTrip(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	frames := []wire.Frame{
		{Kind: wire.FrameOut, Time: time.UnixMilli(1_700_000_000_123), Step: 3, Data: []byte("plain")},
		{Kind: wire.FrameErr, Time: time.UnixMilli(0), Data: []byte{}},
		{Kind: wire.FrameInfo, Time: time.UnixMilli(-5), Data: []byte("\n\n")},
		{Kind: wire.FrameGap, Time: time.UnixMilli(1), Step: 1 << 30, Data: []byte("o 1 1 1\nx\n")},
		{Kind: 'z', Time: time.UnixMilli(1), Data: bytes.Repeat([]byte{0, 0xff}, wire.MaxFrameData/2)},
	}
	for range 100 {
		data := make([]byte, random.IntN(300))
		for i := range data {
			data[i] = byte(random.IntN(256))
		}
		frames = append(frames, wire.Frame{Kind: wire.FrameOut, Time: time.UnixMilli(random.Int64N(1e13)), Step: random.IntN(99), Data: data})
	}
	var log []byte
	for _, f := range frames {
		log = wire.AppendFrame(log, f)
	}
	for i, want := range frames {
		got, n, err := wire.DecodeFrame(log)
		require.NoError(t, err, i)
		require.Positive(t, n, i)
		require.Equal(t, want, got, i)
		log = log[n:]
	}
	require.Empty(t, log)
}

// TestFrameCut checks that no beginning of a frame is taken for a frame, nor for
// a malformed one.
func TestFrameCut(t *testing.T) {
	whole := wire.AppendFrame(nil, wire.Frame{Kind: wire.FrameOut, Time: time.UnixMilli(1_700_000_000_123), Step: 12, Data: []byte("two\nlines")})
	for n := range whole {
		_, length, err := wire.DecodeFrame(whole[:n])
		require.NoError(t, err, n)
		require.Zero(t, length, n)
	}
}

func TestFrameMalformed(t *testing.T) {
	for _, data := range []string{
		"\n", "o\n", "o 1 1\n", "o 1 1 1 1\n", "oo 1 1 1\nx\n", " 1 1 1\nx\n", "o x 1 1\nx\n", "o 1 x 1\nx\n", "o 1 1 x\nx\n",
		"o 1 -1 1\nx\n", "o 1 1 -1\nx\n", "o 1 1 1\nxy", "o 1 1 1048577\n", "o 1 1 99999999999999999999\n", strings.Repeat("o", 64),
		"o 1 1 0\nx",
	} {
		_, n, err := wire.DecodeFrame([]byte(data))
		require.ErrorIs(t, err, wire.ErrFrame, "%q", data)
		require.Zero(t, n)
	}
	require.Panics(t, func() { wire.AppendFrame(nil, wire.Frame{Data: make([]byte, wire.MaxFrameData+1)}) })
}

// TestFrameAliases checks that the data of a frame can be appended to without harm
// to the next one.
func TestFrameAliases(t *testing.T) {
	log := wire.AppendFrame(nil, wire.Frame{Kind: wire.FrameOut, Data: []byte("one")})
	log = wire.AppendFrame(log, wire.Frame{Kind: wire.FrameOut, Data: []byte("two")})
	first, n, err := wire.DecodeFrame(log)
	require.NoError(t, err)
	_ = append(first.Data, "overwritten"...)
	second, _, err := wire.DecodeFrame(log[n:])
	require.NoError(t, err)
	require.Equal(t, "two", string(second.Data))
}

func FuzzDecodeFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("o 1 1"))
	f.Add([]byte("o 1 1 3\none\n"))
	f.Add([]byte("o 1 1 3\none!"))
	f.Add([]byte("s -1 0 13\n{\"name\":\"x\"}\n\n"))
	f.Add([]byte("o +1 01 1\nx\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, n, err := wire.DecodeFrame(data)
		if err != nil || n == 0 {
			require.Zero(t, n)
			return
		}
		require.LessOrEqual(t, n, len(data))
		// What is decoded is what was encoded, if not to the letter.
		again, m, err := wire.DecodeFrame(wire.AppendFrame(nil, frame))
		require.NoError(t, err)
		require.Positive(t, m)
		require.Equal(t, frame, again)
	})
}

func BenchmarkDecodeFrame(b *testing.B) {
	frame := wire.AppendFrame(nil, wire.Frame{Kind: wire.FrameOut, Time: time.UnixMilli(1_700_000_000_123), Step: 3, Data: make([]byte, 80)})
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := wire.DecodeFrame(frame); err != nil {
			b.Fatal(err)
		}
	}
}

// numFields is how many fields the struct that v points to has.
func numFields(v any) int { return reflect.TypeOf(v).Elem().NumField() }
