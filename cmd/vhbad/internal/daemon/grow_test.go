package daemon

import (
	"bytes"
	"net"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestGrow_EveryWayToAsk: after a disk has grown the new size is told to a handshake
// that had been told the old one, to a new connection, and by BLOCK_STATUS to one that
// has been in transmission all the time.
func TestGrow_EveryWayToAsk(t *testing.T) {
	const before, after = 1 << 20, 3<<20 + 4096
	s := newSettings(t, "m=memory:1MiB", "f=file:$DIR/f.img,size=1MiB", "c=file:$DIR/c.img,size=1MiB,cache=writeback")
	d, _ := s.mustStart(t)
	ctl := s.control(t)
	hello := func() *nbdConn {
		nc, err := net.Dial("unix", s.socket())
		if err != nil {
			t.Fatal(err)
		}
		c, err := greet(t, nc)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	wantSize := func(who string, c *nbdConn, option uint32, export string, want uint64) {
		t.Helper()
		c.sizeBytes = 0
		if _, err := c.option(option, exportData(export)); err != nil || c.sizeBytes != want {
			t.Errorf("%s: %s has %d bytes, %v; want %d", who, export, c.sizeBytes, err, want)
		}
	}
	for _, export := range []string{"m", "f", "c"} {
		negotiating := hello()
		wantSize("before", negotiating, optInfo, export, before)
		live := make([]*nbdtest.Client, 0, 2)
		for _, f := range formats[1:] {
			c := s.speak(t, export, f)
			ask(t, c, nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: after}, nbd.EINVAL)
			live = append(live, c)
		}

		if _, err := ctl.GrowDisk(t.Context(), export, after); err != nil {
			t.Fatal(err)
		}

		wantSize("the same handshake", negotiating, optInfo, export, after)
		wantSize("another", hello(), optInfo, export, after)
		wantSize("the same goes on", negotiating, optGo, export, after)
		data := bytes.Repeat([]byte("z"), 4096)
		if _, err := negotiating.do(cmdWrite, after-8192, len(data), data); err != nil {
			t.Errorf("%s: a write to the new part: %v", export, err)
		}
		if _, err := negotiating.do(cmdFlush, 0, 0, nil); err != nil {
			t.Errorf("%s: flush: %v", export, err)
		}
		for i, c := range live {
			told := ask(t, c, nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: after}, nbd.OK).Extents[c.Contexts[allocation]]
			var at uint64
			var state nbd.ExtentState
			for _, e := range told {
				if at <= after-8192 && at+e.Length > after-8192 {
					state = e.State
				}
				at += e.Length
			}
			if at != after || state != 0 {
				t.Errorf("%s, %s: block status up to %d, want %d; state %#x of what was written there", export, formats[1+i].name, at, after, state)
			}
			ask(t, c, nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: after + 1}, nbd.EINVAL)
		}
	}
	noViolations(t, machineOf(d))
}
