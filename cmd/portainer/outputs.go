package main

import (
	"slices"

	"github.com/spf13/pflag"

	"github.com/org/portainer"
)

// outputFlags are the flags that say what images are written to.
type outputFlags struct {
	outputs []string
	push    bool
	load    bool
}

func (o *outputFlags) addFlags(f *pflag.FlagSet) {
	f.StringArrayVarP(&o.outputs, "output", "o", nil, "what to write instead of pushing: `type=TYPE,dest=PATH`, of type oci, docker, tar or local (\"-\" is standard output),\n"+
		"or type=registry; may be repeated")
	f.BoolVar(&o.push, "push", false, "push, besides what --output says (default: push if there is no --output)")
	f.BoolVar(&o.load, "load", false, "not possible: the image is built on an agent; use --output type=docker,dest=- and docker load")
}

// list are the outputs that the flags name, for one of so many Dockerfiles.
func (o *outputFlags) list(files int) ([]portainer.Output, error) {
	if o.load {
		return nil, usagef("--load: the image is built on an agent, not by a docker of this machine: give --output type=docker,dest=- and pipe it to docker load")
	}
	var list []portainer.Output
	pushes := false
	for _, text := range o.outputs {
		out, err := portainer.ParseOutput(text)
		if err != nil {
			return nil, usagef("--output: %w", err)
		}
		if out.Dest != "" && files > 1 {
			return nil, usagef("--output %s names one place, but there are %d Dockerfiles: build them one by one", text, files)
		}
		pushes = pushes || out.Type == portainer.OutputRegistry
		list = append(list, out)
	}
	if o.push && !pushes && len(list) > 0 {
		list = append(list, portainer.Output{Type: portainer.OutputRegistry})
	}
	return list, nil
}

// toStdout reports whether one of outputs took the standard output for itself.
func toStdout(outputs []portainer.Written) bool {
	return slices.ContainsFunc(outputs, func(w portainer.Written) bool { return w.Dest == "-" })
}
