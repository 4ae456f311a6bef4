package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// startBuildkitd starts a buildkitd that is ours alone.
func startBuildkitd(ctx context.Context, cfg Config) (_ *buildKit, err error) {
	kit, err := thisMachine().buildkit()
	if err != nil {
		return nil, err
	}
	h, err := kit.home(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close(context.WithoutCancel(ctx)))
		}
	}()
	// runc keeps the state of containers in /run unless it is told otherwise,
	// and buildkitd does not tell it.
	wrapper := filepath.Join(h.run, "oci-runtime")
	script := fmt.Sprintf("#!/bin/sh\nexec %s --root %s \"$@\"\n", shellQuote(kit.runtime), shellQuote(filepath.Join(h.run, "runc")))
	if err := os.WriteFile(wrapper, []byte(script), 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(h.run, "buildkitd.toml")
	certs, err := h.writeCerts(cfg.Registries)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(config, []byte(buildkitdConfig(cfg, h, wrapper, certs)), 0o600); err != nil {
		return nil, err
	}
	addr := "unix://" + filepath.Join(h.run, "buildkitd.sock")
	// By its age a daemon that is told to keep all output of a step may drop it
	// all; this one does as it is told, and its version is ours to choose.
	// Its temporary files are small: mount points, and sockets of ssh agents, whose
	// paths must be short.
	env := daemonEnv(h.ID, "TMPDIR="+h.run, "BUILDKIT_STEP_LOG_MAX_SIZE=-1", "BUILDKIT_STEP_LOG_MAX_SPEED=-1")
	argv := append(kit.prefix(h), kit.buildkitd, "--config", config, "--addr", addr)
	h.daemon, err = startDaemon("buildkitd", filepath.Join(h.run, "buildkitd.log"), argv, env, h.Data)
	if err != nil {
		return nil, err
	}
	var b *buildKit
	err = h.daemon.ready(ctx, func(ctx context.Context) error {
		// The client would wait for ever longer between its attempts.
		if _, err := os.Stat(strings.TrimPrefix(addr, "unix://")); err != nil {
			return err
		}
		var err error
		b, err = dialBuildKit(ctx, cfg, addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := h.usesOverlays(ctx, b); err != nil {
		return nil, errors.Join(err, b.c.Close())
	}
	b.stop, b.guards = h.close, h
	return b, nil
}

// buildkitdConfig is the configuration of a buildkitd of our own. certs is the
// directory with the certificates of registries.
func buildkitdConfig(cfg Config, h *home, runtime, certs string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("root = %q", h.Data)
	line(`insecure-entitlements = ["network.host"]`)
	// Its place would be /run/buildkit, for all the buildkitds of a machine.
	line("[otel]\n  socketPath = %q", filepath.Join(h.run, "otel.sock"))
	line("[history]\n  maxEntries = 0")
	line("[cdi]\n  disabled = true")
	line("[worker.containerd]\n  enabled = false")
	line("[worker.oci]\n  enabled = true")
	line("  binary = %q", runtime)
	line(`  networkMode = "host"`)
	if h.Rootless == "" {
		line("  snapshotter = %q", h.driver("overlayfs", "native"))
		line("  defaultCgroupParent = %q", h.Cgroup)
	} else {
		line("  noProcessSandbox = %t", procMasked())
	}
	if cfg.CPUs > 0 {
		line("  max-parallelism = %d", max(1, int(math.Ceil(cfg.CPUs))))
	}
	if cfg.DiskMB > 0 {
		line("  gc = true")
		line(`  maxUsedSpace = "%dMB"`, cacheMB(cfg))
		line(`  reservedSpace = "0MB"`)
	}
	b.WriteString(cfg.buildkitdRegistries(certs))
	return b.String()
}

// shellQuote makes one word of s for sh.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
