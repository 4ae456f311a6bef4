package portainer

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/wire"
)

var rewrite = flag.Bool("update", false, "rewrite the transcripts of testdata/ledger with what the ledger does now")

// TestLedger replays the stories of testdata/ledger. A story is a sequence of
//
//	<commands, one a line>
//	----
//	<the actions that they yield, one a line>
//
// with an empty line behind each. Lines that begin with # are for the reader.
// The commands are the methods of story.
func TestLedger(t *testing.T) {
	files, err := filepath.Glob("testdata/ledger/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			got, err := newStory().replay(string(text))
			require.NoError(t, err, file)
			if *rewrite {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
				return
			}
			require.Equal(t, string(text), got)
		})
	}
}

// A story is a ledger whose inputs are lines of text.
type story struct {
	ledger     *ledger
	policy     policy
	spec       buildSpec // what submit begins with
	start, now time.Time
	offered    []Offer     // to be one OFFERS event
	scripted   []Placement // what the matcher says next, unless nil
	out        strings.Builder
}

func newStory() *story {
	s := &story{
		policy: policy{
			launchTimeout: 5 * time.Minute, unreachableWait: 10 * time.Minute, pushLease: 10 * time.Minute,
			avoidFor: 10 * time.Minute, explainEvery: 30 * time.Second,
		},
		spec: buildSpec{
			maxAttempts: 3, resources: Resources{CPUs: 1, MemMB: 1024}, task: wire.Task{MemMB: 1024},
		},
		start: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	s.now = s.start
	s.ledger = newLedger(s.policy, MatcherFunc(s.match), func() float64 { return 0 })
	return s
}

func (s *story) match(offers []Offer, builds []Pending) []Placement {
	if s.scripted != nil {
		said := s.scripted
		s.scripted = nil
		return said
	}
	return Spread{}.MatchOffers(offers, builds)
}

// replay returns text with the actions that the ledger yields now.
func (s *story) replay(text string) (string, error) {
	inActions := false
	for number, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case line == "" && inActions:
			s.out.WriteString("\n")
			inActions = false
		case inActions:
			// what it was; what it is has been written already
		case line == "----":
			s.out.WriteString("----\n")
			s.flushOffers()
			s.flush("")
			inActions = true
		default:
			s.out.WriteString(line + "\n")
			if line == "" || line[0] == '#' {
				continue
			}
			if err := s.command(line); err != nil {
				return "", fmt.Errorf("line %d: %s: %w", number+1, line, err)
			}
		}
	}
	return s.out.String(), nil
}

// flush writes what the ledger wants to be done.
func (s *story) flush(prefix string) {
	for _, a := range s.ledger.take() {
		s.out.WriteString(prefix + actionText(a) + "\n")
	}
}

// args are a command's arguments: names in order, and values by key.
type args struct {
	names  []string
	values map[string]string
	err    error
}

func (a *args) string(key, otherwise string) string {
	v, ok := a.values[key]
	if !ok {
		return otherwise
	}
	delete(a.values, key)
	return v
}

func parsed[T any](a *args, key string, otherwise T, parse func(string) (T, error)) T {
	text := a.string(key, "")
	if text == "" {
		return otherwise
	}
	v, err := parse(text)
	a.err = errors.Join(a.err, err)
	return v
}

func (a *args) float(key string, otherwise float64) float64 {
	return parsed(a, key, otherwise, func(s string) (float64, error) { return strconv.ParseFloat(s, 64) })
}

func (a *args) int(key string, otherwise int) int { return parsed(a, key, otherwise, strconv.Atoi) }

func (a *args) duration(key string, otherwise time.Duration) time.Duration {
	return parsed(a, key, otherwise, time.ParseDuration)
}

// parseCommand splits a line at spaces, except within quotes.
func parseCommand(line string) (name string, a *args, err error) {
	a = &args{values: make(map[string]string)}
	for rest := strings.TrimSpace(line); rest != ""; rest = strings.TrimSpace(rest) {
		end := strings.IndexAny(rest, ` "`)
		word := rest
		switch {
		case end >= 0 && rest[end] == '"':
			quoted, err := strconv.QuotedPrefix(rest[end:])
			if err != nil {
				return "", nil, err
			}
			text, err := strconv.Unquote(quoted)
			if err != nil {
				return "", nil, err
			}
			word, rest = rest[:end]+text, rest[end+len(quoted):]
		case end >= 0:
			word, rest = rest[:end], rest[end:]
		default:
			rest = ""
		}
		if key, value, ok := strings.Cut(word, "="); ok {
			a.values[key] = value
		} else {
			a.names = append(a.names, word)
		}
	}
	return a.names[0], &args{names: a.names[1:], values: a.values}, nil
}

func (s *story) command(line string) error {
	name, a, err := parseCommand(line)
	if err != nil {
		return err
	}
	commands := map[string]func(*args) error{
		"config": s.config, "submit": s.submit, "offer": s.offer, "placements": s.placements, "update": s.update, "outcome": s.outcome,
		"tick": s.tick, "wait": s.wait, "subscribe": s.subscribe, "disconnect": s.disconnect, "cancel": s.cancel, "provide": s.provide, "abort": s.abort, "drain": s.drain,
		"removed": s.removed, "forsake": s.forsake, "restart": s.restart, "ask": s.ask, "inverse": s.inverse,
	}
	do := commands[name]
	if do == nil {
		return fmt.Errorf("unknown command; there are %v", slices.Sorted(maps.Keys(commands)))
	}
	if name != "offer" {
		s.flushOffers()
	}
	if err := errors.Join(do(a), a.err); err != nil {
		return err
	}
	if len(a.values) > 0 {
		return fmt.Errorf("unknown arguments %v", a.values)
	}
	return nil
}

func (a *args) want(n int) error {
	if len(a.names) < n {
		return fmt.Errorf("%d names wanted", n)
	}
	return nil
}

// config [queue=0] [build=0] [launch=5m] [unreachable=10m] [lease=10m] [attempts=3]
// [oomretry=0] [ondemand=0] [late=0]
func (s *story) config(a *args) error {
	p := &s.policy
	p.queueTimeout, p.buildTimeout = a.duration("queue", p.queueTimeout), a.duration("build", p.buildTimeout)
	p.launchTimeout, p.unreachableWait = a.duration("launch", p.launchTimeout), a.duration("unreachable", p.unreachableWait)
	p.pushLease = a.duration("lease", p.pushLease)
	s.spec.onDemand, s.spec.late = a.int("ondemand", 0) == 1, nil
	if a.int("late", 0) == 1 {
		s.spec.late = &lateContext{Dir: "/context"}
	}
	s.spec.maxAttempts, s.spec.oomRetryMB = a.int("attempts", s.spec.maxAttempts), a.float("oomretry", s.spec.oomRetryMB)
	s.ledger.policy = s.policy
	return nil
}

// submit <build> [cpus=1] [mem=1024] [disk=0] [gpus=0]: a build that asks for so much.
func (s *story) submit(a *args) error {
	if err := a.want(1); err != nil {
		return err
	}
	spec := s.spec
	spec.id, spec.image = BuildID(a.names[0]), "registry.example/"+a.names[0]
	spec.file = a.names[0] + "/Dockerfile"
	r := &spec.resources
	*r = Resources{CPUs: a.float("cpus", 1), MemMB: a.float("mem", 1024), DiskMB: a.float("disk", 0), GPUs: a.float("gpus", 0)}
	spec.task.MemMB = r.MemMB
	s.ledger.submit(s.now, spec)
	return nil
}

// offer <offer> agent=… [cpus=0] [mem=0] [disk=0] [gpus=0]. Offers on lines that
// follow each other come in one event.
func (s *story) offer(a *args) error {
	if err := a.want(1); err != nil {
		return err
	}
	agent := a.string("agent", "")
	s.offered = append(s.offered, Offer{
		ID: OfferID(a.names[0]), Agent: AgentID(agent), Hostname: "host-" + agent, Role: "*", agentURL: "http://" + agent + ":5051",
		Resources: Resources{CPUs: a.float("cpus", 0), MemMB: a.float("mem", 0), DiskMB: a.float("disk", 0), GPUs: a.float("gpus", 0)},
	})
	return nil
}

func (s *story) flushOffers() {
	if len(s.offered) > 0 {
		s.ledger.offers(s.now, s.offered)
		s.offered = nil
	}
}

// placements <build>@<offer>…: what the matcher says next, in place of Spread.
func (s *story) placements(a *args) error {
	s.scripted = []Placement{}
	for _, name := range a.names {
		b, o, _ := strings.Cut(name, "@")
		s.scripted = append(s.scripted, Placement{Build: BuildID(b), Offer: OfferID(o)})
	}
	return nil
}

// update <task> <state> [reason=…] [source=…] [message=…] [agent=…] [uuid=…]. The
// agent is by default the attempt's own.
func (s *story) update(a *args) error {
	if err := a.want(2); err != nil {
		return err
	}
	s.ledger.update(s.now, s.status(a))
	return nil
}

func (s *story) status(a *args) update {
	u := update{
		task: a.names[0], state: a.names[1], agent: AgentID(a.string("agent", "")), reason: a.string("reason", ""),
		source: a.string("source", "SOURCE_AGENT"), message: a.string("message", ""), uuid: []byte(a.string("uuid", "")),
	}
	if at := s.ledger.tasks[u.task]; at != nil && u.agent == "" {
		u.agent = at.agent
	}
	return u
}

// outcome <task> <state> [log=<size>] [uuid=…] digest=… or class=… phase=…
// [step=…] [line=…] message=…: a terminal update of the executor, with its outcome.
func (s *story) outcome(a *args) error {
	if err := a.want(2); err != nil {
		return err
	}
	o := wire.Outcome{Digest: a.string("digest", ""), LogSize: int64(a.int("log", 0)), Started: s.start, Ended: s.now}
	if class := a.string("class", ""); class != "" {
		o.Failure = &wire.Failure{
			Class: class, Phase: a.string("phase", "build"), Step: a.string("step", ""), Line: a.int("line", 0), Message: a.string("message", ""),
		}
	}
	data, err := o.Encode()
	if err != nil {
		return err
	}
	a.values["source"] = "SOURCE_EXECUTOR"
	u := s.status(a)
	u.data = data
	s.ledger.update(s.now, u)
	return nil
}

// ask <task> [serial=1]: its executor asks whether it may push.
func (s *story) ask(a *args) error {
	if err := a.want(1); err != nil {
		return err
	}
	s.ledger.asked(s.now, a.names[0], wire.PushAsk{Serial: a.int("serial", 1)})
	return nil
}

// inverse <offer> agent=… [in=1h]: the agent goes down for maintenance so much later.
func (s *story) inverse(a *args) error {
	if err := a.want(1); err != nil {
		return err
	}
	s.ledger.inverseOffers(s.now, []inverseOffer{{
		id: OfferID(a.names[0]), agent: AgentID(a.string("agent", "")), start: s.now.Add(a.duration("in", time.Hour)),
	}})
	return nil
}

// tick <duration>: the clock, once, so much later.
func (s *story) tick(a *args) error {
	if err := a.want(1); err != nil {
		return err
	}
	d, err := time.ParseDuration(a.names[0])
	s.now = s.now.Add(d)
	s.ledger.tick(s.now)
	return err
}

// wait <duration>: the clock as it is in life, ten times a second; actions are
// preceded by how long after the command they come.
func (s *story) wait(a *args) error {
	if err := a.want(1); err != nil {
		return err
	}
	d, err := time.ParseDuration(a.names[0])
	if err != nil {
		return err
	}
	var lines strings.Builder
	for _, act := range s.ledger.take() {
		fmt.Fprintln(&lines, actionText(act))
	}
	for began := s.now; s.now.Sub(began) < d; {
		s.now = s.now.Add(tickEvery)
		s.ledger.tick(s.now)
		for _, act := range s.ledger.take() {
			fmt.Fprintf(&lines, "+%v %s\n", s.now.Sub(began), actionText(act))
		}
	}
	if lines.Len() > 0 {
		s.ledger.out = append(s.ledger.out, verbatim(lines.String()))
	}
	return nil
}

// verbatim is text that wait has made of actions.
type verbatim string

func (s *story) subscribe(*args) error {
	s.ledger.subscribed(s.now)
	return nil
}

// disconnect [why=<word>]
func (s *story) disconnect(a *args) error {
	var why error
	if text := a.string("why", ""); text != "" {
		why = errors.New(text)
	}
	s.ledger.disconnected(why)
	return nil
}

// cancel <build>: its caller gives up.
func (s *story) cancel(a *args) error {
	if err := a.want(1); err != nil {
		return err
	}
	s.ledger.cancel(s.now, BuildID(a.names[0]), ClassCancelled, errors.New("caller gave up"))
	return nil
}

// provide <build>: its caller has staged the context.
func (s *story) provide(a *args) error {
	if err := a.want(1); err != nil {
		return err
	}
	s.ledger.provide(s.now, BuildID(a.names[0]), &wire.Context{Key: "late"})
	return nil
}

// abort <build>: its caller could not stage the context.
func (s *story) abort(a *args) error {
	if err := a.want(1); err != nil {
		return err
	}
	s.ledger.giveUp(s.now, BuildID(a.names[0]), &BuildError{Phase: PhaseBundle, Class: ClassInvalid, Err: errors.New("file missing")})
	return nil
}

func (s *story) drain(*args) error {
	s.ledger.drain(s.now, ClassCancelled, ErrStopped)
	return nil
}

// removed: the master has removed the framework.
func (s *story) removed(*args) error {
	s.ledger.abandonAll(s.now)
	return nil
}

// forsake: the end of Run, whatever still runs.
func (s *story) forsake(*args) error {
	s.ledger.forsake()
	return nil
}

// restart: the process ends, and another reads what was saved.
func (s *story) restart(*args) error {
	var records []record
	for _, b := range s.ledger.sortedBuilds() {
		data, err := json.Marshal(b.record())
		if err != nil {
			return err
		}
		var r record
		if err := json.Unmarshal(data, &r); err != nil {
			return err
		}
		records = append(records, r)
	}
	s.ledger = newLedger(s.policy, MatcherFunc(s.match), func() float64 { return 0 })
	s.ledger.restore(s.now, records)
	return nil
}

// actionText is an action as a line of a story.
func actionText(a action) string {
	switch a := a.(type) {
	case verbatim:
		return strings.TrimSuffix(string(a), "\n")
	case actRevive:
		return "revive"
	case actSuppress:
		return "suppress"
	case actDecline:
		return fmt.Sprintf("decline %s refuse=%v", strings.Trim(fmt.Sprint(a.offers), "[]"), a.refuse)
	case actYield:
		return fmt.Sprintf("yield %s refuse=%v", strings.Trim(fmt.Sprint(a.offers), "[]"), a.refuse)
	case actAccept:
		var b bytes.Buffer
		fmt.Fprintf(&b, "accept %s", a.offer)
		for _, at := range a.attempts {
			fmt.Fprintf(&b, " %s(%v)", at.task, at.build.resources)
		}
		return b.String() + fmt.Sprintf(" refuse=%v", a.refuse)
	case actKill:
		return fmt.Sprintf("kill %s on %s", a.task, a.agent)
	case actReconcile:
		if a.tasks == nil {
			return "reconcile everything"
		}
		text := "reconcile"
		for _, task := range slices.Sorted(maps.Keys(a.tasks)) {
			text += fmt.Sprintf(" %s on %s", task, a.tasks[task])
		}
		return text
	case actAcknowledge:
		return fmt.Sprintf("acknowledge %s %s %s", a.update.task, a.update.state, a.update.uuid)
	case actGrant:
		return fmt.Sprintf("grant %s on %s %v for question %d", a.task, a.agent, a.grant.Lease, a.grant.Serial)
	case actSave:
		return "save " + string(a.build.id)
	case actForget:
		return "forget " + string(a.build.id)
	case actRelease:
		return "release " + string(a.build.id)
	case actComplain:
		return "complain: " + a.text
	case actNotice:
		return noticeText(a)
	}
	return fmt.Sprintf("%#v", a)
}

func noticeText(a actNotice) string {
	var parts []string
	n := a.notice
	if n.logEnd != nil {
		parts = append(parts, fmt.Sprintf("log ends at %d", n.logEnd.size))
	}
	if ev := n.event; ev.Kind != "" {
		text := string(ev.Kind)
		if ev.Attempt > 0 {
			text += fmt.Sprintf(" (%d on %s)", ev.Attempt, ev.Agent)
		}
		if ev.Text != "" {
			text += " " + ev.Text
		}
		if ev.Err != nil {
			text += " " + errorText(ev.Err)
		}
		parts = append(parts, text)
	}
	if n.follow != nil {
		parts = append(parts, "follow "+n.follow.task+" at "+n.follow.agentURL)
	}
	if n.stage {
		parts = append(parts, "stage the context")
	}
	if n.result != nil {
		parts = append(parts, fmt.Sprintf("result %s after %d", n.result.Digest, n.result.Attempts))
	}
	if n.err != nil && !errors.Is(n.event.Err, n.err) {
		parts = append(parts, "error "+errorText(n.err))
	}
	return fmt.Sprintf("tell %s: %s", a.id, strings.Join(parts, "; "))
}

func errorText(err error) string {
	var failure *BuildError
	if errors.As(err, &failure) {
		return fmt.Sprintf("[%s in %s] %v", failure.Class, failure.Phase, err)
	}
	return err.Error()
}
