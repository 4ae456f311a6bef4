package webhdfstest

import (
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// A namespace is the tree of files. Its methods, files apart, want mu held.
type namespace struct {
	superuser string
	noXAttrs  bool

	mu       sync.Mutex
	root     *inode
	lastID   int64
	capacity int64
	used     int64
}

// An inode is a file or a directory.
type inode struct {
	id       int64
	owner    string
	mode     uint16
	modified time.Time
	xattrs   map[string][]byte
	children map[string]*inode // nil for a file
	gone     bool              // deleted, whoever still writes it

	size   int64
	chunks [][]byte
}

func (n *inode) isDir() bool { return n.children != nil }

func newNamespace(opts Options) *namespace {
	ns := &namespace{superuser: opts.Superuser, noXAttrs: opts.NoXAttrs, capacity: opts.Capacity, lastID: 16384}
	mode := uint16(0o755)
	if opts.AnyoneWrites {
		mode = 0o777
	}
	ns.root = ns.newInode(opts.Superuser, mode, true)
	return ns
}

func (ns *namespace) newInode(owner string, mode uint16, dir bool) *inode {
	ns.lastID++
	n := &inode{id: ns.lastID, owner: owner, mode: mode, modified: time.Now().Truncate(time.Millisecond)}
	if dir {
		n.children = map[string]*inode{}
	}
	return n
}

// How long names and paths may be (dfs.namenode.fs-limits.max-component-length,
// HdfsServerConstants.MAX_PATH_LENGTH).
const (
	maxName = 255
	maxPath = 8000
)

// checkPath refuses what no HDFS path is.
func checkPath(p string) error {
	if len(p) > maxPath {
		return failure("org.apache.hadoop.hdfs.protocol.FSLimitException$PathComponentTooLongException", "path of %d characters", len(p))
	}
	if !strings.HasPrefix(p, "/") {
		return failure("org.apache.hadoop.fs.InvalidPathException", "Invalid path name %s", p)
	}
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		switch {
		case name == "" && p != "/", name == ".", name == "..", strings.Contains(name, ":"):
			return failure("org.apache.hadoop.fs.InvalidPathException", "Invalid path name %s", p)
		case name == ".snapshot", name == ".reserved":
			return failure("org.apache.hadoop.HadoopIllegalArgumentException", "\"%s\" is a reserved name.", name)
		case len(name) > maxName:
			return failure("org.apache.hadoop.hdfs.protocol.FSLimitException$PathComponentTooLongException",
				"The maximum path component name limit of %s in directory %s is exceeded: limit=%d length=%d", name, path.Dir(p), maxName, len(name))
		}
	}
	return nil
}

// find returns what is at a path.
func (ns *namespace) find(p string) (*inode, error) {
	n := ns.root
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" {
			break
		}
		if !n.isDir() {
			return nil, failure("org.apache.hadoop.fs.ParentNotDirectoryException", "%s (is not a directory)", p)
		}
		child := n.children[name]
		if child == nil {
			return nil, notFound(p)
		}
		n = child
	}
	return n, nil
}

// What an operation does to an inode (FsAction).
const (
	read  = 4
	write = 2
)

// allow checks an access to n, which is at p.
func (ns *namespace) allow(user string, n *inode, p string, access uint16) error {
	bits := n.mode
	if user == n.owner {
		bits >>= 6
	}
	if user == ns.superuser || bits&access == access {
		return nil
	}
	what := "READ"
	if access == write {
		what = "WRITE"
	}
	return failure("org.apache.hadoop.security.AccessControlException", "Permission denied: user=%s, access=%s, inode=\"%s\":%s:supergroup:%o", user, what, p, n.owner, n.mode)
}

// parent returns the directory that p is in, if the user may write to it.
func (ns *namespace) parent(user, p string) (*inode, error) {
	dir := path.Dir(p)
	n, err := ns.find(dir)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, failure("org.apache.hadoop.fs.ParentNotDirectoryException", "%s (is not a directory)", dir)
	}
	return n, ns.allow(user, n, dir, write)
}

// mkdirs makes a directory and those above it.
func (ns *namespace) mkdirs(user, p string, mode uint16) (bool, error) {
	if err := checkPath(p); err != nil {
		return false, err
	}
	n, at := ns.root, "/"
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" {
			break
		}
		child := n.children[name]
		if child == nil {
			if err := ns.allow(user, n, at, write); err != nil {
				return false, err
			}
			child = ns.newInode(user, mode, true)
			n.children[name] = child
		}
		n, at = child, path.Join(at, name)
		if !n.isDir() {
			if at == p {
				return false, failure("org.apache.hadoop.fs.FileAlreadyExistsException", "Path is not a directory: %s", p)
			}
			return false, failure("org.apache.hadoop.fs.ParentNotDirectoryException", "Parent path is not a directory: %s", at)
		}
	}
	return true, nil
}

// create makes an empty file.
func (ns *namespace) create(user, p string, mode uint16, overwrite, createParent bool) (*inode, error) {
	if err := checkPath(p); err != nil {
		return nil, err
	}
	if p == "/" {
		return nil, failure("org.apache.hadoop.fs.FileAlreadyExistsException", "/ already exists as a directory")
	}
	if createParent {
		if _, err := ns.mkdirs(user, path.Dir(p), 0o755); err != nil {
			return nil, err
		}
	}
	dir, err := ns.parent(user, p)
	if err != nil {
		return nil, err
	}
	switch old := dir.children[path.Base(p)]; {
	case old == nil:
	case old.isDir():
		return nil, failure("org.apache.hadoop.fs.FileAlreadyExistsException", "%s already exists as a directory", p)
	case !overwrite:
		return nil, failure("org.apache.hadoop.fs.FileAlreadyExistsException", "%s for client 127.0.0.1 already exists", p)
	default:
		ns.forget(old)
	}
	f := ns.newInode(user, mode, false)
	dir.children[path.Base(p)] = f
	return f, nil
}

// append adds bytes to a file.
func (ns *namespace) append(f *inode, p string, b []byte) error {
	if f.gone {
		return failure("java.io.FileNotFoundException", "File does not exist: %s (inode %d) Holder DFSClient_NONMAPREDUCE_1_1 does not have any open files.", p, f.id)
	}
	if ns.capacity > 0 && ns.used+int64(len(b)) > ns.capacity {
		return failure("java.io.IOException", "File %s could only be written to 0 of the 1 minReplication nodes. There are 1 datanode(s) running and 1 node(s) are excluded in this operation.", p)
	}
	ns.used += int64(len(b))
	f.size += int64(len(b))
	for len(b) > 0 {
		last := len(f.chunks) - 1
		if last < 0 || len(f.chunks[last]) == cap(f.chunks[last]) {
			f.chunks = append(f.chunks, make([]byte, 0, max(len(b), min(1<<20, int(f.size)))))
			last++
		}
		chunk := f.chunks[last]
		n := min(len(b), cap(chunk)-len(chunk))
		f.chunks[last] = append(chunk, b[:n]...)
		b = b[n:]
	}
	f.modified = time.Now().Truncate(time.Millisecond)
	return nil
}

// readAt returns bytes of a file from an offset, as many as lie together.
func (f *inode) readAt(offset int64) []byte {
	for _, c := range f.chunks {
		if offset < int64(len(c)) {
			return c[offset:]
		}
		offset -= int64(len(c))
	}
	return nil
}

// forget takes what is at n and below out of the accounts.
func (ns *namespace) forget(n *inode) {
	n.gone = true
	ns.used -= n.size
	for _, child := range n.children {
		ns.forget(child)
	}
}

// remove deletes what is at p, and returns false if nothing is.
func (ns *namespace) remove(user, p string, recursive bool) (bool, error) {
	n, err := ns.find(p)
	if err != nil {
		return false, nil
	}
	if p == "/" {
		return false, nil
	}
	dir, err := ns.parent(user, p)
	if err != nil {
		return false, err
	}
	if len(n.children) > 0 && !recursive {
		return false, failure("org.apache.hadoop.fs.PathIsNotEmptyDirectoryException", "`%s is non empty': Directory is not empty", p)
	}
	ns.forget(n)
	delete(dir.children, path.Base(p))
	return true, nil
}

// move is rename without options: false for all that stands in the way.
func (ns *namespace) move(user, from, to string) (bool, error) {
	if err := checkPath(to); err != nil {
		return false, err
	}
	n, err := ns.find(from)
	if err != nil || from == "/" {
		return false, nil
	}
	if there, err := ns.find(to); err == nil {
		if !there.isDir() {
			return false, nil
		}
		to = path.Join(to, path.Base(from)) // into it
		if _, err := ns.find(to); err == nil {
			return false, nil
		}
	}
	if to == from || strings.HasPrefix(to, from+"/") {
		return false, nil
	}
	if _, err := ns.find(path.Dir(to)); err != nil {
		return false, nil
	}
	return true, ns.relink(user, n, from, to)
}

// moveStrictly is rename with options: an exception for all that stands in the way.
func (ns *namespace) moveStrictly(user, from, to string, overwrite bool) error {
	if err := checkPath(to); err != nil {
		return err
	}
	n, err := ns.find(from)
	if err != nil {
		return failure("java.io.FileNotFoundException", "rename source %s is not found.", from)
	}
	if to == from {
		return failure("org.apache.hadoop.fs.FileAlreadyExistsException", "The source %s and destination %s are the same", from, to)
	}
	if strings.HasPrefix(to, from+"/") {
		return failure("java.io.IOException", "Rename destination %s is a directory or file under source %s", to, from)
	}
	if there, err := ns.find(to); err == nil {
		switch {
		case there.isDir() != n.isDir():
			return failure("java.io.IOException", "Source %s and destination %s must both be of same kind", from, to)
		case !overwrite:
			return failure("org.apache.hadoop.fs.FileAlreadyExistsException", "rename destination %s already exists", to)
		case len(there.children) > 0:
			return failure("java.io.IOException", "rename destination directory is not empty: %s", to)
		}
		ns.forget(there)
	}
	switch dir, err := ns.find(path.Dir(to)); {
	case err != nil:
		return failure("java.io.FileNotFoundException", "rename destination parent %s not found.", path.Dir(to))
	case !dir.isDir():
		return failure("org.apache.hadoop.fs.ParentNotDirectoryException", "rename destination parent %s is a file.", path.Dir(to))
	}
	return ns.relink(user, n, from, to)
}

func (ns *namespace) relink(user string, n *inode, from, to string) error {
	source, err := ns.parent(user, from)
	if err != nil {
		return err
	}
	target, err := ns.parent(user, to)
	if err != nil {
		return err
	}
	delete(source.children, path.Base(from))
	target.children[path.Base(to)] = n
	return nil
}

// status returns the FileStatus of n.
func (n *inode) status(suffix string) map[string]any {
	s := map[string]any{
		"accessTime":       n.modified.UnixMilli(),
		"blockSize":        int64(128 << 20),
		"childrenNum":      len(n.children),
		"fileId":           n.id,
		"group":            "supergroup",
		"length":           n.size,
		"modificationTime": n.modified.UnixMilli(),
		"owner":            n.owner,
		"pathSuffix":       suffix,
		"permission":       octal(n.mode),
		"replication":      1,
		"storagePolicy":    0,
		"type":             "FILE",
	}
	if n.isDir() {
		s["type"], s["blockSize"], s["replication"] = "DIRECTORY", 0, 0
	}
	return s
}

// list returns the statuses of what is in a directory, or of a file, in the order of
// names.
func (n *inode) list() ([]string, []map[string]any) {
	if !n.isDir() {
		return []string{""}, []map[string]any{n.status("")}
	}
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	slices.Sort(names)
	statuses := make([]map[string]any, len(names))
	for i, name := range names {
		statuses[i] = n.children[name].status(name)
	}
	return names, statuses
}

func (ns *namespace) files() map[string][]byte {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	files := map[string][]byte{}
	var walk func(p string, n *inode)
	walk = func(p string, n *inode) {
		if !n.isDir() {
			files[p] = slices.Concat(n.chunks...)
		}
		for name, child := range n.children {
			walk(path.Join(p, name), child)
		}
	}
	walk("/", ns.root)
	return files
}
