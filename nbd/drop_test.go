package nbd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
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

// TestDrop_Counts: requests that succeeded without the client's being told do not count as
// answered, nor do their bytes and times; requests that failed do. Nothing stays in flight.
func TestDrop_Counts(t *testing.T) {
	for _, dia := range dialects() {
		t.Run(dia.name, func(t *testing.T) {
			d := nbdtest.NewManual(1 << 20)
			s := newServer(t, d, nbd.Limits{})
			c := s.speak("unix", dia)
			read := func(cookie uint64) *nbd.Request {
				t.Helper()
				if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: cookie, Length: 4096}); err != nil {
					t.Fatal(err)
				}
				return <-d.Requests
			}
			told := read(1)
			told.FollowReply()
			nbdtest.Complete(told, nbd.OK)
			if r := get(t, c); r.Errno != nbd.OK {
				t.Fatal(r.Errno)
			}
			untold, failed, last := read(2), read(3), read(4)
			if n := s.Drop("disk0").Count(); n != 1 {
				t.Fatalf("%d connections dropped, want 1", n)
			}
			untold.FollowReply()
			nbdtest.Complete(untold, nbd.OK)
			nbdtest.Complete(failed, nbd.EIO)
			o := s.waitStats("failed read", func(st nbd.Stats) bool {
				return st.Exports[0].Ops[nbd.OpRead].Errors == 1
			}).Exports[0].Ops[nbd.OpRead]
			if o.InFlight != 1 {
				t.Errorf("%d in flight while one is with the device", o.InFlight)
			}
			nbdtest.Complete(last, nbd.OK)
			<-d.Closed
			st := s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
			o = st.Exports[0].Ops[nbd.OpRead]
			if o.Requests != 2 || o.Errors != 1 || o.Bytes != 4096 || o.InFlight != 0 {
				t.Errorf("%d requests, %d errors, %d bytes, %d in flight; want 2, 1, 4096 and none", o.Requests, o.Errors, o.Bytes, o.InFlight)
			}
			n := uint64(0)
			for _, b := range o.Latency {
				n += b
			}
			if n != o.Requests {
				t.Errorf("%d times of %d requests", n, o.Requests)
			}
			if n := st.ReplyTimes[nbd.OpRead].Count(); n != 1 {
				t.Errorf("%d replies were followed to the client, want 1", n)
			}
		})
	}
}

// TestDrop_HalfSent: of replies that go out together, those count as answered that have left
// whole when the connection ends, in one Write with others or not.
func TestDrop_HalfSent(t *testing.T) {
	for _, dia := range dialects() {
		for _, length := range []uint32{4 << 10, 100 << 10} {
			testHalfSent(t, dia, length)
		}
	}
}

func testHalfSent(t *testing.T, dia dialect, length uint32) {
	t.Run(fmt.Sprintf("%s/%d", dia.name, length), func(t *testing.T) {
		d := nbdtest.NewManual(1 << 20)
		s := newServer(t, d, nbd.Limits{})
		c := s.speak("pipe", dia)
		var rs []*nbd.Request
		for cookie := range uint64(3) {
			if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: cookie, Length: length}); err != nil {
				t.Fatal(err)
			}
			rs = append(rs, <-d.Requests)
		}
		conn := rs[0].Conn()
		for _, r := range rs {
			r.FollowReply()
			r.Complete(nbd.OK)
		}
		conn.Flush()
		if r := get(t, c); r.Errno != nbd.OK || len(r.Data) != int(length) {
			t.Fatalf("%v, %d bytes", r.Errno, len(r.Data))
		}
		// The pipe holds nothing: what has come has left, and the second reply has begun.
		if _, err := io.ReadFull(c.Conn, make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		s.Drop("disk0")
		<-d.Closed
		st := s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
		o := st.Exports[0].Ops[nbd.OpRead]
		if o.Requests != 1 || o.Bytes != uint64(length) || o.InFlight != 0 {
			t.Errorf("%d requests, %d bytes, %d in flight; want 1, %d and none", o.Requests, o.Bytes, o.InFlight, length)
		}
		if n := st.ReplyTimes[nbd.OpRead].Count(); n != 1 {
			t.Errorf("%d replies were followed to the client, want 1", n)
		}
	})
}

// An opening device lets Open begin and go on when the test says so.
type opening struct {
	*nbdtest.Memory
	opens, goOn chan struct{}
}

func (d *opening) Open(c *nbd.Conn) (nbd.Session, error) {
	d.opens <- struct{}{}
	<-d.goOn
	return d.Memory.Open(c)
}

// TestDrop_Entering: a connection that is about to use the export is dropped, too: its session
// may have begun before whatever the drop is for.
func TestDrop_Entering(t *testing.T) {
	d := &opening{Memory: nbdtest.NewMemory(4096), opens: make(chan struct{}), goOn: make(chan struct{})}
	s := newServer(t, d, nbd.Limits{})
	var log logLines
	s.Log = slog.New(slog.NewJSONHandler(&log, nil))
	h := s.haggle(t, "unix")
	h.write(option(goTo, infoData("disk0")))
	<-d.opens
	if n := s.Drop("another").Count(); n != 0 {
		t.Errorf("%d connections dropped that use another export", n)
	}
	dropped := s.Drop("disk0")
	if n := dropped.Count(); n != 1 {
		t.Errorf("%d connections dropped, want 1", n)
	}
	close(d.goOn)
	h.ended()
	if err := dropped.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	st := s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
	if n := st.NegotiationFailures[nbd.NegotiationBroken]; n != 1 {
		t.Errorf("failures %v, want one that was broken off", st.NegotiationFailures)
	}
	if got := log.String(); !strings.Contains(got, `"reason":"broken","detail":"dropped with the connections of its export"`) {
		t.Errorf("the log has %s", got)
	}
}
