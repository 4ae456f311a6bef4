package portainer

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// executorFile is the name of the executor's binary in its sandbox.
const executorFile = "portainer-executor"

// shutdownGrace is how long an executor has to stop its engine and remove what
// it leaves, before Mesos kills it.
const shutdownGrace = 60 * time.Second

// executorShare is what the executor itself takes, besides its task. Mesos warns
// about less than 0.01 cpus and 32 MB.
var executorShare = Resources{CPUs: 0.1, MemMB: 64}

// taskInfo makes the task of at out of pool, which loses what the task takes.
func (l *loop) taskInfo(at *attempt, pool []mesos.Resource, role string) (*mesos.TaskInfo, error) {
	b := at.build
	own, ok := carve(pool, role, executorShare)
	if !ok {
		return nil, errors.New("offer is too small for the executor")
	}
	used, ok := carve(pool, role, b.resources.Sub(executorShare))
	if !ok {
		return nil, errors.New("offer is too small for the task")
	}
	task := b.task
	task.Attempt = at.n
	data, err := task.Encode()
	if err != nil {
		return nil, err
	}
	cfg := &l.f.cfg
	grace := mesos.DurationInfo{Nanoseconds: shutdownGrace.Nanoseconds()}
	name, source := "portainer executor", b.image
	return &mesos.TaskInfo{
		Name:      b.image,
		TaskID:    mesos.TaskID{Value: at.task},
		AgentID:   mesos.AgentID{Value: string(at.agent)},
		Resources: used,
		Data:      data,
		Labels:    labels("portainer.build", string(b.id), "portainer.image", b.image, "portainer.attempt", fmt.Sprint(at.n)),
		Executor: &mesos.ExecutorInfo{
			Type:                mesos.ExecutorInfo_CUSTOM,
			ExecutorID:          mesos.ExecutorID{Value: at.task},
			FrameworkID:         &mesos.FrameworkID{Value: l.frameworkID},
			Name:                &name,
			Source:              &source,
			Command:             cfg.executorCommand(),
			Container:           cfg.Container.info(cfg.StagingURL),
			Resources:           own,
			ShutdownGracePeriod: &grace,
		},
	}, nil
}

// labels makes Mesos labels of keys and values.
func labels(pairs ...string) *mesos.Labels {
	var l mesos.Labels
	for i := 0; i+1 < len(pairs); i += 2 {
		l.Labels = append(l.Labels, mesos.Label{Key: pairs[i], Value: &pairs[i+1]})
	}
	return &l
}

// archiveSuffixes are those that Mesos's fetcher unpacks (mesos docs/fetcher.md).
var archiveSuffixes = []string{".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".zip"}

// executorCommand is the command that starts the executor. A container's working
// directory is that of its image, so the sandbox is entered first.
func (cfg *Config) executorCommand() *mesos.CommandInfo {
	value := `cd "${MESOS_SANDBOX:-.}" && exec ` + cfg.ExecutorCommand
	info := &mesos.CommandInfo{Value: &value}
	if cfg.ExecutorURI == "" {
		return info
	}
	fetched := mesos.CommandInfo_URI{Value: cfg.ExecutorURI}
	yes, no := true, false
	if cfg.ExecutorCache {
		fetched.Cache = &yes
	}
	file, _, _ := strings.Cut(cfg.ExecutorURI, "?")
	base := path.Base(file)
	if isArchive(base) {
		fetched.Extract = &yes
		fetched.OutputFile = &base // a signed URL's query would be in the name
	} else {
		file := executorFile
		fetched.Executable, fetched.Extract, fetched.OutputFile = &yes, &no, &file
	}
	info.URIs = []mesos.CommandInfo_URI{fetched}
	return info
}

func isArchive(name string) bool {
	return slices.ContainsFunc(archiveSuffixes, func(suffix string) bool { return strings.HasSuffix(name, suffix) })
}
