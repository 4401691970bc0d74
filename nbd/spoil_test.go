package nbd_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestBadCookie: the reply carries another cookie, in every format, with data and
// without; replies before and behind it are as ever.
func TestBadCookie(t *testing.T) {
	for _, dia := range dialects() {
		t.Run(dia.name, func(t *testing.T) {
			d := nbdtest.NewManual(4 << 20)
			s := newServer(t, d, nbd.Limits{})
			c := s.speak("unix", dia)
			// stray is whether the client has got a reply to what it has not sent.
			stray := func(want uint64) bool {
				got, err := c.Receive()
				if err == nil {
					return got.Cookie == want
				}
				return strings.Contains(err.Error(), fmt.Sprintf("%#x, which is not in flight", want))
			}
			for cookie := range uint64(3) {
				if err := c.Send(nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: cookie}); err != nil {
					t.Fatal(err)
				}
				r := <-d.Requests
				if cookie == 1 {
					r.BadCookie()
					r.BadCookie() // once for each command that the request took
					nbdtest.Complete(r, nbd.OK)
					if !stray(^cookie) {
						t.Error("the reply does not carry another cookie")
					}
					continue
				}
				nbdtest.Complete(r, nbd.OK)
				if got, err := c.Receive(); err != nil || got.Cookie != cookie {
					t.Errorf("reply to %d: cookie %#x, %v", cookie, got.Cookie, err)
				}
			}
			if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 5, Length: 4096}); err != nil {
				t.Fatal(err)
			}
			r := <-d.Requests
			r.BadCookie()
			nbdtest.Complete(r, nbd.OK)
			if !stray(^uint64(5)) {
				t.Error("data do not come with another cookie")
			}
		})
	}
}

// slow is a device that lets clients wait.
type slow struct {
	*nbdtest.Memory
	wait           time.Duration
	asked, stopped atomic.Int32
}

func (s *slow) Greet(over func()) (stop func() bool) {
	s.asked.Add(1)
	timer := time.AfterFunc(s.wait, over)
	return func() bool {
		s.stopped.Add(1)
		return timer.Stop()
	}
}

// TestGreeter: a client waits as long as the device wants, but not longer than it may
// take for the handshake, nor than the server is there; nobody waits for it meanwhile,
// and the export may go.
func TestGreeter(t *testing.T) {
	const most = 10 * time.Second // the default for a handshake
	begin := func(t *testing.T, wait time.Duration) (*nbd.Server, *slow, *haggler) {
		t.Helper()
		d := &slow{Memory: nbdtest.NewMemory(4096), wait: wait}
		s, _ := synctestServer(t, d, nbd.Limits{})
		h := &haggler{t: t, nc: pipeTo(s)}
		expect(t, h.nc, hello)
		h.write(hx(fixedNoZer))
		h.write(option(goTo, infoData("disk0")))
		synctest.Wait()
		if n := d.asked.Load(); n != 1 {
			t.Fatalf("the device was asked %d times, want once", n)
		}
		return s, d, h
	}
	t.Run("waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			at := time.Now()
			s, _, h := begin(t, 3*time.Second)
			if typ, data := readReply(t, h.nc, goTo); replyInWords(t, typ, data) == "" {
				t.Error("no reply")
			}
			if took := time.Since(at); took != 3*time.Second {
				t.Errorf("the answer took %v, want 3s", took)
			}
			_ = h.nc.Close()
			_ = s.Shutdown(t.Context())
		})
	})
	t.Run("too long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			at := time.Now()
			s, d, h := begin(t, time.Hour)
			expectEnd(t, h.nc)
			if n := d.stopped.Load(); n != 1 {
				t.Errorf("the device was told %d times that the wait is over, want once", n)
			}
			if took := time.Since(at); took != most {
				t.Errorf("closed after %v, want %v", took, most)
			}
			synctest.Wait()
			if n := s.Snapshot().NegotiationFailures[nbd.NegotiationTimeout]; n != 1 {
				t.Errorf("%d clients counted as too slow, want 1", n)
			}
			_ = s.Shutdown(t.Context())
		})
	})
	t.Run("shutdown", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, _, h := begin(t, time.Hour)
			at := time.Now()
			drained := make(chan error, 1)
			go func() { drained <- s.Shutdown(t.Context()) }()
			if typ, data := readReply(t, h.nc, goTo); replyInWords(t, typ, data) != "ERR_SHUTDOWN" {
				t.Errorf("reply %s, want ERR_SHUTDOWN", replyInWords(t, typ, data))
			}
			h.ended()
			if err := <-drained; err != nil {
				t.Error(err)
			}
			if took := time.Since(at); took > time.Second {
				t.Errorf("the drain took %v", took)
			}
		})
	})
	t.Run("the export goes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			at := time.Now()
			s, d, h := begin(t, 3*time.Second)
			set, ok := s.Exports.(*nbd.ExportSet)
			if !ok {
				t.Fatal("no set of exports")
			}
			if n := s.Users(d); n != 0 {
				t.Errorf("the client that waits counts among %d users, want none", n)
			}
			if err := set.Replace(nbd.Export{Name: "another", Device: nbdtest.NewMemory(4096)}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.DrainDevice(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			if waited := time.Since(at); waited != 0 {
				t.Errorf("the drain waited %v for a client that does not use the device", waited)
			}
			if typ, data := readReply(t, h.nc, goTo); replyInWords(t, typ, data) != "ERR_UNKNOWN" {
				t.Errorf("reply %s, want ERR_UNKNOWN", replyInWords(t, typ, data))
			}
			if took := time.Since(at); took != 3*time.Second {
				t.Errorf("the answer took %v, want 3s", took)
			}
			_ = h.nc.Close()
			_ = s.Shutdown(t.Context())
		})
	})
}

// TestGreeter_RulesChange: what counts for clients to come counts for one that is still waiting for
// its export, too.
func TestGreeter_RulesChange(t *testing.T) {
	for name, tt := range map[string]struct {
		change nbd.Export
		want   string
		reason nbd.NegotiationFailure
	}{
		"TLS only":    {nbd.Export{TLSOnly: true}, "ERR_POLICY", nbd.NegotiationTLSRequired}, // there is no TLS
		"names":       {nbd.Export{AllowedNames: []string{"somebody"}}, "ERR_POLICY", nbd.NegotiationTLSRequired},
		"connections": {nbd.Export{MaxConnections: 1}, "ERR_POLICY", nbd.NegotiationTooManyOfExport},
		"hidden":      {nbd.Export{Hidden: true, MaxConnections: 2}, "EXPORT 4096 0x56d; ACK", nbd.NegotiationFailureCount},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &slow{Memory: nbdtest.NewMemory(4096), wait: time.Second}
				s, _ := synctestServer(t, d, nbd.Limits{})
				if _, err := nbdtest.NewClient(pipeTo(s), "disk0"); err != nil {
					t.Fatal(err)
				}
				h := &haggler{t: t, nc: pipeTo(s)}
				expect(t, h.nc, hello)
				h.write(hx(fixedNoZer))
				time.AfterFunc(time.Second/2, func() {
					e := tt.change
					e.Name, e.Device = "disk0", d
					if err := s.Exports.(*nbd.ExportSet).Replace(e); err != nil {
						t.Error(err)
					}
				})
				h.want(goTo, infoData("disk0"), tt.want)
				_ = h.nc.Close()
				synctest.Wait()
				if tt.reason != nbd.NegotiationFailureCount && s.Snapshot().NegotiationFailures[tt.reason] != 1 {
					t.Errorf("failures %v, want one for %v", s.Snapshot().NegotiationFailures, tt.reason)
				}
				_ = s.Shutdown(t.Context())
			})
		})
	}
}

// TestGreeter_Leaves: a client that closes while it has to wait is given up at once, and its
// place is another's. It makes no difference what it has sent before, which stays unread.
func TestGreeter_Leaves(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, ahead := range []string{"", hxs("what belongs to the transmission")} {
			t.Run(fmt.Sprintf("%s/%d bytes ahead", network, len(ahead)/2), func(t *testing.T) {
				d := &slow{Memory: nbdtest.NewMemory(4096), wait: time.Hour}
				s := newServer(t, d, nbd.Limits{HandshakeTimeout: time.Hour, MaxConnections: 2})
				wait := func(waits int32) *haggler {
					h := &haggler{t: t, nc: s.dial(network)}
					expect(t, h.nc, hello)
					h.write(hx(fixedNoZer))
					h.write(option(goTo, infoData("disk0")))
					s.waitStats("client that waits", func(nbd.Stats) bool { return d.asked.Load() == waits })
					return h
				}
				stays, leaves := wait(1), wait(2)
				leaves.write(hx(ahead))
				_ = leaves.nc.Close()
				s.waitStats("client given up", func(st nbd.Stats) bool {
					return st.NegotiationFailures[nbd.NegotiationBroken] == 1 && d.stopped.Load() == 1
				})
				wait(3) // there is a place for it
				if d.stopped.Load() != 1 {
					t.Error("clients that are there do not wait any more")
				}
				stays.write(option(goTo, infoData("disk0"))) // no reason to end its wait, either
				closed := make(chan struct{})
				go func() {
					defer close(closed)
					s.close()
				}()
				if typ, data := readReply(t, stays.nc, goTo); replyInWords(t, typ, data) != "ERR_SHUTDOWN" {
					t.Errorf("reply %s, want ERR_SHUTDOWN", replyInWords(t, typ, data))
				}
				<-closed
			})
		}
	}
}

// TestHandshake_NoMemoryLeaves: a client that closes while it has to wait for memory is given up
// at once, and its place is another's.
func TestHandshake_NoMemoryLeaves(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			s := newServer(t, nbdtest.NewMemory(4096), nbd.Limits{HandshakeTimeout: time.Hour, MaxConnections: 1})
			taken := takeAll(s.Arena)
			wait := func() *haggler {
				h := s.haggle(t, network)
				h.write(option(goTo, infoData("disk0")))
				s.waitStats("client that waits", func(nbd.Stats) bool { return s.Arena.Stats().Waiters == 1 })
				return h
			}
			_ = wait().nc.Close()
			s.waitStats("client given up", func(st nbd.Stats) bool {
				return st.NegotiationFailures[nbd.NegotiationBroken] == 1 && st.ConnectionsOpen == 0
			})
			h := wait() // there is a place for it
			for _, b := range taken {
				s.Arena.Free(b)
			}
			if typ, data := readReply(t, h.nc, goTo); replyInWords(t, typ, data) == "" {
				t.Error("no reply")
			}
			_ = h.nc.Close()
		})
	}
}
