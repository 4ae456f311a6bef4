package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestAttest(t *testing.T) {
	tests := []struct {
		provenance, sbom string
		attests          []string
		want             [2]string // provenance and sbom
	}{
		{"", "", nil, [2]string{}},
		{"max", "default", nil, [2]string{"max", "default"}},
		{"mode=max", "generator=h/scan", nil, [2]string{"max", "h/scan"}},
		{"true", "true", nil, [2]string{"min", "default"}},
		{"false", "false", nil, [2]string{}},
		{"", "", []string{"type=provenance,mode=max", "type=sbom,generator=h/scan"}, [2]string{"max", "h/scan"}},
		{"", "", []string{"type=provenance", "type=sbom"}, [2]string{"min", "default"}},
		{"max", "", []string{"type=provenance,disabled=true"}, [2]string{}},
	}
	for _, tt := range tests {
		out := portainer.Options{Provenance: tt.provenance, SBOM: tt.sbom}
		require.NoError(t, attest(&out, tt.attests))
		require.Equal(t, tt.want, [2]string{out.Provenance, out.SBOM}, tt)
	}
	for _, bad := range []string{"type=magic", "mode=max", "type=sbom,mode=max"} {
		require.ErrorContains(t, attest(&portainer.Options{}, []string{bad}), bad)
	}
}
