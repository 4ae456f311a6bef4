package seal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// mask is written in the place of a secret.
const mask = "***"

// A Masker replaces secrets in lines of a log, also where they are encoded as
// base64 (in any alignment), escaped for URLs or JSON, or where only a line of a
// longer secret is shown. Secrets of more than 4 KiB are found as they are and
// as base64 of their own. It hides from the reader of a log what a careless
// step prints; nothing hides what a step means to betray.
//
// A Masker is safe for concurrent use. A nil one masks nothing.
type Masker struct {
	filter   [filterBits / 64]uint64
	patterns map[uint32][][]byte // by the first 4 bytes, longest first
	longest  int
}

const filterBits = 1 << 18

// NewMasker returns a Masker of the secrets in all of these, or nil if there is
// nothing to mask. Secrets of less than 4 bytes are not masked.
func NewMasker(all ...Credentials) *Masker {
	m := &Masker{patterns: make(map[uint32][][]byte)}
	for _, c := range all {
		for _, value := range c.values() {
			forms(bytes.Clone(value), m.add)
		}
	}
	if len(m.patterns) == 0 {
		return nil
	}
	for _, same := range m.patterns {
		slices.SortFunc(same, func(a, b []byte) int { return len(b) - len(a) })
	}
	return m
}

func (m *Masker) add(p []byte) {
	head := binary.LittleEndian.Uint32(p)
	if slices.ContainsFunc(m.patterns[head], func(known []byte) bool { return bytes.Equal(known, p) }) {
		return
	}
	bit := slot(head)
	m.filter[bit/64] |= 1 << (bit % 64)
	m.patterns[head] = append(m.patterns[head], p)
	m.longest = max(m.longest, len(p))
}

// slot hashes the head of a pattern to a bit of the filter.
func slot(head uint32) uint32 { return head * 0x9E3779B1 >> (32 - 18) }

// Mask returns line with secrets replaced by "***": line itself if there is
// none, else a new slice. A secret of several lines is masked line by line.
func (m *Masker) Mask(line []byte) []byte {
	if m == nil {
		return line
	}
	out, _ := m.mask(line, len(line), 0)
	return out
}

// mask returns text[:limit] without secrets. The first covered bytes belong to
// one whose mask was written before; after says how many do so at the beginning
// of text[limit:].
func (m *Masker) mask(text []byte, limit, covered int) (masked []byte, after int) {
	done := min(covered, limit) // written up to here
	end := covered              // of the secrets found so far
	for at := 0; at < limit && at+minSecret <= len(text); at++ {
		head := binary.LittleEndian.Uint32(text[at:])
		bit := slot(head)
		if m.filter[bit/64]&(1<<(bit%64)) == 0 {
			continue
		}
		for _, p := range m.patterns[head] {
			if !bytes.HasPrefix(text[at:], p) {
				continue
			}
			if at > end || end == 0 { // else it goes on with the one before
				masked = append(masked, text[done:at]...)
				masked = append(masked, mask...)
			}
			end = max(end, at+len(p))
			done = min(end, limit)
			break
		}
	}
	if end == 0 {
		return text[:limit], 0
	}
	return append(masked, text[done:limit]...), max(0, end-limit)
}

// Format shows nothing of the secrets, whatever the verb.
func (m *Masker) Format(s fmt.State, _ rune) { fmt.Fprint(s, "masker") }

// maxHeld bounds what a writer holds back of a line that does not end.
const maxHeld = 64 << 10

// Writer returns a writer that masks what is written to it and passes it on to
// w, line by line; a long line in pieces. Close passes the last line on, and
// leaves w open. It is for one goroutine.
func (m *Masker) Writer(w io.Writer) io.WriteCloser {
	if m == nil {
		return plainWriter{w}
	}
	return &maskWriter{masker: m, to: w}
}

type plainWriter struct{ io.Writer }

func (plainWriter) Close() error { return nil }

type maskWriter struct {
	masker  *Masker
	to      io.Writer
	held    []byte // the beginning of a line
	covered int    // how much of it is masked already
}

func (w *maskWriter) Write(p []byte) (int, error) {
	end := bytes.LastIndexByte(p, '\n') + 1
	if end > 0 {
		end += len(w.held)
	}
	w.held = append(w.held, p...)
	if end > 0 {
		if err := w.pass(end); err != nil {
			return 0, err
		}
	}
	if len(w.held) > maxHeld {
		// What begins in the part that is passed on is seen to its end.
		if err := w.pass(len(w.held) - w.masker.longest); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (w *maskWriter) Close() error { return w.pass(len(w.held)) }

// pass writes the first n bytes that are held.
func (w *maskWriter) pass(n int) error {
	out, covered := w.masker.mask(w.held, n, w.covered)
	if len(out) > 0 {
		if _, err := w.to.Write(out); err != nil {
			return err
		}
	}
	w.held, w.covered = append(w.held[:0], w.held[n:]...), covered
	return nil
}
