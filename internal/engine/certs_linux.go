package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/org/portainer"
)

// dockerCerts is the only place where a dockerd that is not rootless looks for the
// certificates of registries (moby registry/config.go).
const dockerCerts = "/etc/docker/certs.d"

// writeCerts writes the certificates of registries as docker lays them out, and
// returns the directory; "" if there are none. Private keys are in memory only, if
// we may mount that.
func (h *home) writeCerts(registries []portainer.Registry) (dir string, err error) {
	some, keys := false, false
	for _, r := range registries {
		some, keys = some || len(r.CA) > 0, keys || len(r.ClientKey) > 0
	}
	if !some && !keys {
		return "", nil
	}
	dir = filepath.Join(h.run, "certs.d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if keys {
		// A ramfs is never written to swap.
		err := unix.Mount("ramfs", dir, "ramfs", unix.MS_NOEXEC|unix.MS_NODEV|unix.MS_NOSUID, "mode=0700")
		if err != nil && !errors.Is(err, unix.EPERM) {
			return "", fmt.Errorf("keep client certificates in memory: %w", err)
		}
	}
	for _, r := range registries {
		for _, host := range hostNames(r.Host) {
			if err := writeHostCerts(certsOf(dir, host), r); err != nil {
				return "", fmt.Errorf("certificates of registry %s: %w", r.Host, err)
			}
		}
	}
	return dir, nil
}

// hostNames are the names under which the certificates of a registry are looked for.
func hostNames(host string) []string {
	if host == dockerHub {
		return []string{host, "registry-1.docker.io"}
	}
	return []string{host}
}

func writeHostCerts(dir string, r portainer.Registry) error {
	if len(r.CA)+len(r.ClientKey) == 0 {
		return nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"ca.crt": r.CA, "client.cert": r.ClientCert, "client.key": r.ClientKey} {
		if len(data) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// overDockerCerts adds dir to what the calling thread, and what it starts from then
// on, finds in dockerCerts. Nobody else sees anything of it.
func overDockerCerts(dir string) error {
	if err := os.MkdirAll(dockerCerts, 0o755); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a mount namespace for dockerd: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("a mount namespace for dockerd: %w", err)
	}
	if err := unix.Mount("overlay", dockerCerts, "overlay", unix.MS_RDONLY, "lowerdir="+dir+":"+dockerCerts); err != nil {
		return fmt.Errorf("show dockerd the certificates of registries in %s: %w", dockerCerts, err)
	}
	return nil
}
