package schedapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"github.com/mesos/mesos-go/api/v1/lib/recordio"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"
)

func TestReadRecordInAnyPieces(t *testing.T) {
	var stream bytes.Buffer
	w := recordio.NewWriter(&stream)
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
				got, err := readRecord(br)
				require.NoError(t, err)
				require.Equal(t, want, string(got))
			}
			_, err := readRecord(br)
			require.Equal(t, io.EOF, err)
		})
	}
}

func TestReadRecordDoesNotBelieveTheLength(t *testing.T) {
	allocated := testing.AllocsPerRun(1, func() {
		_, err := readRecord(bufio.NewReaderSize(strings.NewReader("67108864\nabc"), 16))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			panic(err)
		}
	})
	require.Less(t, allocated, 20.0)
}

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

func FuzzNextEvent(f *testing.F) {
	event := scheduler.Event{Type: scheduler.Event_ERROR, Error: &scheduler.Event_Error{Message: "x"}}
	data, err := event.Marshal()
	require.NoError(f, err)
	var stream bytes.Buffer
	require.NoError(f, recordio.NewWriter(&stream).WriteFrame(data))
	f.Add(stream.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		br := bufio.NewReader(bytes.NewReader(data))
		for {
			event, err := nextEvent(br)
			var bad *decodeError
			if errors.As(err, &bad) {
				continue
			}
			if err != nil {
				return
			}
			require.NotNil(t, event)
		}
	})
}

func FuzzUnquote(f *testing.F) {
	f.Add(`a\n\u00e9\ud83d\ude00\ud800x\/`)
	f.Fuzz(func(t *testing.T, s string) {
		quoted := []byte(`"` + s + `"`)
		got, err := unquote(quoted)
		var want string
		if json.Unmarshal(quoted, &want) != nil || !utf8.Valid(quoted) {
			return
		}
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	})
}

func TestBackoff(t *testing.T) {
	b := backoff{min: 100 * time.Millisecond, max: time.Second}
	for range 100 {
		for _, full := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			d := b.next()
			require.GreaterOrEqual(t, d, full*time.Millisecond/2)
			require.LessOrEqual(t, d, full*time.Millisecond)
		}
		b.reset()
	}
}
