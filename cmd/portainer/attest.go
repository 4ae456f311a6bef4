package main

import (
	"cmp"
	"strings"

	"github.com/org/portainer"
)

// attest takes what --provenance, --sbom and --attest say, as docker buildx spells it.
func attest(out *portainer.Options, flags []string) error {
	switch text := strings.TrimPrefix(out.Provenance, "mode="); text {
	case "true":
		out.Provenance = "min"
	case "false":
		out.Provenance = ""
	default:
		out.Provenance = text
	}
	switch text := strings.TrimPrefix(out.SBOM, "generator="); text {
	case "true":
		out.SBOM = "default"
	case "false":
		out.SBOM = ""
	default:
		out.SBOM = text
	}
	for _, flag := range flags {
		attrs := map[string]string{}
		for field := range strings.SplitSeq(flag, ",") {
			k, v, _ := strings.Cut(field, "=")
			attrs[k] = v
		}
		on := attrs["disabled"] != "true"
		for k := range attrs {
			if k != "type" && k != "disabled" && (attrs["type"] != "provenance" || k != "mode") && (attrs["type"] != "sbom" || k != "generator") {
				return usagef("--attest %s: no attribute %q here", flag, k)
			}
		}
		switch attrs["type"] {
		case "provenance":
			out.Provenance = ""
			if on {
				out.Provenance = cmp.Or(attrs["mode"], "min")
			}
		case "sbom":
			out.SBOM = ""
			if on {
				out.SBOM = cmp.Or(attrs["generator"], "default")
			}
		default:
			return usagef("--attest %s: its type must be provenance or sbom", flag)
		}
	}
	return nil
}
