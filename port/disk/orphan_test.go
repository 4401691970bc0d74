package disk

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// deaf is a miniport that, while it is set to be deaf, resets nothing and whose device
// keeps the SRBs it gets.
type deaf struct {
	*porttest.Miniport
	is atomic.Bool
}

func (d *deaf) ResetBus(p *port.Processor, path uint8) bool {
	return !d.is.Load() && d.Miniport.ResetBus(p, path)
}

func newDeaf(m *porttest.Machine) *deaf {
	d := &deaf{}
	d.Miniport = porttest.New(m, porttest.Options{Script: func(stage porttest.Stage, s *port.SRB) porttest.Action {
		switch {
		case stage != porttest.StageStartIo || !d.is.Load():
			return porttest.Continue
		case s.Function != port.FunctionExecuteScsi:
			return porttest.Fail
		}
		return porttest.KeepHeld
	}})
	return d
}

// Without memory for SRBs, requests wait for one command. When the port gives that up
// they are all answered; a request that comes then waits for nobody. Once the command
// has come back it serves again.
func TestOrphan_NoMemory(t *testing.T) {
	const n = 20
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	d := newDeaf(m)
	conn := serveOn(t, m, porttest.Subject{
		Function: d.Function(), Miniport: d, Options: port.AdapterOptions{DefaultTimeoutSecs: 1, ResetTimeout: time.Millisecond},
	}, &geometry{blocks: 64, blockBytes: 512, maxTransfer: 64, preferredBytes: 4096})
	c, err := nbdtest.NewClient(conn, "disk")
	if err != nil {
		t.Fatal(err)
	}
	exhaust(t, m, 0)
	d.is.Store(true)
	t.Cleanup(func() { d.is.Store(false) })
	var batch []nbdtest.Command
	for i := range n {
		batch = append(batch, nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Cookie: uint64(i), Offset: uint64(i) * 512, Length: 512})
	}
	if err := c.Send(batch...); err != nil {
		t.Fatal(err)
	}
	for range batch {
		if r, err := c.Receive(); err != nil || r.Errno != nbd.ESHUTDOWN {
			t.Fatalf("request %d: %v, %v, want ESHUTDOWN", r.Cookie, r.Errno, err)
		}
	}
	if held := len(d.Held()); held == 0 || held == n {
		t.Errorf("the device has %d commands of %d, want some to have waited", held, n)
	}
	// Of a part of a block, and no more than fits behind its header.
	part := nbdtest.Command{Type: nbdtest.CmdWrite, Offset: 77, Length: 3, Payload: []byte{1, 2, 3}}
	for range 2 {
		if r, err := c.Do(part); err != nil || r.Errno != nbd.ENOMEM {
			t.Fatalf("a request without a command: %v, %v, want ENOMEM", r.Errno, err)
		}
	}
	d.is.Store(false)
	for errno := nbd.ENOMEM; errno != nbd.OK; { // the port tries the reset again by itself
		r, err := c.Do(part)
		if errno = r.Errno; err != nil || errno != nbd.ENOMEM && errno != nbd.ESHUTDOWN && errno != nbd.OK {
			t.Fatalf("a request while the unit comes back: %v, %v", errno, err)
		}
	}
	for i := range 2 * n {
		if r, err := c.Do(part); err != nil || r.Errno != nbd.OK {
			t.Fatalf("request %d when the unit is back: %v, %v", i, r.Errno, err)
		}
	}
}

// The port's own flush of a unit that is given up is an error, and leaves nothing
// behind once the unit has released its SRB.
func TestOrphan_Flush(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	fake := newDeaf(m)
	p := m.Processor(t, "test")
	a := m.Adapter(t, p, porttest.Subject{
		Function: fake.Function(), Miniport: fake, Options: port.AdapterOptions{DefaultTimeoutSecs: 1, ResetTimeout: time.Millisecond},
	})
	d := &Disk{lu: a.LogicalUnits()[0], adapter: a, options: Options{Arena: m.Arena, TimeoutSecs: 1}}
	used := m.Arena.Stats().InUseBytes
	fake.is.Store(true)
	if err := d.Flush(p); !errors.Is(err, errGivenUp) {
		t.Errorf("a flush that nobody answers: %v, want %v", err, errGivenUp)
	}
	fake.is.Store(false)
	if err := a.ResetNow(p, d.LogicalUnit(), port.ResetBus); err != nil {
		t.Fatal(err)
	}
	if now := m.Arena.Stats().InUseBytes; now > used {
		t.Errorf("%d bytes in use, %d before", now, used)
	}
	if err := d.Flush(p); err != nil {
		t.Error(err)
	}
}

// A spare command may be lost and come back while a request asks for it: the request
// gets it, fails without it, waits for it or is among those that fail with it, and
// nothing is left behind.
func TestOrphan_SpareInBetween(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	p := m.Processor(t, "test")
	fake := porttest.New(m, porttest.Options{})
	a := m.Adapter(t, p, porttest.Subject{Function: fake.Function(), Miniport: fake})
	d := &Disk{lu: a.LogicalUnits()[0], adapter: a, options: Options{Arena: m.Arena}}
	used, windows := m.Arena.Stats().InUseBytes, m.IOMMU.WindowsInUse()
	for range 2000 {
		opened, err := d.Open(new(nbd.Conn))
		if err != nil {
			t.Fatal(err)
		}
		s := opened.(*session)
		r := &nbd.Request{}
		first, _ := s.takeSpare(&nbd.Request{})
		var starved []*nbd.Request
		orphaned := make(chan struct{})
		go func() {
			starved = s.orphan(first)
			s.comeHome(first)
			close(orphaned)
		}()
		c, waits := s.takeSpare(r)
		<-orphaned
		s.mu.Lock()
		listed := slices.Contains(slices.Concat(starved, s.starved), r)
		lost := s.spare == nil || s.spareBusy != (c != nil)
		s.mu.Unlock()
		if listed != waits || waits && c != nil || lost {
			t.Fatalf("command %v, waits: %t, in a list: %t, no spare or not that: %t", c, waits, listed, lost)
		}
		s.Close()
	}
	if now := m.Arena.Stats().InUseBytes; now != used {
		t.Errorf("%d bytes in use, %d before", now, used)
	}
	if now := m.IOMMU.WindowsInUse(); now != windows {
		t.Errorf("%d windows in use, %d before", now, windows)
	}
}

// When the port gives up a command that asks the unit what it is, nothing more is asked:
// the device has the SRB still.
func TestOrphan_Capacity(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	d := &deaf{}
	d.Miniport = porttest.New(m, porttest.Options{Script: func(stage porttest.Stage, s *port.SRB) porttest.Action {
		switch {
		case stage != porttest.StageStartIo || !d.is.Load():
			return porttest.Continue
		case s.Function != port.FunctionExecuteScsi:
			return porttest.Fail
		case scsi.Opcode(s.CDB[0]) == scsi.OpServiceActionIn16:
			return porttest.KeepHeld
		}
		return porttest.Continue
	}})
	p := m.Processor(t, "test")
	a := m.Adapter(t, p, porttest.Subject{
		Function: d.Function(), Miniport: d, Options: port.AdapterOptions{DefaultTimeoutSecs: 1, ResetTimeout: time.Millisecond},
	})
	disk := &Disk{lu: a.LogicalUnits()[0], adapter: a, options: Options{Arena: m.Arena, TimeoutSecs: 1}}
	d.is.Store(true)
	if err := disk.Rescan(p); !errors.Is(err, errGivenUp) {
		t.Errorf("a unit that does not tell its capacity: %v, want %v", err, errGivenUp)
	}
	held := d.Held()
	if len(held) != 1 || scsi.Opcode(held[0].CDB[0]) != scsi.OpServiceActionIn16 {
		t.Errorf("the device has %v, want READ CAPACITY(16) as it was sent", held)
	}
	d.is.Store(false)
	if err := a.ResetNow(p, disk.LogicalUnit(), port.ResetBus); err != nil {
		t.Fatal(err)
	}
}
