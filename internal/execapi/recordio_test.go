package execapi

import (
	"bufio"
	"bytes"
	"io"
	"testing"

	"github.com/mesos/mesos-go/api/v1/lib/recordio"
	"github.com/stretchr/testify/require"
)

func FuzzReadRecord(f *testing.F) {
	f.Add([]byte("3\nabc0\n1\nx"))
	f.Add([]byte("12"))
	f.Add([]byte("-1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		br := bufio.NewReader(bytes.NewReader(data))
		var again bytes.Buffer
		w := recordio.NewWriter(&again)
		for {
			record, err := readRecord(br)
			if err != nil {
				break
			}
			require.NotEmpty(t, record)
			require.NoError(t, w.WriteFrame(record))
		}
		require.LessOrEqual(t, again.Len(), len(data))
	})
}

func TestReadRecordEnds(t *testing.T) {
	tests := []struct {
		data string
		want error
	}{
		{"", io.EOF}, {"3", io.ErrUnexpectedEOF}, {"3\n", io.ErrUnexpectedEOF}, {"3\nab", io.ErrUnexpectedEOF}, {"3\nabc", nil},
	}
	for _, tt := range tests {
		_, err := readRecord(bufio.NewReader(bytes.NewReader([]byte(tt.data))))
		require.Equal(t, tt.want, err)
	}
}
