package main

import (
	"os"

	"github.com/spf13/pflag"

	"github.com/org/portainer"
)

// engineFlags say what builds on the agents, besides --docker-host.
type engineFlags struct {
	kind         string
	buildkitAddr string
	allowVFS     bool

	caFile, certFile, keyFile string
}

func (f *engineFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&f.kind, "engine", "auto", "what builds on the agent: auto, docker (needs --docker-host), dockerd or buildkitd")
	flags.StringVar(&f.buildkitAddr, "buildkit-addr", "", "build with the BuildKit daemon at this `ADDRESS` on each agent, such as unix:///run/buildkit/buildkitd.sock or tcp://host:port")
	flags.BoolVar(&f.allowVFS, "allow-vfs", false, "let an engine start on an agent where only copying storage drivers work (vfs, native)")
	flags.StringVar(&f.caFile, "engine-ca", "", "speak TLS to the daemon of --docker-host or --buildkit-addr, and trust what the certificates in this PEM `FILE` vouch for")
	flags.StringVar(&f.certFile, "engine-cert", "", "speak TLS to it, and show it the certificate in this PEM `FILE`")
	flags.StringVar(&f.keyFile, "engine-key", "", "the PEM `FILE` that holds its private key")
}

// config is what they say, given a Docker daemon's address or "".
func (f *engineFlags) config(dockerHost string) (portainer.Engine, error) {
	engine := portainer.Engine{Kind: f.kind, AllowVFS: f.allowVFS}
	switch {
	case f.kind != "auto" && f.kind != "docker" && f.kind != "dockerd" && f.kind != "buildkitd":
		return engine, usagef("--engine is auto, docker, dockerd or buildkitd, not %q", f.kind)
	case dockerHost != "" && f.buildkitAddr != "":
		return engine, usagef("--docker-host and --buildkit-addr both give a daemon: give one of them")
	case f.kind == "docker" && dockerHost == "":
		return engine, usagef("--engine docker needs the daemon's address in --docker-host")
	case dockerHost != "" && f.kind != "auto" && f.kind != "docker":
		return engine, usagef("--docker-host gives a daemon, but --engine %s starts one: give one of them", f.kind)
	case f.buildkitAddr != "" && f.kind != "auto" && f.kind != "buildkitd":
		return engine, usagef("--buildkit-addr gives a BuildKit daemon, but --engine is %s: give one of them", f.kind)
	case dockerHost != "":
		engine.Kind, engine.Host = "docker", dockerHost
	case f.buildkitAddr != "":
		engine.Kind, engine.Host = "buildkitd", f.buildkitAddr
	}
	var err error
	engine.TLS, err = f.tls(engine.Host)
	return engine, err
}

// tls reads the files of --engine-ca, --engine-cert and --engine-key. It is nil if
// there are none.
func (f *engineFlags) tls(host string) (*portainer.EngineTLS, error) {
	switch {
	case f.caFile+f.certFile+f.keyFile == "":
		return nil, nil
	case host == "":
		return nil, usagef("--engine-ca, --engine-cert and --engine-key are about the daemon of --docker-host or --buildkit-addr: give one of these, too")
	case (f.certFile == "") != (f.keyFile == ""):
		return nil, usagef("--engine-cert and --engine-key are about one certificate: give both")
	}
	out := new(portainer.EngineTLS)
	for _, file := range []struct {
		flag, name string
		to         *[]byte
	}{{"engine-ca", f.caFile, &out.CA}, {"engine-cert", f.certFile, &out.Cert}, {"engine-key", f.keyFile, &out.Key}} {
		if file.name == "" {
			continue
		}
		pem, err := os.ReadFile(file.name)
		if err != nil {
			return nil, usagef("--%s: %w", file.flag, err)
		}
		*file.to = pem
	}
	return out, nil
}
