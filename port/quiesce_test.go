package port

import (
	"testing"
	"time"
)

// QUIESCE_DEVICE completes when nothing is outstanding on its unit, after all
// that was; with the queue locked nothing new is by then.
func TestQuiesceDevice(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	done := &finished{}
	srbs := make([]*SRB, 5)
	for i := range srbs {
		srbs[i] = b.srb(done)
	}
	first, second, lock, quiesce, waits := srbs[0], srbs[1], srbs[2], srbs[3], srbs[4]
	lock.Function, quiesce.Function = FunctionLockQueue, FunctionQuiesceDevice
	want := func(when string, list ...*SRB) {
		t.Helper()
		got := done.list()
		if len(got) != len(list) {
			t.Fatalf("%s: %d completions, want %d", when, len(got), len(list))
		}
		for i := range list {
			if got[i] != list[i] || got[i].Status != StatusSuccess {
				t.Fatalf("%s: completion %d is %s, want that of %s", when, i, got[i], list[i].request())
			}
		}
	}
	b.lu.Submit(b.p, []*SRB{quiesce})
	want("on a quiet unit", quiesce)

	b.lu.Submit(b.p, []*SRB{first, second})
	b.lu.Submit(b.p, []*SRB{lock, quiesce, waits})
	want("with two outstanding", quiesce, lock)
	held := d.take()
	d.complete(b.p, held[0])
	want("with one outstanding", quiesce, lock, first)
	d.complete(b.p, held[1])
	want("with none outstanding", quiesce, lock, first, second, quiesce)
	if n := len(d.take()); n != 0 {
		t.Fatalf("%d SRBs came through a locked queue", n)
	}
	lock.Function, lock.Flags = FunctionUnlockQueue, lock.Flags|FlagBypassLockedQueue
	b.lu.Submit(b.p, []*SRB{lock})
	d.complete(b.p, d.take()[0])
	want("unlocked", quiesce, lock, first, second, quiesce, lock, waits)
	for _, s := range srbs {
		b.a.FreeSRB(s)
	}
	b.wantNoViolations()
}

// A unit that goes away is not quiet, and says so; what the miniport holds of it
// comes back when it likes.
func TestQuiesceDevice_UnitGone(t *testing.T) {
	for name, end := range map[string]func(b *bench){
		"detached": func(b *bench) { b.a.detach(b.p, b.lu) },
		"given up": func(b *bench) { b.a.giveUp(b.p, b.lu) },
		"failed":   func(b *bench) { b.a.failUnits(b.p) },
	} {
		t.Run(name, func(t *testing.T) {
			d := &driver{model: FullDuplex}
			b := newBench(t, d, AdapterOptions{ResetTimeout: time.Millisecond})
			done := &finished{}
			held, quiesce := b.srb(done), b.srb(done)
			quiesce.Function = FunctionQuiesceDevice
			b.lu.Submit(b.p, []*SRB{held, quiesce})
			end(b)
			if n := len(done.list()); n != 1 || quiesce.Status != StatusNoDevice {
				t.Errorf("%d completions, %s; want StatusNoDevice", n, quiesce)
			}
			d.complete(b.p, d.take()[0])
			b.a.FreeSRB(held)
			b.a.FreeSRB(quiesce)
			b.wantNoViolations()
		})
	}
}

// What BuildIo has seen and the unit is not ready for is not outstanding.
func TestQuiesceDevice_Parked(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	done := &finished{}
	parked, quiesce := b.srb(done), b.srb(done)
	quiesce.Function = FunctionQuiesceDevice
	d.buildIo = func(p *Processor, _ *SRB) bool {
		b.a.PauseDevice(p, 0, 0, 0, 600)
		b.lu.Submit(p, []*SRB{quiesce}) // while parked is outstanding
		return true
	}
	b.lu.Submit(b.p, []*SRB{parked})
	if list := done.list(); len(list) != 1 || list[0] != quiesce || quiesce.Status != StatusSuccess {
		t.Errorf("%d completions, %s", len(list), quiesce)
	}
	b.a.ResumeDevice(b.p, 0, 0, 0)
	d.complete(b.p, d.take()[0])
	b.a.FreeSRB(parked)
	b.a.FreeSRB(quiesce)
}
