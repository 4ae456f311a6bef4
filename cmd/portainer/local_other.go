//go:build !unix

package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

// clusterPrefix begins the names of no directories here.
const clusterPrefix = "portainer-local-"

var errNoLocal = usagef("a local cluster needs a Unix system, not %s: give the address of a master with --mesos-master", runtime.GOOS)

func (s *site) startLocal(int, *globals) error { return errNoLocal }

func newLocal(*globals) *cobra.Command {
	return &cobra.Command{
		Use:    "local",
		Short:  "Run a Mesos cluster and a registry on this machine",
		Hidden: true,
		RunE:   func(*cobra.Command, []string) error { return errNoLocal },
	}
}
