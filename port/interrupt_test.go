package port

import (
	"sync"
	"sync/atomic"
	"testing"
)

// A8: an interrupt that arrives at Device level waits until the level drops, and
// several edges before that make one run.
func TestA8_PendsDuringRoutine(t *testing.T) {
	runs := 0
	d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
	d.handler = func(p *Processor, _ SyncToken, _ uint16) bool {
		if p.Level() != Device {
			t.Errorf("handler at %s", p.Level())
		}
		runs++
		return true
	}
	b := newBench(t, d, AdapterOptions{})
	SynchronizeAccess(b.a, b.p, func(tok SyncToken, _ int) bool {
		b.w.raise(tok.p, 1)
		b.w.raise(tok.p, 1)
		if runs != 0 {
			t.Error("the handler ran inside the routine")
		}
		return true
	}, 0)
	if runs != 1 {
		t.Errorf("%d runs after two edges, want 1", runs)
	}
	b.w.raise(b.p, 1)
	if runs != 2 {
		t.Errorf("%d runs, want 2", runs)
	}
	b.wantNoViolations()
}

// An edge during the handler makes it run once more, after it returned.
func TestInterrupt_EdgeWhileRunning(t *testing.T) {
	runs, depth := 0, 0
	d := &driver{model: FullDuplex, mode: InterruptSynchronizeAll, messages: 1}
	var b *bench
	d.handler = func(p *Processor, _ SyncToken, _ uint16) bool {
		depth++
		if depth != 1 {
			t.Error("the handler is nested")
		}
		runs++
		if runs < 3 {
			b.w.raise(p, 0)
			b.w.raise(p, 0)
		}
		depth--
		return true
	}
	b = newBench(t, d, AdapterOptions{})
	b.w.raise(b.p, 0)
	if runs != 3 {
		t.Errorf("%d runs, want 3", runs)
	}
}

// A line interrupt is serviced until the line is down.
func TestInterrupt_LineIsLevelTriggered(t *testing.T) {
	d := &driver{model: FullDuplex}
	runs := 0
	var b *bench
	d.handler = func(*Processor, SyncToken, uint16) bool {
		if runs++; runs == 3 {
			b.w.assert(false)
		}
		return true
	}
	b = newBench(t, d, AdapterOptions{})
	b.w.assert(true)
	b.w.raise(b.p, 0)
	if runs != 3 {
		t.Errorf("%d runs, want 3", runs)
	}
}

// A8: whatever is published before an edge is seen by a handler: from many
// processors at once, no edge is lost.
func TestA8_NoLostInterrupt(t *testing.T) {
	const workers, rounds = 4, 2000
	var published, drained atomic.Int64
	d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 1}
	d.handler = func(*Processor, SyncToken, uint16) bool {
		drained.Store(published.Load())
		return true
	}
	b := newBench(t, d, AdapterOptions{})
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			p := b.processor("raiser")
			defer p.Close()
			for i := range rounds {
				published.Add(1)
				b.w.raise(p, 0)
				if i%7 == 0 {
					SynchronizeAccess(b.a, p, func(SyncToken, int) bool { return true }, 0)
				}
			}
		})
	}
	wg.Wait()
	if drained.Load() != published.Load() {
		t.Errorf("handler saw %d of %d", drained.Load(), published.Load())
	}
	b.wantNoViolations()
}

// A DPC runs below Device on the processor that issued it, calls coalesce, and
// one issued while it runs makes exactly one more run.
func TestDpc_CoalescesAndRunsAgain(t *testing.T) {
	var dpc Dpc
	runs := 0
	d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 1}
	var b *bench
	d.passiveInit = func(p *Processor) bool {
		d.a.InitializeDpc(p, &dpc, func(p *Processor, dpc *Dpc) {
			if p.Level() != Dispatch {
				t.Errorf("DPC at %s", p.Level())
			}
			if runs++; runs == 1 {
				if !d.a.IssueDpc(p, dpc) || d.a.IssueDpc(p, dpc) {
					t.Error("issued while running: want true once, then false")
				}
			}
		})
		return true
	}
	d.handler = func(p *Processor, _ SyncToken, _ uint16) bool {
		if !d.a.IssueDpc(p, &dpc) {
			t.Error("first IssueDpc returned false")
		}
		if d.a.IssueDpc(p, &dpc) {
			t.Error("second IssueDpc returned true")
		}
		if runs != 0 {
			t.Error("the DPC ran inside the handler")
		}
		return true
	}
	b = newBench(t, d, AdapterOptions{})
	b.w.raise(b.p, 0)
	if runs != 2 {
		t.Errorf("%d runs, want 2", runs)
	}
	b.wantNoViolations()
}

// CancelDpc takes back what has not begun.
func TestDpc_Cancel(t *testing.T) {
	var dpc Dpc
	runs := 0
	d := &driver{model: FullDuplex}
	d.passiveInit = func(p *Processor) bool {
		d.a.InitializeDpc(p, &dpc, func(*Processor, *Dpc) { runs++ })
		return true
	}
	b := newBench(t, d, AdapterOptions{})
	old := b.p.raise(Dispatch)
	b.a.IssueDpc(b.p, &dpc)
	if !b.a.CancelDpc(b.p, &dpc) || b.a.CancelDpc(b.p, &dpc) {
		t.Error("CancelDpc: want true once, then false")
	}
	b.p.lower(old)
	if runs != 0 {
		t.Errorf("cancelled DPC ran %d times", runs)
	}
	old = b.p.raise(Dispatch)
	b.a.IssueDpc(b.p, &dpc)
	b.a.CancelDpc(b.p, &dpc)
	b.a.IssueDpc(b.p, &dpc)
	b.p.lower(old)
	if runs != 1 {
		t.Errorf("DPC cancelled and issued again ran %d times, want 1", runs)
	}
}
