package recordio_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	mesosrecordio "github.com/mesos/mesos-go/api/v1/lib/recordio"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/recordio"
)

func TestReadInAnyPieces(t *testing.T) {
	var stream bytes.Buffer
	w := mesosrecordio.NewWriter(&stream)
	records := []string{"a", strings.Repeat("b", 100_000), "\n1\n2", "c"}
	for _, record := range records {
		require.NoError(t, w.WriteFrame([]byte(record)))
	}
	for name, r := range map[string]io.Reader{
		"whole":   bytes.NewReader(stream.Bytes()),
		"by byte": iotest.OneByteReader(bytes.NewReader(stream.Bytes())),
	} {
		t.Run(name, func(t *testing.T) {
			br := bufio.NewReader(r)
			for _, want := range records {
				got, err := recordio.Read(br)
				require.NoError(t, err)
				require.Equal(t, want, string(got))
			}
			_, err := recordio.Read(br)
			require.Equal(t, io.EOF, err)
		})
	}
}

func TestReadDoesNotBelieveTheLength(t *testing.T) {
	allocated := testing.AllocsPerRun(1, func() {
		_, err := recordio.Read(bufio.NewReaderSize(strings.NewReader("67108864\nabc"), 16))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			panic(err)
		}
	})
	require.Less(t, allocated, 20.0)
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("3\nabc0\n1\nx"))
	f.Add([]byte("12"))
	f.Add([]byte("-1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		br := bufio.NewReader(bytes.NewReader(data))
		var again bytes.Buffer
		w := mesosrecordio.NewWriter(&again)
		for {
			record, err := recordio.Read(br)
			if err != nil {
				break
			}
			require.NotEmpty(t, record)
			require.NoError(t, w.WriteFrame(record))
		}
		require.LessOrEqual(t, again.Len(), len(data))
	})
}

func TestReadEnds(t *testing.T) {
	tests := []struct {
		data string
		want error
	}{
		{"", io.EOF}, {"3", io.ErrUnexpectedEOF}, {"3\n", io.ErrUnexpectedEOF}, {"3\nab", io.ErrUnexpectedEOF}, {"3\nabc", nil},
	}
	for _, tt := range tests {
		_, err := recordio.Read(bufio.NewReader(bytes.NewReader([]byte(tt.data))))
		require.Equal(t, tt.want, err)
	}
}
