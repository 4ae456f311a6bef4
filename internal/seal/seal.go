// Package seal hands secrets from the framework to one executor, through
// masters and agents that store and show what passes through them.
//
// The executor makes a Key, which never leaves its memory, and tells the public
// half in a status update. The framework seals Credentials to it, and nobody
// else can open them:
//
//	key, err := seal.NewKey()                                        // executor
//	plain, err := credentials.Encode()                               // framework
//	sealed, err := seal.Seal(key.Public(), binding, plain)           // framework
//	plain, err := key.Open(binding, sealed)                          // executor
//
// Sealing hides, it does not prove who sealed: whoever knows the public half can
// seal something else to it. Only Mesos's own authentication keeps strangers
// from sending messages to an executor.
package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"filippo.io/age"
)

// MaxPlaintext bounds what Seal takes. Sealed and encoded it stays well below
// the 4 MiB that readers of Mesos's streams accept for one message.
const MaxPlaintext = 1 << 20

// MaxSealed is the size of the largest sealed message.
const MaxSealed = MaxPlaintext + maxOverhead

// maxOverhead is more than the header, the binding and the encryption add: age
// takes some 200 bytes, and 16 for every 64 KiB.
const maxOverhead = 4 << 10

// maxTask bounds the task ID of a Binding.
const maxTask = 1 << 10

// magic names format and version. A Key is opened by the same format only.
const magic = "portainer-sealed/1\n"

// magicName is what the magic of all versions begins with.
const magicName = "portainer-sealed/"

// Errors of Open that callers may test for.
var (
	// ErrVersion reports a message of another version of this format.
	ErrVersion = errors.New("sealed by another version")
	// ErrBinding reports a message that was sealed for another task or attempt.
	ErrBinding = errors.New("sealed for another task")
	// ErrSealed reports bytes that are no sealed message for this key.
	ErrSealed = errors.New("not sealed for this key")
)

// A Binding names the one attempt that a message is for. What was sealed for one
// cannot be passed off as sealed for another.
type Binding struct {
	Task    string // Mesos task ID
	Attempt int
}

// A Key opens what was sealed to its public half. It is safe for concurrent use.
// Printed or logged, it shows its public half only.
type Key struct {
	identity *age.X25519Identity
	public   string
}

// NewKey makes a key. It exists only in memory, and is gone with its process.
func NewKey() (*Key, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return &Key{identity: identity, public: identity.Recipient().String()}, nil
}

// Public is the public half: some 60 characters of ASCII, for anyone to see.
func (k *Key) Public() string { return k.public }

// String shows the public half.
func (k *Key) String() string { return "key of " + k.public }

// GoString shows the public half.
func (k *Key) GoString() string { return k.String() }

// LogValue shows the public half.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText shows the public half, so that no encoder finds more.
func (k *Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

func recipient(public string) (*age.X25519Recipient, error) {
	r, err := age.ParseX25519Recipient(public)
	if err != nil {
		// The text may be anything at all, so it is not repeated.
		return nil, fmt.Errorf("public key of the executor: %w", err)
	}
	return r, nil
}

// Seal makes plaintext readable only to who holds the Key of public, and only
// for to. Two calls never return the same bytes.
func Seal(public string, to Binding, plaintext []byte) ([]byte, error) {
	r, err := recipient(public)
	switch {
	case err != nil:
		return nil, fmt.Errorf("seal for task %q: %w", to.Task, err)
	case len(plaintext) > MaxPlaintext:
		return nil, fmt.Errorf("seal for task %q: %d bytes of secrets, at most %d can be sent", to.Task, len(plaintext), MaxPlaintext)
	case to.Task == "" || len(to.Task) > maxTask || to.Attempt < 1:
		return nil, fmt.Errorf("seal for task %q, attempt %d: no such task", to.Task, to.Attempt)
	}
	var out bytes.Buffer
	out.WriteString(magic)
	w, err := age.Encrypt(&out, r)
	if err != nil {
		return nil, fmt.Errorf("seal for task %q: %w", to.Task, err)
	}
	_, err = w.Write(appendBinding(nil, to))
	if err == nil {
		_, err = w.Write(plaintext)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal for task %q: %w", to.Task, err)
	}
	return out.Bytes(), nil
}

// Open returns what Seal was given, if it was sealed to k and for the same
// Binding.
func (k *Key) Open(own Binding, sealed []byte) ([]byte, error) {
	body, ours := bytes.CutPrefix(sealed, []byte(magic))
	switch {
	case len(sealed) > MaxSealed:
		return nil, fmt.Errorf("%w: %d bytes, at most %d are possible", ErrSealed, len(sealed), MaxSealed)
	case !ours && bytes.HasPrefix(sealed, []byte(magicName)):
		return nil, fmt.Errorf("%w: framework and executor must be of the same release", ErrVersion)
	case !ours:
		return nil, fmt.Errorf("%w: unknown format", ErrSealed)
	}
	r, err := age.Decrypt(bytes.NewReader(body), k.identity)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	to, plain, ok := cutBinding(plain)
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: it names no task", ErrSealed)
	case to != own:
		return nil, fmt.Errorf("%w: %q, attempt %d, and this is %q, attempt %d", ErrBinding, to.Task, to.Attempt, own.Task, own.Attempt)
	}
	return plain, nil
}

// appendBinding writes a binding ahead of the plaintext: encrypted with it, so
// that neither can be exchanged without the other.
func appendBinding(b []byte, to Binding) []byte {
	b = binary.AppendUvarint(b, uint64(len(to.Task)))
	b = append(b, to.Task...)
	return binary.AppendUvarint(b, uint64(to.Attempt))
}

func cutBinding(b []byte) (to Binding, rest []byte, ok bool) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > maxTask || size > uint64(len(b)-n) {
		return Binding{}, nil, false
	}
	to.Task, b = string(b[n:n+int(size)]), b[n+int(size):]
	attempt, n := binary.Uvarint(b)
	if n <= 0 || attempt > 1<<31 {
		return Binding{}, nil, false
	}
	to.Attempt = int(attempt)
	return to, b[n:], true
}
