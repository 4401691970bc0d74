package nbd_test

import (
	"net"
	"testing"
	"time"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A fencedDevice is a Manual whose sessions note what happens to their fences.
type fencedDevice struct {
	*nbdtest.Manual
	events chan string
}

func (d *fencedDevice) Open(c *nbd.Conn) (nbd.Session, error) {
	s, err := d.Manual.Open(c)
	return &fencedSession{s, d, c}, err
}

// expect waits for events, in that order.
func (d *fencedDevice) expect(t *testing.T, events ...string) {
	t.Helper()
	for _, want := range events {
		select {
		case got := <-d.events:
			if got != want {
				t.Errorf("%q, want %q", got, want)
			}
		case <-time.After(deadline):
			t.Fatalf("no %s", want)
		}
	}
}

type fencedSession struct {
	nbd.Session
	d *fencedDevice
	c *nbd.Conn
}

func (s *fencedSession) Fence() {
	if s.c.Alive() { // else its client may know by now
		s.d.events <- "fence"
	} else {
		s.d.events <- "late fence"
	}
}

func (s *fencedSession) NarrowFence() { s.d.events <- "narrow" }

func (s *fencedSession) Close() {
	s.Session.Close()
	s.d.events <- "close"
}

// TestFence: the fence of a session goes up before the client can see that its connection
// has ended, and is made narrow while its requests are still under way.
func TestFence(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(s *testServer, c *nbdtest.Client) error
		want []string
	}{
		"dropped": {func(s *testServer, _ *nbdtest.Client) error {
			s.Drop("disk0")
			return nil
		}, []string{"fence", "narrow"}},
		"client gone": {func(_ *testServer, c *nbdtest.Client) error { return c.Conn.Close() }, []string{"narrow", "fence"}},
		"bad magic": {func(_ *testServer, c *nbdtest.Client) error {
			_, err := c.Conn.Write(make([]byte, 28))
			return err
		}, []string{"narrow", "fence"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := &fencedDevice{nbdtest.NewManual(1 << 20), make(chan string, 16)}
			s := newServer(t, d, nbd.Limits{})
			c := s.client("unix")
			if err := c.Send(nbdtest.Command{Type: nbdtest.CmdFlush}); err != nil {
				t.Fatal(err)
			}
			r := <-d.Requests
			if err := tt.end(s, c); err != nil {
				t.Fatal(err)
			}
			d.expect(t, tt.want...)
			nbdtest.Complete(r, nbd.OK)
			d.expect(t, "close")
		})
	}
	t.Run("client says so", func(t *testing.T) {
		d := &fencedDevice{nbdtest.NewManual(1 << 20), make(chan string, 16)}
		s := newServer(t, d, nbd.Limits{})
		c := s.client("unix")
		if err := c.Send(nbdtest.Command{Type: nbdtest.CmdFlush}, nbdtest.Command{Type: nbdtest.CmdDisc}); err != nil {
			t.Fatal(err)
		}
		r := <-d.Requests
		d.expect(t, "narrow", "fence") // as soon as nothing more can come
		nbdtest.Complete(r, nbd.OK)
		if r := get(t, c); r.Errno != nbd.OK {
			t.Error(r.Errno)
		}
		d.expect(t, "close")
		expectEnd(t, c.Conn)
	})
}

// TestFence_Waits: the fence goes up as soon as the client has gone though the reader waits, for
// a slot or for memory, and what it has not read is left alone after a while, since others
// wait for it.
func TestFence_Waits(t *testing.T) {
	const long = 256 << 10
	for name, limits := range map[string]nbd.Limits{
		"for a slot":       {MaxRequests: 1},
		"for its budget":   {MaxBytesInFlight: long},
		"for all's memory": {},
	} {
		t.Run(name, func(t *testing.T) {
			d := &fencedDevice{nbdtest.NewManual(1 << 20), make(chan string, 16)}
			s := newServer(t, d, limits)
			c := s.client("unix")
			read := nbdtest.Command{Type: nbdtest.CmdRead, Length: long}
			if err := c.Send(read); err != nil {
				t.Fatal(err)
			}
			r := <-d.Requests
			if limits == (nbd.Limits{}) {
				for _, b := range takeAll(s.Arena) {
					defer s.Arena.Free(b)
				}
			}
			if err := c.Send(read); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if err := c.Conn.Close(); err != nil {
				t.Fatal(err)
			}
			d.expect(t, "fence", "narrow")
			if d := time.Since(began); d < 900*time.Millisecond {
				t.Errorf("it was given up after %v: there might have been a slot or memory", d)
			}
			nbdtest.Complete(r, nbd.OK)
			d.expect(t, "close")
			if n := len(d.Requests); n != 0 {
				t.Errorf("%d requests were carried out all the same", n)
			}
			s.waitStats("end", func(st nbd.Stats) bool { return st.Closes[nbd.CloseEOF] == 1 })
		})
	}
}

// TestFence_WaitsForDisc: what a client sends before its DISC is done though it closes its half
// while the reader waits, if that does not take a second.
func TestFence_WaitsForDisc(t *testing.T) {
	for !t.Failed() && !waitsForDisc(t) {
		t.Log("it took a second, once more")
	}
}

// waitsForDisc returns false if it took so long that the reader was not to wait.
func waitsForDisc(t *testing.T) bool {
	t.Helper()
	d := &fencedDevice{nbdtest.NewManual(1 << 20), make(chan string, 16)}
	s := newServer(t, d, nbd.Limits{MaxRequests: 1})
	c := s.client("unix")
	flush := nbdtest.Command{Type: nbdtest.CmdFlush}
	if err := c.Send(flush, flush, flush, nbdtest.Command{Type: nbdtest.CmdDisc}); err != nil {
		t.Fatal(err)
	}
	r := <-d.Requests
	begun := time.Now()
	if err := c.Conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	d.expect(t, "fence")
	nbdtest.Complete(r, nbd.OK)
	for range 2 {
		select {
		case r := <-d.Requests:
			nbdtest.Complete(r, nbd.OK)
		case got := <-d.events:
			if time.Since(begun) < time.Second {
				t.Errorf("%q with requests to come", got)
			}
			return false
		}
	}
	for range 3 {
		if r := get(t, c); r.Errno != nbd.OK {
			t.Error(r.Errno)
		}
	}
	d.expect(t, "narrow", "close")
	expectEnd(t, c.Conn)
	return true
}
