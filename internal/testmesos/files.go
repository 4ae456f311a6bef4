package testmesos

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// files are the directories that an agent shows, by virtual path (mesos
// src/files/files.cpp).
type files struct {
	mu       sync.Mutex
	attached map[string]string
	refusal  *reply // answers every request, if set
}

// maxRead is the most that one request reads: 16 pages.
const maxRead = 16 * 4096

// Failures of the files API. Their texts end with a newline.
var errNoFile = errors.New("no such file")

// attach shows a directory under a virtual path.
func (f *files) attach(virtual, dir string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attached == nil {
		f.attached = map[string]string{}
	}
	f.attached[virtual] = dir
}

// refuse makes every request fail with a reply; nil ends that.
func (f *files) refuse(r *reply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusal = r
}

func (f *files) refused() *reply {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refusal
}

// resolve finds the file behind a virtual path.
func (f *files) resolve(virtual string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for prefix := strings.TrimRight(virtual, "/"); prefix != "" && prefix != "."; prefix = strings.TrimRight(path.Dir(prefix), "/") {
		dir, ok := f.attached[prefix]
		if !ok {
			continue
		}
		rest := strings.TrimPrefix(virtual, prefix)
		real, err := filepath.EvalSymlinks(filepath.Join(dir, filepath.FromSlash(rest)))
		if err != nil {
			return "", errNoFile
		}
		base, err := filepath.EvalSymlinks(dir)
		if err != nil || real != base && !strings.HasPrefix(real, base+string(filepath.Separator)) {
			return "", errNoFile
		}
		return real, nil
	}
	return "", errNoFile
}

// read reads at most length bytes at an offset; an offset of -1 only asks for
// the size, a length of -1 asks for as much as there is.
func (f *files) read(virtual string, offset, length int64) (size int64, data []byte, err error) {
	name, err := f.resolve(virtual)
	if err != nil {
		return 0, nil, err
	}
	file, err := os.Open(name)
	if err != nil {
		return 0, nil, errNoFile
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return 0, nil, err
	}
	if info.IsDir() {
		return 0, nil, says("Cannot read a directory.\n")
	}
	size = info.Size()
	if offset < 0 || offset >= size || length == 0 {
		return size, []byte{}, nil // not nil: the field is required in the answer
	}
	if length < 0 || length > size-offset {
		length = size - offset
	}
	data = make([]byte, min(length, maxRead))
	n, err := file.ReadAt(data, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return size, nil, err
	}
	return size, data[:n], nil
}

// list lists a directory.
func (f *files) list(virtual string) ([]mesos.FileInfo, error) {
	name, err := f.resolve(virtual)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, errNoFile
	}
	infos := []mesos.FileInfo{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // gone meanwhile
		}
		infos = append(infos, mesos.FileInfo{
			Path:  path.Join(virtual, e.Name()),
			Nlink: new(int32(1)),
			Size_: new(uint64(info.Size())),
			Mtime: &mesos.TimeInfo{Nanoseconds: info.ModTime().UnixNano()},
			Mode:  new(unixMode(info.Mode())),
		})
	}
	return infos, nil
}

// unixMode returns the mode as stat does.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	switch {
	case m.IsDir():
		mode |= 0o040000
	case m&fs.ModeSymlink != 0:
		mode |= 0o120000
	case m.IsRegular():
		mode |= 0o100000
	}
	return mode
}

// failure turns an error into a reply.
func failure(err error) *reply {
	if errors.Is(err, errNoFile) {
		return &reply{status: http.StatusNotFound}
	}
	return badRequest("%s", err)
}

// serveRead answers GET /files/read.
func (f *files) serveRead(w http.ResponseWriter, q url.Values) {
	name := q.Get("path")
	if name == "" {
		badRequest("Expecting 'path=value' in query.\n").write(w)
		return
	}
	number := func(key string) (int64, *reply) {
		text := q.Get(key)
		if text == "" {
			return -1, nil
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, badRequest("Failed to parse %s: Failed to convert '%s' to number.\n", key, text)
		}
		if n < -1 {
			return 0, badRequest("Negative %s provided: %d.\n", key, n)
		}
		return n, nil
	}
	offset, refusal := number("offset")
	if refusal == nil {
		var length int64
		if length, refusal = number("length"); refusal == nil {
			f.answerRead(w, name, offset, length)
			return
		}
	}
	refusal.write(w)
}

func (f *files) answerRead(w http.ResponseWriter, name string, offset, length int64) {
	size, data, err := f.read(name, offset, length)
	if err != nil {
		failure(err).write(w)
		return
	}
	if offset < 0 {
		offset = size
	}
	body := append(appendString([]byte(`{"data":`), string(data)), fmt.Sprintf(`,"offset":%d}`, offset)...)
	writeJSON(w, body)
}

// serveBrowse answers GET /files/browse.
func (f *files) serveBrowse(w http.ResponseWriter, q url.Values) {
	if q.Get("path") == "" {
		badRequest("Expecting 'path=value' in query.\n").write(w)
		return
	}
	infos, err := f.list(q.Get("path"))
	if err != nil {
		failure(err).write(w)
		return
	}
	body := []byte("[")
	for i := range infos {
		if i > 0 {
			body = append(body, ',')
		}
		body = appendJSON(body, &infos[i])
	}
	writeJSON(w, append(body, ']'))
}

// serveDownload answers GET /files/download with a whole file.
func (f *files) serveDownload(w http.ResponseWriter, r *http.Request) {
	name, err := f.resolve(r.URL.Query().Get("path"))
	if err != nil {
		failure(err).write(w)
		return
	}
	file, err := os.Open(name)
	if err != nil {
		failure(errNoFile).write(w)
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.IsDir() {
		badRequest("Cannot download a directory.\n").write(w)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", "attachment; filename="+filepath.Base(name))
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size(), 10))
	_, _ = io.CopyN(w, file, info.Size())
}

// serveDebug answers GET /files/debug: what is attached where.
func (f *files) serveDebug(w http.ResponseWriter) {
	f.mu.Lock()
	var names []string
	for name := range f.attached {
		names = append(names, name)
	}
	slices.Sort(names)
	body := []byte("{")
	for i, name := range names {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(appendString(body, name), ':')
		body = appendString(body, f.attached[name])
	}
	f.mu.Unlock()
	writeJSON(w, append(body, '}'))
}

func writeJSON(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", typeJSON)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}
