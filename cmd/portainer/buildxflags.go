package main

import "github.com/spf13/pflag"

// foreignFlags are those of docker buildx build that mean nothing here, and what to do
// instead.
var foreignFlags = []struct{ name, short, advice string }{
	{"allow", "", "what a step may do is up to the engine on the agent: --network=host and the like need a given daemon that allows them (--buildkit-addr)"},
	{"builder", "", "say what builds on the agent with --engine, --docker-host or --buildkit-addr"},
	{"call", "", "only builds are possible: use docker buildx build --call here, which needs no cluster"},
	{"check", "", "use docker buildx build --check here, which needs no cluster"},
	{"cpu-period", "", "give the build CPUs with --build-cpu"},
	{"cpu-quota", "", "give the build CPUs with --build-cpu"},
	{"cpu-shares", "c", "give the build CPUs with --build-cpu"},
	{"cpuset-cpus", "", "give the build CPUs with --build-cpu; Mesos says where they are"},
	{"cpuset-mems", "", "give the build memory with --build-mem; Mesos says where it is"},
	{"isolation", "", "steps run in Linux containers; there is no other kind"},
	{"memory", "m", "give the build memory with --build-mem"},
	{"memory-swap", "", "give the build memory with --build-mem; steps get no swap beyond it"},
	{"policy", "", "check the Dockerfile before it is given to this command"},
	{"security-opt", "", "a given daemon has its own security options (--docker-host)"},
}

// A foreignFlag is one of foreignFlags: no value is right. It is the advice.
type foreignFlag string

func (f foreignFlag) Set(string) error { return &foreignError{string(f)} }

func (foreignFlag) String() string { return "" }

func (foreignFlag) Type() string { return "string" }

// A foreignError is what any of foreignFlags says to being set.
type foreignError struct{ advice string }

func (e *foreignError) Error() string {
	return "docker buildx has it, portainer has not: " + e.advice
}

// addForeignFlags adds the flags that are refused with advice. They are in no help.
func addForeignFlags(f *pflag.FlagSet) {
	for _, foreign := range foreignFlags {
		flag := f.VarPF(foreignFlag(foreign.advice), foreign.name, foreign.short, foreign.advice)
		flag.Hidden = true
		flag.NoOptDefVal = "true" // --check has no value, and what follows does not matter
	}
}
