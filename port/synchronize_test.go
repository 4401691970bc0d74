package port

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/internal/pci"
)

// shape is one way to synchronize an adapter.
type shape struct {
	model    SynchronizationModel
	mode     InterruptSynchronizationMode
	messages int
}

func (s shape) String() string {
	return fmt.Sprintf("model=%s/interrupts=%s/messages=%d", s.model, s.mode, s.messages)
}

var shapes = []shape{
	{HalfDuplex, InterruptSupportNone, 1},
	{FullDuplex, InterruptSupportNone, 1},
	{HalfDuplex, InterruptSynchronizeAll, 4},
	{FullDuplex, InterruptSynchronizeAll, 4},
	{HalfDuplex, InterruptSynchronizePerMessage, 4},
	{FullDuplex, InterruptSynchronizePerMessage, 4},
}

func forShapes(t *testing.T, test func(t *testing.T, s shape)) {
	for _, s := range shapes {
		t.Run(s.String(), func(t *testing.T) { test(t, s) })
	}
}

// shared is plain memory that only the interrupt locks protect, so that the
// race detector watches, too.
type shared struct {
	inside int
	count  int
}

func (s *shared) visit(t *testing.T) {
	s.inside++
	runtime.Gosched() // let another goroutine in, if the locks do
	if s.inside != 1 {
		t.Errorf("%d are inside at once", s.inside)
	}
	s.count++
	s.inside--
}

// A1, exclusion: routines under SynchronizeAccess overlap neither each other nor
// any interrupt handler, from BuildIo and from StartIo, in every shape; and
// every one of them runs.
func TestA1_Exclusion(t *testing.T) {
	forShapes(t, func(t *testing.T, s shape) {
		const workers, rounds = 4, 300
		var state Guarded[shared]
		var handled atomic.Int64
		var plain shared // of routines and of those who hold the interrupt lock
		d := &driver{model: s.model, mode: s.mode, messages: s.messages}
		routine := func(tok SyncToken, n *int) bool {
			state.Open(tok).visit(t)
			plain.visit(t)
			*n++
			return true
		}
		call := func(p *Processor) {
			n := 0
			if !SynchronizeAccess(d.a, p, routine, &n) || n != 1 {
				t.Errorf("routine ran %d times, want once", n)
			}
		}
		d.buildIo = func(p *Processor, _ *SRB) bool { call(p); return true }
		d.startIo = func(p *Processor, srb *SRB) bool { call(p); d.complete(p, srb); return true }
		perMessage := make([]Guarded[shared], s.messages)
		d.handler = func(_ *Processor, tok SyncToken, m uint16) bool {
			perMessage[m].Open(tok).visit(t)
			if s.mode != InterruptSynchronizePerMessage {
				state.Open(tok).visit(t)
			}
			handled.Add(1)
			return true
		}
		b := newBench(t, d, AdapterOptions{})
		state.Bind(b.a, AllMessages)
		for i := range perMessage {
			perMessage[i].Bind(b.a, i)
		}
		// What a handler of one message shares with a routine: the routine takes
		// all locks, so it may open the message's state too.
		routineAll := func(tok SyncToken, g *Guarded[shared]) bool { g.Open(tok).visit(t); return true }

		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				p := b.processor(fmt.Sprintf("worker %d", w))
				defer p.Close()
				done := &finished{}
				srb := b.srb(done)
				for i := range rounds {
					b.lu.Submit(p, []*SRB{srb})
					b.w.raise(p, pci.Message((w+i)%s.messages))
					SynchronizeAccess(b.a, p, routineAll, &perMessage[i%s.messages])
					h := b.a.AcquireSpinLock(p, InterruptLock, nil)
					plain.visit(t)
					b.a.ReleaseSpinLock(p, h)
				}
				if n := len(done.list()); n != rounds {
					t.Errorf("worker %d: %d completions, want %d", w, n, rounds)
				}
				b.a.FreeSRB(srb)
			})
		}
		wg.Wait()
		total := 0
		SynchronizeAccess(b.a, b.p, func(tok SyncToken, n *int) bool { *n = state.Open(tok).count; return true }, &total)
		want := workers * rounds * 2
		if s.mode != InterruptSynchronizePerMessage {
			want += int(handled.Load())
		}
		if total != want {
			t.Errorf("%d visits, want %d", total, want)
		}
		if handled.Load() == 0 {
			t.Error("no handler ran")
		}
		b.wantNoViolations()
	})
}

// A3: the result is the routine's, its argument passes unchanged, and the level and
// the locks held are as before.
func TestA3_Result(t *testing.T) {
	forShapes(t, func(t *testing.T, s shape) {
		b := newBench(t, &driver{model: s.model, mode: s.mode, messages: s.messages}, AdapterOptions{})
		for _, want := range []bool{true, false} {
			type context struct{ seen *context }
			c := &context{}
			got := SynchronizeAccess(b.a, b.p, func(tok SyncToken, x *context) bool {
				x.seen = x
				if tok.Processor().Level() != Device {
					t.Errorf("routine at %s, want Device", tok.Processor().Level())
				}
				return want
			}, c)
			if got != want || c.seen != c {
				t.Errorf("result %v with context %p, want %v with %p", got, c.seen, want, c)
			}
		}
		if b.p.Level() != Passive || b.p.nheld != 0 {
			t.Errorf("after: level %s, %d locks", b.p.Level(), b.p.nheld)
		}
		b.wantNoViolations()
	})
}

// A4, the trap: half duplex is where deciding by the model goes wrong: StartIo holds the
// interrupt lock already, BuildIo does not.
func TestA4_HalfDuplexDecidesByWhatIsHeld(t *testing.T) {
	for _, mode := range []InterruptSynchronizationMode{InterruptSupportNone, InterruptSynchronizeAll, InterruptSynchronizePerMessage} {
		t.Run(mode.String(), func(t *testing.T) {
			d := &driver{model: HalfDuplex, mode: mode, messages: 3}
			held := map[string][2]int{}
			probe := func(p *Processor, where string) {
				before := p.heldInterruptLocks(d.a)
				SynchronizeAccess(d.a, p, func(tok SyncToken, _ int) bool {
					held[where] = [2]int{before, tok.p.heldInterruptLocks(d.a)}
					return true
				}, 0)
			}
			d.buildIo = func(p *Processor, _ *SRB) bool { probe(p, "BuildIo"); return true }
			d.startIo = func(p *Processor, srb *SRB) bool { probe(p, "StartIo"); d.complete(p, srb); return true }
			b := newBench(t, d, AdapterOptions{})
			srb := b.srb(&finished{})
			b.lu.Submit(b.p, []*SRB{srb})
			all := len(b.a.interruptLocks)
			if held["BuildIo"] != [2]int{0, all} {
				t.Errorf("BuildIo: locks before and inside %v, want [0 %d]", held["BuildIo"], all)
			}
			if held["StartIo"] != [2]int{all, all} {
				t.Errorf("StartIo: locks before and inside %v, want [%d %d]", held["StartIo"], all, all)
			}
			b.a.FreeSRB(srb)
			b.wantNoViolations()
		})
	}
}

// A5: misuse is reported and returns false; it never hangs.
func TestA5_Misuse(t *testing.T) {
	t.Run("nested", func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		inner := true
		SynchronizeAccess(b.a, b.p, func(tok SyncToken, _ int) bool {
			inner = SynchronizeAccess(b.a, tok.p, func(SyncToken, int) bool { return true }, 0)
			return true
		}, 0)
		if inner || b.sys.Verifier().Count(CheckSynchronizeAccess) != 1 {
			t.Errorf("nested call returned %v with %d violations, want false with 1", inner, b.sys.Verifier().Count(CheckSynchronizeAccess))
		}
	})
	t.Run("from the handler", func(t *testing.T) {
		for _, s := range shapes {
			d := &driver{model: s.model, mode: s.mode, messages: s.messages}
			result := true
			d.handler = func(p *Processor, _ SyncToken, _ uint16) bool {
				result = SynchronizeAccess(d.a, p, func(SyncToken, int) bool { return true }, 0)
				return true
			}
			b := newBench(t, d, AdapterOptions{})
			b.w.raise(b.p, 0)
			if result || b.sys.Verifier().Count(CheckSynchronizeAccess) != 1 {
				t.Errorf("%s: call returned %v with %d violations, want false with 1", s, result, b.sys.Verifier().Count(CheckSynchronizeAccess))
			}
		}
	})
	t.Run("after removal", func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		b.a.state.Store(adapterRemoved)
		if SynchronizeAccess(b.a, b.p, func(SyncToken, int) bool { t.Error("routine called"); return true }, 0) {
			t.Error("returned true after removal")
		}
		b.a.state.Store(adapterRunning)
		b.wantNoViolations()
	})
	t.Run("panic", func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 3}, AdapterOptions{})
		func() {
			defer func() {
				if recover() != "boom" {
					t.Error("the routine's panic was lost")
				}
			}()
			SynchronizeAccess(b.a, b.p, func(SyncToken, int) bool { panic("boom") }, 0)
		}()
		if b.p.Level() != Passive || b.p.nheld != 0 || b.a.state.Load() != adapterFailed {
			t.Errorf("after a panic: level %s, %d locks, state %d", b.p.Level(), b.p.nheld, b.a.state.Load())
		}
		b.a.state.Store(adapterRunning)
		if !SynchronizeAccess(b.a, b.p, func(SyncToken, int) bool { return true }, 0) {
			t.Error("the locks were not released")
		}
	})
}

// A16, what run time holds: guarded state opens with the right token only.
func TestA16_RefusesOtherTokens(t *testing.T) {
	d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
	var one, all Guarded[int]
	var of [2]Guarded[int]
	opens := func(g *Guarded[int], tok SyncToken) (ok bool) {
		defer func() { ok = recover() == nil }()
		*g.Open(tok)++
		return true
	}
	results := map[string]bool{}
	d.handler = func(_ *Processor, tok SyncToken, m uint16) bool {
		results[fmt.Sprint("own ", m)] = opens(&of[m], tok)
		results[fmt.Sprint("other ", m)] = opens(&of[1-m], tok)
		results[fmt.Sprint("all ", m)] = opens(&all, tok)
		return true
	}
	b := newBench(t, d, AdapterOptions{})
	all.Bind(b.a, AllMessages)
	one.Bind(b.a, 0)
	of[0].Bind(b.a, 0)
	of[1].Bind(b.a, 1)
	b.w.raise(b.p, 0)
	b.w.raise(b.p, 1)
	for name, want := range map[string]bool{"own 0": true, "own 1": true, "other 0": false, "other 1": false, "all 0": false, "all 1": false} {
		if results[name] != want {
			t.Errorf("%s: opened %v, want %v", name, results[name], want)
		}
	}
	if opens(&one, SyncToken{}) {
		t.Error("the zero token opened")
	}
	var kept SyncToken
	SynchronizeAccess(b.a, b.p, func(tok SyncToken, _ int) bool { kept = tok; return opens(&all, tok) }, 0)
	opens(&all, kept)
	if b.sys.Verifier().Count(CheckLockRules) != 1 {
		t.Error("a token used after its call was not reported")
	}
}

// A lock that is released before one that was taken after it does not let in, under that,
// what that keeps out: the handler would wait for its own processor.
func TestRelease_NotBelowWhatIsHeld(t *testing.T) {
	for name, own := range map[string]bool{"the port's lock": false, "the miniport's own": true} {
		t.Run(name, func(t *testing.T) {
			var l KSpinLock
			handled := 0
			d := &driver{model: FullDuplex}
			d.findAdapter = func(p *Processor, _ *Config) { d.a.InitializeSpinlock(p, &l) }
			d.handler = func(*Processor, SyncToken, uint16) bool { handled++; return true }
			b := newUncheckedBench(t, d, AdapterOptions{}, SystemConfig{})
			d.buildIo = func(p *Processor, s *SRB) bool {
				var first LockHandle
				if own {
					first = b.a.AcquireSpinLockEx(p, &l)
				} else {
					first = b.a.AcquireSpinLock(p, StartIoLock, nil)
				}
				second := b.a.AcquireSpinLock(p, InterruptLock, nil)
				b.w.raise(p, 0)
				b.a.ReleaseSpinLock(p, first)
				if handled != 0 || p.Level() != Device {
					t.Errorf("%d calls of the handler at %s, with its lock held", handled, p.Level())
				}
				b.a.ReleaseSpinLock(p, second)
				if handled != 1 || p.Level() != Dispatch {
					t.Errorf("%d calls of the handler, at %s; want 1, at Dispatch", handled, p.Level())
				}
				d.complete(p, s)
				return false
			}
			s := b.srb(&finished{})
			b.lu.Submit(b.p, []*SRB{s})
			b.a.FreeSRB(s)
			b.wantRemoved()
		})
	}
}
