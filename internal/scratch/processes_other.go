//go:build !linux

package scratch

import "context"

// End does nothing: executors run on Linux only.
func (d *Dir) End(context.Context) error { return nil }
