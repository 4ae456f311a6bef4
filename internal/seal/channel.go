package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
)

// channelKeySize is that of AES-256.
const channelKeySize = 32

// NewChannelKey makes a key for a Channel, which reaches the executor in
// Credentials.
func NewChannelKey() []byte {
	key := make([]byte, channelKeySize)
	_, _ = rand.Read(key) // never fails
	return key
}

// A Channel seals questions and answers between an executor and the framework once
// they share a key: each knows then that it hears the other and nobody else, and
// to which question an answer belongs. It is safe for concurrent use.
type Channel struct{ aead cipher.AEAD }

// NewChannel returns the Channel with that key.
func NewChannel(key []byte) (*Channel, error) {
	if len(key) != channelKeySize {
		return nil, fmt.Errorf("channel: a key of %d bytes, it must have %d", len(key), channelKeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	return &Channel{aead}, nil
}

// A Way is which way a sealed text goes.
type Way byte

// The ways.
const (
	Question Way = 'q' // from the executor to the framework
	Reply    Way = 'r' // back
)

// Seal makes plain readable only to who has the key, as the text with that number
// on its way.
func (c *Channel) Seal(way Way, serial int, plain []byte) []byte {
	return c.aead.Seal(nil, nil, plain, bound(way, serial))
}

// errChannel reports what nobody with the key has said, or not there.
var errChannel = errors.New("channel: not sealed with its key")

// Open returns what Seal was given, if way and number are the same.
func (c *Channel) Open(way Way, serial int, sealed []byte) ([]byte, error) {
	plain, err := c.aead.Open(nil, nil, sealed, bound(way, serial))
	if err != nil {
		return nil, errChannel
	}
	return plain, nil
}

// bound is what a sealed text is bound to.
func bound(way Way, serial int) []byte {
	return strconv.AppendInt([]byte{byte(way)}, int64(serial), 10)
}

// Format shows nothing of the key, whatever the verb.
func (c *Channel) Format(s fmt.State, _ rune) { fmt.Fprint(s, "channel") }
