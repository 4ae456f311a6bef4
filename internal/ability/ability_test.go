package ability_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/script"
	"github.com/org/portainer/internal/wire"
)

func TestChoose(t *testing.T) {
	tests := []struct {
		name    string
		engine  wire.Engine
		source  string
		options wire.Options
		want    ability.Builder
		refused string // what the error says; "" if a builder is chosen
	}{
		{"nothing asked", wire.Engine{Kind: "dockerd"}, "", wire.Options{}, ability.Classic, ""},
		{"no kind", wire.Engine{}, "", wire.Options{Annotations: map[string]string{"a": "b"}}, ability.Standalone, ""},
		{"a later builder", wire.Engine{Kind: "dockerd"}, "RUN --mount=type=cache,target=/c true\n", wire.Options{}, ability.OldBuildKit, ""},
		{"the newest", wire.Engine{Kind: "auto", Host: "unix:///d"}, "RUN <<X\ntrue\nX\n", wire.Options{}, ability.DockerBuildKit, ""},
		{"of a given daemon", wire.Engine{Kind: "auto", Host: "unix:///d"}, "", wire.Options{SBOM: "default"}, 0,
			"the docker daemon at unix:///d cannot do this: sbom; these can: buildkitd"},
		{"of buildkitd", wire.Engine{Kind: "buildkitd"}, "", wire.Options{Squash: true}, 0,
			"engine buildkitd cannot do this: squash (a daemon in experimental mode); these can: docker: classic builder"},
		{"the least that is missing", wire.Engine{Kind: "dockerd"}, "", wire.Options{Provenance: "min", Platforms: []string{"linux/arm64"}}, 0,
			"engine dockerd cannot do this: provenance; these can: buildkitd"},
		{"of all", wire.Engine{}, "", wire.Options{Squash: true, SBOM: "default"}, 0,
			"engine auto cannot do this: sbom; no engine can do all that is asked for"},
		{"of an unknown engine", wire.Engine{Kind: "kaniko"}, "", wire.Options{}, 0, `engine "kaniko" has no builder`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked := ability.Build{Script: script.Read([]byte("FROM scratch\n" + tt.source)), Options: tt.options}
			builders, name := ability.Of(tt.engine)
			got, err := asked.Choose(builders, name)
			if tt.refused != "" {
				require.EqualError(t, err, tt.refused)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestCheck(t *testing.T) {
	for says, options := range map[string]wire.Options{
		"compression":       {Compression: "xz"},
		"source-date-epoch": {SourceDateEpoch: "yesterday"},
		"provenance":        {Provenance: "much"},
		"type must be":      {CacheTo: []string{"type=local,dest=/x"}},
		"no attribute":      {CacheFrom: []string{"type=registry,mode"}},
		"ulimit":            {Ulimits: []string{"nofile"}},
	} {
		require.ErrorContains(t, ability.Check(options), says)
	}
	require.NoError(t, ability.Check(wire.Options{
		Compression: "zstd", SourceDateEpoch: "1767225600", Provenance: "max", Ulimits: []string{"nofile=1:2"},
		CacheTo: []string{"inline", "type=s3,region=eu,bucket=b"}, CacheFrom: []string{"h/team/app", `type=registry,"ref=h/a"`},
	}))
	require.ErrorContains(t, ability.CheckCgroup(wire.Options{CgroupParent: "/builds"}, ""), `cgroup-parent "/builds": the steps of an engine that the executor starts`)
	require.NoError(t, ability.CheckCgroup(wire.Options{CgroupParent: "/builds"}, "unix:///d"))
	require.NoError(t, ability.CheckCgroup(wire.Options{}, ""))
	require.ErrorContains(t, ability.CheckRun("bridge", nil), "network")
	require.ErrorContains(t, ability.CheckRun("", []string{"name"}), "add-host")
	require.NoError(t, ability.CheckRun("none", []string{"name:127.0.0.1"}))
}

func TestParseCache(t *testing.T) {
	for text, want := range map[string]ability.Cache{
		"inline":                         {Type: "inline", Attrs: map[string]string{}},
		"h:5000/app:c":                   {Type: "registry", Attrs: map[string]string{"ref": "h:5000/app:c"}},
		"type=registry,ref=h/a,mode=max": {Type: "registry", Attrs: map[string]string{"ref": "h/a", "mode": "max"}},
		`type=s3,"prefix=a,b"`:           {Type: "s3", Attrs: map[string]string{"prefix": "a,b"}},
	} {
		got, err := ability.ParseCache(text)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// TestParseCacheTellsNoSecrets checks what errors say of places that have secrets.
func TestParseCacheTellsNoSecrets(t *testing.T) {
	const key = "hush"
	for text, says := range map[string]string{
		"type=s5,bucket=b,secret_access_key=" + key:    "type=s5,bucket=b",
		"type=s3,bucket=b,secret_access_key=a,b" + key: "part 4 of 4",
		key + ",type=s3":                    "part 1 of 2",
		`type=s3,"secret_access_key=` + key: "column",
		`type=s3,secret_access_key=a"` + key + `,session_token=` + key: "column",
		"type=S3,Secret_Access_Key=" + key:                             "its type must be",
	} {
		_, err := ability.ParseCache(text)
		require.ErrorContains(t, err, says)
		require.NotContains(t, err.Error(), key)
		err = ability.Check(wire.Options{CacheTo: []string{text}})
		require.ErrorContains(t, err, says)
		require.NotContains(t, err.Error(), key)
	}
}
