package agentrun

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/org/portainer/internal/staging"
)

// cacheRoot is where contexts are kept between the executors of an agent. Unlike
// the sandboxes it is one for all of them, and unlike /tmp it is on a disk.
const cacheRoot = "/var/tmp"

// open opens a staged context, and keeps what it reads for later builds on this
// agent, unless the bucket is on this machine anyway.
func open(ctx context.Context, store *staging.Store, ref staging.Ref, bucketURL string) (io.ReadCloser, error) {
	if scheme, _, _ := strings.Cut(bucketURL, "://"); scheme == "file" {
		return store.Open(ctx, ref)
	}
	dir := filepath.Join(cacheRoot, fmt.Sprintf("portainer-cache-%d", os.Getuid()))
	return store.OpenCached(ctx, ref, &staging.Cache{Dir: dir})
}
