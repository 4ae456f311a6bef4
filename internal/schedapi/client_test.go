package schedapi_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/schedapi"
)

// inMemory runs test in a bubble with a client of one master "m:1".
func inMemory(t *testing.T, m *fakeMaster, cfg schedapi.Config, test func(t *testing.T, c *schedapi.Client, net *network, r *recorder)) {
	synctest.Test(t, func(t *testing.T) {
		net := &network{hosts: map[string]http.Handler{"m:1": m}}
		cfg.Transport = net
		if cfg.Masters == nil {
			cfg.Masters = parse(t, "m:1")
		}
		test(t, newClient(t, cfg), net, &recorder{})
		net.handlers.Wait()
	})
}

func kill(n int) *scheduler.Call {
	return &scheduler.Call{Type: scheduler.Call_KILL, Kill: &scheduler.Call_Kill{TaskID: mesos.TaskID{Value: strconv.Itoa(n)}}}
}

func TestEventsAndCallsKeepTheirOrder(t *testing.T) {
	const n = 500
	m := &fakeMaster{script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(time.Minute)
		for i := range n {
			s.rescind(i)
		}
		s.stall()
	}}
	server := httptest.NewServer(m)
	defer server.Close()
	c := newClient(t, schedapi.Config{Masters: parse(t, server.URL)})
	r := &recorder{}
	stop := run(t, c, func(event schedapi.Event) {
		r.handle(event)
		if event.Event != nil && event.Type == scheduler.Event_SUBSCRIBED {
			for i := range n {
				c.Send(kill(i))
			}
		}
	})
	require.Eventually(t, func() bool { return len(r.log()) == n+1 && len(m.received()) == n }, 30*time.Second, time.Millisecond)
	require.ErrorIs(t, stop(), context.Canceled)
	require.Equal(t, "SUBSCRIBED", r.log()[0])
	for i := range n {
		require.Equal(t, "rescind "+strconv.Itoa(i), r.log()[i+1])
		require.Equal(t, strconv.Itoa(i), m.received()[i].Kill.TaskID.Value)
	}
}

func TestSubscribesAgainAsTheSameFramework(t *testing.T) {
	var ids []string
	var suppressed [][]string
	m := &fakeMaster{}
	m.script = func(n int, subscribe *scheduler.Call_Subscribe, s *stream) {
		ids = append(ids, subscribe.FrameworkInfo.ID.GetValue())
		suppressed = append(suppressed, subscribe.SuppressedRoles)
		s.subscribed(15 * time.Second)
		if n == 1 {
			return
		}
		s.stall()
	}
	subscriptions := 0
	cfg := schedapi.Config{Suppressed: func() []string {
		subscriptions++
		return []string{"a", "b"}[:subscriptions]
	}}
	inMemory(t, m, cfg, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		stop := run(t, c, r.handle)
		pass(time.Second)
		synctest.Wait()
		require.Equal(t, []string{"SUBSCRIBED", "disconnected: stream of master m:1: EOF", "SUBSCRIBED"}, r.log())
		require.Equal(t, []string{"", frameworkID}, ids)
		require.Equal(t, [][]string{{"a"}, {"a", "b"}}, suppressed)
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestSilentStreamIsGivenUp(t *testing.T) {
	tests := []struct {
		name   string
		script func(s *stream)
		after  time.Duration
		want   string
	}{
		{"no heartbeat", func(s *stream) { s.subscribed(15 * time.Second) }, 75 * time.Second, "nothing from master m:1 for 1m15s"},
		{"heartbeats stop", func(s *stream) {
			s.subscribed(15 * time.Second)
			for range 240 {
				pass(15 * time.Second)
				s.heartbeat()
			}
		}, time.Hour + 75*time.Second, "nothing from master m:1 for 1m15s"},
		{"other events count", func(s *stream) {
			s.subscribed(15 * time.Second)
			for i := range 10 {
				pass(74 * time.Second)
				s.rescind(i)
			}
		}, 815 * time.Second, "nothing from master m:1 for 1m15s"},
		{"half a record", func(s *stream) {
			s.subscribed(time.Second)
			s.raw("100\nabc")
		}, 5 * time.Second, "nothing from master m:1 for 5s"},
		{"no SUBSCRIBED", func(*stream) {}, 15 * time.Second, "master m:1: no subscription within 15s"},
		{"half a SUBSCRIBED", func(s *stream) { s.raw("100\nabc") }, 15 * time.Second, "master m:1: no subscription within 15s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := &fakeMaster{script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
				tt.script(s)
				s.stall()
			}}
			inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
				began := time.Now()
				var lost time.Duration
				var why error
				ctx, cancel := context.WithCancel(t.Context())
				err := c.Run(ctx, func(event schedapi.Event) {
					if event.Disconnected != nil {
						lost, why = time.Since(began), event.Disconnected
						cancel()
					}
				})
				require.ErrorIs(t, err, context.Canceled)
				require.EqualError(t, why, tt.want)
				require.Equal(t, tt.after, lost)
			})
		})
	}
}

func TestSlowHandlerIsNoSilence(t *testing.T) {
	m := &fakeMaster{script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(time.Second)
		s.rescind(1)
		for {
			pass(time.Second)
			s.heartbeat()
			if s.ctx.Err() != nil {
				return
			}
		}
	}}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		r.hook = func(event schedapi.Event) {
			if event.Event != nil && event.Type == scheduler.Event_RESCIND {
				pass(time.Minute)
				synctest.Wait()
			}
		}
		stop := run(t, c, r.handle)
		pass(2 * time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"SUBSCRIBED", "rescind 1"}, r.log())
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestBrokenStreams(t *testing.T) {
	tests := []struct{ name, raw, want string }{
		{"cut in a length", "12", "stream of master m:1: unexpected EOF"},
		{"cut after a length", "12\n", "stream of master m:1: unexpected EOF"},
		{"cut in a record", "12\nabc", "stream of master m:1: unexpected EOF"},
		{"no length", "{}", "stream of master m:1: record length: unexpected byte '{'"},
		{"endless length", "99999999999999999999999999", "stream of master m:1: record longer than 67108864 bytes"},
		{"huge record", "67108865\n", "stream of master m:1: record longer than 67108864 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := &fakeMaster{script: func(n int, _ *scheduler.Call_Subscribe, s *stream) {
				s.subscribed(15 * time.Second)
				if n == 1 {
					s.raw(tt.raw)
					return
				}
				s.stall()
			}}
			inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
				stop := run(t, c, r.handle)
				pass(time.Second)
				synctest.Wait()
				require.Equal(t, []string{"SUBSCRIBED", "disconnected: " + tt.want, "SUBSCRIBED"}, r.log())
				require.ErrorIs(t, stop(), context.Canceled)
			})
		})
	}
}

func TestStreamWithoutID(t *testing.T) {
	m := &fakeMaster{
		proxied: func(n int) bool { return n == 1 },
		script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
			s.subscribed(15 * time.Second)
			s.stall()
		},
	}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		stop := run(t, c, r.handle)
		pass(time.Second)
		synctest.Wait()
		require.Equal(t, []string{"disconnected: master m:1: its stream came without Mesos-Stream-Id", "SUBSCRIBED"}, r.log())
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestUnknownEventsArePassedOver(t *testing.T) {
	m := &fakeMaster{script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Second)
		s.raw("2\n\x08\x63")      // type 99
		s.raw("4\n\x08\x01\xff0") // no protobuf
		s.raw("0\n")
		s.rescind(1)
		s.stall()
	}}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		stop := run(t, c, r.handle)
		synctest.Wait()
		require.Equal(t, []string{"SUBSCRIBED", "rescind 1"}, r.log())
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestLargeEvent(t *testing.T) {
	m := &fakeMaster{script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Second)
		s.send(&scheduler.Event{Type: scheduler.Event_MESSAGE, Message: &scheduler.Event_Message{
			AgentID: mesos.AgentID{Value: "a"}, ExecutorID: mesos.ExecutorID{Value: "e"}, Data: make([]byte, 9<<20),
		}})
		s.stall()
	}}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		stop := run(t, c, r.handle)
		synctest.Wait()
		require.Equal(t, []string{"SUBSCRIBED", "MESSAGE"}, r.log())
		require.Len(t, r.events[1].Message.Data, 9<<20)
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestRefusals(t *testing.T) {
	later := func(message string) func(int, *scheduler.Call_Subscribe, *stream) {
		return func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
			s.subscribed(15 * time.Second)
			s.fail(message)
		}
	}
	first := func(message string) func(int, *scheduler.Call_Subscribe, *stream) {
		return func(_ int, _ *scheduler.Call_Subscribe, s *stream) { s.fail(message) }
	}
	tests := []struct {
		name   string
		script func(int, *scheduler.Call_Subscribe, *stream)
		want   string
		is     error
	}{
		{"failed over", later("Framework failed over"), "master m:1: another scheduler took over the framework (Framework failed over)", schedapi.ErrFailedOver},
		{"removed", first("Framework has been removed"), "master m:1: the master has removed the framework (Framework has been removed)", schedapi.ErrRemoved},
		{"removed, older master", first("Completed framework attempted to re-subscribe"), "master m:1: the master has removed the framework (Completed framework attempted to re-subscribe)", schedapi.ErrRemoved},
		{"removed while subscribed", later("Framework has been removed"), "master m:1: the master has removed the framework (Framework has been removed)", schedapi.ErrRemoved},
		{"role", first("'FrameworkInfo.roles' contains invalid role: '/'"), "master m:1 refuses the framework: 'FrameworkInfo.roles' contains invalid role: '/'", nil},
		{"authorization", first("Not authorized to use role 'a'"), "master m:1 refuses the framework: Not authorized to use role 'a'", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := &fakeMaster{script: tt.script}
			inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
				err := c.Run(t.Context(), r.handle)
				require.EqualError(t, err, tt.want)
				var rejected *schedapi.RejectedError
				require.ErrorAs(t, err, &rejected)
				if tt.is != nil {
					require.ErrorIs(t, err, tt.is)
				}
				require.Equal(t, 1, m.requestCount())
			})
		})
	}
}

func TestErrorsThatPass(t *testing.T) {
	for _, message := range []string{"Authorization failure: the authorizer is away", "Something new"} {
		t.Run(message, func(t *testing.T) {
			m := &fakeMaster{script: func(n int, _ *scheduler.Call_Subscribe, s *stream) {
				if n == 1 {
					if !strings.HasPrefix(message, "Authorization") {
						s.subscribed(15 * time.Second)
					}
					s.fail(message)
					return
				}
				s.subscribed(15 * time.Second)
				s.stall()
			}}
			inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
				stop := run(t, c, r.handle)
				pass(time.Second)
				synctest.Wait()
				require.Contains(t, r.log(), "disconnected: master m:1: "+message)
				require.Equal(t, "SUBSCRIBED", r.log()[len(r.log())-1])
				require.ErrorIs(t, stop(), context.Canceled)
			})
		})
	}
}

func TestWrongSecretIsOneRequest(t *testing.T) {
	m := &fakeMaster{principal: "p", secret: "right"}
	inMemory(t, m, schedapi.Config{Principal: "p", Secret: "wrong"}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		err := c.Run(t.Context(), r.handle)
		require.ErrorIs(t, err, schedapi.ErrUnauthorized)
		require.EqualError(t, err, "master m:1: wrong principal or secret (401 Unauthorized.)")
		require.Equal(t, 1, m.requestCount())
		require.Empty(t, r.log())
	})
}

func TestCredentialsOverTLS(t *testing.T) {
	m := &fakeMaster{principal: "p", secret: "right", script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Second)
		s.stall()
	}}
	server := httptest.NewTLSServer(m)
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	c := newClient(t, schedapi.Config{
		Masters:   parse(t, strings.TrimPrefix(server.URL, "https://")), // no scheme: TLS decides
		Principal: "p", Secret: "right", TLS: &tls.Config{RootCAs: roots},
	})
	r := &recorder{}
	stop := run(t, c, func(event schedapi.Event) {
		r.handle(event)
		c.Send(kill(1))
	})
	require.Eventually(t, func() bool { return len(m.received()) == 1 }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, stop(), context.Canceled)
	require.Equal(t, []string{"SUBSCRIBED"}, r.log())

	// Without the CA nothing is sent.
	before := m.requestCount()
	c = newClient(t, schedapi.Config{Masters: parse(t, server.URL), Principal: "p", Secret: "right"})
	ctx, cancel := context.WithCancel(t.Context())
	var why error
	require.ErrorIs(t, c.Run(ctx, func(event schedapi.Event) {
		why = event.Disconnected
		cancel()
	}), context.Canceled)
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, why, &unknown)
	require.Equal(t, before, m.requestCount())
}

// redirector answers as a master that does not lead.
func redirector(location string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", location)
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
}

func TestFollowsRedirectsForAllCalls(t *testing.T) {
	m := &fakeMaster{script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Second)
		s.stall()
	}}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, net *network, r *recorder) {
		net.set("m:2", m)
		net.set("m:1", redirector("//m:2/api/v1/scheduler"))
		stop := run(t, c, r.handle)
		synctest.Wait()
		c.Send(kill(1))
		synctest.Wait()
		require.Len(t, m.received(), 1)
		require.Equal(t, 2, m.requestCount())
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestRedirectsAreBounded(t *testing.T) {
	requests := 0
	m := &fakeMaster{}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, net *network, r *recorder) {
		net.set("m:1", http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			requests++
			redirector("//m:1/api/v1/scheduler").ServeHTTP(w, q)
		}))
		ctx, cancel := context.WithCancel(t.Context())
		var why error
		require.ErrorIs(t, c.Run(ctx, func(event schedapi.Event) {
			why = event.Disconnected
			cancel()
		}), context.Canceled)
		require.EqualError(t, why, "redirected 6 times in a row, last to m:1: the masters have not agreed on a leader")
		require.Equal(t, 6, requests)
	})
}

func TestDeadLeaderIsAskedForUntilAnotherLeads(t *testing.T) {
	m := &fakeMaster{script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Second)
		s.stall()
	}}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, net *network, r *recorder) {
		net.set("m:1", redirector("//dead:1/api/v1/scheduler"))
		began := time.Now()
		time.AfterFunc(12*time.Second, func() { net.set("m:1", m) })
		var subscribed time.Duration
		r.hook = func(event schedapi.Event) {
			if event.Event != nil {
				subscribed = time.Since(began)
			}
		}
		stop := run(t, c, r.handle)
		pass(20 * time.Second)
		synctest.Wait()
		log := r.log()
		require.Equal(t, "disconnected: master dead:1: dial tcp dead:1: connect: connection refused", log[0])
		require.Equal(t, "SUBSCRIBED", log[len(log)-1])
		require.GreaterOrEqual(t, subscribed, 12*time.Second)
		require.LessOrEqual(t, subscribed, 17*time.Second)
		require.Less(t, len(log), 20, "retried too often")
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestAsksTheMastersInTurn(t *testing.T) {
	m := &fakeMaster{script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Second)
		s.stall()
	}}
	synctest.Test(t, func(t *testing.T) {
		net := &network{hosts: map[string]http.Handler{"m:3": m}}
		net.set("m:2", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "No leader elected", http.StatusServiceUnavailable)
		}))
		c := newClient(t, schedapi.Config{Masters: parse(t, "m:1,m:2,m:3"), Transport: net})
		r := &recorder{}
		stop := run(t, c, r.handle)
		pass(time.Second)
		synctest.Wait()
		require.Equal(t, []string{
			"disconnected: master m:1: dial tcp m:1: connect: connection refused",
			"disconnected: master m:2: SUBSCRIBE: 503 No leader elected",
			"SUBSCRIBED",
		}, r.log())
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

// noLeader is a Resolver that never finds one.
type noLeader struct{}

func (noLeader) Leader(ctx context.Context) (*url.URL, error) {
	<-ctx.Done()
	return nil, errors.New("no leading master in zk://z/mesos: connection refused")
}
func (noLeader) String() string { return "zk://z/mesos" }
func (noLeader) Close() error   { return nil }

func TestResolversTroubleIsTold(t *testing.T) {
	inMemory(t, &fakeMaster{}, schedapi.Config{Masters: noLeader{}}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		require.ErrorIs(t, c.Run(ctx, func(event schedapi.Event) {
			r.handle(event)
			cancel()
		}), context.Canceled)
		require.Equal(t, []string{"disconnected: no leading master in zk://z/mesos: connection refused"}, r.log())
		require.Equal(t, 5*time.Second, time.Since(began))
	})
}

func TestNoMaster(t *testing.T) {
	web := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
	})
	m := &fakeMaster{}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, net *network, r *recorder) {
		net.set("m:1", web)
		ctx, cancel := context.WithCancel(t.Context())
		var why error
		require.ErrorIs(t, c.Run(ctx, func(event schedapi.Event) {
			why = event.Disconnected
			cancel()
		}), context.Canceled)
		require.EqualError(t, why, `m:1 answers with "text/html": no Mesos master`)
	})
}

func TestRefusedCallDoesNoHarm(t *testing.T) {
	m := &fakeMaster{script: func(_ int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Minute)
		s.stall()
	}}
	m.answer = func(call *scheduler.Call) (int, string) {
		if call.Kill.TaskID.Value == "1" {
			return http.StatusBadRequest, "Failed to validate scheduler::Call: Not a valid UUID"
		}
		return 0, ""
	}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		stop := run(t, c, r.handle)
		synctest.Wait()
		c.Send(kill(0))
		err := c.Do(t.Context(), kill(1))
		require.EqualError(t, err, "KILL: 400 Failed to validate scheduler::Call: Not a valid UUID")
		require.NoError(t, c.Do(t.Context(), kill(2)))
		require.Len(t, m.received(), 2)
		require.Equal(t, []string{"SUBSCRIBED"}, r.log())
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestCallsThatEndTheSubscription(t *testing.T) {
	tests := []struct {
		name   string
		answer func(*scheduler.Call) (int, string)
		want   string
	}{
		{"not subscribed", func(*scheduler.Call) (int, string) { return http.StatusForbidden, "Framework is not subscribed" }, "KILL: 403 Framework is not subscribed"},
		{"unknown framework", func(*scheduler.Call) (int, string) { return http.StatusBadRequest, "Framework cannot be found" }, "KILL: 400 Framework cannot be found"},
		{"another leads", func(*scheduler.Call) (int, string) { return http.StatusTemporaryRedirect, "" }, "KILL: 307 Temporary Redirect"},
		{"recovering", func(*scheduler.Call) (int, string) { return http.StatusServiceUnavailable, "<html>" }, "KILL: 503 Service Unavailable"},
		{"no answer", func(*scheduler.Call) (int, string) {
			pass(time.Minute)
			return 0, ""
		}, "KILL: no answer from master m:1 within 15s: context deadline exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := &fakeMaster{}
			m.script = func(n int, _ *scheduler.Call_Subscribe, s *stream) {
				s.subscribed(15 * time.Minute)
				s.stall()
			}
			m.answer = func(call *scheduler.Call) (int, string) {
				if call.Kill.TaskID.Value == "0" {
					return tt.answer(call)
				}
				return 0, ""
			}
			inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
				stop := run(t, c, r.handle)
				synctest.Wait()
				first := make(chan error, 1)
				go func() { first <- c.Do(t.Context(), kill(0)) }()
				synctest.Wait()
				c.Send(kill(1)) // queued behind, dropped with the subscription
				pass(20 * time.Second)
				synctest.Wait()
				require.EqualError(t, <-first, tt.want)
				require.NoError(t, c.Do(t.Context(), kill(2)))
				require.Equal(t, []string{"SUBSCRIBED", "disconnected: " + tt.want, "SUBSCRIBED"}, r.log())
				if tt.name == "no answer" {
					require.Len(t, m.received(), 1)
				}
				require.Equal(t, "2", m.received()[len(m.received())-1].Kill.TaskID.Value)
				require.ErrorIs(t, stop(), context.Canceled)
			})
		})
	}
}

func TestWithoutSubscriptionNothingIsSent(t *testing.T) {
	m := &fakeMaster{script: func(n int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Minute)
		s.stall()
	}}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		c.Send(kill(0))
		require.ErrorIs(t, c.Do(t.Context(), kill(1)), schedapi.ErrNotSubscribed)
		stop := run(t, c, r.handle)
		synctest.Wait()
		require.NoError(t, c.Do(t.Context(), kill(2)))
		require.Len(t, m.received(), 1)
		require.ErrorIs(t, stop(), context.Canceled)
		require.ErrorIs(t, c.Do(t.Context(), kill(3)), schedapi.ErrNotSubscribed)
	})
}

func TestDoEndsWithItsContext(t *testing.T) {
	m := &fakeMaster{script: func(n int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Minute)
		s.stall()
	}, answer: func(*scheduler.Call) (int, string) {
		pass(10 * time.Second)
		return 0, ""
	}}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		stop := run(t, c, r.handle)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, c.Do(ctx, kill(1)), context.DeadlineExceeded)
		pass(time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"SUBSCRIBED"}, r.log())
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestDoWhoseSubscriptionEnds(t *testing.T) {
	m := &fakeMaster{}
	m.script = func(n int, _ *scheduler.Call_Subscribe, s *stream) {
		s.subscribed(15 * time.Minute)
		if n == 1 {
			pass(5 * time.Second)
			return
		}
		s.stall()
	}
	m.answer = func(*scheduler.Call) (int, string) {
		pass(10 * time.Second)
		return 0, ""
	}
	inMemory(t, m, schedapi.Config{}, func(t *testing.T, c *schedapi.Client, _ *network, r *recorder) {
		stop := run(t, c, r.handle)
		synctest.Wait()
		began := time.Now()
		err := c.Do(t.Context(), kill(1))
		require.ErrorIs(t, err, schedapi.ErrNotSubscribed)
		require.EqualError(t, err, "KILL: not subscribed any more: no answer came before")
		require.Equal(t, 5*time.Second, time.Since(began))
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestTeardownEndsRun(t *testing.T) {
	// The master ends the stream before it answers.
	closed := make(chan struct{})
	m := &fakeMaster{}
	m.script = func(n int, _ *scheduler.Call_Subscribe, s *stream) {
		if n > 1 {
			s.fail("Framework has been removed")
			return
		}
		s.subscribed(15 * time.Minute)
		<-closed
	}
	m.answer = func(call *scheduler.Call) (int, string) {
		if call.Type == scheduler.Call_TEARDOWN {
			close(closed)
			pass(time.Second)
		}
		return 0, ""
	}
	synctest.Test(t, func(t *testing.T) {
		closed = make(chan struct{})
		c := newClient(t, schedapi.Config{Masters: parse(t, "m:1"), Transport: &network{hosts: map[string]http.Handler{"m:1": m}}})
		done := make(chan error, 1)
		r := &recorder{}
		go func() { done <- c.Run(t.Context(), r.handle) }()
		synctest.Wait()
		c.Send(kill(1))
		require.NoError(t, c.Do(t.Context(), &scheduler.Call{Type: scheduler.Call_TEARDOWN}))
		require.NoError(t, <-done)
		require.Equal(t, []string{"SUBSCRIBED"}, r.log())
		require.Len(t, m.received(), 2)
	})
}

func TestUpdateFrameworkOutlivesTheSubscription(t *testing.T) {
	var names []string
	again := make(chan struct{})
	m := &fakeMaster{}
	m.script = func(n int, subscribe *scheduler.Call_Subscribe, s *stream) {
		names = append(names, subscribe.FrameworkInfo.Name+" "+subscribe.FrameworkInfo.ID.GetValue())
		s.subscribed(15 * time.Minute)
		if n == 1 {
			<-again
			return
		}
		s.stall()
	}
	synctest.Test(t, func(t *testing.T) {
		again = make(chan struct{})
		c := newClient(t, schedapi.Config{Masters: parse(t, "m:1"), Transport: &network{hosts: map[string]http.Handler{"m:1": m}}})
		stop := run(t, c, func(schedapi.Event) {})
		synctest.Wait()
		info := framework()
		info.Name = "renamed"
		require.NoError(t, c.Do(t.Context(), &scheduler.Call{
			Type: scheduler.Call_UPDATE_FRAMEWORK, UpdateFramework: &scheduler.Call_UpdateFramework{FrameworkInfo: *info},
		}))
		close(again)
		pass(time.Second)
		synctest.Wait()
		require.Equal(t, []string{"test ", "renamed " + frameworkID}, names)
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestNewRefuses(t *testing.T) {
	masters := parse(t, "m:1")
	tests := []struct {
		cfg  schedapi.Config
		want string
	}{
		{schedapi.Config{Framework: framework()}, "scheduler client: no masters"},
		{schedapi.Config{Masters: masters}, "scheduler client: no framework"},
		{schedapi.Config{Masters: masters, Framework: framework(), Secret: "s"}, "scheduler client: a secret without a principal"},
	}
	for _, tt := range tests {
		_, err := schedapi.New(tt.cfg)
		require.EqualError(t, err, tt.want)
	}
}
