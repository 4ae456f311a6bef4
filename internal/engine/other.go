//go:build !linux

package engine

import (
	"context"
	"errors"
	"log/slog"

	"github.com/org/portainer/internal/ability"
)

// errLinux is what engines of our own answer elsewhere.
var errLinux = errors.New("engines of our own run on Linux only: give the address of a docker daemon")

func startDockerd(context.Context, Config) (*docker, error) { return nil, errLinux }

func startBuildkitd(context.Context, Config) (*buildKit, error) { return nil, errLinux }

func (machine) choose(*ability.Build) (kind, why string, err error) { return "", "", errLinux }

// find finds no program: there is no use for one.
func find(string) (string, bool) { return "", false }

func openGuest(context.Context, Config, string, string, bool) (*guest, error) { return nil, nil }

func guestDisk(Config, string) (guard, error) { return nil, nil }

// Sweep removes what engines left whose process was killed. There are none on
// this system.
func Sweep(context.Context, string, *slog.Logger) error { return nil }
