package seal_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/seal"
)

// A network carries messages between a Receiver and a framework. It belongs in a
// synctest bubble.
type network struct {
	receiver *seal.Receiver
	lose     func() bool                        // whether the next message is lost
	answer   func(ask seal.Ask) ([]byte, error) // the framework's
	delay    func() time.Duration               // of each message
	mu       sync.Mutex
	asked    []seal.Ask
	at       []time.Duration
	began    time.Time
	errs     []error
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{
		lose:   func() bool { return false },
		delay:  func() time.Duration { return 10 * time.Millisecond },
		answer: func(ask seal.Ask) ([]byte, error) { return answerWith(ask, credentials) },
		began:  time.Now(),
	}
	r, err := seal.NewReceiver(task, n.toFramework)
	require.NoError(t, err)
	n.receiver = r
	return n
}

func answerWith(ask seal.Ask, c seal.Credentials) ([]byte, error) {
	a, err := ask.Answer(c)
	return a.Encode(), err
}

// toFramework carries an Ask, and its answer back.
func (n *network) toFramework(data []byte) {
	if n.lose() {
		return
	}
	time.AfterFunc(n.delay(), func() {
		ask, err := seal.DecodeAsk(data)
		n.mu.Lock()
		n.asked = append(n.asked, ask)
		n.at = append(n.at, time.Since(n.began))
		answer := n.answer
		n.mu.Unlock()
		if err == nil {
			data, err = answer(ask)
		}
		if err != nil {
			n.mu.Lock()
			n.errs = append(n.errs, err)
			n.mu.Unlock()
			return
		}
		n.toExecutor(data)
	})
}

func (n *network) toExecutor(data []byte) {
	if data == nil || n.lose() {
		return
	}
	time.AfterFunc(n.delay(), func() { n.receiver.Handle(data) })
}

// heard returns the questions that reached the framework, and when they did.
func (n *network) heard() ([]seal.Ask, []time.Duration) {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked), slices.Clone(n.at)
}

// pass lets time pass in the bubble.
func pass(d time.Duration) { <-time.After(d) }

func (n *network) setAnswer(f func(ask seal.Ask) ([]byte, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answer = f
}

func TestReceiverGetsCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		require.Equal(t, "a token-four", string(n.receiver.Mask([]byte("a token-four"))))
		n.toFramework(n.receiver.First())
		got, err := n.receiver.Credentials(t.Context())
		require.NoError(t, err)
		require.Equal(t, credentials.Registries, got.Registries)
		require.Less(t, time.Since(n.began), 100*time.Millisecond)
		require.Equal(t, "a ***", string(n.receiver.Mask([]byte("a token-four"))))

		got, err = n.receiver.Credentials(t.Context())
		require.NoError(t, err)
		require.Equal(t, credentials.Registries, got.Registries)
		asked, _ := n.heard()
		require.Len(t, asked, 1)
		require.Equal(t, task, asked[0].Binding)
	})
}

// TestReceiverSurvivesItsNetwork loses, delays and repeats messages at random.
func TestReceiverSurvivesItsNetwork(t *testing.T) {
	for seed := range uint64(50) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 0))
				var mu sync.Mutex
				below := func(limit int) int {
					mu.Lock()
					defer mu.Unlock()
					return random.IntN(limit)
				}
				n := newNetwork(t)
				n.lose = func() bool { return below(100) < 70 }
				n.delay = func() time.Duration { return time.Duration(below(20_000)) * time.Millisecond }
				n.setAnswer(func(ask seal.Ask) ([]byte, error) {
					data, err := answerWith(ask, credentials)
					for range below(3) {
						n.toExecutor(data)
					}
					return data, err
				})
				n.toFramework(n.receiver.First())
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				var waiters sync.WaitGroup
				failures := make(chan error, 3)
				for range 3 {
					waiters.Go(func() {
						got, err := n.receiver.Credentials(ctx)
						if err == nil && len(got.Registries) != len(credentials.Registries) {
							err = errors.New("other credentials")
						}
						failures <- err
					})
				}
				waiters.Wait()
				close(failures)
				for err := range failures {
					require.NoError(t, err)
				}
				pass(time.Minute) // what is under way arrives
				n.mu.Lock()
				defer n.mu.Unlock()
				require.Empty(t, n.errs)
			})
		})
	}
}

func TestReceiverAsksAgainMoreAndMoreSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.setAnswer(func(seal.Ask) ([]byte, error) { return nil, nil })
		tooLong := errors.New("no secrets within 2 minutes")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Minute, tooLong)
		defer cancel()
		_, err := n.receiver.Credentials(ctx)
		require.ErrorIs(t, err, seal.ErrUnanswered)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, tooLong)
		require.NotContains(t, err.Error(), "\n")
		require.Equal(t, 2*time.Minute, time.Since(n.began))
		asked, at := n.heard()
		require.Greater(t, len(asked), 8)
		require.Less(t, len(asked), 25)
		for i := range asked {
			require.Equal(t, asked[0], asked[i])
			if i > 0 {
				require.LessOrEqual(t, at[i]-at[i-1], 15*time.Second)
			}
		}
		// The framework comes back, and somebody waits again.
		n.setAnswer(func(ask seal.Ask) ([]byte, error) { return answerWith(ask, credentials) })
		_, err = n.receiver.Credentials(t.Context())
		require.NoError(t, err)
	})
}

func TestReceiverIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.setAnswer(func(ask seal.Ask) ([]byte, error) {
			return ask.Refuse("the framework was restarted without the secrets").Encode(), nil
		})
		_, err := n.receiver.Credentials(t.Context())
		require.ErrorIs(t, err, seal.ErrRefused)
		require.ErrorContains(t, err, "restarted without the secrets")
	})
}

func TestReceiverIgnoresForgeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		ask, err := seal.DecodeAsk(n.receiver.First())
		require.NoError(t, err)
		forged := func(change func(*seal.Ask), serial int) []byte {
			other := ask
			change(&other)
			a, err := other.Answer(seal.Credentials{Secrets: map[string][]byte{"x": []byte("forged")}})
			require.NoError(t, err)
			a.Serial = serial
			return a.Encode()
		}
		require.True(t, n.receiver.Handle(forged(func(a *seal.Ask) { a.Task = "b2-2" }, 1)))
		require.True(t, n.receiver.Handle(forged(func(a *seal.Ask) { a.Attempt = 1 }, 1)))
		require.True(t, n.receiver.Handle(forged(func(a *seal.Ask) { a.Key = newKey(t).Public() }, 1)))
		require.True(t, n.receiver.Handle(forged(func(*seal.Ask) {}, 2)), "an answer to what was never asked")
		require.True(t, n.receiver.Handle(seal.Answer{Serial: 1, Sealed: []byte("junk")}.Encode()))
		for _, other := range []string{"", "{", `{"version":1,"log_size":3}`, "[]", string(n.receiver.First())} {
			require.False(t, n.receiver.Handle([]byte(other)))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = n.receiver.Credentials(ctx)
		require.ErrorIs(t, err, seal.ErrUnanswered)
		require.ErrorIs(t, err, seal.ErrSealed, "what was wrong with the last answer")

		_, err = n.receiver.Credentials(t.Context())
		require.NoError(t, err)
	})
}

func TestReceiverRefusesAnotherVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, data := range []string{
			`{"version":2,"seal_answer":{}}`,
			string(seal.Answer{Serial: 1, Sealed: []byte("portainer-sealed/2\nxyz")}.Encode()),
		} {
			n := newNetwork(t)
			require.True(t, n.receiver.Handle([]byte(data)))
			_, err := n.receiver.Credentials(t.Context())
			require.ErrorIs(t, err, seal.ErrVersion)
		}
	})
}

func TestReceiverRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		password := func(c seal.Credentials) string { return c.Registries["a"].Password }
		serve := func(value string) {
			n.setAnswer(func(ask seal.Ask) ([]byte, error) {
				return answerWith(ask, seal.Credentials{Registries: map[string]seal.RegistryAuth{"a": {Password: value}}})
			})
		}
		serve("password-1")
		n.toFramework(n.receiver.First())
		got, err := n.receiver.Fresh(t.Context(), time.Minute)
		require.NoError(t, err)
		require.Equal(t, "password-1", password(got))

		serve("password-2")
		got, err = n.receiver.Fresh(t.Context(), time.Minute)
		require.NoError(t, err)
		require.Equal(t, "password-1", password(got), "young enough")

		pass(2 * time.Minute)
		var waiters sync.WaitGroup
		for range 3 {
			waiters.Go(func() {
				got, err := n.receiver.Fresh(t.Context(), time.Minute)
				if err != nil || password(got) != "password-2" {
					t.Errorf("got %q, %v", password(got), err)
				}
			})
		}
		waiters.Wait()
		asked, _ := n.heard()
		require.Len(t, asked, 2, "one question for all who wait")
		require.Equal(t, "*** ***", string(n.receiver.Mask([]byte("password-1 password-2"))))

		// The framework is away, or does not want to: the old ones have to do.
		for _, answer := range []func(seal.Ask) ([]byte, error){
			func(seal.Ask) ([]byte, error) { return nil, nil },
			func(ask seal.Ask) ([]byte, error) { return ask.Refuse("no more").Encode(), nil },
		} {
			n.setAnswer(answer)
			pass(2 * time.Minute)
			began := time.Now()
			got, err = n.receiver.Fresh(t.Context(), time.Minute)
			require.NoError(t, err)
			require.Equal(t, "password-2", password(got))
			require.LessOrEqual(t, time.Since(began), 10*time.Second)
			began = time.Now()
			for range 100 {
				_, err = n.receiver.Fresh(t.Context(), time.Minute)
				require.NoError(t, err)
			}
			require.Zero(t, time.Since(began), "waited in vain again at once")
		}
		pass(time.Minute)
		serve("password-2")
		_, err = n.receiver.Fresh(t.Context(), time.Minute)
		require.NoError(t, err)
		before, _ := n.heard()
		_, err = n.receiver.Fresh(t.Context(), time.Minute)
		require.NoError(t, err)
		after, _ := n.heard()
		require.Equal(t, before, after, "the same values are new again")
	})
}

func TestReceiverShowsNothing(t *testing.T) {
	r, err := seal.NewReceiver(task, func([]byte) {})
	require.NoError(t, err)
	ask, err := seal.DecodeAsk(r.First())
	require.NoError(t, err)
	answer, err := ask.Answer(credentials)
	require.NoError(t, err)
	require.True(t, r.Handle(answer.Encode()))
	for _, v := range []any{r, seal.NewMasker(credentials)} {
		for _, text := range append(shown(t, v), fmt.Sprintf("%x %d %q", v, v, v)) {
			for _, value := range values {
				require.NotContains(t, text, value)
				require.NotContains(t, text, fmt.Sprintf("%x", value))
				require.NotContains(t, text, fmt.Sprint([]byte(value)))
			}
		}
	}
}

// TestExchangeFormat keeps what a framework or executor of another build reads.
func TestExchangeFormat(t *testing.T) {
	ask := seal.Ask{Binding: task, Key: "age1x", Serial: 3}
	require.JSONEq(t, `{"version":1,"seal_ask":{"task":"b1-2","attempt":2,"key":"age1x","serial":3}}`, string(ask.Encode()))
	back, err := seal.DecodeAsk(ask.Encode())
	require.NoError(t, err)
	require.Equal(t, ask, back)

	answer := seal.Answer{Serial: 3, Sealed: []byte{1, 2}}
	require.JSONEq(t, `{"version":1,"seal_answer":{"serial":3,"sealed":"AQI="}}`, string(answer.Encode()))
	got, err := seal.DecodeAnswer(answer.Encode())
	require.NoError(t, err)
	require.Equal(t, answer, got)
	require.JSONEq(t, `{"version":1,"seal_answer":{"serial":3,"refusal":"no"}}`, string(ask.Refuse("no").Encode()))

	for _, other := range []string{"", "{}", `{"version":1,"log_size":3}`, `{"version":2}`, string(answer.Encode())} {
		_, err := seal.DecodeAsk([]byte(other))
		require.ErrorIs(t, err, seal.ErrNotOurs)
	}
	_, err = seal.DecodeAsk([]byte(`{"version":2,"seal_ask":{}}`))
	require.ErrorIs(t, err, seal.ErrVersion)
	_, err = seal.Ask{Binding: task, Key: "no key"}.Answer(credentials)
	require.Error(t, err)
}

func FuzzReceiverHandle(f *testing.F) {
	r, err := seal.NewReceiver(task, func([]byte) {})
	require.NoError(f, err)
	ask, err := seal.DecodeAsk(r.First())
	require.NoError(f, err)
	answer, err := ask.Answer(credentials)
	require.NoError(f, err)
	f.Add(answer.Encode())
	f.Add(ask.Refuse("no").Encode())
	f.Add(r.First())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := seal.NewReceiver(task, func([]byte) {})
		require.NoError(t, err)
		r.Handle(data)
		ask, err := seal.DecodeAsk(r.First())
		require.NoError(t, err)
		answer, err := ask.Answer(credentials)
		require.NoError(t, err)
		require.True(t, r.Handle(answer.Encode()))
		got, err := r.Credentials(t.Context())
		if !errors.Is(err, seal.ErrRefused) && !errors.Is(err, seal.ErrVersion) {
			require.NoError(t, err)
			require.Equal(t, credentials.Registries, got.Registries)
		}
	})
}
