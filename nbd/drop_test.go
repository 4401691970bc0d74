package nbd_test

import (
	"context"
	"errors"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestDrop: the connections of an export end without an answer, others stay.
func TestDrop(t *testing.T) {
	d := nbdtest.NewManual(1 << 20)
	s := newServer(t, d, nbd.Limits{})
	c := s.client("unix")
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdFlush}); err != nil {
		t.Fatal(err)
	}
	r := <-d.Requests
	if n := s.Drop("no such export").Count(); n != 0 {
		t.Errorf("%d connections dropped that use another export", n)
	}
	dropped := s.Drop(s.Snapshot().Connections[0].Export)
	if n := dropped.Count(); n != 1 {
		t.Errorf("%d connections dropped, want 1", n)
	}
	expectEnd(t, c.Conn)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := dropped.Wait(over); !errors.Is(err, context.Canceled) {
		t.Errorf("wait with a request in flight: %v, want the context's error", err)
	}
	nbdtest.Complete(r, nbd.OK)
	if err := dropped.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case <-d.Closed:
	default:
		t.Error("the session is not closed")
	}
	s.waitStats("close", func(st nbd.Stats) bool { return st.Closes[nbd.CloseDropped] == 1 })
}
