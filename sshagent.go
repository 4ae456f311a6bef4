package portainer

import "context"

// An SSHAgent answers one request of the ssh agent protocol
// (draft-ietf-sshm-ssh-agent): the message without its length, at most 256 KiB. It
// may be called from many goroutines.
type SSHAgent func(ctx context.Context, request []byte) (response []byte, err error)
