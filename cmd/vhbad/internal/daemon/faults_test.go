package daemon

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// unplug puts a rule into force that unplugs a disk at its next write, until the
// rule is gone, has c make that write, and waits for c's connection to end.
func unplug(t *testing.T, d *Daemon, c *nbdConn, name string) {
	t.Helper()
	_, err := d.PutFault(client.FaultRule{
		Name: "away", Disk: name, Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindUnplug},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.do(cmdWrite, 0, 512, bytes.Repeat([]byte{2}, 512)); err == nil || err.Error() != "errno 108" {
		t.Errorf("a write to a disk that is unplugged: %v, want ESHUTDOWN", err)
	}
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("the connection to a disk that was unplugged ends with %v, want a plain end", err)
	}
}

// tryOpen is open of a disk that may not be there.
func tryOpen(t *testing.T, path, name string) (*nbdConn, error) {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	return tryNegotiate(t, nc, name)
}

// openAgain tries to open a disk until it is there.
func openAgain(t *testing.T, s *settings, name string) *nbdConn {
	t.Helper()
	for {
		if c, err := tryOpen(t, s.socket(), name); err == nil {
			return c
		} else if !strings.Contains(err.Error(), "no export") {
			t.Fatal(err)
		}
	}
}

// TestUnplug: when a disk is unplugged its connections end, nobody can open it, and
// those of another disk see nothing of it. When it is back it is what it was, and can be
// unplugged again.
func TestUnplug(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,description=a disk", "other=memory:1MiB")
	d, _ := s.mustStart(t)
	c, bystander := open(t, s.socket(), "db"), open(t, s.socket(), "other")
	if err := c.tryWrite(0, bytes.Repeat([]byte{1}, 512)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		unplug(t, d, c, "db")
		if st := d.diskNow("db"); st.State != client.DiskUnplugged {
			t.Errorf("the disk is %q, want unplugged", st.State)
		}
		if _, err := tryOpen(t, s.socket(), "db"); err == nil {
			t.Error("a disk that is unplugged can be opened")
		}
		if _, err := bystander.do(cmdRead, 0, 512, nil); err != nil {
			t.Errorf("the other disk: %v", err)
		}
		if _, err := d.GrowDisk(t.Context(), "db", 2<<20); err == nil {
			t.Error("a disk that is unplugged can grow")
		}
		// Other rules and disks come and go meanwhile; it stays away.
		if _, err := d.AddDisk(t.Context(), "third", client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.RemoveDisk(t.Context(), "third", client.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := tryOpen(t, s.socket(), "db"); err == nil {
			t.Error("the disk is back by itself")
		}
		if err := d.RemoveFault("away"); err != nil {
			t.Fatal(err)
		}
		c = openAgain(t, s, "db")
		if got, err := c.do(cmdRead, 0, 512, nil); err != nil || got[0] != 1 {
			t.Errorf("read when the disk is back: %v, %v, want what was there", got[:min(1, len(got))], err)
		}
		if err := c.tryWrite(512, make([]byte, 512)); err != nil {
			t.Errorf("write when the disk is back: %v", err)
		}
		if st := d.diskNow("db"); st.State != client.DiskServing || st.Description != "a disk" {
			t.Errorf("the disk that is back: %+v", st)
		}
	}
	if _, err := d.GrowDisk(t.Context(), "db", 2<<20); err != nil {
		t.Errorf("the disk that is back cannot grow: %v", err)
	}
	noViolations(t, machineOf(d))
}

// TestUnplug_PowerGoesBeforeItIsServed: a disk is plugged in again, the port finds it, and
// the power goes before the daemon has asked what it is. It is served when that is back.
func TestUnplug_PowerGoesBeforeItIsServed(t *testing.T) {
	s := newSettings(t, "disk=memory:1MiB,cache=writeback")
	d, _ := s.mustStart(t)
	unplug(t, d, open(t, s.socket(), "disk"), "disk")
	m := machineOf(d)
	e := m.find("disk")
	eventually(t, func() string {
		if m.units.at(e.targetID, e.lun) != nil {
			return "the port has the unit still"
		}
		return ""
	})
	d.changing <- struct{}{} // nothing is served meanwhile
	if err := d.RemoveFault("away"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if m.units.at(e.targetID, e.lun) == nil {
			return "the port has not found the unit"
		}
		return ""
	})
	e.power.unit.PowerOff()
	e.power.cache.PowerOff()
	eventually(t, func() string {
		if !d.matching.Load() {
			return "the daemon has not heard of the unit"
		}
		return ""
	})
	<-d.changing
	eventually(t, func() string {
		if d.matching.Load() || len(d.changing) != 0 {
			return "the daemon asks for the disk"
		}
		return ""
	})
	m.powerOn(e)
	eventually(t, func() string {
		if x := d.Disks(); len(x) != 1 || x[0].State != client.DiskServing {
			return fmt.Sprintf("disks: %+v", x)
		}
		return ""
	})
}

// TestUnplug_WithoutPower: a disk that is plugged in while it has no power is found when
// that is back.
func TestUnplug_WithoutPower(t *testing.T) {
	s := newSettings(t, "disk=memory:1MiB,cache=writeback")
	d, _ := s.mustStart(t)
	unplug(t, d, open(t, s.socket(), "disk"), "disk")
	m := machineOf(d)
	e := m.find("disk")
	e.power.unit.PowerOff()
	putFaults(t, d, client.FaultRule{Name: "asked", Disk: "disk", Match: fault.Match{Op: fault.Ops{"inquiry"}}, Action: fault.Action{
		Kind: fault.KindLatency, Latency: &fault.Latency{Mean: fault.Duration(time.Nanosecond)},
	}})
	if err := d.RemoveFault("away"); err != nil {
		t.Fatal(err)
	}
	// The port asks, and asks again, what has come; then it is the test's turn.
	eventually(t, func() string {
		if f, err := d.Fault("asked"); err != nil || f.Fired == 0 {
			return "nobody asks"
		}
		return ""
	})
	if err := m.onProcessor("test", m.adapter.Enumerate); err != nil {
		t.Fatal(err)
	}
	if st := d.diskNow("disk"); st.State != client.DiskUnplugged {
		t.Errorf("without power the disk is %q, want unplugged", st.State)
	}
	m.powerOn(e)
	eventually(t, func() string {
		if st := d.diskNow("disk"); st.State != client.DiskServing {
			return fmt.Sprintf("with power the disk is %q, want serving", st.State)
		}
		return ""
	})
	if err := open(t, s.socket(), "disk").tryWrite(0, make([]byte, 512)); err != nil {
		t.Error(err)
	}
	noViolations(t, m)
}

// TestUnplug_Stop: the daemon stops with a disk unplugged, and what was written to it
// before is there at the next start.
func TestUnplug_Stop(t *testing.T) {
	s := newSettings(t, "db=file:$DIR/i.img,size=1MiB,cache=writeback")
	d, stop := s.mustStart(t)
	c := open(t, s.socket(), "db")
	if err := c.tryWrite(4096, bytes.Repeat([]byte{1}, 512)); err != nil {
		t.Fatal(err)
	}
	unplug(t, d, c, "db")
	stop()
	s.mustStart(t)
	if got, err := open(t, s.socket(), "db").do(cmdRead, 4096, 512, nil); err != nil || got[0] != 1 {
		t.Errorf("read after the restart: %v, %v, want what was written", got[:min(1, len(got))], err)
	}
}

// TestUnplug_StopFlushes: the medium of a disk that is unplugged is flushed when the
// daemon stops, as any other.
func TestUnplug_StopFlushes(t *testing.T) {
	md := &slowMedium{}
	s, d := startSlow(t, md)
	unplug(t, d, open(t, s.socket(), "slow"), "slow")
	md.flush = &media.Error{Op: "flush", Kind: media.ErrMedium}
	if err := d.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), `disk "slow"`) {
		t.Errorf("Stop: %v, want that of the flush", err)
	}
}

// TestUnplug_Remove: a disk that is unplugged can be removed, and leaves nothing
// behind: its address, its file and its rule are free.
func TestUnplug_Remove(t *testing.T) {
	s := newSettings(t, "other=memory:1MiB")
	d, _ := s.mustStart(t)
	spec := client.DiskSpec{File: filepath.Join(s.dir, "i.img"), SizeBytes: 1 << 20}
	was, err := d.AddDisk(t.Context(), "db", spec)
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, s.socket(), "db")
	unplug(t, d, c, "db")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := d.RemoveDisk(t.Context(), "db", client.RemoveOptions{})
	if err != nil || r.FlushError != "" {
		t.Errorf("removal: %+v, %v, want it done, and its medium flushed", r, err)
	}
	if got, err := d.Faults(); err != nil || len(got.Faults) != 0 {
		t.Errorf("faults %+v, %v, want none", got.Faults, err)
	}
	again, err := d.AddDisk(t.Context(), "db", spec)
	if err != nil || again.Address != was.Address {
		t.Fatalf("the same again: %+v, %v, want address %s", again, err, was.Address)
	}
	c = open(t, s.socket(), "db")
	if err := c.tryWrite(0, bytes.Repeat([]byte{3}, 512)); err != nil {
		t.Error(err)
	}
	if got, err := c.do(cmdRead, 0, 512, nil); err != nil || got[0] != 3 {
		t.Errorf("the new disk: %v, %v", got[:min(1, len(got))], err)
	}
	noViolations(t, machineOf(d))
}

// TestFaults_WhileDisksComeAndGo: whatever is done to rules while a disk comes, it meets
// them from the first client on; and one that has left meets none, though it is still in
// the list.
func TestFaults_WhileDisksComeAndGo(t *testing.T) {
	s := newSettings(t, "other=memory:1MiB")
	d, _ := s.mustStart(t)
	put := func(name string, m fault.Match, a fault.Action) {
		t.Helper()
		if _, err := d.PutFault(client.FaultRule{Name: name, Match: m, Action: a}); err != nil {
			t.Fatal(err)
		}
	}
	harmless := fault.Match{Op: fault.Ops{"write"}, Skip: 1 << 40}
	put("all", fault.Match{Op: fault.Ops{"read"}}, fault.Action{Kind: fault.KindErrno, Errno: "EPERM"})
	change := func(fn func(m *machine)) {
		t.Helper()
		_, m, end, err := d.beginChange(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer end()
		fn(m)
	}
	var e *export
	change(func(m *machine) {
		alone, err := d.Config().WithDisks([]config.Disk{diskConfig("db", &client.DiskSpec{MemoryBytes: 1 << 20, Cache: "writeback"})})
		if err != nil {
			t.Fatal(err)
		}
		if e, err = d.bring(t.Context(), m, &alone.Disks[0], true); err != nil {
			t.Fatal(err)
		}
		put("early", harmless, fault.Action{Kind: fault.KindBusy})
		if err := m.publish(append(slices.Clone(m.list()), e)); err != nil {
			t.Fatal(err)
		}
		c := open(t, s.socket(), "db")
		if _, err := c.do(cmdRead, 0, 512, nil); err == nil || err.Error() != "errno 1" {
			t.Errorf("the first read of a disk that has just come: %v, want EPERM", err)
		}
		put("late", harmless, fault.Action{Kind: fault.KindBusy})
		if _, err := c.do(cmdRead, 0, 512, nil); err == nil {
			t.Error("a rule that was set meanwhile has taken the others away")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	change(func(m *machine) {
		if _, err := d.vacate(t.Context(), m, e, patience, patience); err != nil {
			t.Fatal(err)
		}
		put("cut", fault.Match{Op: fault.Ops{"mark"}, AtMark: "now"}, fault.Action{Kind: fault.KindPowerCut})
		if n, err := d.SetMark("now"); n != 1 || err != nil {
			t.Fatalf("%d rules wait for the mark, %v", n, err)
		}
		if got, err := d.Fault("cut"); err != nil || got.Fired != 0 {
			t.Errorf("a rule that came when its disk had left fires %d times (%v), want 0", got.Fired, err)
		}
		if err := m.publish(slices.DeleteFunc(slices.Clone(m.list()), func(x *export) bool { return x == e })); err != nil {
			t.Fatal(err)
		}
	})
	noViolations(t, machineOf(d))
}

// Commands that a rule that is not hostile has answered as done are done: writes are there,
// and flushes have made them durable.
func TestFaults_StatusOfDone(t *testing.T) {
	recovered := &fault.Sense{Key: "recovered-error"}
	for _, a := range []fault.Action{
		{Kind: fault.KindStatus, Status: "condition-met"},
		{Kind: fault.KindStatus, Sense: recovered},
		{Kind: fault.KindNotReady, Sense: recovered},
		{Kind: fault.KindUnitAttention, Sense: recovered},
	} {
		t.Run(string(a.Kind)+" "+a.Status, func(t *testing.T) {
			f := startFaulty(t, nil, "db=memory:1MiB,cache=writeback")
			f.put(t, client.FaultRule{Name: "r", Disk: "db", Action: a})
			c := f.dial(t, "db")
			for _, cmd := range []nbdtest.Command{writeCmd(0, 8, 5), flushCmd, writeCmd(0, 1, 6)} {
				wantErrno(t, c, cmd, nbd.OK)
			}
			report, err := f.api.CutPower(t.Context(), "db", client.PowerCutOptions{Policy: "none"})
			if err != nil {
				t.Fatal(err)
			}
			if report.Class != "legal" || report.Sectors.Pending != 1 {
				t.Errorf("class %s, %d sectors pending, want legal and one", report.Class, report.Sectors.Pending)
			}
			if r, err := c.Do(readCmd(0, 1)); err != nil || r.Errno != nbd.OK || r.Data[0] != 5 {
				t.Errorf("read: %v, %v, %d, want what was flushed", r.Errno, err, r.Data[0])
			}
		})
	}
}

// The counts of a rule stay in the metrics when the rule and its disk have gone, and go on
// when both come back.
func TestFaults_CountsStay(t *testing.T) {
	s := newSettings(t, "other=memory:1MiB")
	d, _ := s.mustStart(t)
	wantTimes := func(when string, want uint64) {
		t.Helper()
		snap, ok := d.Snapshot()
		if !ok {
			t.Fatal("no snapshot")
		}
		for _, n := range snap.Injected {
			if n.Disk == "db" && n.Rule == "r" && n.Kind == fault.KindErrno && n.Class == "legal" {
				if n.Times != want {
					t.Errorf("%s: counted %d times, want %d", when, n.Times, want)
				}
				return
			}
		}
		t.Errorf("%s: not counted, want %d", when, want)
	}
	for i := range uint64(2) {
		if _, err := d.AddDisk(t.Context(), "db", client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		c := open(t, s.socket(), "db")
		for range 2 {
			_, err := d.PutFault(client.FaultRule{Name: "r", Disk: "db", Action: fault.Action{Kind: fault.KindErrno, Errno: "EIO"}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.do(cmdRead, 0, 512, nil); err == nil {
				t.Error("the rule does not fire")
			}
			if err := d.RemoveFault("r"); err != nil {
				t.Fatal(err)
			}
		}
		wantTimes("the rule has gone", 2*i+2)
		if _, err := d.RemoveDisk(t.Context(), "db", client.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		wantTimes("its disk has gone", 2*i+2)
	}
}
