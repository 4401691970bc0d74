package miniport_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/pci"
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
