//go:build unix

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/org/portainer/internal/local"
)

const clusterPrefix = local.TempPrefix

// startLocal brings up a cluster that lives as long as s.
func (s *site) startLocal(agents int, g *globals) error {
	cluster, err := local.Start(local.Config{Agents: agents, Logger: g.logger})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, cluster.Close)
	s.master = cluster.Master()
	return nil
}

func newLocal(g *globals) *cobra.Command {
	var cfg local.Config
	cmd := &cobra.Command{
		Use:   "local [flags]",
		Short: "Run a Mesos cluster and a registry on this machine",
		Long: `local runs a Mesos master, agents and a registry on this machine until it is
interrupted. It prints their addresses to standard output, then "ready".`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Logger = g.logger
			cfg.Registry = true
			leftovers := &site{}
			leftovers.sweep(cmd.Context(), g.logger)
			cluster, err := local.Start(cfg)
			if err != nil {
				return errors.Join(err, leftovers.close())
			}
			fmt.Fprintf(g.stdout, "master=%s\n", cluster.Master())
			for _, agent := range cluster.Agents() {
				fmt.Fprintf(g.stdout, "agent=%s\n", agent)
			}
			fmt.Fprintf(g.stdout, "registry=%s\nready\n", cluster.Registry())
			<-cmd.Context().Done() // the regular way to end it
			closed := make(chan error, 1)
			go func() { closed <- errors.Join(cluster.Close(), leftovers.close()) }()
			select {
			case err := <-closed:
				return err
			case <-g.abort:
				return errInterruptedAgain
			}
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&cfg.Agents, "agents", 1, "the number of agents")
	f.StringVar(&cfg.Resources, "resources", "", "what each agent has, such as 'cpus:4;mem:8192;disk:20000;ports:[31000-32000]'\n(default: its share of this machine)")
	f.StringVar(&cfg.MasterAddr, "master-addr", "127.0.0.1:0", "where the master listens")
	f.StringVar(&cfg.RegistryAddr, "registry-addr", "127.0.0.1:0", "where the registry listens")
	f.StringVar(&cfg.DockerSocket, "docker-socket", "/var/run/docker.sock", "the Docker daemon in which agents run builds with --container-image")
	f.StringVar(&cfg.WorkDir, "work-dir", "", "where sandboxes and images are kept (default: a temporary directory, removed at the end)")
	return cmd
}
