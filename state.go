package portainer

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/org/portainer/internal/wire"
)

// stateVersion is the version of the records in the state directory.
const stateVersion = 1

// logsDir is where the marks of logs are in the state directory.
const logsDir = "logs"

// Names in the state directory's database.
var (
	metaBucket   = []byte("meta")
	buildsBucket = []byte("builds")
	versionKey   = []byte("version")
	frameworkKey = []byte("framework")
	stagingKey   = []byte("staging")
)

// lockTimeout bounds how long another process's use of a state directory is
// waited for.
const lockTimeout = time.Second

// A state is the memory of a framework that outlives its process: the framework
// id, every build with its attempts, and how far each log has been handed on. It
// is safe for concurrent use.
type state struct {
	dir string
	db  *bbolt.DB
}

// A record is a build in the state.
type record struct {
	ID          BuildID         `json:"id"`
	Image       string          `json:"image"`
	File        string          `json:"file"`
	Resources   Resources       `json:"resources"`
	Constraints []Constraint    `json:"constraints,omitempty"`
	Registries  []string        `json:"registries,omitempty"`
	MaxAttempts int             `json:"max_attempts"`
	OOMRetryMB  float64         `json:"oom_retry_mb,omitempty"`
	OwnSecrets  bool            `json:"own_secrets,omitempty"`
	Task        wire.Task       `json:"task"`
	Late        *lateContext    `json:"late,omitempty"` // unless it is in Task
	Outputs     []Output        `json:"outputs,omitempty"`
	Submitted   time.Time       `json:"submitted"`
	Launches    int             `json:"launches"`
	Counted     int             `json:"counted"`
	Unheard     int             `json:"unheard,omitempty"`
	OOMRaised   bool            `json:"oom_raised,omitempty"`
	Attempts    []attemptRecord `json:"attempts,omitempty"` // those not known to have ended
	Lease       lease           `json:"lease"`
	Done        bool            `json:"done,omitempty"`
	Result      *Result         `json:"result,omitempty"`
	Failure     *failureRecord  `json:"failure,omitempty"`

	Delivered []wire.Delivered `json:"delivered,omitempty"`
}

// An attemptRecord is an attempt in the state.
type attemptRecord struct {
	N         int               `json:"n"`
	Agent     AgentID           `json:"agent"`
	Hostname  string            `json:"hostname"`
	AgentURL  string            `json:"agent_url"`
	Held      map[string]string `json:"held,omitempty"` // attribute values that constraints count
	Launched  time.Time         `json:"launched"`
	Heard     bool              `json:"heard,omitempty"`
	Running   bool              `json:"running,omitempty"`
	Abandoned bool              `json:"abandoned,omitempty"`
}

// A failureRecord is a BuildError in the state; the build's own facts are in its
// record.
type failureRecord struct {
	Phase    Phase   `json:"phase"`
	Class    Class   `json:"class"`
	Agent    AgentID `json:"agent,omitempty"`
	Hostname string  `json:"hostname,omitempty"`
	Attempt  int     `json:"attempt,omitempty"`
	Step     string  `json:"step,omitempty"`
	Line     int     `json:"line,omitempty"`
	Message  string  `json:"message"`
}

// openState opens the state in dir, which it makes if need be. Only one process
// can have it open.
func openState(dir string) (*state, error) {
	if err := os.MkdirAll(filepath.Join(dir, logsDir), 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, &bbolt.Options{Timeout: lockTimeout})
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, fmt.Errorf("state directory %s is in use by another process", dir)
	case err != nil:
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	s := &state{dir: dir, db: db}
	if err := db.Update(s.initialize); err != nil {
		db.Close()
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	return s, nil
}

func (s *state) initialize(tx *bbolt.Tx) error {
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	if _, err := tx.CreateBucketIfNotExists(buildsBucket); err != nil {
		return err
	}
	want := fmt.Sprint(stateVersion)
	if have := string(meta.Get(versionKey)); have != "" && have != want {
		return fmt.Errorf("it has version %s, but this release understands version %s", have, want)
	}
	return meta.Put(versionKey, []byte(want))
}

func (s *state) close() error { return s.db.Close() }

// load returns what is in the state.
func (s *state) load() (frameworkID string, records []record, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		frameworkID = string(tx.Bucket(metaBucket).Get(frameworkKey))
		return tx.Bucket(buildsBucket).ForEach(func(id, data []byte) error {
			var r record
			if err := json.Unmarshal(data, &r); err != nil {
				return fmt.Errorf("build %s: %w", id, err)
			}
			records = append(records, r)
			return nil
		})
	})
	if err != nil {
		return "", nil, fmt.Errorf("state directory %s: %w", s.dir, err)
	}
	return frameworkID, records, nil
}

// setFramework makes the framework id durable; "" forgets it.
func (s *state) setFramework(id string) error {
	return s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(frameworkKey, []byte(id)) })
}

// stagingID returns the name under which the framework holds what it has staged,
// which is fresh in a new state. A later life must go by the same name, or it
// could not give up what an earlier one staged.
func (s *state) stagingID(fresh string) (string, error) {
	id := fresh
	err := s.db.Update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if known := meta.Get(stagingKey); known != nil {
			id = string(known)
			return nil
		}
		return meta.Put(stagingKey, []byte(fresh))
	})
	return id, err
}

// tidy removes the marks of logs whose builds are not in the state: an earlier
// process died while it forgot them.
func (s *state) tidy(records []record) error {
	marks, err := os.ReadDir(filepath.Join(s.dir, logsDir))
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	known := make(map[string]bool, len(records))
	for i := range records {
		known[string(records[i].ID)] = true
	}
	for _, mark := range marks {
		if known[mark.Name()] {
			continue
		}
		if err := os.Remove(s.logPath(BuildID(mark.Name()))); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
	}
	return nil
}

// has reports whether a build is in the state.
func (s *state) has(id BuildID) (found bool) {
	_ = s.db.View(func(tx *bbolt.Tx) error { // fails only when the state is closed
		found = tx.Bucket(buildsBucket).Get([]byte(id)) != nil
		return nil
	})
	return found
}

// put makes records durable, all or none.
func (s *state) put(records []record) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		builds := tx.Bucket(buildsBucket)
		for i := range records {
			data, err := json.Marshal(&records[i])
			if err != nil {
				return err
			}
			if err := builds.Put([]byte(records[i].ID), data); err != nil {
				return err
			}
		}
		return nil
	})
}

// forget drops a build.
func (s *state) forget(id BuildID) error {
	err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(buildsBucket).Delete([]byte(id)) })
	if rmErr := os.Remove(s.logPath(id)); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	return err
}

func (s *state) logPath(id BuildID) string { return filepath.Join(s.dir, logsDir, string(id)) }

// A logMark keeps how far the log of a build has been handed on. It is written
// after every line with one small write to a file of its own: enough for the
// death of the process at any moment, and cheap enough for a million lines.
type logMark struct{ file *os.File }

// openMark opens the mark of a build.
func (s *state) openMark(id BuildID) (*logMark, error) {
	file, err := os.OpenFile(s.logPath(id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return &logMark{file}, nil
}

// markSize is that of an attempt's number and an offset.
const markSize = 16

func (m *logMark) set(attempt int, offset int64) error {
	var b [markSize]byte
	binary.BigEndian.PutUint64(b[:8], uint64(attempt))
	binary.BigEndian.PutUint64(b[8:], uint64(offset))
	_, err := m.file.WriteAt(b[:], 0)
	return err
}

// get returns zeros if nothing was set yet.
func (m *logMark) get() (attempt int, offset int64, err error) {
	var b [markSize]byte
	if n, err := m.file.ReadAt(b[:], 0); n < markSize {
		if n == 0 {
			return 0, 0, nil
		}
		return 0, 0, err
	}
	return int(binary.BigEndian.Uint64(b[:8])), int64(binary.BigEndian.Uint64(b[8:])), nil
}

func (m *logMark) close() error { return m.file.Close() }

// record is b as the state keeps it.
func (b *build) record() record {
	r := record{
		ID: b.id, Image: b.image, File: b.file, Resources: b.resources, Constraints: b.constraints, Registries: b.registries,
		MaxAttempts: b.maxAttempts, OOMRetryMB: b.oomRetryMB, OwnSecrets: b.ownSecrets, Task: b.task, Submitted: b.submitted, Launches: b.launches, Counted: b.counted, Unheard: b.unheard, OOMRaised: b.oomRaised,
		Lease: b.lease, Done: b.done, Result: b.result, Outputs: b.outputs, Delivered: b.delivered,
	}
	if b.task.Context == nil {
		r.Late = b.late
	}
	for _, at := range b.live {
		r.Attempts = append(r.Attempts, attemptRecord{
			N: at.n, Agent: at.agent, Hostname: at.hostname, AgentURL: at.agentURL, Held: at.held, Launched: at.launched,
			Heard: at.heard, Running: at.running, Abandoned: at.abandoned,
		})
	}
	if f := b.failure; f != nil {
		r.Failure = &failureRecord{
			Phase: f.Phase, Class: f.Class, Agent: f.Agent, Hostname: f.Hostname, Attempt: f.Attempt,
			Step: f.Step, Line: f.Line, Message: f.Err.Error(),
		}
	}
	return r
}

// buildError is the failure of r.
func (r *record) buildError() *BuildError {
	f := r.Failure
	return &BuildError{
		ID: r.ID, Image: r.Image, File: r.File, Phase: f.Phase, Class: f.Class, Agent: f.Agent, Hostname: f.Hostname,
		Attempt: f.Attempt, Step: f.Step, Line: f.Line, Err: errors.New(f.Message),
	}
}
