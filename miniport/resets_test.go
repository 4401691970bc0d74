package miniport_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// A hookedFunction calls before ahead of each completion doorbell of queue 1.
type hookedFunction struct {
	pci.Function
	before func(r pci.Runner)
	raise  pci.InterruptFunc
}

func (f *hookedFunction) BAR(n int) pci.Registers {
	if r := f.Function.BAR(n); r != nil {
		return &hookedRegisters{r, f}
	}
	return nil
}

func (f *hookedFunction) ConnectInterrupt(m pci.InterruptMode, raise pci.InterruptFunc, newRunner func(string) pci.Runner) error {
	f.raise = raise
	return f.Function.ConnectInterrupt(m, raise, newRunner)
}

type hookedRegisters struct {
	pci.Registers
	f *hookedFunction
}

func (r *hookedRegisters) Write32(p pci.Runner, offset, value uint32) {
	if offset == hba.RegDoorbells+hba.DoorbellStride+8 {
		r.f.before(p)
	}
	r.Registers.Write32(p, offset, value)
}

// TestResetBus_DuringGuestsDoorbell: in half duplex ResetBus keeps the interrupt
// locks and waits for DPCs. One that has drained its ring for a unit's reset, and
// then finds an interrupt raised by its own doorbell, does not wait for those
// locks with SRBs in hand. Which of the two comes first is up to the scheduler,
// so there are some rounds.
func TestResetBus_DuringGuestsDoorbell(t *testing.T) {
	const rounds = 100
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	r := newRig(t, m.IOMMU, miniport.Options{HalfDuplex: true, Queues: 2}, hba.Config{QueuePairs: 2})
	f := &hookedFunction{Function: r.device}
	even, odd, helper := m.Processor(t, "even"), m.Processor(t, "odd"), m.Processor(t, "helper")
	if even.Number()%2 == 1 {
		even, odd = odd, even
	}
	s := r.subject(false)
	s.Function = f
	var lu *port.LogicalUnit
	var done chan error
	armed := false
	f.before = func(p pci.Runner) {
		if !armed {
			return
		}
		armed = false
		done = make(chan error, 1)
		go func() { done <- lu.Adapter().ResetNow(helper, lu, port.ResetBus) }()
		// After a millisecond of waiting, a mutex goes to the one that waits.
		for end := time.Now().Add(2 * time.Millisecond); time.Now().Before(end); {
			runtime.Gosched()
		}
		for message := range pci.Message(3) { // the more, the more chances to come late
			f.raise(p, message)
		}
	}
	a := m.Adapter(t, even, s)
	lu = a.LogicalUnits()[0]
	b := m.NewBatch(t, a, 2, 4096)
	read, reset := b.Requests[0], b.Requests[1]
	for range rounds {
		// A completion is in the ring of queue 1, and its handler has not run.
		a.MaskMsixInterrupt(even, 1, true)
		read.Read(0, 1, 512)
		b.Expect(2)
		b.Submit(odd, lu, 0, 1)
		// The reset goes by way of queue 0 to queue 1, whose DPC drains the ring.
		armed = true
		reset.Reset(port.FunctionResetLogicalUnit)
		b.Submit(even, lu, 1, 1)
		b.Wait()
		if armed {
			t.Fatal("no doorbell was rung for the reset")
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		a.MaskMsixInterrupt(even, 1, false)
	}
}

// TestResetBus_KeepsAnswers: an SRB that the device has answered, and whose interrupt
// has not come when the adapter is reset, completes with all that the answer says.
func TestResetBus_KeepsAnswers(t *testing.T) {
	for _, half := range []bool{false, true} {
		t.Run(fmt.Sprintf("half duplex %t", half), func(t *testing.T) { keepsAnswers(t, half) })
	}
}

func keepsAnswers(t *testing.T, half bool) {
	m, r, p, a := bring(t, miniport.Options{Queues: 1, HalfDuplex: half})
	batch := m.NewBatch(t, a, 2, 4096)
	lu := a.LogicalUnits()[0]
	rules := []fault.Rule{
		{Name: "status", Disk: "d", Action: fault.Action{Kind: fault.KindStatus, Status: "reservation-conflict"}},
		{Name: "cut", Disk: "d", Action: fault.Action{Kind: fault.KindCutReply}},
		{Name: "cookie", Disk: "d", Hostile: true, Action: fault.Action{Kind: fault.KindBadCookie}},
	}
	s, err := fault.NewSet(fault.Config{
		Rules: rules, Hostile: true, Now: r.device.Now(),
		Units: []fault.Unit{{Disk: "d", BlockBytes: 512, Blocks: 64 << 20 / 512}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.device.SetFaults(s)
	depth := lu.Stats().Depth
	if !a.SetDeviceQueueDepth(p, 0, 0, 0, 2) {
		t.Fatal("the unit takes no depth")
	}
	x, inquiry := batch.Requests[0], batch.Requests[1]
	answered := r.device.Stats().Queues[0].Completions + 2
	a.MaskMsixInterrupt(p, 0, true)
	x.Read(0, 8, 512)
	inquiry.Data(port.FlagDataIn, 36, func(cdb *[scsi.CDBMaxBytes]byte) int { return scsi.PutInquiry(cdb, 36) })
	batch.Expect(2)
	batch.Submit(p, lu, 0, 2)
	for r.device.Stats().Queues[0].Completions < answered {
		runtime.Gosched()
	}
	if err := a.ResetNow(p, lu, port.ResetBus); err != nil {
		t.Fatal(err)
	}
	batch.Wait()
	a.MaskMsixInterrupt(p, 0, false)
	srb := x.SRB
	if srb.ScsiStatus != scsi.StatusReservationConflict || !srb.Injected || !srb.CutReply || srb.ReplyBytes != port.HalfReply || !srb.BadCookie {
		t.Errorf("%s: injected %t, reply cut %t at %#x, bad cookie %t; want RESERVATION CONFLICT, all true and half of it",
			srb, srb.Injected, srb.CutReply, srb.ReplyBytes, srb.BadCookie)
	}
	if got := lu.Stats().Depth; inquiry.SRB.Status != port.StatusSuccess || got != depth {
		t.Errorf("%s: the unit's depth is %d, want %d, as after any INQUIRY", inquiry.SRB, got, depth)
	}
}
