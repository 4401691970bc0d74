package nbd_test

import (
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
	if n := s.Drop("no such export"); n != 0 {
		t.Errorf("%d connections dropped that use another export", n)
	}
	if n := s.Drop(s.Snapshot().Connections[0].Export); n != 1 {
		t.Errorf("%d connections dropped, want 1", n)
	}
	expectEnd(t, c.Conn)
	nbdtest.Complete(r, nbd.OK)
	<-d.Closed
	s.waitStats("close", func(st nbd.Stats) bool { return st.Closes[nbd.CloseDropped] == 1 })
}
