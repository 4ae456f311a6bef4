package engine

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"

	"github.com/docker/docker/api/types/build"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/org/portainer"
)

// bundleError is what a bundler's error means for the build.
func bundleError(err error) error {
	var be *portainer.BuildError
	if errors.As(err, &be) {
		return err
	}
	class := portainer.ClassStaging
	if diskWords.MatchString(err.Error()) {
		class = portainer.ClassDisk
	}
	return failure(portainer.PhaseFetch, class, fmt.Errorf("read the build context: %w", err))
}

// A body is a tar that is made while it is read.
type body struct {
	*io.PipeReader
	stop context.CancelFunc
	made sync.WaitGroup
	err  error // why it was not made whole; valid after made
}

// errBodyClosed is what the maker of a body sees when nobody reads on.
var errBodyClosed = errors.New("the engine reads no more of the build context")

// newBody starts write, which must write the whole tar.
func newBody(ctx context.Context, write func(ctx context.Context, w io.Writer) error) *body {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	b := &body{PipeReader: r, stop: cancel}
	b.made.Go(func() {
		err := write(ctx, w)
		if err != nil && ctx.Err() == nil && !errors.Is(err, errBodyClosed) {
			b.err = err
		}
		w.CloseWithError(err)
	})
	return b
}

// close ends the making, waits for it and returns its error, if it ended by
// itself with one.
func (b *body) close() error {
	b.CloseWithError(errBodyClosed) // for a maker that waits to write
	b.stop()                        // for one that waits for anything else
	b.made.Wait()
	return b.err
}

// Close implements io.Closer for those who read a body to its end. It does not
// wait: close does.
func (b *body) Close() error { return b.CloseWithError(errBodyClosed) }

// context returns the build context as a tar, or nil if the job has none.
func (j *job) context(ctx context.Context) *body {
	if j.cfg.Bundler == nil {
		return nil
	}
	return newBody(ctx, func(ctx context.Context, w io.Writer) error { return j.cfg.Bundler.Bundle(ctx, j.req, w) })
}

// classicBody returns the tar to be sent to the classic builder, and says in opts where
// the rest is. The caller closes it.
func (j *job) classicBody(ctx context.Context, opts *build.ImageBuildOptions) (*body, error) {
	if j.req.Remote != "" {
		opts.RemoteContext, opts.Dockerfile = j.req.Remote, cmp.Or(j.req.Dockerfile, "Dockerfile")
		return newBody(ctx, func(context.Context, io.Writer) error { return nil }), nil
	}
	opts.Dockerfile = ownName
	if !j.named {
		name, err := j.hiddenName(ctx)
		if err != nil {
			return nil, err
		}
		opts.Dockerfile = cmp.Or(name, ownName)
	}
	return j.contextWithDockerfile(ctx, opts.Dockerfile), nil
}

// contextWithDockerfile returns the build context as a tar with the Dockerfile
// in it, as the classic builder wants it.
//
// COPY must not see the Dockerfile, and the builder drops it before the first step when
// .dockerignore has a rule for it (docker builder/remotecontext/detect.go). So it gets a
// name for which there is a rule; where there can be none, it gets one that nobody else
// has, and .dockerignore a rule for that. The docker command does the latter for "docker
// build -f -". That name is always the same, so that a .dockerignore that is copied does
// not change from build to build.
//
// Nothing else of .dockerignore counts: what it leaves out was left out when the
// context was made, if it was in force then.
func (j *job) contextWithDockerfile(ctx context.Context, name string) *body {
	return newBody(ctx, func(ctx context.Context, w io.Writer) error {
		tw := tar.NewWriter(w)
		if err := addFile(tw, name, j.source); err != nil {
			return err
		}
		ignored := false
		if j.cfg.Bundler != nil {
			in := j.context(ctx)
			err := copyTar(tw, in, func(hdr *tar.Header, r io.Reader) error {
				at := path.Clean(hdr.Name)
				if root, _, _ := strings.Cut(at, "/"); root == name {
					return errTaken
				}
				if at != ignoreFile || hdr.Typeflag != tar.TypeReg {
					return errAsIs
				}
				ignored = true
				return addRules(tw, hdr, r, name)
			})
			if berr := in.close(); berr != nil {
				return berr
			}
			if err != nil {
				return err
			}
		}
		if !ignored {
			if err := addFile(tw, ignoreFile, []byte(name+"\n"+ignoreFile+"\n")); err != nil {
				return err
			}
		}
		return tw.Close()
	})
}

const (
	// ownName is the name of the Dockerfile in a context that leaves no other hidden.
	ownName = ".portainer.6GQK3WJ4ZB7XHTN2.Dockerfile"

	ignoreFile = ".dockerignore"
	// maxIgnore bounds what is read of one.
	maxIgnore = 16 << 20
)

// errTaken is why a context cannot have the Dockerfile under the name that it was to get:
// rules that were not in force when it was made have left something there.
var errTaken = errors.New("the build context has something of the name that the Dockerfile was to get")

// hiddenName looks in the context for rules of its ignore file by which the Dockerfile can
// be hidden without one more. It returns "" if there are none. It reads no further than to
// where that file is in a context that is in order.
func (j *job) hiddenName(ctx context.Context) (string, error) {
	in := j.context(ctx)
	if in == nil {
		return "", nil
	}
	defer func() { _ = in.close() }() // it is not read to its end
	for tr := tar.NewReader(in); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			return "", bundleError(cmp.Or(in.close(), err))
		}
		at := path.Clean(hdr.Name)
		if at == ignoreFile && hdr.Typeflag == tar.TypeReg {
			_, patterns, err := readRules(hdr, tr)
			if err != nil {
				return "", nil // said again, and handled, where it is copied
			}
			return hiddenBy(patterns), nil
		}
		if root, _, _ := strings.Cut(at, "/"); root > ignoreFile {
			return "", nil
		}
	}
}

// hiddenBy returns a name at the root of a context that rules leave out; "" if they have
// none, or would have the builder drop the ignore file as well.
func hiddenBy(patterns []string) string {
	literal := ""
	for _, p := range patterns {
		// One with a wildcard matches a name that nothing else has.
		name := strings.NewReplacer("**/", "", "**", ownName, "*", ownName, "?", "p").Replace(p)
		if name == "" || name == "." || strings.ContainsAny(name, `!/\[`) || !hide(patterns, name) {
			continue
		}
		if strings.Contains(name, ownName) {
			return name
		}
		literal = cmp.Or(literal, name)
	}
	return literal
}

// hide reports whether rules have the builder drop the file called name, and keep the
// ignore file.
func hide(patterns []string, name string) bool {
	dropped, err := patternmatcher.MatchesOrParentMatches(name, patterns)
	if err != nil || !dropped {
		return false
	}
	dropped, err = patternmatcher.MatchesOrParentMatches(ignoreFile, patterns)
	return err == nil && !dropped
}

// readRules reads the ignore file of a context.
func readRules(hdr *tar.Header, r io.Reader) (data []byte, patterns []string, err error) {
	if hdr.Size > maxIgnore {
		return nil, nil, fmt.Errorf("%s of the build context is larger than %d MiB", ignoreFile, maxIgnore>>20)
	}
	if data, err = io.ReadAll(r); err != nil {
		return nil, nil, err
	}
	if patterns, err = ignorefile.ReadAll(bytes.NewReader(data)); err != nil {
		return nil, nil, fmt.Errorf("%s of the build context: %w", ignoreFile, err)
	}
	return data, patterns, nil
}

// addRules writes the ignore file of a context, with a rule for the file called name
// unless there is one. The builder also drops the ignore file itself when that has a rule
// for it: as it is in the context, it is to stay.
func addRules(tw *tar.Writer, hdr *tar.Header, r io.Reader, name string) error {
	data, patterns, err := readRules(hdr, r)
	if err != nil {
		return err
	}
	if hide(patterns, name) {
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		_, err = tw.Write(data)
		return err
	}
	rules := name + "\n"
	if dropped, err := patternmatcher.MatchesOrParentMatches(ignoreFile, patterns); err != nil {
		return fmt.Errorf("%s of the build context: %w", ignoreFile, err)
	} else if dropped {
		rules += "!" + ignoreFile + "\n"
	}
	if len(data) > 0 && data[len(data)-1] != '\n' {
		rules = "\n" + rules
	}
	data = append(data, rules...)
	h := *hdr
	h.Size = int64(len(data))
	if err := tw.WriteHeader(&h); err != nil {
		return err
	}
	_, err = tw.Write(data)
	return err
}

// errAsIs is what an edit of copyTar returns for an entry it leaves alone.
var errAsIs = errors.New("as it is")

// copyTar copies a tar's entries to tw. edit sees each before; unless it
// returns errAsIs, it has written what takes the entry's place.
func copyTar(tw *tar.Writer, r io.Reader, edit func(hdr *tar.Header, r io.Reader) error) error {
	tr := tar.NewReader(r)
	buf := make([]byte, 256<<10)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// The end of the tar is not the end of the stream.
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		if err := edit(hdr, tr); !errors.Is(err, errAsIs) {
			if err != nil {
				return err
			}
			continue
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{tw}, tr, buf); err != nil {
			return err
		}
	}
}

// addFile writes a regular file.
func addFile(tw *tar.Writer, name string, data []byte) error {
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(data))}
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}
