package engine

import (
	"context"
	"testing"
	"time"

	bk "github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/script"
)

// The end of a step's output may come with the news that the step has ended, or
// after it; a line must not be torn by that.
func TestProgressKeepsLinesWhole(t *testing.T) {
	var lines []string
	var ended int
	sink := portainer.LogSinkFunc(func(_ context.Context, ev portainer.Event) {
		switch ev.Kind {
		case portainer.EventLog:
			lines = append(lines, ev.Text)
		case portainer.EventStepDone:
			ended++
		}
	})
	p := &progress{
		j:     &job{script: script.Read([]byte("FROM scratch\nRUN x\n")), report: newReporter(t.Context(), sink)},
		steps: map[string]*step{},
	}
	now := time.Now()
	const id = "sha256:x"
	vertex := func(completed bool) *bk.Vertex {
		v := &bk.Vertex{Digest: id, Name: "[2/2] RUN x", Started: &now}
		if completed {
			v.Completed = &now
		}
		return v
	}
	output := func(text string) []*bk.VertexLog {
		return []*bk.VertexLog{{Vertex: id, Stream: 1, Data: []byte(text), Timestamp: now}}
	}
	p.update(&bk.SolveStatus{Vertexes: []*bk.Vertex{vertex(false)}, Logs: output("one\ntw")})
	p.update(&bk.SolveStatus{Vertexes: []*bk.Vertex{vertex(true)}, Logs: output("o\nthr")})
	p.update(&bk.SolveStatus{Logs: output("ee\nfo")})
	require.Zero(t, ended)
	p.update(&bk.SolveStatus{Logs: output("ur\n")})
	require.Equal(t, 1, ended)
	require.Equal(t, []string{"one", "two", "three", "four"}, lines)
}

// Output that never ends a line is told when nothing more comes.
func TestProgressTellsUnendedLine(t *testing.T) {
	for _, last := range []string{"message", "end"} {
		t.Run(last, func(t *testing.T) {
			var events []portainer.EventKind
			sink := portainer.LogSinkFunc(func(_ context.Context, ev portainer.Event) { events = append(events, ev.Kind) })
			p := &progress{
				j:     &job{script: script.Read([]byte("FROM scratch\nRUN x\n")), report: newReporter(t.Context(), sink)},
				steps: map[string]*step{},
			}
			now := time.Now()
			const id = "sha256:x"
			p.update(&bk.SolveStatus{
				Vertexes: []*bk.Vertex{{Digest: id, Name: "[2/2] RUN x", Started: &now, Completed: &now}},
				Logs:     []*bk.VertexLog{{Vertex: id, Stream: 1, Data: []byte("no newline"), Timestamp: now}},
			})
			if last == "message" {
				p.update(&bk.SolveStatus{})
			} else {
				p.end("")
			}
			require.Equal(t, []portainer.EventKind{portainer.EventStep, portainer.EventLog, portainer.EventStepDone}, events)
		})
	}
}
