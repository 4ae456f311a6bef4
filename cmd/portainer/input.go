package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockerfile"
)

// stdinName stands for standard input where a file is wanted.
const stdinName = "-"

// An input is what an argument of build stands for: a Dockerfile and its context.
type input struct {
	name       string // what messages call it
	dockerfile string // portainer.Request's
	source     []byte // nil if the Dockerfile is in remote
	dir        string
	remote     string
	bundler    portainer.ContextBundler
}

// inputs finds out what the arguments of build stand for. It reads Dockerfiles, and
// standard input. close gives back what it holds, and is to be called in any case.
type inputs struct {
	stdin   io.Reader
	limit   int64  // of the files of an archive
	context string // --context
	file    string // --file

	read    bool // standard input was
	archive *portainer.TarBundler
}

func (in *inputs) close() error {
	if in.archive == nil {
		return nil
	}
	return in.archive.Close()
}

// isRemote reports whether s is a context for the engine to fetch. What is here goes
// first: "github.com/team/app" may be a directory.
func isRemote(s string) bool {
	if !dockerfile.IsRemoteContext(s) {
		return false
	}
	_, err := os.Lstat(s)
	return err != nil
}

// input returns what arg stands for.
func (in *inputs) input(ctx context.Context, arg string) (input, error) {
	dir, remote := in.context, ""
	if isRemote(dir) {
		dir, remote = "", dir
	}
	if in.file == "" {
		return in.ofDockerfile(ctx, arg, dir, remote)
	}
	// As docker build has it: the argument is the context.
	switch {
	case in.context != "" && arg != in.file:
		return input{}, usagef("--file names the Dockerfile of the context %s, and --context another context: give one of them", arg)
	case in.context != "":
		return in.ofDockerfile(ctx, in.file, dir, remote)
	case arg == stdinName && in.file == stdinName:
		return input{}, usagef("standard input can be the Dockerfile or the context, not both")
	case arg == stdinName:
		return in.ofStdin(ctx, "", "")
	case isRemote(arg) && in.file != stdinName:
		return input{name: arg, dockerfile: in.file, remote: arg}, nil
	case isRemote(arg):
		return in.ofDockerfile(ctx, in.file, "", arg)
	}
	if info, err := os.Stat(arg); err != nil || !info.IsDir() {
		return input{}, usagef("--file names the Dockerfile of a context, but %s is neither a directory, a URL nor -", arg)
	}
	return in.ofDockerfile(ctx, in.file, arg, "")
}

// ofDockerfile returns the input of a Dockerfile, or of what may stand in its place,
// with the given context; "" means what goes without saying.
func (in *inputs) ofDockerfile(ctx context.Context, arg, dir, remote string) (input, error) {
	switch {
	case arg == stdinName:
		return in.ofStdin(ctx, dir, remote)
	case isRemote(arg) && dir+remote != "":
		return input{}, usagef("%s is a context of its own: leave out --context", arg)
	case isRemote(arg):
		return input{name: arg, remote: arg}, nil
	}
	name := dockerfilePath(arg)
	source, err := unlessDone(ctx, func() ([]byte, error) { return os.ReadFile(name) })
	if err != nil {
		if onPath := (*fs.PathError)(nil); errors.As(err, &onPath) {
			err = onPath.Err
		}
		return input{}, fmt.Errorf("%s: %w", name, err)
	}
	return input{name: name, dockerfile: name, source: source, dir: dir, remote: remote}, nil
}

// ofStdin returns the input that standard input is: a Dockerfile, or an archive that is
// its own context, told apart by its first bytes.
func (in *inputs) ofStdin(ctx context.Context, dir, remote string) (input, error) {
	if in.read {
		return input{}, usagef("standard input can be read once")
	}
	in.read = true
	got, err := in.readStdin(ctx)
	in.archive = got.archive
	out := input{name: stdinName, dockerfile: stdinName, source: got.text, dir: dir, remote: remote}
	switch {
	case err != nil:
		return input{}, fmt.Errorf("standard input: %w", err)
	case got.archive != nil && dir+remote != "":
		return input{}, usagef("standard input is an archive, which is a context of its own: leave out --context")
	case got.archive != nil:
		out.bundler = got.archive
		if out.source, err = got.archive.Dockerfile(in.file); err != nil {
			return input{}, fmt.Errorf("standard input: %w", err)
		}
	case in.file != "" && in.file != stdinName:
		return input{}, usagef("standard input is a Dockerfile, and so is --file %s", in.file)
	case len(bytes.TrimSpace(got.text)) == 0:
		return input{}, usagef("standard input is empty: it must be a Dockerfile, or an archive of a context")
	case dir+remote == "":
		out.bundler = &portainer.TarBundler{} // there is nothing to copy from
	}
	return out, nil
}

const (
	// maxHead is what portainer.IsTar wants to see.
	maxHead = 1024
	// maxText is more than a Dockerfile may have.
	maxText = 1 << 20
)

// A stdinContent is what standard input was: one of both.
type stdinContent struct {
	text    []byte
	archive *portainer.TarBundler
}

// readStdin reads standard input.
func (in *inputs) readStdin(ctx context.Context) (stdinContent, error) {
	return unlessDone(ctx, func() (got stdinContent, err error) {
		stream := bufio.NewReaderSize(in.stdin, 64<<10)
		head, err := stream.Peek(maxHead)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return got, err
		case portainer.IsTar(head):
			got.archive, err = portainer.ReadTar(ctx, stream, in.limit)
		default:
			got.text, err = io.ReadAll(io.LimitReader(stream, maxText))
		}
		return got, err
	})
}

// unlessDone returns what read does, or early when ctx is done: a read of a terminal or
// a pipe cannot be broken off, and ends with the process.
func unlessDone[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		r.value, r.err = read()
		done <- r
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var nothing T
		return nothing, context.Cause(ctx)
	}
}

// hint says how else than by a flag the Dockerfile can tell where its image goes.
func (i input) hint(key, value string) string {
	if i.source == nil {
		return ": its Dockerfile cannot be read here"
	}
	return fmt.Sprintf(", or add a line \"# portainer: %s=%s\"", key, value)
}
