package portainer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/testmesos"
)

// The examples run against a small cluster of their own; its executors only
// pretend to build.
var exampleMaster = sync.OnceValue(func() string {
	c, err := testmesos.Start(testmesos.Config{Agents: []testmesos.AgentConfig{{Resources: "cpus:4;mem:8192;disk:20000"}}})
	if err != nil {
		panic(err)
	}
	exampleCluster = c
	return c.Master()
})

// exampleCluster is closed by TestMain.
var exampleCluster *testmesos.Cluster

// exampleExecutor is this test binary, which agents run as executor.
func exampleExecutor() string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return self
}

// writeTar writes files as a tar stream, in the order of their names.
func writeTar(w io.Writer, files map[string]string) error {
	tw := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			return err
		}
		if _, err := io.WriteString(tw, files[name]); err != nil {
			return err
		}
	}
	return tw.Close()
}

// A program that embeds the framework: one goroutine runs it, any number of them
// build.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	staging, err := os.MkdirTemp("", "staging")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(staging)
	bucket, err := blob.OpenBucket(ctx, "file://"+staging)
	if err != nil {
		panic(err)
	}
	defer bucket.Close()

	f, err := portainer.New(portainer.Config{
		Master:          exampleMaster(), // "mesos.example:5050", "zk://zk1,zk2,zk3/mesos"
		Registry:        "registry.example:5000",
		Staging:         bucket,
		StagingURL:      "file://" + staging, // as the agents see it
		ExecutorCommand: exampleExecutor(),   // or ExecutorURI, for agents to fetch
		Logs:            portainer.NewWriterSink(os.Stderr),
	})
	if err != nil {
		panic(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()

	result, err := f.Build(ctx, portainer.Request{Repository: "team/app", Tags: []string{"v1"}, Dir: "examples/hello"})
	if err != nil {
		panic(err)
	}
	fmt.Println(result.Refs[0])

	stop()
	<-ended
	// Output:
	// registry.example:5000/team/app:v1@sha256:0000000000000000000000000000000000000000000000000000000000000000
}

// An error tells by its class what to do about it.
func ExampleBuildError() {
	var builder portainer.Builder = portainer.BuilderFunc(func(context.Context, portainer.Request) (*portainer.Result, error) {
		return nil, &portainer.BuildError{
			Image: "registry.example:5000/team/app", File: "Dockerfile", Line: 3, Step: "RUN make test",
			Phase: portainer.PhaseBuild, Class: portainer.ClassUser, Err: errors.New("exit code: 2"),
		}
	})
	_, err := builder.Build(context.Background(), portainer.Request{Dir: "."})

	var failure *portainer.BuildError
	switch {
	case errors.As(err, &failure) && failure.Class == portainer.ClassUser:
		fmt.Println("for the author:", err)
	case errors.Is(err, portainer.ErrLost):
		fmt.Println("for the operator:", err)
	}
	// Output:
	// for the author: Dockerfile:3: RUN make test: exit code: 2
}

// A matcher of one's own: builds whose image is in "gpu/" only go to agents that
// say so in an attribute; the default does the rest.
func ExampleOfferMatcher() {
	matcher := portainer.MatcherFunc(func(offers []portainer.Offer, builds []portainer.Pending) []portainer.Placement {
		var gpu, plain []portainer.Offer
		for _, o := range offers {
			if o.Attributes["gpu"] == "yes" {
				gpu = append(gpu, o)
			} else {
				plain = append(plain, o)
			}
		}
		var forGPU, others []portainer.Pending
		for _, b := range builds {
			if strings.Contains(b.Image, "/gpu/") {
				forGPU = append(forGPU, b)
			} else {
				others = append(others, b)
			}
		}
		var spread portainer.Spread
		return append(spread.MatchOffers(gpu, forGPU), spread.MatchOffers(plain, others)...)
	})

	room := portainer.Resources{CPUs: 4, MemMB: 8192}
	offers := []portainer.Offer{
		{ID: "o1", Agent: "a1", Resources: room},
		{ID: "o2", Agent: "a2", Resources: room, Attributes: map[string]string{"gpu": "yes"}},
	}
	builds := []portainer.Pending{
		{ID: "b1", Image: "registry.example/gpu/train", Resources: portainer.Resources{CPUs: 2, MemMB: 1024}},
		{ID: "b2", Image: "registry.example/web", Resources: portainer.Resources{CPUs: 1, MemMB: 512}},
	}
	for _, p := range matcher.MatchOffers(offers, builds) {
		fmt.Println(p.Build, "on", p.Offer)
	}
	// Output:
	// b1 on o2
	// b2 on o1
}

// A sink that keeps the output of each build apart.
func ExampleLogSink() {
	var mu sync.Mutex
	logs := make(map[portainer.BuildID]*bytes.Buffer)
	sink := portainer.LogSinkFunc(func(_ context.Context, ev portainer.Event) {
		if ev.Kind != portainer.EventLog {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if logs[ev.Build] == nil {
			logs[ev.Build] = new(bytes.Buffer)
		}
		fmt.Fprintln(logs[ev.Build], ev.Text)
	})

	ctx := context.Background()
	sink.HandleEvent(ctx, portainer.Event{Build: "a", Kind: portainer.EventStep, Step: portainer.Step{ID: 1, Name: "RUN make"}})
	sink.HandleEvent(ctx, portainer.Event{Build: "a", Kind: portainer.EventLog, Text: "cc -c main.c"})
	sink.HandleEvent(ctx, portainer.Event{Build: "b", Kind: portainer.EventLog, Text: "go build"})
	sink.HandleEvent(ctx, portainer.Event{Build: "a", Kind: portainer.EventLog, Text: "cc -o main main.o"})
	fmt.Print(logs["a"])
	// Output:
	// cc -c main.c
	// cc -o main main.o
}

// A bundler of one's own: the context is made up, and no file is read.
func ExampleContextBundler() {
	bundler := portainer.BundlerFunc(func(_ context.Context, req portainer.Request, w io.Writer) error {
		return writeTar(w, map[string]string{"version": req.Tags[0] + "\n"})
	})
	var context1, context2 bytes.Buffer
	req := portainer.Request{Tags: []string{"v1"}}
	fmt.Println(bundler.Bundle(context.Background(), req, &context1), bundler.Bundle(context.Background(), req, &context2))
	fmt.Println(bytes.Equal(context1.Bytes(), context2.Bytes()))
	// Output:
	// <nil> <nil>
	// true
}
