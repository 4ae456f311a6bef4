package agentrun

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/org/portainer/internal/wire"
)

// A BuildInfo tells one build of portainer from another.
type BuildInfo struct {
	Version  string // of the module; "(devel)" for one built in its source tree
	Revision string // of the source, "+" behind it if that was changed; "" if unknown
	Wire     int    // version of what framework and executor exchange
}

// Version returns what the program knows of itself.
func Version() BuildInfo {
	b := BuildInfo{Version: "(unknown)", Wire: wire.Version}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version = info.Main.Version
	changed := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value[:min(len(s.Value), 12)]
		case "vcs.modified":
			changed = s.Value == "true"
		}
	}
	if changed && b.Revision != "" {
		b.Revision += "+"
	}
	return b
}

// String is one line.
func (b BuildInfo) String() string {
	revision := ""
	if b.Revision != "" {
		revision = " revision " + b.Revision
	}
	return fmt.Sprintf("portainer %s%s (wire %d, %s %s/%s)", b.Version, revision, b.Wire, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
