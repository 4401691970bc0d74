package road

import (
	"bytes"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
	"github.com/vhbad/vhbad/port"
)

// Whatever a client has at a unit that hangs and that no reset brings back is
// answered, on each connection, and connections end without it. The device keeps the
// memory: what it writes there when it goes on at last is nobody else's. Then the disk
// works again, for those who were there before, too.
func TestFaults_GivenUp(t *testing.T) {
	t.Parallel()
	w := newRoad(t, shape{
		queues: 2, sizeBytes: 1 << 20, options: miniport.Options{ResetTimeout: 20 * time.Millisecond},
		patience: port.AdapterOptions{DefaultTimeoutSecs: 1, ResetTimeout: 50 * time.Millisecond},
	})
	const length = 4096
	long := bytes.Repeat([]byte{0x5a}, length)
	stay, leave := w.client(), w.client()
	if r := do(t, stay, nbdtest.Command{Type: nbdtest.CmdWrite, Length: length, Payload: long}); r.Errno != nbd.OK {
		t.Fatal(r.Errno)
	}
	w.faults(
		fault.Rule{Action: fault.Action{Kind: fault.KindHang}},
		fault.Rule{Match: fault.Match{Op: fault.Ops{"reset"}}, Action: fault.Action{Kind: fault.KindResetFails, Silent: true}},
		fault.Rule{Match: fault.Match{Op: fault.Ops{"reset-bus"}}, Action: fault.Action{Kind: fault.KindResetFails}},
	)
	// Of each command one, whole blocks and parts of blocks, more of them than can run
	// at a time: those of parts wait for one another.
	var batch []nbdtest.Command
	add := func(c nbdtest.Command) {
		c.Cookie = uint64(100 + len(batch))
		batch = append(batch, c)
	}
	for i := range uint64(4) {
		at := 8192 + i*2*length
		add(nbdtest.Command{Type: nbdtest.CmdRead, Offset: at, Length: length})
		add(nbdtest.Command{Type: nbdtest.CmdWrite, Offset: at, Length: length, Payload: long})
		add(nbdtest.Command{Type: nbdtest.CmdRead, Offset: at + 100, Length: 700})
		add(nbdtest.Command{Type: nbdtest.CmdWrite, Offset: at + 100, Length: 700, Payload: long[:700]})
		add(nbdtest.Command{Type: nbdtest.CmdWrite, Flags: nbdtest.FlagFUA, Offset: at, Length: length, Payload: long})
		add(nbdtest.Command{Type: nbdtest.CmdTrim, Offset: at, Length: length})
		add(nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Offset: at, Length: length})
		add(nbdtest.Command{Type: nbdtest.CmdCache, Offset: at, Length: length})
		add(nbdtest.Command{Type: nbdtest.CmdFlush})
	}
	clients := []*nbdtest.Client{stay, leave}
	for _, c := range clients {
		if err := c.Send(batch...); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range clients {
		for range batch {
			r, err := c.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if r.Errno != nbd.ESHUTDOWN {
				t.Errorf("client %d, command %d: %v, want ESHUTDOWN", i, batch[r.Cookie-100].Type, r.Errno)
			}
		}
	}
	if s := w.adapter.LogicalUnits()[0].Stats(); s.Abandoned == 0 {
		t.Error("nothing was abandoned: the device has answered")
	}
	if err := leave.Send(nbdtest.Command{Type: nbdtest.CmdDisc}); err != nil {
		t.Fatal(err)
	}
	if _, err := leave.Receive(); err == nil {
		t.Error("the connection goes on after DISC")
	}
	newcomer := w.client()
	for _, cmd := range []nbdtest.Command{{Type: nbdtest.CmdRead, Length: 512}, {Type: nbdtest.CmdFlush}} {
		if r := do(t, newcomer, cmd); r.Errno != nbd.ESHUTDOWN {
			t.Errorf("command %d of a new client: %v, want ESHUTDOWN", cmd.Type, r.Errno)
		}
	}
	w.faults()
	for r := nbd.ESHUTDOWN; r != nbd.OK; {
		r = do(t, stay, nbdtest.Command{Type: nbdtest.CmdRead, Length: 512}).Errno
	}
	// Two rounds, so that what was orphaned is used again.
	for range 2 {
		for _, c := range []*nbdtest.Client{stay, newcomer} {
			if err := c.Send(batch...); err != nil {
				t.Fatal(err)
			}
			for range batch {
				// A client's first flush tells of those that have failed.
				r, err := c.Receive()
				if cmd := batch[r.Cookie-100]; err != nil || r.Errno != nbd.OK && cmd.Type != nbdtest.CmdFlush {
					t.Fatalf("command %d when the disk is back: %v, %v", cmd.Type, r.Errno, err)
				}
			}
		}
	}
	if r := do(t, stay, nbdtest.Command{Type: nbdtest.CmdRead, Length: length}); r.Errno != nbd.OK || !bytes.Equal(r.Data, long) {
		t.Errorf("what was written before: %v, or other data", r.Errno)
	}
}
