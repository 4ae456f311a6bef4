package portainer

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/go-units"

	"github.com/org/portainer/internal/staging"
	"github.com/org/portainer/internal/wire"
)

// planOutputs checks the outputs of a request and writes into task what its executor
// must know of them.
func (f *Framework) planOutputs(task *wire.Task, outputs []Output) error {
	task.Outputs = wireOutputs(outputs)
	dests := map[string]bool{}
	registries := 0
	for _, o := range outputs {
		err := o.check()
		if err == nil {
			err = o.checkDest(f.cfg.Stdout != nil)
		}
		if err != nil {
			return fmt.Errorf("output %s: %w", o, err)
		}
		if o.Type == OutputRegistry {
			if registries++; registries > 1 {
				return errors.New("output type=registry is there twice: give a tag more")
			}
			continue
		}
		if dests[filepath.Clean(o.Dest)] {
			return fmt.Errorf("output %s: another has the same dest", o)
		}
		dests[filepath.Clean(o.Dest)] = true
	}
	if len(dests) == 0 {
		return nil
	}
	if f.stager == nil {
		return errors.New("outputs come back through the staging bucket, but none is configured")
	}
	task.Delivery = &wire.Delivery{BucketURL: f.cfg.StagingURL, Prefix: staging.OutputPrefix + rand.Text() + "/"}
	return nil
}

// wireOutputs are outputs as an executor must know them.
func wireOutputs(outputs []Output) []wire.Output {
	var list []wire.Output
	for _, o := range outputs {
		sent := wire.Output{Type: o.Type, Attrs: maps.Clone(o.Attrs)}
		if o.Type == OutputLocal {
			sent.Type = OutputTar // unpacked here
		}
		delete(sent.Attrs, "tar") // likewise
		if len(sent.Attrs) == 0 {
			sent.Attrs = nil
		}
		list = append(list, sent)
	}
	return list
}

// cloneOutputs copies outputs, which are a caller's.
func cloneOutputs(outputs []Output) []Output {
	out := slices.Clone(outputs)
	for i := range out {
		out[i].Attrs = maps.Clone(out[i].Attrs)
	}
	return out
}

// checkDest finds out before the build what would be in the way of writing o.
func (o *Output) checkDest(stdout bool) error {
	if o.Type == OutputRegistry {
		return nil
	}
	if o.Dest == "-" {
		if !stdout {
			return errors.New("there is no standard output")
		}
		return nil
	}
	info, err := os.Stat(o.Dest)
	switch {
	case err == nil && o.directory() && !info.IsDir():
		return errors.New("there is a file of that name, and it is to be a directory")
	case err == nil && !o.directory() && info.IsDir():
		return errors.New("there is a directory of that name, and it is to be a file")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case o.directory():
		return nil
	}
	// So that no build is for nothing.
	probe, err := tempBeside(o.Dest)
	if onPath := (*fs.PathError)(nil); errors.As(err, &onPath) {
		return onPath.Err // of a file that nobody knows
	}
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// tempBeside makes a file in the directory of name, with the mode that the umask gives.
func tempBeside(name string) (*os.File, error) {
	dir, base := filepath.Split(name)
	return os.OpenFile(filepath.Join(dir, "."+base+"-"+rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
}

// A delivery is what a build has put into the staging bucket.
type delivery struct {
	outputs []Output
	prefix  string
	staged  []wire.Delivered
}

// delivery is what an image of b was written to besides registries; nil if nothing.
func (b *build) delivery() *delivery {
	if b.task.Delivery == nil {
		return nil
	}
	return &delivery{b.outputs, b.task.Delivery.Prefix, b.delivered}
}

// keep are the objects of d.
func (d *delivery) keep() []staging.Output {
	var list []staging.Output
	for _, s := range d.staged {
		list = append(list, staging.Output{Key: s.Key, Size: s.Size, Digest: s.Digest})
	}
	return list
}

// deliver writes the outputs of a build to where they are to be, and removes them from
// the staging bucket, whatever happens. told is called for each.
func (f *Framework) deliver(ctx context.Context, d *delivery, told func(text string)) (written []Written, failure *BuildError) {
	defer f.removeOutputs(ctx, d, nil)
	if f.stager == nil {
		return nil, &BuildError{Phase: PhaseOutput, Class: ClassInvalid, Err: errors.New("the outputs are in the staging bucket, but none is configured")}
	}
	for i, o := range d.outputs {
		if o.Type == OutputRegistry {
			continue
		}
		at := slices.IndexFunc(d.staged, func(s wire.Delivered) bool { return s.Output == i })
		if at < 0 {
			return nil, &BuildError{
				Phase: PhaseOutput, Class: ClassInvalid,
				Err: fmt.Errorf("output %s: the executor has not written it; is it of an older release?", o),
			}
		}
		s := d.staged[at]
		began := time.Now()
		if err := f.write(ctx, &o, staging.Output{Key: s.Key, Size: s.Size, Digest: s.Digest}); err != nil {
			failure := &BuildError{Phase: PhaseOutput, Class: ClassDisk, Err: fmt.Errorf("output %s: %w", o, err)}
			switch unread := (*unreadError)(nil); {
			case ctx.Err() != nil:
				failure.Class, failure.Err = classOfEnd(ctx), context.Cause(ctx)
			case errors.As(err, &unread):
				failure.Class = ClassStaging
			}
			return nil, failure
		}
		written = append(written, Written{Type: o.Type, Dest: o.Dest, Size: s.Size, Digest: s.Digest})
		told(fmt.Sprintf("output %s written, %s (%v)", o, units.BytesSize(float64(s.Size)), time.Since(began).Round(time.Millisecond)))
	}
	return written, nil
}

// removeOutputs removes what the attempts of a build have put into the staging bucket,
// except for keep.
func (f *Framework) removeOutputs(ctx context.Context, d *delivery, keep []staging.Output) {
	if f.stager == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sweepTimeout)
	defer cancel()
	if err := f.stager.store.DeleteOutputs(ctx, d.prefix, keep...); err != nil {
		f.cfg.Logger.Warn("staged output could not be removed", "prefix", d.prefix, "err", err)
	}
}

// unreadError marks an error of the bucket.
type unreadError struct{ error }

func (e *unreadError) Unwrap() error { return e.error }

// write fetches a staged output and writes it as o says. What is damaged on its way is
// not written.
func (f *Framework) write(ctx context.Context, o *Output, from staging.Output) (err error) {
	beside := o.Dest
	switch {
	case o.Dest == "-":
		beside = filepath.Join(os.TempDir(), "portainer-output")
	case o.directory():
		if err := os.MkdirAll(o.Dest, 0o777); err != nil {
			return err
		}
		beside = filepath.Join(o.Dest, "output")
	}
	spool, err := tempBeside(beside)
	if err != nil {
		return err
	}
	kept := false
	defer func() {
		closeErr := spool.Close()
		if !kept {
			closeErr = errors.Join(closeErr, os.Remove(spool.Name()))
		}
		err = cmp.Or(err, closeErr)
	}()
	local := &localWriter{w: spool}
	if err := f.stager.store.GetOutput(ctx, from, local); err != nil {
		if local.err != nil {
			return local.err
		}
		return &unreadError{err}
	}
	switch {
	case o.Dest != "-" && !o.directory():
		if err := os.Rename(spool.Name(), o.Dest); err != nil {
			return err
		}
		kept = true
		return nil
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if o.Dest == "-" {
		_, err := io.Copy(f.cfg.Stdout, spool)
		return err
	}
	return unpack(ctx, spool, o.Dest)
}

// A localWriter remembers its error: it is of this machine, not of the bucket.
type localWriter struct {
	w   io.Writer
	err error
}

func (l *localWriter) Write(b []byte) (int, error) {
	n, err := l.w.Write(b)
	if err != nil {
		l.err = err
	}
	return n, err
}

// unpack writes the files of a tar archive into dir. Nothing is written outside of it,
// whatever the names and links in the archive or the directory say. Owners are left
// out, as docker buildx does.
func unpack(ctx context.Context, r io.Reader, dir string) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, root.Close()) }()
	type late struct {
		name string
		hdr  *tar.Header
	}
	var dirs []late // whose mode may keep their files from being written
	for tr := tar.NewReader(r); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		name := path.Clean(hdr.Name)
		if name == "." {
			continue
		}
		name = filepath.FromSlash(name)
		if err := unpackEntry(root, name, hdr, tr); err != nil {
			return fmt.Errorf("unpack %s: %w", hdr.Name, err)
		}
		if hdr.Typeflag == tar.TypeDir {
			dirs = append(dirs, late{name, hdr})
		}
	}
	for _, d := range slices.Backward(dirs) {
		if err := setMode(root, d.name, d.hdr); err != nil {
			return fmt.Errorf("unpack %s: %w", d.hdr.Name, err)
		}
	}
	return nil
}

// unpackEntry writes one entry of an archive. It takes the place of what is there, except
// that a directory is added to.
func unpackEntry(root *os.Root, name string, hdr *tar.Header, content io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	there, err := root.Lstat(name)
	if err == nil && (!there.IsDir() || hdr.Typeflag != tar.TypeDir) {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o777)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		return setMode(root, name, hdr)
	case tar.TypeSymlink:
		return root.Symlink(hdr.Linkname, name)
	case tar.TypeLink:
		return root.Link(filepath.FromSlash(path.Clean(hdr.Linkname)), name)
	}
	return fmt.Errorf("it is neither a file nor a directory nor a link (tar type %q): use type=tar", hdr.Typeflag)
}

// setMode sets mode and modification time.
func setMode(root *os.Root, name string, hdr *tar.Header) error {
	if err := root.Chmod(name, hdr.FileInfo().Mode()); err != nil {
		return err
	}
	return root.Chtimes(name, hdr.ModTime, hdr.ModTime)
}
