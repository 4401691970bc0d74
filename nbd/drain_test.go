package nbd_test

import (
	"context"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A gated device holds the first batch of a connection back, and with it the
// reader.
type gated struct {
	*nbdtest.Memory
	arrived, open chan struct{}
}

func (g *gated) Open(c *nbd.Conn) (nbd.Session, error) {
	s, err := g.Memory.Open(c)
	return &gatedSession{Session: s, device: g}, err
}

type gatedSession struct {
	nbd.Session
	device *gated
	passed bool
}

func (s *gatedSession) Submit(batch []*nbd.Request) {
	if !s.passed {
		s.passed = true
		s.device.arrived <- struct{}{}
		<-s.device.open
	}
	s.Session.Submit(batch)
}

// TestShutdown_LastOrders: what a client has sent before the server drains is
// answered, even if nobody has read it yet.
func TestShutdown_LastOrders(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, async := range []bool{false, true} {
			t.Run(network+map[bool]string{true: "/async"}[async], func(t *testing.T) {
				d := &gated{Memory: nbdtest.NewMemory(1 << 20), arrived: make(chan struct{}), open: make(chan struct{})}
				d.Async = async
				s := newServer(t, d, nbd.Limits{})
				c := s.client(network)
				const commands = 100
				read := func(cookie int) nbdtest.Command {
					return nbdtest.Command{Type: nbdtest.CmdRead, Cookie: uint64(cookie), Length: 512}
				}
				if err := c.Send(read(0)); err != nil {
					t.Fatal(err)
				}
				<-d.arrived
				for i := 1; i < commands; i++ {
					if err := c.Send(read(i)); err != nil {
						t.Fatal(err)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- s.Shutdown(ctx) }()
				expectRefused(t, s) // it drains now
				close(d.open)
				for range commands {
					if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
						t.Fatalf("%s, %v", r.Errno, err)
					}
				}
				expectEnd(t, c.Conn)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// expectRefused waits until the server's listener is closed.
func expectRefused(t *testing.T, s *testServer) {
	t.Helper()
	if err := <-s.served; err == nil {
		t.Fatal("Serve returned no error")
	} else {
		s.served <- err // for the end of the test
	}
}
