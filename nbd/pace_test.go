package nbd_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A pipeListener has a client waiting always.
type pipeListener struct {
	accepted []time.Time
	closed   chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	l.accepted = append(l.accepted, time.Now())
	ours, theirs := net.Pipe()
	return theirs, ours.Close()
}

func (l *pipeListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "pipes"} }

// TestServe_Pace: clients without end are accepted at the rate that is allowed, and
// a drain does not wait for it.
func TestServe_Pace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{MaxConnectionRate: 10})
		l := &pipeListener{closed: make(chan struct{})}
		served := make(chan error, 1)
		begin := time.Now()
		go func() { served <- s.Serve(l) }()
		<-time.After(10*time.Second - time.Millisecond)
		synctest.Wait()
		const burst = 16
		if n := len(l.accepted); n != 100+burst-1 {
			t.Errorf("%d connections accepted in 10s at 10 a second, want %d", n, 100+burst-1)
		}
		for i, at := range l.accepted {
			if want := max(0, i-burst+1) * 100; at.Sub(begin) != time.Duration(want)*time.Millisecond {
				t.Fatalf("connection %d accepted after %v, want %d ms", i, at.Sub(begin), want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		drain := time.Now()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
		if d := time.Since(drain); d != 0 {
			t.Errorf("the drain took %v", d)
		}
	})
}

// TestLog_ManyFailures: clients that talk nonsense do not fill the log, and none is
// forgotten.
func TestLog_ManyFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logLines
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{MaxConnections: 1})
		s.Log = slog.New(slog.NewTextHandler(&log, nil))
		nonsense := func() {
			nc := pipeTo(s)
			expect(t, nc, hello)
			if _, err := nc.Write(hx("ffffffff")); err != nil {
				t.Fatal(err)
			}
			expectEnd(t, nc)
			synctest.Wait()
		}
		const clients = 500
		for range clients {
			nonsense()
		}
		held := pipeTo(s)
		expect(t, held, hello)
		for range clients {
			expectEnd(t, pipeTo(s)) // one too many
			synctest.Wait()
		}
		if n := strings.Count(log.String(), "\n"); n != 10 {
			t.Errorf("%d lines about %d clients at once, want 10", n, 2*clients)
		}
		<-time.After(time.Minute) // the one held is gone by then
		log.text.Reset()
		nonsense()
		if got, want := log.String(), "others_untold=990"; !strings.Contains(got, want) {
			t.Errorf("a minute later: want a line with %s:\n%s", want, got)
		}
	})
}

// TestLog_OpenFails: a device that cannot be opened leaves one line in the log, too, with the cause,
// which is not for the client, and no client can make it many.
func TestLog_OpenFails(t *testing.T) {
	for name, ask := range map[string]func(h *haggler){
		"GO": func(h *haggler) {
			for range 60 {
				h.want(goTo, infoData("disk0"), "ERR_UNKNOWN")
			}
			h.write(option(goTo, infoData("disk0")))
			if _, said := readReply(h.t, h.nc, goTo); strings.Contains(string(said), "repairs") {
				h.t.Errorf("the client is told %s", said)
			}
			_ = h.nc.Close()
		},
		"EXPORT_NAME": func(h *haggler) {
			h.write(option(exportName, []byte("disk0")))
			h.ended()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := nbdtest.NewManual(4096)
				d.OpenErr = errors.New("closed for repairs")
				var log logLines
				s, _ := synctestServer(t, d, nbd.Limits{})
				s.Log = slog.New(slog.NewTextHandler(&log, nil))
				h := &haggler{t: t, nc: pipeTo(s)}
				expect(t, h.nc, hello)
				h.write(hx(fixedNoZer))
				ask(h)
				synctest.Wait()
				if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "closed for repairs") {
					t.Errorf("%d lines, want one that says why:\n%s", n, log.String())
				}
			})
		})
	}
}

// TestCrawl: clients that send a byte now and then keep what is held for them only
// while nobody else needs it.
func TestCrawl(t *testing.T) {
	for name, crawlers := range map[string]int{"plenty": 1, "scarce": 3} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const timeout = 10 * time.Second
				s, arena := synctestServer(t, nbdtest.NewMemory(1<<20), nbd.Limits{ReplyTimeout: timeout})
				write := nbdtest.Command{Type: nbdtest.CmdWrite, Length: 1 << 20, Payload: make([]byte, 1<<20)}
				begin := write.Append(nil)[:100_000]
				var clients []*nbdtest.Client
				var crawling sync.WaitGroup
				for range crawlers {
					c, err := nbdtest.NewClient(pipeTo(s), "disk0")
					if err != nil {
						t.Fatal(err)
					}
					clients = append(clients, c)
					if _, err := c.Conn.Write(begin); err != nil {
						t.Fatal(err)
					}
					crawling.Go(func() {
						for {
							if _, err := c.Conn.Write([]byte{0}); err != nil {
								return
							}
							<-time.After(timeout / 3)
						}
					})
				}
				synctest.Wait()
				if held := arena.Stats().InUseBytes; held < crawlers<<20 {
					t.Fatalf("%d bytes in use: the test does not test", held)
				}
				<-time.After(3 * timeout)
				synctest.Wait()
				gone := int(s.Snapshot().Closes[nbd.CloseTooSlow])
				if crawlers == 1 && gone != 0 || crawlers > 1 && gone == 0 {
					t.Errorf("%d of %d closed", gone, crawlers)
				}
				good, err := nbdtest.NewClient(pipeTo(s), "disk0")
				if err != nil {
					t.Fatal(err)
				}
				must(t, good, write, nbd.OK)
				if err := good.Close(); err != nil {
					t.Error(err)
				}
				for _, c := range clients {
					_ = c.Conn.Close() // the server may have been first
				}
				crawling.Wait()
				synctest.Wait()
				if n := arena.Stats().InUseBytes; n != 0 {
					t.Errorf("%d bytes in use in the end", n)
				}
			})
		})
	}
}
