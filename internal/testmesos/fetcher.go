package testmesos

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// A fetcher puts the URIs of a CommandInfo into a sandbox (mesos
// docs/fetcher.md). It has no cache.
type fetcher struct {
	client *http.Client
}

// fetch fetches all URIs, one after the other. Details of a failure go to log,
// which is the stderr file of the sandbox; the error is what Mesos says.
func (f *fetcher) fetch(ctx context.Context, uris []mesos.CommandInfo_URI, dir, container string, log io.Writer) error {
	for _, u := range uris {
		name, err := outputName(u)
		if err != nil {
			return says("Could not fetch: %w", err)
		}
		if err := f.fetchOne(ctx, u, dir, name); err != nil {
			fmt.Fprintf(log, "Failed to fetch '%s': %v\n", u.Value, err)
			return says("Failed to fetch all URIs for container '%s': exited with status 1", container)
		}
		fmt.Fprintf(log, "Fetched '%s' to '%s'\n", u.Value, filepath.Join(dir, name))
	}
	return nil
}

// outputName returns the name that a URI gets in the sandbox: its output_file,
// or what follows the last slash, with the query.
func outputName(u mesos.CommandInfo_URI) (string, error) {
	if out := u.GetOutputFile(); out != "" {
		if filepath.IsAbs(out) || strings.HasPrefix(path.Clean(out), "..") {
			return "", says("URI output file must be within the sandbox directory")
		}
		return out, nil
	}
	if strings.ContainsAny(u.Value, "\\'\x00") {
		return "", says("Invalid URI '%s'", u.Value)
	}
	name := u.Value[strings.LastIndexByte(u.Value, '/')+1:]
	if name == "" || name == "." || name == ".." {
		return "", says("Malformed URI (missing path): %s", u.Value)
	}
	return name, nil
}

func (f *fetcher) fetchOne(ctx context.Context, u mesos.CommandInfo_URI, dir, name string) error {
	target := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := f.download(ctx, u.Value, target); err != nil {
		return err
	}
	if u.GetExecutable() {
		return os.Chmod(target, 0o755)
	}
	if !u.GetExtract() {
		return nil
	}
	return extract(ctx, target, dir)
}

func (f *fetcher) download(ctx context.Context, uri, target string) error {
	scheme, rest, ok := strings.Cut(uri, "://")
	switch {
	case !ok:
		if !filepath.IsAbs(uri) {
			return errors.New("a relative path was passed, but the agent has no frameworks home")
		}
		return copyFile(ctx, uri, target)
	case scheme == "file":
		return copyFile(ctx, "/"+strings.TrimLeft(strings.TrimPrefix(rest, "localhost"), "/"), target)
	case scheme == "http" || scheme == "https":
		return f.get(ctx, uri, target)
	}
	return fmt.Errorf("scheme %q needs a Hadoop client, which the agent does not have", scheme)
}

// copyFile copies a local file with its mode, as cp does; os.File.ReadFrom lets
// the kernel do it.
func copyFile(ctx context.Context, source, target string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return says("'%s' is a directory", source)
	}
	out, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	return errors.Join(err, out.Close(), ctx.Err())
}

func (f *fetcher) get(ctx context.Context, uri, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("unexpected HTTP response code: %d", resp.StatusCode)
	}
	out, err := os.Create(target)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, resp.Body)
	return errors.Join(err, out.Close())
}

// extract unpacks an archive into dir; its name tells what it is. Other files
// are left alone.
func extract(ctx context.Context, file, dir string) error {
	has := func(suffixes ...string) bool {
		for _, s := range suffixes {
			if strings.HasSuffix(file, s) {
				return true
			}
		}
		return false
	}
	switch {
	case has(".tar"):
		return extractTar(ctx, file, dir, func(r io.Reader) (io.Reader, error) { return r, nil })
	case has(".tgz", ".tar.gz"):
		// Mesos calls tar for all of these (mesos src/launcher/fetcher.cpp, extract). Here
		// it counts for large ones that its decompression can be several times as fast.
		if _, err := exec.LookPath("tar"); err == nil {
			return callTar(ctx, dir, "-xzf", file)
		}
		return extractTar(ctx, file, dir, func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) })
	case has(".tbz2", ".tar.bz2"):
		return extractTar(ctx, file, dir, func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil })
	case has(".txz", ".tar.xz"):
		return callTar(ctx, dir, "-xJf", file) // the standard library has no xz
	case has(".zip"):
		return extractZip(file, dir)
	case has(".gz"):
		return gunzip(file, strings.TrimSuffix(file, ".gz"))
	}
	return nil
}

// callTar unpacks an archive with the tar of this machine. Files belong to whoever calls
// it, and not to the owner that the archive names.
func callTar(ctx context.Context, dir, how, file string) error {
	out, err := exec.CommandContext(ctx, "tar", "-C", dir, "-o", how, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("tar %s %s: %w: %s", how, file, err, bytes.TrimSpace(out))
	}
	return nil
}

func gunzip(file, target string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		return err
	}
	return writeFile(target, z, 0o644)
}

func writeFile(name string, r io.Reader, mode fs.FileMode) error {
	out, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return errors.Join(err, out.Close())
}

func extractTar(ctx context.Context, file, dir string, decompress func(io.Reader) (io.Reader, error)) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	plain, err := decompress(in)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r := tar.NewReader(plain)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := errors.Join(ctx.Err(), extractEntry(root, r, h)); err != nil {
			return fmt.Errorf("extract %s: %w", h.Name, err)
		}
	}
}

func extractEntry(root *os.Root, r io.Reader, h *tar.Header) error {
	name := filepath.Clean(filepath.FromSlash(strings.TrimLeft(h.Name, "/")))
	if name == "." {
		return nil
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, mode|0o700)
	case tar.TypeSymlink:
		_ = root.Remove(name)
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		_ = root.Remove(name)
		return root.Link(filepath.Clean(h.Linkname), name)
	case tar.TypeReg:
		return extractFile(root, name, r, mode)
	}
	return nil
}

func extractFile(root *os.Root, name string, r io.Reader, mode fs.FileMode) error {
	_ = root.Remove(name)
	out, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return errors.Join(err, out.Close())
}

func extractZip(file, dir string) error {
	z, err := zip.OpenReader(file)
	if err != nil {
		return err
	}
	defer z.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range z.File {
		name := filepath.Clean(filepath.FromSlash(f.Name))
		if f.FileInfo().IsDir() {
			err = root.MkdirAll(name, 0o755)
		} else {
			err = extractZipFile(root, name, f)
		}
		if err != nil {
			return fmt.Errorf("extract %s: %w", f.Name, err)
		}
	}
	return nil
}

func extractZipFile(root *os.Root, name string, f *zip.File) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	in, err := f.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	return extractFile(root, name, in, f.Mode().Perm())
}
