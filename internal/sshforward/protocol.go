package sshforward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Messages of the protocol of ssh agents (draft-ietf-sshm-ssh-agent §6.1).
const (
	failure           = 5  // SSH_AGENT_FAILURE
	requestIdentities = 11 // SSH_AGENTC_REQUEST_IDENTITIES
	signRequest       = 13 // SSH_AGENTC_SIGN_REQUEST
)

// maxMessage bounds requests and responses, as OpenSSH does (openssh authfd.c,
// MAX_AGENT_REPLY_LEN; ssh-agent.c, AGENT_MAX_LEN).
const maxMessage = 256 << 10

// forwards reports whether a request is one that a build may make: to know the
// public keys, and to have something signed. What changes an agent is none of a
// build's business, and extensions bind a connection, of which there is none from
// end to end.
func forwards(request []byte) bool {
	return len(request) > 0 && (request[0] == requestIdentities || request[0] == signRequest)
}

// readMessage reads one message, without its length. The error is io.EOF when there
// is no more.
func readMessage(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size == 0 || size > maxMessage {
		return nil, fmt.Errorf("message of %d bytes in the protocol of ssh agents, at most %d are allowed", size, maxMessage)
	}
	message := make([]byte, size)
	if _, err := io.ReadFull(r, message); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return message, nil
}

// writeMessage writes one message with its length.
func writeMessage(w io.Writer, message []byte) error {
	data := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(message)), uint32(len(message)))
	_, err := w.Write(append(data, message...))
	return err
}
