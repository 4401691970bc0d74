package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/metrics"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestCutPower_NamesHostileRules: the report of the next power cut, and the metrics, name
// whatever a hostile rule has done to a disk's commands, even if the rule has gone. What it
// did to writes that were promised is found in the image.
func TestCutPower_NamesHostileRules(t *testing.T) {
	write := func(t *testing.T, c *nbdConn, off uint64, b byte) {
		t.Helper()
		if err := c.tryWrite(off, bytes.Repeat([]byte{b}, 512)); err != nil {
			t.Fatal(err)
		}
	}
	flush := func(t *testing.T, c *nbdConn) {
		t.Helper()
		if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name   string
		action fault.Action
		op     fault.Ops
		do     func(t *testing.T, c *nbdConn)
		acts   string // sectors
		told   string
	}{
		{"lost write", fault.Action{Kind: fault.KindLostWrite}, nil, func(t *testing.T, c *nbdConn) {
			write(t, c, 0, 1)
		}, "map[lost-write:1]", "lost-write"},
		{"lost zeros", fault.Action{Kind: fault.KindLostWrite}, fault.Ops{"zero"}, func(t *testing.T, c *nbdConn) {
			write(t, c, 512, 1)
			if _, err := c.do(cmdWriteZeroes, 0, 4096, nil); err != nil {
				t.Fatal(err)
			}
		}, "map[lost-write:1]", "lost-write"},
		{"lost trim", fault.Action{Kind: fault.KindLostWrite}, fault.Ops{"trim"}, func(t *testing.T, c *nbdConn) {
			write(t, c, 512, 1)
			if _, err := c.do(cmdTrim, 0, 4096, nil); err != nil {
				t.Fatal(err)
			}
		}, "map[lost-write:1]", "lost-write"},
		{"misdirected", fault.Action{Kind: fault.KindMisdirected, ShiftBlocks: 8}, nil, func(t *testing.T, c *nbdConn) {
			write(t, c, 0, 1)
		}, "map[misdirected:2]", "misdirected"},
		{"lie about a flush", fault.Action{Kind: fault.KindLieAboutFlush}, nil, func(t *testing.T, c *nbdConn) {
			flush(t, c)
		}, "map[]", "lying-flush"},
		{"flip", fault.Action{Kind: fault.KindFlip}, nil, func(t *testing.T, c *nbdConn) {
			if _, err := c.do(cmdRead, 0, 512, nil); err != nil {
				t.Fatal(err)
			}
		}, "map[]", "flip"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSettings(t, "db=memory:1MiB,cache=writeback")
			s.Hostile = true
			d, _ := s.mustStart(t)
			_, err := d.PutFault(client.FaultRule{
				Name: "r", Disk: "db", Hostile: true, Budget: 1, Match: fault.Match{Op: tt.op}, Action: tt.action,
			})
			if err != nil {
				t.Fatal(err)
			}
			c := open(t, s.socket(), "db")
			tt.do(t, c)
			if err := d.RemoveFault("r"); err != nil {
				t.Fatal(err)
			}
			flush(t, c)
			cached := func() *metrics.Cache {
				snap, _ := d.Snapshot()
				return snap.Disks[0].Cache
			}
			if m := cached(); !m.Hostile || m.Acts[cache.Act(tt.told)] != 1 {
				t.Errorf("metrics before the cut: %+v", m)
			}
			r, err := d.CutPower("db", client.PowerCutOptions{Policy: "all"})
			if err != nil {
				t.Fatal(err)
			}
			if r.Class != "hostile" || (r.ImageClass == "hostile") != (tt.acts != "map[]") || fmt.Sprint(r.Acts) != tt.acts || r.Hostile[tt.told] != 1 || len(r.Hostile) != 1 {
				t.Errorf("class %s, image %s, sectors %v, commands %v; want %s and one %s", r.Class, r.ImageClass, r.Acts, r.Hostile, tt.acts, tt.told)
			}
			if m := cached(); m.Hostile || m.CutsByCommand != (metrics.PowerCuts{cache.ClassHostile: 1}) {
				t.Errorf("metrics after the cut: %+v", m)
			}
			if r, err = d.CutPower("db", client.PowerCutOptions{}); err != nil || r.Class != "legal" || r.Hostile != nil {
				t.Errorf("the next cut: %s, %v, %v", r.Class, r.Hostile, err)
			}
		})
	}
}

// TestCutPower_LiesThatAreHeld: a lie of a rule does not count if the power is cut before
// the client is told it, however long another rule holds the command: no report has it.
func TestCutPower_LiesThatAreHeld(t *testing.T) {
	for _, tt := range []struct {
		action  fault.Action
		command nbdtest.Command
	}{
		{fault.Action{Kind: fault.KindLieAboutFlush}, nbdtest.Command{Type: nbdtest.CmdFlush}},
		{fault.Action{Kind: fault.KindLostWrite}, nbdtest.Command{Type: nbdtest.CmdWrite, Length: 512, Payload: make([]byte, 512)}},
		{fault.Action{Kind: fault.KindIgnoreFUA}, nbdtest.Command{Type: nbdtest.CmdWrite, Flags: nbdtest.FlagFUA, Length: 512, Payload: make([]byte, 512)}},
		{fault.Action{Kind: fault.KindMisdirected, ShiftBlocks: 8}, nbdtest.Command{Type: nbdtest.CmdWrite, Length: 512, Payload: make([]byte, 512)}},
	} {
		t.Run(string(tt.action.Kind), func(t *testing.T) {
			s := newSettings(t, "db=memory:1MiB,cache=writeback")
			s.Hostile = true
			d, _ := s.mustStart(t)
			for _, r := range []client.FaultRule{
				{Name: "lie", Disk: "db", Hostile: true, Budget: 1, Action: tt.action},
				{Name: "hold", Disk: "db", Budget: 1, Match: fault.Match{Op: fault.Ops{"write", "flush"}}, Action: fault.Action{Kind: fault.KindGate}},
			} {
				if _, err := d.PutFault(r); err != nil {
					t.Fatal(err)
				}
			}
			c := s.speak(t, "db", formats[0])
			if err := c.Send(tt.command); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() string {
				if n := machineOf(d).device.Stats().HeldByFaults; n != 1 {
					return fmt.Sprintf("%d commands are held, want 1", n)
				}
				return ""
			})
			for i := range 2 {
				r, err := d.CutPower("db", client.PowerCutOptions{})
				if err != nil || r.Class != "legal" || r.Hostile != nil {
					t.Errorf("cut %d: class %s, hostile %v, %v", i+1, r.Class, r.Hostile, err)
				}
				if i == 0 {
					if _, err := d.ReleaseFault("hold", 0); err != nil {
						t.Fatal(err)
					}
					if reply, err := c.Receive(); err != nil || reply.Errno != nbd.EIO {
						t.Errorf("the command: %+v, %v", reply, err)
					}
				}
			}
		})
	}
}

// TestCutPower_NothingIsSpoiledWithout: a hostile rule that a command meets while the
// power is off has done nothing to it: the disk has done nothing that it could spoil.
func TestCutPower_NothingIsSpoiledWithout(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback")
	s.Hostile = true
	d, _ := s.mustStart(t)
	if _, err := d.PutFault(client.FaultRule{Name: "flip", Disk: "db", Hostile: true, Action: fault.Action{Kind: fault.KindFlip}}); err != nil {
		t.Fatal(err)
	}
	c, unit := s.speak(t, "db", formats[0]), machineOf(d).find("db").unit
	read := nbdtest.Command{Type: nbdtest.CmdRead, Length: 512}
	unit.PowerOff()
	ask(t, c, read, nbd.EIO)
	unit.PowerOn()
	if r, err := d.CutPower("db", client.PowerCutOptions{}); err != nil || r.Class != "legal" || r.Hostile != nil {
		t.Errorf("class %s, hostile %v, %v", r.Class, r.Hostile, err)
	}
	ask(t, c, read, nbd.OK)
	if r, err := d.CutPower("db", client.PowerCutOptions{}); err != nil || r.Class != "hostile" || r.Hostile["flip"] == 0 {
		t.Errorf("with power: class %s, hostile %v, %v", r.Class, r.Hostile, err)
	}
}

// TestCutPower_LosesFlushed: a daemon that allows it loses flushed sectors on demand, and
// says so in the report and the metrics; another refuses.
func TestCutPower_LosesFlushed(t *testing.T) {
	for _, hostile := range []bool{true, false} {
		t.Run(fmt.Sprintf("hostile=%v", hostile), func(t *testing.T) {
			s := newSettings(t, "db=memory:1MiB,cache=writeback")
			s.Hostile = hostile
			d, _ := s.mustStart(t)
			api := client.New(s.Admin)
			defer api.Close()
			c := open(t, s.socket(), "db")
			if err := c.tryWrite(0, bytes.Repeat([]byte{1}, 8*512)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
				t.Fatal(err)
			}
			r, err := api.CutPower(t.Context(), "db", client.PowerCutOptions{Policy: "all", LoseFlushed: 2})
			if !hostile {
				if !errors.Is(err, client.ErrInvalid) || !strings.Contains(err.Error(), "--hostile") {
					t.Errorf("%v, want ErrInvalid that says what to do", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Class != "hostile" || r.ImageClass != "hostile" || r.LoseFlushed != 2 || r.Sectors.LostFlushed != 2 || r.Acts["lost-flushed"] != 2 || r.Hostile["lost-flushed"] != 2 {
				t.Errorf("report: %+v", r)
			}
			if snap, _ := d.Snapshot(); snap.Disks[0].Cache.Acts[cache.ActLostFlushed] != 2 || snap.Disks[0].Cache.CutsByCommand[cache.ClassHostile] != 1 {
				t.Errorf("metrics: %+v", snap.Disks[0].Cache)
			}
			if _, err := c.do(cmdFlush, 0, 0, nil); err == nil {
				t.Fatal("the flush after the cut told nothing")
			}
			got, err := c.do(cmdRead, 0, 8*512, nil)
			if err != nil || bytes.Count(got, []byte{0}) != 2*512 {
				t.Errorf("%v, %d bytes are gone, want 2 sectors", err, bytes.Count(got, []byte{0}))
			}
			if _, err := api.CutPower(t.Context(), "db", client.PowerCutOptions{LoseFlushed: -1}); !errors.Is(err, client.ErrInvalid) {
				t.Errorf("-1 sectors: %v, want ErrInvalid", err)
			}
		})
	}
}
