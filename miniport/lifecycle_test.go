package miniport_test

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/disk"
	"github.com/vhbad/vhbad/port/porttest"
)

// unitChange is what OnUnitsChanged said.
type unitChange struct{ added, removed []*port.LogicalUnit }

// newHotUnit makes a unit of 8 MiB, and its medium, which the caller closes.
func newHotUnit(t *testing.T) (*media.Memory, *target.Unit) {
	t.Helper()
	medium, err := media.NewMemory(media.MemoryConfig{SizeBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	unit, err := target.NewUnit(medium, target.Config{Serial: "hot"})
	if err != nil {
		t.Fatal(err)
	}
	return medium, unit
}

// TestHotUnits: a unit that is plugged in while others work is found through the
// event interrupt and serves a disk; pulled out under load, its requests fail and
// those of the others do not.
func TestHotUnits(t *testing.T) {
	m, r, p, a := bring(t, miniport.Options{Queues: 2})
	changes := make(chan unitChange, 4)
	a.OnUnitsChanged(func(added, removed []*port.LogicalUnit) { changes <- unitChange{added, removed} })
	medium, unit := newHotUnit(t)
	if err := r.device.AddUnit(0, 5, unit); err != nil {
		t.Fatal(err)
	}
	c := <-changes
	if len(c.added) != 1 || c.added[0].Lun() != 5 || len(c.removed) != 0 {
		t.Fatalf("added %v, removed %v, want unit 5 added", c.added, c.removed)
	}
	hot := c.added[0]
	d, err := disk.Attach(p, hot, disk.Options{Arena: m.Arena})
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Info().SizeBytes; got != 8<<20 || d.Serial() != "hot" {
		t.Errorf("disk %q of %d bytes", d.Serial(), got)
	}

	// Two workers, one on a unit that stays and one on the one that goes.
	var wg sync.WaitGroup
	stop := make(chan struct{})
	pulled := false
	running := make(chan struct{})
	work := func(lu *port.LogicalUnit, stays bool) {
		wp := m.Processor(t, "worker")
		batch := m.NewBatch(t, a, 8, 4096)
		first := sync.OnceFunc(func() { running <- struct{}{} })
		wg.Go(func() {
			for {
				for i, x := range batch.Requests {
					x.Read(uint64(8*i), 8, 512)
				}
				batch.Run(wp, lu, len(batch.Requests))
				for _, x := range batch.Requests {
					switch s := x.SRB.Status.Code(); {
					case s == port.StatusSuccess:
					case !stays && (s == port.StatusNoDevice || s == port.StatusInvalidLun || s == port.StatusError):
						pulled = true
					case stays && s == port.StatusError: // REPORTED LUNS DATA HAS CHANGED
					default:
						t.Errorf("%s", x.SRB)
					}
				}
				first()
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	work(a.LogicalUnits()[0], true)
	work(hot, false)
	<-running
	<-running
	if err := r.device.RemoveUnit(t.Context(), 0, 5); err != nil {
		t.Fatal(err)
	}
	if c = <-changes; len(c.removed) != 1 || c.removed[0] != hot || len(c.added) != 0 {
		t.Errorf("added %v, removed %v, want unit 5 removed", c.added, c.removed)
	}
	if err := medium.Close(); err != nil {
		t.Error(err)
	}
	batch := m.NewBatch(t, a, 1, 4096)
	batch.Requests[0].Read(0, 8, 512)
	batch.Run(p, hot, 1)
	if s := batch.Requests[0].SRB.Status; s != port.StatusNoDevice {
		t.Errorf("on the unit that went: %s", s)
	}
	if err := d.Flush(p); err == nil {
		t.Error("the disk flushes a unit that is gone")
	}
	close(stop)
	wg.Wait()
	if !pulled {
		t.Log("the load never met the unit's absence")
	}
	if n := len(a.LogicalUnits()); n != 2 {
		t.Errorf("%d units, want 2", n)
	}
}

// TestHotUnits_DuringReset: a unit that comes just before the adapter is reset or
// stopped is found, though its event interrupt comes only when that is over.
func TestHotUnits_DuringReset(t *testing.T) {
	for name, interrupted := range map[string]func(p *port.Processor, a *port.Adapter) error{
		"bus reset": func(p *port.Processor, a *port.Adapter) error {
			return a.ResetNow(p, a.LogicalUnits()[0], port.ResetBus)
		},
		"stop and restart": func(p *port.Processor, a *port.Adapter) error {
			if err := a.Stop(p); err != nil {
				return err
			}
			return a.Restart(p)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, r, p, a := bring(t, miniport.Options{Queues: 2})
			changes := make(chan unitChange, 4)
			a.OnUnitsChanged(func(added, removed []*port.LogicalUnit) { changes <- unitChange{added, removed} })
			medium, unit := newHotUnit(t)
			event := uint16(r.device.Messages() - 1)
			a.MaskMsixInterrupt(p, event, true)
			if err := r.device.AddUnit(0, 5, unit); err != nil {
				t.Fatal(err)
			}
			if err := interrupted(p, a); err != nil {
				t.Fatal(err)
			}
			a.MaskMsixInterrupt(p, event, false)
			select {
			case c := <-changes:
				if len(c.added) != 1 || c.added[0].Lun() != 5 || len(c.removed) != 0 {
					t.Fatalf("added %v, removed %v, want unit 5 added", c.added, c.removed)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the unit has not been found")
			}
			if err := r.device.RemoveUnit(t.Context(), 0, 5); err != nil {
				t.Fatal(err)
			}
			<-changes
			if err := medium.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSurpriseRemoval: the device is unplugged with commands in it. The driver
// hands all of them back once the hardware is gone, none twice, and turns away
// what comes; nothing is left behind (Machine checks).
func TestSurpriseRemoval(t *testing.T) {
	for _, half := range []bool{false, true} {
		const n = 40
		m := porttest.NewMachine(t, porttest.ArenaBytes)
		r := newRig(t, m.IOMMU, miniport.Options{HalfDuplex: half, Queues: 2}, hba.Config{})
		p, other := m.Processor(t, "test"), m.Processor(t, "other")
		a := m.Adapter(t, p, r.subject(false))
		lu := a.LogicalUnits()[0]
		batch := m.NewBatch(t, a, 2*n, 4096)
		release := r.hold()
		for _, x := range batch.Requests {
			x.Read(0, 8, 512)
		}
		batch.Expect(2 * n)
		batch.Submit(p, lu, 0, n)
		batch.Submit(other, a.LogicalUnits()[1], n, n)
		gone := make(chan struct{})
		go func() { r.device.Close(); close(gone) }()
		release() // commands in a medium must be able to end
		<-gone
		if err := a.SurpriseRemove(p); err != nil {
			t.Fatal(err)
		}
		batch.Wait()
		handedBack := 0
		for _, x := range batch.Requests {
			if x.Completions.Load() != 1 {
				t.Errorf("%s completed %d times", x.SRB, x.Completions.Load())
			}
			switch x.SRB.Status {
			case port.StatusNoHBA, port.StatusNoDevice:
				handedBack++
			case port.StatusSuccess: // the device was faster
			default:
				t.Errorf("%s", x.SRB)
			}
		}
		t.Logf("half duplex %t: %d of %d handed back without a result", half, handedBack, 2*n)
		batch.Requests[0].Read(0, 8, 512)
		batch.Run(p, lu, 1)
		if s := batch.Requests[0].SRB.Status; s != port.StatusNoDevice {
			t.Errorf("after the removal: %s", s)
		}
	}
}

// TestSurpriseRemoval_DeviceAtWork: an adapter that failed is removed as by
// surprise, but its device is there. The driver hands nothing back before the
// device has stopped its DMA.
func TestSurpriseRemoval_DeviceAtWork(t *testing.T) {
	m, r, p, a := bring(t, miniport.Options{ResetTimeout: time.Minute})
	batch := m.NewBatch(t, a, 1, 4096)
	x := batch.Requests[0]
	x.Read(0, 8, 512)
	release := r.hold()
	defer release()
	batch.Expect(1)
	batch.Submit(p, a.LogicalUnits()[0], 0, 1)
	for r.device.Stats().WorkersBusy == 0 {
		runtime.Gosched() // a worker is on its way to the gate
	}
	resets := r.device.Stats().Resets
	removed := make(chan error, 1)
	go func() { removed <- a.SurpriseRemove(p) }()
	for r.device.Stats().Resets == resets && x.Completions.Load() == 0 {
		runtime.Gosched()
	}
	if x.Completions.Load() != 0 {
		t.Error("an SRB was handed back while a worker may write its memory")
	}
	release()
	if err := <-removed; err != nil {
		t.Error(err)
	}
	batch.Wait()
	if s := x.SRB.Status; x.Completions.Load() != 1 || s != port.StatusNoHBA {
		t.Errorf("%s, %d completions; want NO_HBA once", x.SRB, x.Completions.Load())
	}
}

// strayOffset is the doorbell of the second queue pair, which a driver with one
// queue does not create.
const strayOffset = hba.RegDoorbells + hba.DoorbellStride

// TestFatal_Resets: a device that broke is reset at once, not after a timeout, and
// works again.
func TestFatal_Resets(t *testing.T) {
	m, r, p, a := bring(t, miniport.Options{Queues: 1})
	lu := a.LogicalUnits()[0]
	r.device.BAR(hba.BAR).Write32(p, strayOffset, 1)
	batch := m.NewBatch(t, a, 1, 4096)
	x := batch.Requests[0]
	for range 6 { // the reset, and a unit attention or two
		x.Read(0, 8, 512)
		batch.Run(p, lu, 1)
		if x.SRB.Status == port.StatusSuccess {
			break
		}
	}
	if s := a.Stats(p); x.SRB.Status != port.StatusSuccess || s.Resets[port.ResetBus] == 0 || s.Timeouts != 0 {
		t.Errorf("%s; %d bus resets, %d timeouts", x.SRB, s.Resets[port.ResetBus], s.Timeouts)
	}
}
