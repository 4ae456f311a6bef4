package schedapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/mesos/mesos-go/api/v1/lib/recordio"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"
)

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
