package sshforward

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// sealed stands for sealing: what package seal does is tested there.
func sealed(plain []byte) []byte { return append([]byte("sealed:"), plain...) }

func open(data []byte) ([]byte, error) {
	plain, ok := bytes.CutPrefix(data, []byte("sealed:"))
	if !ok {
		return nil, errors.New("not sealed")
	}
	return plain, nil
}

// agentWithKey is an ssh agent with one key, which counts its connections.
func agentWithKey(t *testing.T) (dial func(context.Context) (net.Conn, error), keys agent.Agent, calls *atomic.Int32) {
	t.Helper()
	keys, calls = agent.NewKeyring(), &atomic.Int32{}
	_, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	require.NoError(t, keys.Add(agent.AddedKey{PrivateKey: &private, Comment: "the key"}))
	return func(context.Context) (net.Conn, error) {
		calls.Add(1)
		here, there := net.Pipe()
		go func() {
			_ = agent.ServeAgent(keys, there)
			_ = there.Close()
		}()
		return here, nil
	}, keys, calls
}

// connect returns a client of the agent behind r.
func connect(t *testing.T, r *Remote) agent.ExtendedAgent {
	t.Helper()
	here, there := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(t.Context(), "default", there) }()
	t.Cleanup(func() {
		require.NoError(t, here.Close())
		require.NoError(t, <-ended)
	})
	return agent.NewClient(here)
}

// framework answers what r asks, in the way of the framework, but loses every
// message that lose says.
func framework(t *testing.T, r *Remote, dial func(context.Context) (net.Conn, error), lose func() bool) {
	var desk Desk
	r.Send = func(data []byte) {
		if lose() {
			return
		}
		ask, err := DecodeAsk(data)
		require.NoError(t, err)
		require.Equal(t, "default", ask.Agent)
		said, err := desk.Answer(t.Context(), ask, dial)
		answer := Answer{Serial: ask.Serial}
		if err != nil {
			answer.Failure = err.Error()
		} else {
			answer.Sealed = sealed(said.Encode())
		}
		if !lose() {
			require.True(t, r.Handle(answer.Encode()))
		}
	}
}

func newRemote() *Remote {
	return &Remote{Task: "b-1", Attempt: 1, Open: open, Log: slog.New(slog.DiscardHandler)}
}

func TestSign(t *testing.T) {
	dial, keys, _ := agentWithKey(t)
	r := newRemote()
	framework(t, r, dial, func() bool { return false })
	client := connect(t, r)
	listed, err := client.List()
	require.NoError(t, err)
	require.Len(t, listed, 1)
	require.Equal(t, "the key", listed[0].Comment)
	signature, err := client.Sign(listed[0], []byte("text"))
	require.NoError(t, err)
	public, err := ssh.ParsePublicKey(listed[0].Blob)
	require.NoError(t, err)
	require.NoError(t, public.Verify([]byte("text"), signature))

	// Nothing else is any business of a build.
	require.Error(t, client.RemoveAll())
	require.Error(t, client.Lock([]byte("passphrase")))
	_, err = client.Extension("session-bind@openssh.com", []byte("x"))
	require.Error(t, err)
	left, err := keys.List()
	require.NoError(t, err)
	require.Len(t, left, 1)
}

// Whatever is lost, each request is put to the agent once: a person may have to
// agree to it.
func TestLostMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, _, calls := agentWithKey(t)
		r := newRemote()
		dice := rand.New(rand.NewPCG(1, 2))
		framework(t, r, dial, func() bool { return dice.IntN(2) == 0 })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 20 {
			said, err := r.Do(ctx, "default", []byte{requestIdentities})
			require.NoError(t, err)
			require.NotEmpty(t, said)
		}
		require.Equal(t, int32(20), calls.Load())
	})
}

func TestUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote()
		asked := 0
		r.Send = func([]byte) { asked++ }
		began := time.Now()
		_, err := r.Do(t.Context(), "default", []byte{requestIdentities})
		require.ErrorIs(t, err, ErrUnanswered)
		require.Equal(t, patience, time.Since(began))
		require.Greater(t, asked, 5)
		require.Less(t, asked, 20)
		require.Empty(t, r.waiting)
	})
}

// What was sealed for something else is no answer.
func TestAnswersThatAreNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote()
		r.Send = func(data []byte) {
			ask, err := DecodeAsk(data)
			require.NoError(t, err)
			credentials, err := json.Marshal(map[string]any{"registries": map[string]string{"r": "password"}})
			require.NoError(t, err)
			for _, plain := range [][]byte{
				credentials, Response{Serial: ask.Serial + 1, Response: []byte("x")}.Encode(), Response{Serial: ask.Serial}.Encode(), []byte("{"),
			} {
				require.True(t, r.Handle(Answer{Serial: ask.Serial, Sealed: sealed(plain)}.Encode()))
			}
			require.True(t, r.Handle(Answer{Serial: ask.Serial, Sealed: []byte("in the clear")}.Encode()))
			require.True(t, r.Handle(Answer{Serial: 77, Failure: "never asked"}.Encode()))
			require.True(t, r.Handle([]byte(`{"version":2,"ssh_answer":{"serial":1}}`)))
			require.False(t, r.Handle([]byte(`{"version":1,"push_grant":{"serial":1}}`)))
		}
		_, err := r.Do(t.Context(), "default", []byte{requestIdentities})
		require.ErrorIs(t, err, ErrUnanswered)
		r.Send = func(data []byte) {
			ask, err := DecodeAsk(data)
			require.NoError(t, err)
			require.True(t, r.Handle(Answer{Serial: ask.Serial, Failure: "no such agent"}.Encode()))
		}
		_, err = r.Do(t.Context(), "default", []byte{requestIdentities})
		require.EqualError(t, err, "no such agent")
	})
}

func TestDeskRefuses(t *testing.T) {
	dial, _, calls := agentWithKey(t)
	var desk Desk
	for name, request := range map[string][]byte{
		"nothing": nil, "add a key": {17}, "remove all": {19}, "extension": {27}, "too long": append([]byte{signRequest}, make([]byte, maxMessage)...),
	} {
		_, err := desk.Answer(t.Context(), Ask{Serial: 1, Request: request}, dial)
		require.Error(t, err, name)
	}
	require.Zero(t, calls.Load())
	failing := func(context.Context) (net.Conn, error) { return nil, errors.New("no agent there") }
	_, err := desk.Answer(t.Context(), Ask{Agent: "default", Serial: 1, Request: []byte{requestIdentities}}, failing)
	require.EqualError(t, err, "ssh agent default: no agent there")
	said, err := desk.Answer(t.Context(), Ask{Serial: 1, Request: []byte{requestIdentities}}, dial)
	require.NoError(t, err, "another try may do better")
	require.NotEmpty(t, said.Response)
}

// A request that comes again while the agent thinks is not put to it twice.
func TestDeskIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, _, calls := agentWithKey(t)
		slow := func(ctx context.Context) (net.Conn, error) {
			<-time.After(time.Minute)
			return dial(ctx)
		}
		var desk Desk
		ask := Ask{Serial: 1, Request: []byte{requestIdentities}}
		first := make(chan error, 1)
		go func() {
			_, err := desk.Answer(t.Context(), ask, slow)
			first <- err
		}()
		synctest.Wait()
		_, err := desk.Answer(t.Context(), ask, slow)
		require.ErrorIs(t, err, ErrBusy)
		require.NoError(t, <-first)
		_, err = desk.Answer(t.Context(), ask, slow)
		require.NoError(t, err)
		require.Equal(t, int32(1), calls.Load())
	})
}

func TestDeskForgets(t *testing.T) {
	dial, _, _ := agentWithKey(t)
	var desk Desk
	for serial := range 3 * kept {
		_, err := desk.Answer(t.Context(), Ask{Serial: serial, Request: []byte{requestIdentities}}, dial)
		require.NoError(t, err)
	}
	require.Len(t, desk.said, kept)
	require.Len(t, desk.order, kept)
}

func TestSilentAgentIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		go func() { _, _ = io.Copy(io.Discard, there) }()
		var desk Desk
		began := time.Now()
		_, err := desk.Answer(t.Context(), Ask{Agent: "default", Serial: 1, Request: []byte{requestIdentities}},
			func(context.Context) (net.Conn, error) { return here, nil })
		require.ErrorContains(t, err, "no answer within 2m0s")
		require.Equal(t, patience, time.Since(began))
	})
}

func TestServeRefusesNonsense(t *testing.T) {
	r := newRemote()
	for name, sent := range map[string][]byte{
		"empty": {0, 0, 0, 0}, "too long": {0, 4, 0, 1}, "cut off": {0, 0, 0, 5, 11},
	} {
		conn := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(sent), io.Discard}
		require.Error(t, r.Serve(t.Context(), "default", conn), name)
	}
}
