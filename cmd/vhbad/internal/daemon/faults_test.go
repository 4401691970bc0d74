package daemon

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/hba/fault"
)

// unplug puts a rule into force that unplugs a disk at its next write, until the
// rule is gone, and has c make that write.
func unplug(t *testing.T, d *Daemon, c *nbdConn, name string) {
	t.Helper()
	_, err := d.PutFault(client.FaultRule{
		Name: "away", Disk: name, Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindUnplug},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []uint16{cmdWrite, cmdRead, cmdFlush} {
		n, data := 512, []byte(nil)
		switch cmd {
		case cmdWrite:
			data = bytes.Repeat([]byte{2}, n)
		case cmdFlush:
			n = 0
		}
		if _, err := c.do(cmd, 0, n, data); err == nil || err.Error() != "errno 108" {
			t.Errorf("command %d to a disk that is unplugged: %v, want ESHUTDOWN", cmd, err)
		}
	}
}

// TestUnplug: clients that were there before a disk was unplugged use it again
// when it is back, and those of another disk see nothing of it.
func TestUnplug(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB", "other=memory:1MiB")
	d, _ := s.mustStart(t)
	c, bystander := open(t, s.socket(), "db"), open(t, s.socket(), "other")
	if err := c.tryWrite(0, bytes.Repeat([]byte{1}, 512)); err != nil {
		t.Fatal(err)
	}
	unplug(t, d, c, "db")
	if _, err := bystander.do(cmdRead, 0, 512, nil); err != nil {
		t.Errorf("the other disk: %v", err)
	}
	// Other rules and disks come and go meanwhile; it stays away.
	if _, err := d.AddDisk(t.Context(), "third", client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.do(cmdRead, 0, 512, nil); err == nil {
		t.Error("the disk is back by itself")
	}
	if err := d.RemoveFault("away"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*nbdConn{"old": c, "new": open(t, s.socket(), "db")} {
		if got, err := c.do(cmdRead, 0, 512, nil); err != nil || got[0] != 1 {
			t.Errorf("read of the %s client when the disk is back: %v, %v, want what was there", name, got[:min(1, len(got))], err)
		}
		if err := c.tryWrite(512, make([]byte, 512)); err != nil {
			t.Errorf("write of the %s client when the disk is back: %v", name, err)
		}
	}
	noViolations(t, machineOf(d))
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
	r, err := d.RemoveDisk(t.Context(), "db", client.RemoveOptions{Force: true})
	if err != nil || r.FlushError == "" {
		t.Errorf("removal: %+v, %v, want it done, with a flush that failed", r, err)
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
