package logrelay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// A memoryLog is a Log that tests write.
type memoryLog struct {
	mu   sync.Mutex
	data []byte
}

func (l *memoryLog) ReadAt(p []byte, offset int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.NewReader(l.data).ReadAt(p, offset)
}

func (l *memoryLog) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.data))
}

func (l *memoryLog) write(data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(l.data, data...)
}

// A line is a Reader and a Desk, and what is between them.
type line struct {
	log    memoryLog
	desk   *Desk
	reader *Reader
	asks   int
	// answers delivers what the desk sends; nil means at once.
	answers func(c Chunk)
}

// connect makes a line in a synctest bubble, over which goes what pass lets through.
func connect(t *testing.T, pass func() bool) *line {
	l := &line{}
	silent := slog.New(slog.DiscardHandler)
	l.desk = NewDesk(&l.log, true, func(data []byte) {
		c, err := DecodeChunk(data)
		if err != nil {
			panic(err)
		}
		switch {
		case !pass():
		case l.answers != nil:
			l.answers(c)
		default:
			l.reader.Handle(c)
		}
	}, silent)
	l.reader = NewReader(func(ask Ask) {
		l.asks++
		if pass() && !l.desk.Handle(ask.Encode()) {
			panic("not taken")
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { l.desk.Serve(ctx) })
	t.Cleanup(func() {
		stop()
		work.Wait()
	})
	return l
}

func always() bool { return true }

// dice returns false one time in n.
func dice(n int) func() bool {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 2))
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n) > 0
	}
}

// read reads as a follower does until it has n bytes, and is what it takes.
func (l *line) read(t *testing.T, offset, n int64) []byte {
	t.Helper()
	var got []byte
	for int64(len(got)) < n {
		data, size, err := l.reader.Read(offset + int64(len(got)))
		if err == nil && len(data) > 0 {
			require.GreaterOrEqual(t, size, offset+int64(len(got)+len(data)))
			got = append(got, data...)
			continue
		}
		if err != nil {
			require.ErrorIs(t, err, ErrAwaited)
		}
		select {
		case <-l.reader.Arrived():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return got
}

func noise(n int) []byte {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

func TestWhole(t *testing.T) {
	text := []byte(strings.Repeat("o 1700000000000 1 12\nhello, world\n", 100_000))
	for name, data := range map[string][]byte{
		"text": text, "noise": noise(1_000_003), "both": append(noise(300_000), text...), "one byte": {'x'}, "a megabyte of nothing": make([]byte, 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := connect(t, always)
				l.answers = func(c Chunk) {
					require.LessOrEqual(t, len(c.payload), MaxPayload)
					l.reader.Handle(c)
				}
				l.log.write(data)
				require.True(t, bytes.Equal(data, l.read(t, 0, int64(len(data)))))
				require.True(t, bytes.Equal(data[len(data)/2:], l.read(t, int64(len(data)/2), int64(len(data)-len(data)/2))))
			})
		})
	}
}

// Whatever is lost on either way, the log comes whole and in order.
func TestLostMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := connect(t, dice(3))
		data := noise(5_000_000)
		l.log.write(data)
		require.True(t, bytes.Equal(data, l.read(t, 0, int64(len(data)))))
		require.Less(t, l.asks, 4*len(data)/MaxPayload, "it is not asked more often than needed")
	})
}

// Answers that come twice, late and in another order do no harm.
func TestDuplicatesAndLateAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(3, 4))
		l := connect(t, always)
		var late sync.WaitGroup
		l.answers = func(c Chunk) {
			for range 1 + random.IntN(2) {
				delay := time.Duration(random.IntN(3000)) * time.Millisecond
				late.Go(func() {
					<-time.After(delay)
					l.reader.Handle(c)
				})
			}
		}
		var want []byte
		for i := range 50 {
			more := noise(1 + i*1000)
			want = append(want, more...)
			l.log.write(more)
			got := l.read(t, int64(len(want)-len(more)), int64(len(more)))
			require.True(t, bytes.Equal(more, got))
		}
		late.Wait()
		// What came in the meantime is no answer to what is asked next.
		_, _, err := l.reader.Read(0)
		require.ErrorIs(t, err, ErrAwaited)
		synctest.Wait()
		late.Wait()
	})
}

func TestReaderAsksOnceAndThenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := connect(t, func() bool { return false })
		began := time.Now()
		var at []time.Duration
		for time.Since(began) < 30*time.Second {
			before := l.asks
			_, _, err := l.reader.Read(0)
			require.ErrorIs(t, err, ErrAwaited)
			if l.asks > before {
				at = append(at, time.Since(began))
			}
			<-time.After(100 * time.Millisecond)
		}
		require.Equal(t, []time.Duration{0, 500, 1500, 3500, 7500, 11500, 15500, 19500, 23500, 27500}, inMilliseconds(at))
	})
}

func inMilliseconds(d []time.Duration) []time.Duration {
	out := make([]time.Duration, len(d))
	for i := range d {
		out[i] = d[i] / time.Millisecond
	}
	return out
}

func TestReaderAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := connect(t, always)
		l.log.write([]byte("abc"))
		require.Equal(t, "abc", string(l.read(t, 0, 3)))
		_, _, err := l.reader.Read(3)
		require.ErrorIs(t, err, ErrAwaited)
		synctest.Wait()
		data, size, err := l.reader.Read(3)
		require.NoError(t, err)
		require.Empty(t, data)
		require.Equal(t, int64(3), size)
		// Another log is another matter.
		_, _, err = l.reader.Read(3)
		require.ErrorIs(t, err, ErrAwaited)
		synctest.Wait()
		l.reader.Forget()
		_, _, err = l.reader.Read(0)
		require.ErrorIs(t, err, ErrAwaited)
	})
}

func TestReaderRefusesNonsense(t *testing.T) {
	bomb, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	for name, c := range map[string]Chunk{
		"unknown coding":       {Coding: "lzma", Size: 10, payload: []byte("x")},
		"not compressed":       {Coding: codingZstd, Size: 10, payload: []byte("x")},
		"more than there is":   {Size: 1, payload: []byte("xyz")},
		"more than is allowed": {Coding: codingZstd, Size: 1 << 40, payload: bomb.EncodeAll(make([]byte, 64<<20), nil)},
	} {
		t.Run(name, func(t *testing.T) {
			var r *Reader
			r = NewReader(func(ask Ask) {
				c.Serial, c.Offset = ask.Serial, ask.Offset
				r.Handle(c)
			})
			_, _, err := r.Read(0)
			require.ErrorIs(t, err, ErrAwaited)
			_, _, err = r.Read(0)
			require.Error(t, err)
			require.NotErrorIs(t, err, ErrAwaited)
			_, _, err = r.Read(0)
			require.ErrorIs(t, err, ErrAwaited, "the next may be better")
		})
	}
}

func TestDeskRefusesNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := connect(t, always)
		l.log.write([]byte("abc"))
		answered := 0
		l.answers = func(Chunk) { answered++ }
		for _, offset := range []int64{-1, 4, 1 << 60} {
			require.True(t, l.desk.Handle(Ask{Serial: 1, Offset: offset}.Encode()))
			synctest.Wait()
		}
		require.Zero(t, answered)
		require.True(t, l.desk.Handle([]byte(`{"version":2,"log_ask":{"serial":1}}`)))
		require.False(t, l.desk.Handle([]byte(`{"version":1,"push_grant":{"serial":1}}`)))
		require.False(t, l.desk.Handle([]byte("x")))
		require.True(t, l.desk.Handle(Ask{Serial: 1, Offset: 3}.Encode()))
		synctest.Wait()
		require.Equal(t, 1, answered)
	})
}

// failingLog cannot be read.
type failingLog struct{ memoryLog }

func (*failingLog) ReadAt([]byte, int64) (int, error) { return 0, errors.New("disk is gone") }

func TestDeskTellsOfALogThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		log := &failingLog{}
		log.write([]byte("abc"))
		d := NewDesk(log, true, func([]byte) { panic("answered") }, slog.New(slog.NewTextHandler(&said, nil)))
		ctx, stop := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { d.Serve(ctx) })
		require.True(t, d.Handle(Ask{Serial: 1}.Encode()))
		synctest.Wait()
		stop()
		work.Wait()
		require.Contains(t, said.String(), "disk is gone")
	})
}

func TestAwaitEnd(t *testing.T) {
	ask := func(at time.Duration, offset int64) func(*Desk) time.Duration {
		return func(d *Desk) time.Duration {
			<-time.After(at)
			d.Handle(Ask{Serial: 1, Offset: offset}.Encode())
			return at
		}
	}
	leave := func(at time.Duration) func(*Desk) time.Duration {
		return func(d *Desk) time.Duration {
			<-time.After(at)
			d.Handle(Ask{Elsewhere: true}.Encode())
			return at
		}
	}
	for _, tt := range []struct {
		name      string
		unspoken  bool // the framework tells nothing unasked
		before    []func(*Desk) time.Duration
		after     []func(*Desk) time.Duration
		took      time.Duration
		unread    bool
		cancelled time.Duration
	}{
		{name: "framework that knows nothing of it", unspoken: true},
		{name: "framework that says nothing", took: firstPatience, unread: true},
		{name: "files were read before", before: []func(*Desk) time.Duration{leave(0)}},
		{name: "files are read", after: []func(*Desk) time.Duration{leave(3 * time.Second)}, took: 3 * time.Second},
		{name: "end was asked for before", before: []func(*Desk) time.Duration{ask(0, 10)}},
		{name: "end is asked for", before: []func(*Desk) time.Duration{ask(0, 5)}, after: []func(*Desk) time.Duration{ask(2*time.Second, 10)}, took: 2 * time.Second},
		{name: "asked for slowly", unspoken: true, before: []func(*Desk) time.Duration{ask(0, 0)},
			after: []func(*Desk) time.Duration{ask(29*time.Second, 5), ask(29*time.Second, 7), ask(29*time.Second, 10)}, took: 87 * time.Second},
		{name: "no longer asked for", before: []func(*Desk) time.Duration{ask(0, 0)}, after: []func(*Desk) time.Duration{ask(10*time.Second, 5)}, took: 10*time.Second + patience, unread: true},
		{name: "asked for long before", before: []func(*Desk) time.Duration{ask(0, 5), func(*Desk) time.Duration { <-time.After(time.Hour); return 0 }}, took: patience, unread: true},
		{name: "first asked for late", after: []func(*Desk) time.Duration{ask(14*time.Second, 5), ask(20*time.Second, 10)}, took: 34 * time.Second},
		{name: "asked for after files were read", before: []func(*Desk) time.Duration{leave(0), ask(0, 5)}, after: []func(*Desk) time.Duration{ask(time.Second, 10)}, took: time.Second},
		{name: "files are read again", before: []func(*Desk) time.Duration{ask(0, 5), leave(0)}},
		{name: "killed", before: []func(*Desk) time.Duration{ask(0, 5)}, cancelled: 2 * time.Second, took: 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &memoryLog{data: []byte("0123456789")}
				d := NewDesk(log, !tt.unspoken, func([]byte) {}, slog.New(slog.DiscardHandler))
				for _, do := range tt.before {
					do(d)
				}
				var work sync.WaitGroup
				work.Go(func() {
					for _, do := range tt.after {
						do(d)
					}
				})
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if tt.cancelled > 0 {
					stop := time.AfterFunc(tt.cancelled, func() { cancel(io.ErrClosedPipe) })
					defer stop.Stop()
				}
				nudges, began := 0, time.Now()
				err := d.AwaitEnd(ctx, func() { nudges++ })
				require.Equal(t, tt.took, time.Since(began).Round(nudgeEvery))
				switch {
				case tt.unread:
					require.ErrorIs(t, err, ErrUnread)
				case tt.cancelled > 0:
					require.ErrorIs(t, err, io.ErrClosedPipe)
				default:
					require.NoError(t, err)
				}
				require.InDelta(t, tt.took.Seconds(), nudges, 1, "it says that it waits, every second")
				work.Wait()
			})
		})
	}
}

func TestMessages(t *testing.T) {
	for _, data := range []string{"", "{", "{}", `{"version":1}`, `{"version":1,"log_size":7}`, "{}\n", `{"version":1,"log_chunk":{"serial":1}}`} {
		_, err := DecodeChunk([]byte(data))
		require.ErrorIs(t, err, ErrOtherMessage, data)
		_, err = DecodeAsk([]byte(data))
		require.ErrorIs(t, err, ErrOtherMessage, data)
	}
	_, err := DecodeChunk([]byte("{\"version\":2,\"log_chunk\":{}}\nx"))
	require.EqualError(t, err, "executor sends its log in version 2, this framework understands 1")
	_, err = DecodeAsk([]byte(`{"version":2,"log_ask":{}}`))
	require.EqualError(t, err, "framework asks for the log in version 2, this executor understands 1")

	// The form that other releases read.
	c := Chunk{Serial: 3, Offset: 5, Size: 7, Coding: "", payload: []byte("\n{")}
	head, payload, _ := strings.Cut(string(c.Encode()), "\n")
	require.JSONEq(t, `{"version":1,"log_chunk":{"serial":3,"offset":5,"size":7}}`, head)
	require.Equal(t, "\n{", payload)
	back, err := DecodeChunk(c.Encode())
	require.NoError(t, err)
	require.Equal(t, c, back)
	require.JSONEq(t, `{"version":1,"log_ask":{"serial":3,"offset":5}}`, string(Ask{Serial: 3, Offset: 5}.Encode()))
	require.JSONEq(t, `{"version":1,"log_ask":{"serial":0,"offset":0,"elsewhere":true}}`, string(Ask{Elsewhere: true}.Encode()))
}

func FuzzDecodeChunk(f *testing.F) {
	f.Add([]byte(`{"version":1,"log_chunk":{"serial":1,"coding":"zstd"}}` + "\nxyz"))
	f.Add(Chunk{Serial: 1, payload: []byte("x")}.Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeChunk(data)
		if err != nil {
			return
		}
		var d decoder
		plain, err := d.open(c)
		if err == nil && c.Coding != "" && len(plain) > maxPlain {
			t.Fatal("too long")
		}
	})
}

// BenchmarkChunk tells what a piece of log costs both ends.
func BenchmarkChunk(b *testing.B) {
	var text bytes.Buffer
	for i := 0; text.Len() < maxPlain; i++ {
		fmt.Fprintf(&text, "o 17000000%05d 1 60\n#12 %d.%03d  CC       src/object-%d.o -> build/lib%d.a\n", i, i/10, i%1000, i*7919%4001, i%13)
	}
	for name, data := range map[string][]byte{"text": text.Bytes()[:maxPlain], "noise": noise(maxPlain)} {
		b.Run("of="+name, func(b *testing.B) {
			var e encoder
			var d decoder
			sent, got := 0, 0
			for b.Loop() {
				var c Chunk
				require.NoError(b, e.fit(&c, data))
				message := c.Encode()
				back, err := DecodeChunk(message)
				require.NoError(b, err)
				plain, err := d.open(back)
				require.NoError(b, err)
				sent, got = len(message), len(plain)
			}
			b.SetBytes(int64(got))
			b.ReportMetric(float64(got)/float64(sent), "ratio")
		})
	}
}
