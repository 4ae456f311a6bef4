package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"

	bk "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/session/upload/uploadprovider"

	"github.com/org/portainer"
)

// noContext is the bundler of a build without a context: what reads it cannot be
// built.
func noContext(context.Context, portainer.Request, io.Writer) error { return contextMissing() }

// contextMissing says that a build needs a context and has none.
func contextMissing() *portainer.BuildError {
	return failure(portainer.PhaseBuild, portainer.ClassContext, errors.New("a base image has ONBUILD instructions that need the build context, "+
		"and none was sent because the Dockerfile itself takes nothing from it: a line \"# portainer: context=always\" has it sent"))
}

// inputs are the build contexts that a solve may read from this process.
type inputs struct {
	j      *job
	opt    *bk.SolveOpt
	up     *uploadprovider.Uploader // nil unless archives are sent
	bodies []*lazyBody
	trees  []*contextTree
}

// addInputs has a solve take its contexts from this process, or from where the request
// says. BuildKit reads none of them unless a step needs it: they are inputs of the
// frontend, and not the context that it opens to look for a Dockerfile (buildkit
// frontend/dockerui, initContext and NamedContext.load).
func (j *job) addInputs(ctx context.Context, opt *bk.SolveOpt) *inputs {
	in := &inputs{j: j, opt: opt}
	if j.archives {
		in.up = uploadprovider.New()
		opt.Session = append(opt.Session, in.up)
	}
	// A given daemon compares a tree with the last one of the same key, and believes
	// that files of one size and time are the same.
	opt.SharedKey = rand.Text()
	opt.FrontendInputs = map[string]llb.State{}
	switch {
	case j.req.Remote != "":
		opt.FrontendAttrs["context"] = j.req.Remote
		if j.remoteDockerfile() {
			opt.FrontendAttrs["filename"] = cmp.Or(j.req.Dockerfile, "Dockerfile")
			delete(opt.FrontendAttrs, "dockerfilekey")
			delete(opt.LocalMounts, "dockerfile")
		}
	case j.cfg.Bundler != nil:
		opt.FrontendInputs["context"] = in.add(ctx, j.cfg.Bundler, "[internal] load build context")
	default:
		opt.FrontendInputs["context"] = in.add(ctx, portainer.BundlerFunc(noContext), "[internal] load build context")
	}
	for _, name := range slices.Sorted(maps.Keys(j.cfg.Contexts)) {
		opt.FrontendAttrs["context:"+name] = "input:context:" + name
		opt.FrontendInputs["context:"+name] = in.add(ctx, j.cfg.Contexts[name], "[context "+name+"] load")
	}
	return in
}

// add returns what BuildKit makes of a context: it asks for its files when it needs
// them, and bundler then writes the tar that they are in.
func (in *inputs) add(ctx context.Context, bundler portainer.ContextBundler, name string) llb.State {
	b := &lazyBody{start: func() *body {
		return newBody(ctx, func(ctx context.Context, w io.Writer) error { return bundler.Bundle(ctx, in.j.req, w) })
	}}
	if in.up != nil {
		in.bodies = append(in.bodies, b)
		return in.upload(b, name)
	}
	t := &contextTree{in: b, dir: cmp.Or(in.j.cfg.Sandbox, in.j.cfg.Temp)}
	local := "input-" + strconv.Itoa(len(in.trees))
	in.trees = append(in.trees, t)
	in.opt.LocalMounts[local] = t
	return llb.Local(local, llb.SharedKeyHint(local), llb.WithCustomName(name))
}

// upload returns what BuildKit makes of an archive: it fetches and unpacks it.
func (in *inputs) upload(b *lazyBody, name string) llb.State {
	const file = "context"
	fetched := llb.HTTP(in.up.Add(b), llb.Filename(file), llb.WithCustomName(name))
	return llb.Scratch().File(llb.Copy(fetched, "/"+file, "/", &llb.CopyInfo{AttemptUnpack: true}), llb.WithCustomName(name+": unpack"))
}

// close ends the reading of all contexts and returns why one could not be read. It is
// errUnlike when one must be sent as an archive.
func (in *inputs) close() error {
	var errs []error
	unlike := false
	for _, b := range in.bodies {
		errs = append(errs, b.end())
	}
	for _, t := range in.trees {
		errs = append(errs, t.end())
		unlike = unlike || errors.Is(t.err, errUnlike)
	}
	if err := errors.Join(errs...); err != nil || !unlike {
		return err
	}
	return errUnlike
}

// A lazyBody is a body whose making starts when it is read.
type lazyBody struct {
	start func() *body

	mu    sync.Mutex
	body  *body // nil until then
	ended bool
}

// Read implements io.Reader.
func (l *lazyBody) Read(p []byte) (int, error) {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return 0, errBodyClosed
	}
	if l.body == nil {
		l.body = l.start()
	}
	b := l.body
	l.mu.Unlock()
	return b.Read(p)
}

// Close implements io.Closer for whoever has read it.
func (l *lazyBody) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.body == nil {
		return nil
	}
	return l.body.Close()
}

// end ends the making, waits for it and returns its error, as body.close does.
func (l *lazyBody) end() error {
	l.mu.Lock()
	l.ended = true
	b := l.body
	l.mu.Unlock()
	if b == nil {
		return nil
	}
	return b.close()
}
