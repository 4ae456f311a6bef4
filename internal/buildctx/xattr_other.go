//go:build !linux

package buildctx

func xattrs(string) (map[string]string, error) { return nil, nil }
