package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strings"
	"sync"
	"time"

	bk "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	solverrors "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/codes"

	"github.com/org/portainer"
)

// solve builds j with a BuildKit and returns what its exporter says. again means
// that it was built and could not be pushed: what is built is then taken from the
// cache, and not reported once more.
func (j *job) solve(ctx context.Context, c *bk.Client, network string, exports []bk.ExportEntry, again bool) (map[string]string, error) {
	opt := bk.SolveOpt{
		Frontend: "dockerfile.v0",
		FrontendAttrs: map[string]string{
			"filename":      "Dockerfile",
			"dockerfilekey": "dockerfile", // the Dockerfile is not in the context
		},
		LocalMounts: map[string]fsutil.FS{
			"dockerfile": oneFile{name: "Dockerfile", data: j.source},
		},
		Exports: exports,
		Session: []session.Attachable{keyring{cfg: j.cfg}},
	}
	if j.cfg.Secrets != nil {
		opt.Session = append(opt.Session, secretsprovider.NewSecretProvider(j.cfg.Secrets))
	}
	if len(j.cfg.SSH) > 0 {
		opt.Session = append(opt.Session, sshAgents{agents: j.cfg.SSH})
	}
	attrs := opt.FrontendAttrs
	for k, v := range j.req.Args {
		attrs["build-arg:"+k] = v
	}
	for k, v := range j.req.Labels {
		attrs["label:"+k] = v
	}
	if j.req.Target != "" {
		attrs["target"] = j.req.Target
	}
	if j.req.NoCache && !again {
		attrs["no-cache"] = ""
	}
	if j.req.Pull && !again {
		attrs["image-resolve-mode"] = "pull"
	}
	if len(j.req.AddHosts) > 0 {
		var hosts []string
		for _, h := range j.req.AddHosts {
			name, addr, ok := strings.Cut(h, ":")
			if !ok {
				return nil, invalid(fmt.Errorf("add-host %q: it must be name:address", h))
			}
			hosts = append(hosts, name+"="+addr)
		}
		attrs["add-hosts"] = strings.Join(hosts, ",")
	}
	switch network {
	case "host":
		attrs["force-network-mode"] = "host"
		opt.AllowedEntitlements = append(opt.AllowedEntitlements, "network.host")
	case "none":
		attrs["force-network-mode"] = "none"
	}
	if err := j.solveOptions(&opt, again); err != nil {
		return nil, invalid(err)
	}
	in := j.addInputs(ctx, &opt)
	resp, err := j.watch(ctx, c, opt, again)
	switch berr := in.close(); {
	case berr == nil:
		return resp, err
	case errors.Is(berr, errUnlike):
		if err == nil || ctx.Err() != nil {
			return resp, err
		}
		j.report.info("%v: once more from the start", berr)
		j.archives = true
		return j.solve(ctx, c, network, exports, again)
	default:
		return nil, bundleError(berr)
	}
}

// maxEmpty is how many messages without content in a row mean that the daemon
// has lost its way. BuildKit in Docker before 23.0.6 sends them without end once
// more than a MiB of output was waiting to be sent (buildkit control/control.go).
const maxEmpty = 1000

// errEmpty ends a build whose daemon sends nothing but empty messages.
var errEmpty = errors.New("the daemon sends nothing but empty progress messages: a defect of BuildKit before Docker 23.0.6; " +
	"upgrade the daemon, or write less output in one step")

// watch runs a solve and reports its progress.
func (j *job) watch(ctx context.Context, c *bk.Client, opt bk.SolveOpt, again bool) (map[string]string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	statuses := make(chan *bk.SolveStatus)
	p := &progress{j: j, steps: map[string]*step{}, exportOnly: again}
	var reading sync.WaitGroup
	reading.Go(func() {
		empty := 0
		for s := range statuses {
			if empty++; len(s.Vertexes)+len(s.Statuses)+len(s.Logs)+len(s.Warnings) > 0 {
				empty = 0
			}
			if empty > maxEmpty {
				cancel(errEmpty)
			}
			p.update(s)
		}
	})
	resp, err := c.Solve(ctx, nil, opt, statuses)
	reading.Wait()
	if err != nil {
		p.end("not finished")
		if errors.Is(context.Cause(ctx), errEmpty) {
			return nil, failure(portainer.PhaseBuild, portainer.ClassLost, errEmpty)
		}
		return nil, p.error(err)
	}
	p.end("")
	j.solved = true
	return resp.ExporterResponse, nil
}

// A progress turns BuildKit's status messages into events.
type progress struct {
	j      *job
	steps  map[string]*step // by digest of the vertex
	ended  []*bk.Vertex     // whose output may not have arrived whole
	failed *bk.Vertex       // the first that failed

	exportOnly bool // report no step but the export
}

// update takes one message. What it says of vertices comes in no order with the
// output: the end of a step's output may be in the message that says that the step
// has ended, or in the next.
func (p *progress) update(s *bk.SolveStatus) {
	var completed []*bk.Vertex
	for _, v := range s.Vertexes {
		id := v.Digest.String()
		st := p.steps[id]
		if st == nil && v.Started != nil && (!p.exportOnly || strings.HasPrefix(v.Name, "exporting ")) {
			st = p.j.report.begin(v.Name, p.j.script.LineOf(v.Name), *v.Started)
			st.mayClip = true
			p.steps[id] = st
		}
		if v.Completed != nil && v.Error != "" && p.failed == nil && !strings.HasSuffix(v.Error, context.Canceled.Error()) {
			p.failed = v
		}
		if st == nil {
			continue
		}
		if v.Cached {
			st.cached()
		}
		if v.Completed != nil {
			completed = append(completed, v)
		}
	}
	more := map[string]bool{}
	for _, l := range s.Logs {
		more[l.Vertex.String()] = true
		st := p.steps[l.Vertex.String()]
		if st == nil {
			continue
		}
		st.write(l.Data, l.Stream == 2, l.Timestamp)
	}
	waiting := p.ended
	p.ended = nil
	for _, v := range waiting {
		p.finish(v, more[v.Digest.String()])
	}
	for _, v := range completed {
		p.finish(v, true)
	}
	for _, w := range s.Warnings {
		line := ""
		if len(w.Range) > 0 && w.Range[0].Start != nil {
			line = fmt.Sprintf("%s:%d: ", p.j.file, w.Range[0].Start.Line)
		}
		p.j.report.info("warning: %s%s", line, w.Short)
	}
}

// finish ends the step of v, but not within a line of which the rest may come.
func (p *progress) finish(v *bk.Vertex, more bool) {
	st := p.steps[v.Digest.String()]
	if more && st.withinLine() {
		p.ended = append(p.ended, v)
		return
	}
	st.done(v.Error, *v.Completed)
}

// end ends the steps that BuildKit did not say the end of.
func (p *progress) end(failed string) {
	for _, v := range p.ended {
		p.finish(v, false)
	}
	for _, st := range p.steps {
		st.done(failed, time.Time{})
	}
}

// error makes the error of the build from that of Solve.
func (p *progress) error(err error) error {
	msg, text, line := err.Error(), "", 0
	if pushWords.MatchString(msg) {
		return pushError(p.j.req.Registry, p.j.image, err)
	}
	if p.failed == nil && (grpcerrors.Code(err) == codes.Unavailable || daemonGone(err)) {
		return failure(portainer.PhaseBuild, portainer.ClassLost, fmt.Errorf("the BuildKit daemon broke off: %w", err))
	}
	if p.failed != nil {
		line = p.j.script.LineOf(p.failed.Name)
		text = p.failed.Name
		if _, rest, ok := strings.Cut(text, "] "); ok {
			text = rest
		}
		if base, ok := strings.CutPrefix(p.failed.Name, "[internal] load metadata for "); ok {
			text, line = "FROM "+base, p.j.script.LineOfBase(base)
		}
	}
	for _, s := range solverrors.Sources(err) {
		if len(s.Ranges) > 0 && s.Ranges[0].Start != nil {
			line = int(s.Ranges[0].Start.Line)
			break
		}
	}
	if line > 0 {
		text = p.j.script.TextAt(line)
	}
	return p.j.stepError(msg, err, text, line)
}

// pushWords is how BuildKit says that it has built the image and cannot push it
// (buildkit exporter/containerimage/export.go).
var pushWords = regexp.MustCompile(`^(?:failed to solve: )?failed to push `)

// A oneFile is a file system with one file in it.
type oneFile struct {
	name string
	data []byte
}

// Walk implements fsutil.FS.
func (f oneFile) Walk(_ context.Context, target string, fn fs.WalkDirFunc) error {
	if target = strings.Trim(target, "/"); target != "" && target != f.name {
		return nil
	}
	stat := &fstypes.Stat{Path: f.name, Mode: 0o644, Size: int64(len(f.data)), ModTime: time.Now().UnixNano()}
	return fn(f.name, fs.FileInfoToDirEntry(&fsutil.StatInfo{Stat: stat}), nil)
}

// Open implements fsutil.FS.
func (f oneFile) Open(name string) (io.ReadCloser, error) {
	if name != f.name {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(bytes.NewReader(f.data)), nil
}
