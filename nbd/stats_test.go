package nbd_test

import (
	"math"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestSnapshot_Ops checks every counter of a short session, alive and closed.
func TestSnapshot_Ops(t *testing.T) {
	d := nbdtest.NewManual(1 << 20)
	s := newServer(t, d, nbd.Limits{})
	c := s.client("unix")
	blame, follow := nbd.BlameNone, false
	send := func(cmd nbdtest.Command, errno nbd.Errno) {
		t.Helper()
		if err := c.Send(cmd); err != nil {
			t.Fatal(err)
		}
		r := <-d.Requests
		r.Blame(blame)
		if follow {
			r.FollowReply()
		}
		nbdtest.Complete(r, errno)
		if r, err := c.Receive(); err != nil || r.Errno != errno {
			t.Fatalf("%v, %v", r.Errno, err)
		}
	}
	send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 4096}, nbd.OK)
	blame, follow = nbd.BlameAborted, true
	send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 2, Length: 4096}, nbd.EIO)
	blame, follow = nbd.BlameInjected, false
	send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 2, Length: 4096}, nbd.EIO)
	blame = nbd.BlameNone
	send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 2, Length: 4096}, nbd.EIO)
	send(nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 3, Length: 3, Payload: []byte("abc")}, nbd.OK)
	send(nbdtest.Command{Type: nbdtest.CmdTrim, Cookie: 4, Length: 1 << 16}, nbd.OK)
	must(t, c, nbdtest.Command{Type: 77, Cookie: 5}, nbd.EINVAL)
	must(t, c, nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Offset: 1 << 20, Cookie: 6, Length: 1}, nbd.ENOSPC)
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 7}); err != nil {
		t.Fatal(err)
	}
	last := <-d.Requests

	type counts struct{ requests, errors, bytes, inFlight, aborted, injected uint64 }
	check := func(st nbd.Stats, want map[nbd.Op]counts) {
		t.Helper()
		if len(st.Exports) != 1 || st.Exports[0].Name != "disk0" {
			t.Fatalf("exports %+v", st.Exports)
		}
		for op, o := range st.Exports[0].Ops {
			got := counts{o.Requests, o.Errors, o.Bytes, o.InFlight, o.Aborted, o.Injected}
			if got != want[nbd.Op(op)] {
				t.Errorf("%v: got %+v, want %+v", nbd.Op(op), got, want[nbd.Op(op)])
			}
			var n uint64
			for _, b := range o.Latency {
				n += b
			}
			if n != o.Requests {
				t.Errorf("%v: histogram has %d requests, want %d", nbd.Op(op), n, o.Requests)
			}
			if (o.LatencySum > 0) != (o.Requests > 0) {
				t.Errorf("%v: latency sum %v of %d requests", nbd.Op(op), o.LatencySum, o.Requests)
			}
		}
	}
	want := map[nbd.Op]counts{
		nbd.OpRead:        {requests: 4, errors: 3, bytes: 4096, aborted: 1, injected: 1},
		nbd.OpWrite:       {requests: 1, bytes: 3},
		nbd.OpTrim:        {requests: 1, bytes: 1 << 16},
		nbd.OpWriteZeroes: {requests: 1, errors: 1},
		nbd.OpFlush:       {inFlight: 1},
		nbd.OpCount:       {requests: 1, errors: 1}, // unknown commands
	}
	// The counters are stored right after the reply is sent.
	st := s.waitStats("counts", func(st nbd.Stats) bool {
		return len(st.Connections) == 1 && st.Connections[0].Requests == 8
	})
	check(st, want)
	for op := range st.ReplyTimes {
		n := uint64(0)
		if nbd.Op(op) == nbd.OpRead {
			n = 1
		}
		if h := &st.ReplyTimes[op]; h.Count() != n || (h.Sum > 0) != (n > 0) {
			t.Errorf("%v: %d replies were followed, %v in all; want %d", nbd.Op(op), h.Count(), h.Sum, n)
		}
	}
	cs := st.Connections[0]
	const requests = 9*28 + 3
	const replies = 8*16 + 4096
	if cs.Export != "disk0" || !cs.Transmitting || cs.InFlight != 1 || cs.ReceivedBytes != requests || cs.SentBytes != replies {
		t.Errorf("connection %+v, want %d bytes received, %d sent", cs, requests, replies)
	}

	nbdtest.Complete(last, nbd.OK)
	if _, err := c.Receive(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	st = s.waitStats("close", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
	want[nbd.OpFlush] = counts{requests: 1}
	check(st, want)
	if st.ConnectionsTotal != 1 || st.ReceivedBytes != requests+28 || st.SentBytes != replies+16 || st.Exports[0].Connections != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestLatencyBound(t *testing.T) {
	if got := nbd.LatencyBound(-nbd.LatencyMinIndex); got != 1 {
		t.Errorf("the bound with native index 0 is %v s, want 1", got)
	}
	if got := nbd.LatencyBound(nbd.LatencyBuckets - 1); got != 64 {
		t.Errorf("the last bound is %v s, want 64", got)
	}
	for i := 1; i < nbd.LatencyBuckets; i++ {
		if ratio := nbd.LatencyBound(i) / nbd.LatencyBound(i-1); math.Abs(ratio-math.Exp2(0.25)) > 1e-9 {
			t.Fatalf("bounds %d and %d have ratio %v", i-1, i, ratio)
		}
	}
}

func TestStrings(t *testing.T) {
	seen := make(map[string]bool)
	add := func(s string) {
		t.Helper()
		if s == "" || s == "none" || seen[s] {
			t.Errorf("%q is empty, none or used twice", s)
		}
		seen[s] = true
	}
	for i := range nbd.NegotiationFailureCount {
		add("negotiation " + i.String())
	}
	for i := range nbd.CloseReasonCount {
		add("close " + i.String())
	}
	for i := range nbd.OpCount + 1 {
		add("op " + i.String())
	}
	for _, e := range []nbd.Errno{nbd.OK, nbd.EPERM, nbd.EIO, nbd.ENOMEM, nbd.EINVAL, nbd.ENOSPC, nbd.EOVERFLOW, nbd.ENOTSUP, nbd.ESHUTDOWN, 99} {
		add("errno " + e.String())
	}
}
