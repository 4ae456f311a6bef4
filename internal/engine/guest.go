package engine

import "context"

// A guest is what an engine has on this machine at a daemon that is another's.
type guest struct {
	// cgroup is the parent for the cgroups of its containers, bounded like the
	// task; "" if there is none. It is for builds that ask for above as the parent; ""
	// for those that ask for none.
	cgroup, above string
	guards        guard // nil if nothing can be watched
	// leave removes what is left of it. tidy says that its containers are known to
	// be gone.
	leave func(ctx context.Context, tidy bool) error
}
