package buildctx

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// xattrs returns the extended attributes of a file that belong to a build
// context: all but those in which the kernel keeps its own view of this machine.
// BuildKit leaves the same ones out of its cache keys (cache/contenthash/tarsum.go).
func xattrs(name string) (map[string]string, error) {
	var buf [1024]byte
	n, err := unix.Llistxattr(name, buf[:])
	if n == 0 && err == nil || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	list := buf[:max(n, 0)]
	for size := len(buf); errors.Is(err, unix.ERANGE); {
		size *= 4
		list = make([]byte, size)
		if n, err = unix.Llistxattr(name, list); err == nil {
			list = list[:n]
		}
	}
	if err != nil {
		return nil, err
	}
	var attrs map[string]string
	for attr := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if attr == "" || !keepsXattr(attr) {
			continue
		}
		value, err := xattr(name, attr)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs[attr] = value
	}
	return attrs, nil
}

func keepsXattr(attr string) bool {
	if attr == "security.capability" {
		return true
	}
	for _, prefix := range []string{"security.", "system.", "trusted.overlay.", "com.apple."} {
		if strings.HasPrefix(attr, prefix) {
			return false
		}
	}
	return true
}

func xattr(name, attr string) (string, error) {
	value := make([]byte, 256)
	for {
		n, err := unix.Lgetxattr(name, attr, value)
		if err == nil {
			return string(value[:n]), nil
		}
		if !errors.Is(err, unix.ERANGE) {
			return "", err
		}
		value = make([]byte, 4*len(value))
	}
}
