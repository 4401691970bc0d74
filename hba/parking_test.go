package hba_test

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
)

// holdsAfter are rules that hold a command once it has been executed.
var holdsAfter = []fault.Action{
	{Kind: fault.KindGate, At: fault.PlaceAfter},
	{Kind: fault.KindLatency, At: fault.PlaceAfter, Latency: &fault.Latency{Mean: fault.Duration(time.Hour)}},
	{Kind: fault.KindReorder, For: fault.Duration(time.Hour)},
	{Kind: fault.KindLostCompletion},
	{Kind: fault.KindMistagged},
}

// startTwo gives disk0 a slow medium and two writes, of which the only worker has
// one and the other is in line. action is in force.
func startTwo(t *testing.T, action fault.Action) (*faultyWorld, *hbatest.Media) {
	t.Helper()
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
	if err := w.dev.RemoveUnit(context.Background(), 0, 0); err != nil {
		t.Fatal(err)
	}
	m := w.attachSlow(t, disk0, hbatest.MediaConfig{})
	m.Hold()
	out := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	w.set(t, fault.Rule{Action: action})
	w.submit(t, disk0.Write(1, 0, 1, out), disk0.Write(2, 1, 1, out))
	m.WaitHeld(1)
	return w, m
}

// reapUnheld is reap, and fails if a fault holds a command instead.
func (f *faultyWorld) reapUnheld(t *testing.T, n int) []hba.Completion {
	t.Helper()
	q := f.driver.Queues[0]
	out := make([]hba.Completion, n)
	for got := 0; got < n; {
		k := q.Consume(out[got:])
		switch {
		case k > 0:
			q.Ack(runner)
		case f.dev.Stats().HeldByFaults != 0:
			t.Fatal("a command is held that should have ended")
		default:
			runtime.Gosched()
		}
		got += k
	}
	return out
}

// What a rule would hold later is not held once the rule is gone.
func TestFaults_RuleGoneBeforeItHolds(t *testing.T) {
	for _, a := range holdsAfter {
		t.Run(string(a.Kind), func(t *testing.T) {
			w, m := startTwo(t, a)
			w.set(t)
			m.Release()
			for i, c := range w.reapUnheld(t, 2) {
				wantCode(t, c, uint32(i+1), hba.CodeExecuted)
			}
			w.wantIdle(t)
		})
	}
}

// A removal waits for no command that a fault would hold later.
func TestFaults_RemovalBeforeTheyHold(t *testing.T) {
	for _, a := range holdsAfter {
		t.Run(string(a.Kind), func(t *testing.T) {
			w, m := startTwo(t, a)
			removed := make(chan error, 1)
			go func() { removed <- w.dev.RemoveUnit(t.Context(), 0, 0) }()
			for w.dev.Left() != "controls" {
				runtime.Gosched()
			}
			m.Release()
			n := 2
			if a.Kind == fault.KindMistagged {
				n = 4 // each once more, under another tag
			}
			got := map[uint32]hba.CompletionCode{}
			for _, c := range w.reapUnheld(t, n) {
				got[c.Tag] = c.Code
			}
			if len(got) != n || got[1] != hba.CodeNoDevice || got[2] != hba.CodeNoDevice {
				t.Errorf("completion codes by tag %v, want %d for 1 and 2", got, hba.CodeNoDevice)
			}
			if err := <-removed; err != nil {
				t.Error(err)
			}
			w.wantIdle(t)
		})
	}
}

// The rules of a unit are not about what comes for it after its removal, nor about
// the unit that takes its place: only those that are put into force for that are. A
// target that is left without units answers no more, one that has others says that
// there is no such unit.
func TestFaults_NoUnit(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	s := w.set(t,
		fault.Rule{Action: fault.Action{Kind: fault.KindHang}},
		fault.Rule{Match: fault.Match{Op: fault.Ops{"reset-lun"}}, Action: fault.Action{Kind: fault.KindResetFails, Silent: true}},
		fault.Rule{Match: fault.Match{Op: fault.Ops{"mark"}, AtMark: "now"}, Action: fault.Action{Kind: fault.KindCapacity, Size: 1 << 10}},
	)
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	for _, lun := range []uint8{disk0.Lun, disk1.Lun} {
		if err := w.dev.RemoveUnit(t.Context(), 0, lun); err != nil {
			t.Fatal(err)
		}
		w.submit(t, disk0.Read(1, 0, 1, in))
		c := w.reapUnheld(t, 1)[0]
		if lun == disk0.Lun {
			wantCode(t, c, 1, hba.CodeExecuted)
			if sense, ok := scsi.ParseSense(c.Sense[:c.SenseBytes]); !ok || sense.Additional != scsi.LogicalUnitNotSupported {
				t.Errorf("sense data %+v, want no such unit", sense)
			}
		} else {
			wantCode(t, c, 1, hba.CodeNoDevice)
		}
		w.submit(t, disk0.Reset(2, false))
		wantCode(t, w.reapUnheld(t, 1)[0], 2, hba.CodeExecuted)
	}
	w.attach(t, disk0, w.other)
	w.dev.Mark("now")
	w.submit(t, disk0.TestUnitReady(3))
	wantCode(t, w.reapUnheld(t, 1)[0], 3, hba.CodeExecuted) // its unit attention
	w.submit(t, disk0.Read(3, 0, 1, in))
	wantCode(t, w.reapUnheld(t, 1)[0], 3, hba.CodeExecuted)
	for _, f := range s.Faults() {
		if got := f.Stats().Matched; got != 0 {
			t.Errorf("%s: %d commands matched without a unit", f.Rule().Name, got)
		}
	}
	w.wantIdle(t)
}

// An interrupt that was lost is raised once its rule is gone, so that nobody waits for
// what is in the ring.
func TestFaults_LostInterruptEndsWithItsRule(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	raised := make(chan struct{}, 64)
	note := func(_ pci.Runner, m pci.Message) {
		if m == 0 { // not the event message
			raised <- struct{}{}
		}
	}
	if err := w.dev.ConnectInterrupt(pci.MessageSignaled, note, newRunner); err != nil {
		t.Fatal(err)
	}
	defer w.dev.DisconnectInterrupt()
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	lost := fault.Rule{Action: fault.Action{Kind: fault.KindLostInterrupt}}
	w.set(t, lost)
	wantCode(t, w.do(t, disk0.Read(1, 0, 1, in))[0], 1, hba.CodeExecuted)
	w.wantIdle(t)
	w.set(t, lost, fault.Rule{Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindBusy}})
	if n := len(raised); n != 0 {
		t.Errorf("%d interrupts while the rule is in force", n)
	}
	w.set(t)
	<-raised
}
