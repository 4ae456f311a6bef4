package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	dockerclient "github.com/docker/docker/client"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/pause"
	"github.com/org/portainer/internal/script"
)

// classic builds j with the daemon's classic builder and returns the image's ID.
func (d *docker) classic(ctx context.Context, j *job) (image string, err error) {
	image, err = d.classicOnce(ctx, j)
	if errors.Is(err, errTaken) && !j.named {
		j.named = true
		image, err = d.classicOnce(ctx, j)
	}
	return image, err
}

func (d *docker) classicOnce(ctx context.Context, j *job) (image string, err error) {
	opts := build.ImageBuildOptions{
		Version:     build.BuilderV1,
		Remove:      true,
		ForceRemove: true,
		NoCache:     j.req.NoCache,
		PullParent:  j.req.Pull,
		NetworkMode: d.network(j.req.Network),
		BuildArgs:   make(map[string]*string, len(j.req.Args)),
		Labels:      j.req.Labels,
		ExtraHosts:  j.req.AddHosts,
		Target:      j.req.Target,
	}
	for k, v := range j.req.Args {
		opts.BuildArgs[k] = &v
	}
	if err := classicOptions(j.req.Options, &opts); err != nil {
		return "", invalid(err)
	}
	if opts.AuthConfigs, err = j.dockerAuths(ctx); err != nil {
		return "", failure(portainer.PhaseBuild, portainer.ClassAuth, err)
	}
	switch {
	case !d.given: // one of our own has a cgroup above all its containers
	case d.guest != nil && d.guest.cgroup != "" && j.req.Options.CgroupParent == d.guest.above:
		opts.CgroupParent = d.guest.cgroup
	default:
		opts.CgroupParent = j.req.Options.CgroupParent
		opts.Memory = int64(j.cfg.MemMB * (1 << 20))
		opts.MemorySwap = opts.Memory
		if j.cfg.CPUs > 0 {
			opts.CPUPeriod, opts.CPUQuota = 100_000, max(1000, int64(j.cfg.CPUs*100_000))
		}
	}
	body, err := j.classicBody(ctx, &opts)
	if err != nil {
		return "", err
	}
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	killed := d.watchKills(watching, opts.Memory)
	d.running.Add(1)
	log := &classicLog{j: j}
	defer func() {
		// The daemon reads no more: the bundler must stop, and what it says
		// comes first, because everything else follows from it.
		if berr := body.close(); berr != nil {
			err = bundleError(berr)
		}
		if err != nil {
			log.end("not finished")
			// Of a step that was just beginning we may not have heard.
			if d.removeContainer(ctx, log.container) && ctx.Err() == nil && !daemonGone(err) {
				d.running.Add(-1)
			}
			return
		}
		d.running.Add(-1)
	}()
	resp, err := d.cli.ImageBuild(ctx, body, opts)
	if err != nil {
		if daemonGone(err) {
			return "", failure(portainer.PhaseBuild, portainer.ClassLost, err)
		}
		be := j.stepError(err.Error(), err, "", 0)
		if cerrdefs.IsInvalidArgument(err) {
			be.Class = portainer.ClassInvalid
		}
		return "", be
	}
	defer resp.Body.Close()
	image, err = log.read(resp.Body)
	if err != nil && killed(log.last) {
		// It reached its limit, or nothing of it would have been killed.
		err = shortage{killed: true, limit: opts.Memory, peak: opts.Memory}.explain(err, "")
	}
	if err != nil && ctx.Err() == nil {
		var be *portainer.BuildError
		if !errors.As(err, &be) {
			err = failure(portainer.PhaseBuild, portainer.ClassLost, fmt.Errorf("the docker daemon at %s broke off: %w", d.host, err))
		}
	}
	return image, err
}

// removeContainer removes the container of a step that was broken off. The daemon
// removes it by itself, but in its own time. It reports false when it may be there
// still.
func (d *docker) removeContainer(ctx context.Context, id string) bool {
	if id == "" {
		return true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	err := removeContainer(ctx, d.cli, id)
	if err != nil {
		d.cfg.Logger.Warn("container of a broken-off step not removed", "err", err)
	}
	return err == nil
}

// removeContainer removes a container and returns when it is gone.
func removeContainer(ctx context.Context, cli *dockerclient.Client, id string) error {
	for {
		err := cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		// It is gone when the daemon does not know it any more, not when it says
		// that it has been removed, or is being removed by another.
		switch {
		case cerrdefs.IsNotFound(err):
			return nil
		case err != nil && !cerrdefs.IsConflict(err) || pause.For(ctx, 10*time.Millisecond) != nil:
			return fmt.Errorf("remove container %s: %w", id, err)
		}
	}
}

// A message is one JSON message of a daemon's build, pull or push.
type message struct {
	Stream   string `json:"stream"`
	Status   string `json:"status"`
	ID       string `json:"id"`
	Progress struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Aux   json.RawMessage `json:"aux"`
	Error *struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"errorDetail"`
}

// A classicLog reads what the classic builder says. It tells steps only in prose.
type classicLog struct {
	j         *job
	cur       *step
	text      string // of the current instruction
	line      int    // its line
	container string // that runs the current instruction; "" when none does
	last      string // that ran last
	unmet     bool   // an ONBUILD instruction may want the context, and there is none
	image     string
}

// made notes an image that the current instruction has made, as opposed to one that
// was there before.
func (l *classicLog) made(id string) {
	word, _, _ := strings.Cut(l.text, " ")
	if l.cur != nil && !l.cur.step.Cached && !strings.EqualFold(word, "FROM") {
		l.j.made = append(l.j.made, id)
	}
}

// The builder's own words (docker builder/dockerfile). While a container runs,
// all but the sentence about its removal is output of the step.
var (
	stepWords    = regexp.MustCompile(`(?s)^Step (\d+)/(\d+) : (.*)$`)
	runningWords = regexp.MustCompile(`^ ---> Running in ([0-9a-f]{6,64})\n?$`)
	removedWords = regexp.MustCompile(`^(?:Removing| ---> Removed) intermediate container ([0-9a-f]{6,64})\n?$`)
	triggerWords = regexp.MustCompile(`^# Executing \d+ build triggers?\n?$`)
	madeWords    = regexp.MustCompile(`^ ---> ([0-9a-f]{6,64})\n?$`)
	resultWords  = regexp.MustCompile(`^Successfully (?:built|tagged) \S+\n?$|^\n$`)
)

// read reads messages until the build has ended and returns the image's ID.
func (l *classicLog) read(r io.Reader) (image string, err error) {
	dec := json.NewDecoder(r)
	for {
		var m message
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF) && l.image != "":
			l.end("")
			return l.image, nil
		case errors.Is(err, io.EOF):
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		}
		if m.Error != nil {
			return "", l.failed(m.Error.Code, m.Error.Message)
		}
		if len(m.Aux) > 0 {
			var aux struct{ ID string }
			if json.Unmarshal(m.Aux, &aux) == nil && aux.ID != "" {
				l.image = aux.ID
			}
		}
		if m.Stream != "" {
			l.stream(m.Stream)
		}
		if l.unmet {
			return "", contextMissing()
		}
		// Of a pull's progress only what a person would keep.
		if m.Status != "" && l.cur != nil && (m.ID == "" || strings.HasPrefix(m.Status, "Pulling from ")) {
			l.cur.write([]byte(strings.TrimLeft(m.ID+": "+m.Status, ": ")+"\n"), false, time.Time{})
		}
	}
}

// failed makes the error of the build from the daemon's.
func (l *classicLog) failed(code int, msg string) error {
	be := l.j.stepError(msg, nil, l.text, l.line)
	if code != 0 && be.Class == portainer.ClassUser {
		be.Err = exitError(code)
	}
	l.end(be.Err.Error())
	return be
}

// end ends the current step.
func (l *classicLog) end(failed string) {
	if l.cur != nil {
		l.cur.done(failed, time.Time{})
		l.cur = nil
	}
}

// stream takes one message of prose or output.
func (l *classicLog) stream(text string) {
	if m := removedWords.FindStringSubmatch(text); m != nil && (l.container == "" || sameContainer(m[1], l.container)) {
		l.container = ""
		return
	}
	if l.container != "" {
		out, stderr := uncolour(text)
		l.cur.write([]byte(out), stderr, time.Time{})
		return
	}
	if triggerWords.MatchString(text) && l.j.cfg.Bundler == nil && l.j.req.Remote == "" {
		l.unmet = true
		return
	}
	if m := stepWords.FindStringSubmatch(text); m != nil {
		l.end("")
		l.text = strings.Join(strings.Fields(m[3]), " ")
		name := l.text
		l.line = 0
		if line, ok := l.j.script.Step(script.Number(m[1])); ok {
			l.line, name = line, l.j.script.TextAt(line)
			l.text = name
		}
		l.cur = l.j.report.begin(fmt.Sprintf("[%s/%s] %s", m[1], m[2], name), l.line, time.Time{})
		return
	}
	if m := runningWords.FindStringSubmatch(text); m != nil && l.cur != nil {
		l.container, l.last = m[1], m[1]
		return
	}
	made := madeWords.FindStringSubmatch(text)
	switch {
	case made != nil:
		l.made(made[1])
	case text == " ---> Using cache\n" && l.cur != nil:
		l.cur.cached()
	case resultWords.MatchString(text):
	default:
		if text = strings.TrimSpace(text); text != "" {
			l.j.report.info("%s", text)
		}
	}
}

// sameContainer compares IDs of which either may be cut short.
func sameContainer(a, b string) bool {
	n := min(len(a), len(b))
	return a[:n] == b[:n]
}

// uncolour undoes what the daemon does to each piece of standard error: it
// writes it in red (docker pkg/streamformatter).
func uncolour(text string) (out string, stderr bool) {
	if rest, ok := strings.CutPrefix(text, "\x1b[91m"); ok {
		if rest, ok := strings.CutSuffix(rest, "\x1b[0m"); ok {
			return rest, true
		}
	}
	return text, false
}
