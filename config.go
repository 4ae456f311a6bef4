package portainer

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"slices"
	"time"
)

// withDefaults returns cfg with its zero fields filled in.
func (cfg Config) withDefaults() (Config, error) {
	if cfg.User == "" {
		u, err := user.Current()
		if err != nil {
			return cfg, fmt.Errorf("user: %w", err)
		}
		cfg.User = u.Username
	}
	cfg.Name = cmp.Or(cfg.Name, "portainer")
	cfg.Role = cmp.Or(cfg.Role, "*")
	if cfg.StateDir != "" {
		cfg.FailoverTimeout = cmp.Or(cfg.FailoverTimeout, time.Hour)
	}
	cfg.FailoverTimeout = cmp.Or(cfg.FailoverTimeout, time.Minute)
	cfg.ExecutorCommand = cmp.Or(cfg.ExecutorCommand, "./"+executorFile)
	cfg.StagingSign = cmp.Or(cfg.StagingSign, signAuto)
	cfg.GPUs = cfg.GPUs || cfg.Resources.GPUs > 0
	cfg.Engine.Kind = cmp.Or(cfg.Engine.Kind, "auto")
	cfg.Resources.CPUs = cmp.Or(cfg.Resources.CPUs, 1)
	cfg.Resources.MemMB = cmp.Or(cfg.Resources.MemMB, 1024)
	cfg.MaxAttempts = cmp.Or(cfg.MaxAttempts, 3)
	cfg.LaunchTimeout = cmp.Or(cfg.LaunchTimeout, 5*time.Minute)
	cfg.UnreachableTimeout = cmp.Or(cfg.UnreachableTimeout, 10*time.Minute)
	cfg.PushLease = cmp.Or(cfg.PushLease, 10*time.Minute)
	cfg.ShutdownTimeout = cmp.Or(cfg.ShutdownTimeout, 30*time.Second)
	if cfg.Bundler == nil {
		cfg.Bundler = DirBundler{}
	}
	if cfg.Matcher == nil {
		cfg.Matcher = Spread{}
	}
	if cfg.Logs == nil {
		cfg.Logs = LogSinkFunc(discardEvent)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg, nil
}

// validate returns everything that is wrong with cfg, which has its defaults.
func (cfg *Config) validate() error {
	problems := slices.Concat(
		cfg.validateStaging(), cfg.Engine.validate(), cfg.Container.validate(), cfg.validateRegistries(), cfg.validateAmounts())
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if cfg.ExecutorCache && cfg.ExecutorURI == "" {
		bad("ExecutorURI: missing; ExecutorCache is about what agents fetch from there")
	}
	if cfg.Principal == "" && cfg.Secret != "" {
		bad("Principal: missing; a secret needs one")
	}
	if cfg.Container.Image != "" && cfg.Engine.Host != "" {
		bad("Container.Image: %q: an executor in a container uses the engine of its image, so Engine.Host cannot be given too", cfg.Container.Image)
	}
	for _, c := range cfg.Constraints {
		if _, err := newRule(c); err != nil {
			bad("Constraints: %w", err)
		}
	}
	return errors.Join(problems...)
}

// validateStaging returns everything that is wrong with the staging bucket.
func (cfg *Config) validateStaging() []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if cfg.Staging != nil && cfg.StagingURL == "" {
		bad("StagingURL: missing; agents need it to open the staging bucket")
	}
	if cfg.Staging == nil && cfg.StagingURL != "" {
		bad("Staging: missing; StagingURL alone stages nothing")
	}
	if cfg.StagingSign != signAuto && cfg.StagingSign != signNever && cfg.StagingSign != signAlways {
		bad("StagingSign: %q is none of auto, never, always", cfg.StagingSign)
	}
	if cfg.Staging == nil && cfg.StagingSigner != nil {
		bad("Staging: missing; StagingSigner alone stages nothing")
	}
	return problems
}

// validateAmounts returns which numbers and durations are none.
func (cfg *Config) validateAmounts() []error {
	var problems []error
	for _, f := range []struct {
		name  string
		value float64
	}{
		{"Resources.CPUs", cfg.Resources.CPUs},
		{"Resources.MemMB", cfg.Resources.MemMB},
		{"Resources.DiskMB", cfg.Resources.DiskMB},
		{"Resources.GPUs", cfg.Resources.GPUs},
		{"MaxAttempts", float64(cfg.MaxAttempts)},
		{"OOMRetryMemMB", cfg.OOMRetryMemMB},
		{"StagingTTL", float64(cfg.StagingTTL)},
		{"FailoverTimeout", float64(cfg.FailoverTimeout)},
		{"QueueTimeout", float64(cfg.QueueTimeout)},
		{"BuildTimeout", float64(cfg.BuildTimeout)},
		{"LaunchTimeout", float64(cfg.LaunchTimeout)},
		{"UnreachableTimeout", float64(cfg.UnreachableTimeout)},
		{"PushLease", float64(cfg.PushLease)},
		{"ConnectTimeout", float64(cfg.ConnectTimeout)},
		{"ShutdownTimeout", float64(cfg.ShutdownTimeout)},
	} {
		switch {
		case f.value < 0:
			problems = append(problems, fmt.Errorf("%s: negative", f.name))
		case !validAmount(f.value):
			problems = append(problems, fmt.Errorf("%s: %v is no amount", f.name, f.value))
		}
	}
	return problems
}
