package portainer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"gocloud.dev/blob"

	"github.com/org/portainer/internal/staging"
	"github.com/org/portainer/internal/wire"
)

// signedLife is how long signed URLs are good. Executors that need them for longer ask
// for new ones.
const signedLife = time.Hour

// The values of Config.StagingSign.
const (
	signAuto   = "auto"
	signNever  = "never"
	signAlways = "always"
)

// signs reports whether executors read ref at signed URLs.
func (f *Framework) signs(ctx context.Context, ref staging.Ref) (bool, error) {
	if f.cfg.StagingSign == signNever {
		return false, nil
	}
	err := staging.CanSign(ctx, f.signer(), ref)
	switch {
	case err == nil:
		return true, nil
	case f.cfg.StagingSign == signAlways:
		return false, err
	case !errors.Is(err, staging.ErrCannotSign):
		f.cfg.Logger.Warn("no signed URLs: executors need credentials for the staging bucket", "err", err)
	}
	return false, nil
}

// signedURLs returns the URLs of all objects that an executor of task reads, by key.
func (f *Framework) signedURLs(ctx context.Context, task *wire.Task) (map[string]string, error) {
	var urls map[string]string
	for _, c := range task.Staged() {
		if !c.Signed {
			continue
		}
		if f.stager == nil {
			return nil, fmt.Errorf("%s cannot be signed: no staging bucket is configured", c.Key)
		}
		signed, err := f.stager.store.Sign(ctx, f.signer(), staging.Ref{Key: c.Key, Digest: c.Digest}, signedLife)
		if err != nil {
			return nil, err
		}
		if urls == nil {
			urls = signed
		} else {
			maps.Copy(urls, signed)
		}
	}
	return urls, nil
}

// signer is the bucket that signs.
func (f *Framework) signer() *blob.Bucket { return cmp.Or(f.cfg.StagingSigner, f.cfg.Staging) }
