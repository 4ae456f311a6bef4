// Package recordio reads streams of records as Mesos writes them (mesos
// docs/recordio.md).
package recordio

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxRecord bounds a record. Mesos has no limit; one event of a large cluster may
// hold all its offers.
const maxRecord = 64 << 20

// Read reads one record: its length in decimal, a newline, and that many bytes. It
// returns io.EOF only between records. Empty records are passed over.
func Read(r *bufio.Reader) ([]byte, error) {
	for {
		size, err := readSize(r)
		if err != nil {
			return nil, err
		}
		if size == 0 {
			continue
		}
		// The buffer grows with what arrives, not with what was announced.
		var record bytes.Buffer
		if _, err := io.CopyN(&record, r, size); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		return record.Bytes(), nil
	}
}

func readSize(r *bufio.Reader) (int64, error) {
	var size int64
	for digits := 0; ; digits++ {
		b, err := r.ReadByte()
		switch {
		case err != nil:
			if digits > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		case b == '\n' && digits > 0:
			return size, nil
		case b < '0' || b > '9':
			return 0, fmt.Errorf("record length: unexpected byte %q", b)
		}
		if size = size*10 + int64(b-'0'); size > maxRecord {
			return 0, fmt.Errorf("record longer than %d bytes", maxRecord)
		}
	}
}
