package buildctx

import (
	"archive/tar"
	"fmt"
	"io/fs"
)

// header returns the tar header of e. links remembers the first path of each file
// with several names: the others become hard links to it.
func header(e entry, links map[inode]string) (*tar.Header, error) {
	mode := e.info.Mode()
	h := &tar.Header{
		Format:  tar.FormatPAX,
		Name:    e.path,
		Mode:    permissions(mode),
		ModTime: e.info.ModTime(),
	}
	switch {
	case mode.IsDir():
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case mode&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		h.Linkname = e.link
	case mode.IsRegular():
		h.Typeflag = tar.TypeReg
		h.Size = e.info.Size()
	case mode&fs.ModeNamedPipe != 0:
		h.Typeflag = tar.TypeFifo
	case mode&fs.ModeSocket != 0:
		// As docker build does: nothing but its name can be sent.
		h.Typeflag = tar.TypeReg
	case mode&fs.ModeDevice != 0:
		h.Typeflag = tar.TypeBlock
		if mode&fs.ModeCharDevice != 0 {
			h.Typeflag = tar.TypeChar
		}
		h.Devmajor, h.Devminor = device(e.info)
	default:
		return nil, fmt.Errorf("%s: a file of type %v cannot be in a build context: add it to .dockerignore", e.path, mode.Type())
	}
	if !mode.IsDir() {
		if id, several := inodeOf(e.info); several {
			if first, seen := links[id]; seen {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
				return h, nil
			}
			links[id] = e.path
		}
	}
	if !e.inspected {
		var err error
		if e.attrs, err = xattrs(e.full); err != nil {
			return nil, fmt.Errorf("read extended attributes of %s: %w", e.path, err)
		}
	}
	for name, value := range e.attrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	return h, nil
}

// permissions returns the bits of a tar header's mode.
func permissions(mode fs.FileMode) int64 {
	m := int64(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		m |= 0o4000
	}
	if mode&fs.ModeSetgid != 0 {
		m |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		m |= 0o1000
	}
	return m
}
