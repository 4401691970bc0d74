package port

import (
	"fmt"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/lockorder"
	"github.com/vhbad/vhbad/internal/pci"
)

// The acceptance criteria A1 to A17 of the scenario "synchronized access within
// unsynchronized routines": what must hold for a routine under SynchronizeAccess
// beside BuildIo, StartIo and the interrupt handlers.
//
// A1 is in synchronize_test.go, with A3, A5 and A16; A6 has a second half: every
// test hands its lock order to package lockorder, which joins them.

// watchdog is how long a test waits for what must happen. It is no measure of
// time: what passes, passes long before.
const watchdog = 30 * time.Second

// await waits for c, or fails the test.
func await(t *testing.T, c <-chan struct{}, what string) bool {
	t.Helper()
	select {
	case <-c:
		return true
	case <-time.After(watchdog):
		t.Errorf("it never happened: %s", what)
		return false
	}
}

// A meeting is where n callers must be at the same time.
type meeting struct {
	t    *testing.T
	what string
	left atomic.Int32
	all  chan struct{}
}

func newMeeting(t *testing.T, n int, what string) *meeting {
	m := &meeting{t: t, what: what, all: make(chan struct{})}
	m.left.Store(int32(n))
	return m
}

// attend waits until everybody is there. Callers after the first n pass.
func (m *meeting) attend() {
	switch left := m.left.Add(-1); {
	case left == 0:
		close(m.all)
	case left > 0:
		await(m.t, m.all, m.what)
	}
}

// yieldOften lets every other goroutine run that can.
func yieldOften() {
	for range 2000 {
		runtime.Gosched()
	}
}

// A2: the concurrency that the model promises is really there; without it A1
// would say nothing.
func TestA2_RealConcurrency(t *testing.T) {
	// Two submitters on processors of their own, whose BuildIo and StartIo the
	// test sets, and one processor that raises interrupts.
	type scene struct {
		*bench
		ps [2]*Processor
	}
	setUp := func(t *testing.T, d *driver) *scene {
		s := &scene{bench: newBench(t, d, AdapterOptions{})}
		for i := range s.ps {
			s.ps[i] = s.processor(fmt.Sprintf("worker %d", i))
		}
		t.Cleanup(func() {
			for _, p := range s.ps {
				p.Close()
			}
		})
		return s
	}
	submitBoth := func(s *scene) {
		var wg sync.WaitGroup
		for _, p := range s.ps {
			srb := s.srb(&finished{})
			wg.Go(func() { s.lu.Submit(p, []*SRB{srb}) })
		}
		wg.Wait()
	}
	completing := func(d *driver) func(p *Processor, srb *SRB) bool {
		return func(p *Processor, srb *SRB) bool { d.complete(p, srb); return true }
	}
	forShapes(t, func(t *testing.T, s shape) {
		t.Run("BuildIo beside BuildIo", func(t *testing.T) {
			d := &driver{model: s.model, mode: s.mode, messages: s.messages}
			m := newMeeting(t, 2, "two BuildIo at once")
			d.buildIo = func(*Processor, *SRB) bool { m.attend(); return true }
			d.startIo = completing(d)
			x := setUp(t, d)
			submitBoth(x)
			x.wantNoViolations()
		})
		t.Run("BuildIo beside the handler", func(t *testing.T) {
			d := &driver{model: s.model, mode: s.mode, messages: s.messages}
			m := newMeeting(t, 2, "BuildIo and a handler at once")
			d.buildIo = func(*Processor, *SRB) bool { m.attend(); return true }
			d.handler = func(*Processor, SyncToken, uint16) bool { m.attend(); return true }
			d.startIo = completing(d)
			x := setUp(t, d)
			var wg sync.WaitGroup
			srb := x.srb(&finished{})
			wg.Go(func() { x.lu.Submit(x.ps[0], []*SRB{srb}) })
			wg.Go(func() { x.w.raise(x.ps[1], 0) })
			wg.Wait()
			x.wantNoViolations()
		})
		t.Run("StartIo beside the handler", func(t *testing.T) {
			d := &driver{model: s.model, mode: s.mode, messages: s.messages}
			x := setUp(t, d)
			srb := x.srb(&finished{})
			inStart, handled := make(chan struct{}), make(chan struct{})
			d.handler = func(*Processor, SyncToken, uint16) bool { close(handled); return true }
			d.startIo = func(p *Processor, srb *SRB) bool {
				close(inStart)
				if s.model == FullDuplex {
					await(t, handled, "a handler during StartIo in full duplex")
				} else {
					yieldOften()
					select {
					case <-handled:
						t.Error("a handler ran during StartIo in half duplex")
					default:
					}
				}
				d.complete(p, srb)
				return true
			}
			var wg sync.WaitGroup
			wg.Go(func() { x.lu.Submit(x.ps[0], []*SRB{srb}) })
			await(t, inStart, "StartIo")
			wg.Go(func() { x.w.raise(x.ps[1], 0) })
			wg.Wait()
			await(t, handled, "the handler")
			x.wantNoViolations()
		})
	})
	t.Run("StartIo beside StartIo on two channels", func(t *testing.T) {
		d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2, channels: 2}
		m := newMeeting(t, 2, "two StartIo at once")
		d.startIo = func(p *Processor, srb *SRB) bool { m.attend(); d.complete(p, srb); return true }
		x := setUp(t, d)
		submitBoth(x) // processors 1 and 2: different channels
		x.wantNoViolations()
	})
	t.Run("handler beside handler of another message", func(t *testing.T) {
		d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
		m := newMeeting(t, 2, "two handlers at once")
		d.handler = func(*Processor, SyncToken, uint16) bool { m.attend(); return true }
		x := setUp(t, d)
		var wg sync.WaitGroup
		for i, p := range x.ps {
			wg.Go(func() { x.w.raise(p, pci.Message(i)) })
		}
		wg.Wait()
		x.wantNoViolations()
	})
}

// A4: SynchronizeAccess works from every legal caller in every shape, with all
// interrupt locks held inside, whether the caller held them already or not.
func TestA4_CallerCoverage(t *testing.T) {
	forShapes(t, func(t *testing.T, s shape) {
		d := &driver{model: s.model, mode: s.mode, messages: s.messages}
		var mu sync.Mutex
		calls := map[Callback]int{}
		probe := func(p *Processor) {
			caller, level, held := p.callback, p.level, p.nheld
			ok := SynchronizeAccess(d.a, p, func(tok SyncToken, _ int) bool {
				if n := tok.p.heldInterruptLocks(d.a); n != len(d.a.interruptLocks) || tok.p.level != Device {
					t.Errorf("from %s: %d of %d locks at %s", caller, n, len(d.a.interruptLocks), tok.p.level)
				}
				return true
			}, 0)
			if !ok || p.level != level || p.nheld != held || p.callback != caller {
				t.Errorf("from %s: returned %v at %s with %d locks in %s, was at %s with %d", caller, ok, p.level, p.nheld, p.callback, level, held)
			}
			mu.Lock()
			calls[caller]++
			mu.Unlock()
		}
		d.passiveInit = func(p *Processor) bool {
			d.a.InitializeDpc(p, &d.dpcs[0], func(p *Processor, _ *Dpc) { probe(p) })
			probe(p)
			return true
		}
		d.buildIo = func(p *Processor, _ *SRB) bool { probe(p); return true }
		d.startIo = func(p *Processor, srb *SRB) bool { probe(p); d.complete(p, srb); return true }
		d.commitIo = func(p *Processor, _ int) { probe(p) }
		d.resetBus = func(p *Processor, _ uint8) bool { probe(p); return true }
		d.control = func(p *Processor, _ ControlType) { probe(p) }
		d.unitControl = func(p *Processor) { probe(p) }
		b := newBench(t, d, AdapterOptions{})

		probe(b.p) // outside all callbacks
		b.submitOne()
		b.a.IssueDpc(b.p, &d.dpcs[0])
		b.a.unitControl(b.p, d, UnitStart, b.lu)
		if err := b.a.ResetNow(b.p, b.lu, ResetBus); err != nil {
			t.Error(err)
		}
		timer := make(chan struct{})
		b.a.RequestTimerCall(b.p, func(p *Processor) { probe(p); close(timer) }, time.Nanosecond)
		await(t, timer, "the timer")
		worked := make(chan struct{})
		b.a.QueueWorkItem(b.p, &WorkItem{Routine: func(p *Processor) { probe(p); close(worked) }})
		await(t, worked, "the work item")
		if err := b.a.Stop(b.p); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, c := range []Callback{
			inNone, inPassiveInitialize, inBuildIo, inStartIo, inCommitIo, inDpc, inTimer, inResetBus, inAdapterControl, inUnitControl, inWorkItem,
		} {
			if calls[c] == 0 {
				t.Errorf("not called from %s", c)
			}
		}
		b.wantNoViolations()
	})
}

// A6: the order is StartIo, channel, DPC, the miniport's own, interrupt; the graph of the
// orders that really occur has no cycle; and a graph with a cycle is reported.
func TestA6_LockOrder(t *testing.T) {
	d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 3, channels: 2}
	var own KSpinLock
	d.passiveInit = func(p *Processor) bool {
		d.a.InitializeDpc(p, &d.dpcs[0], func(*Processor, *Dpc) {})
		d.a.InitializeSpinlock(p, &own)
		return true
	}
	takeTheRest := func(p *Processor) {
		h := d.a.AcquireSpinLock(p, DpcLock, &d.dpcs[0])
		o := d.a.AcquireSpinLockEx(p, &own)
		i := d.a.AcquireSpinLock(p, InterruptLock, nil)
		d.a.ReleaseSpinLock(p, i)
		d.a.ReleaseSpinLock(p, o)
		d.a.ReleaseSpinLock(p, h)
	}
	d.startIo = func(p *Processor, srb *SRB) bool { takeTheRest(p); d.complete(p, srb); return true }
	d.resetBus = func(p *Processor, _ uint8) bool { takeTheRest(p); return true }
	b := newBench(t, d, AdapterOptions{})
	b.submitOne()
	if err := b.a.ResetNow(b.p, b.lu, ResetBus); err != nil {
		t.Error(err)
	}
	want := [][2]string{
		{"StartIo", "channel"},
		{"StartIo", "DPC"},
		{"StartIo", "miniport"},
		{"StartIo", "interrupt"},
		{"channel", "channel"},
		{"channel", "DPC"},
		{"channel", "miniport"},
		{"channel", "interrupt"},
		{"DPC", "miniport"},
		{"DPC", "interrupt"},
		{"miniport", "interrupt"},
		{"interrupt", "interrupt"},
	}
	got := b.sys.Verifier().LockOrder()
	if !slices.Equal(got, want) {
		t.Errorf("lock order %v, want %v", got, want)
	}
	var graph lockorder.Graph
	for _, e := range got {
		graph.Add(lockorder.Edge{From: e[0], To: e[1]})
	}
	if cycle := graph.Cycle(); cycle != nil {
		t.Errorf("cycle %v", cycle)
	}
	graph.Add(lockorder.Edge{From: "interrupt", To: "StartIo"})
	if cycle := graph.Cycle(); len(cycle) < 2 {
		t.Errorf("a graph with a cycle gives %v", cycle)
	}
	b.wantNoViolations()
}

// A7: level and locks are as before, after a panic of the routine, too, wherever
// the call came from; the adapter is marked failed and the panic goes on.
func TestA7_StateRestored(t *testing.T) {
	forShapes(t, func(t *testing.T, s shape) {
		d := &driver{model: s.model, mode: s.mode, messages: s.messages}
		boom := func(p *Processor, where string) {
			level, held, callback := p.level, p.nheld, p.callback
			func() {
				defer func() {
					if recover() != "boom" {
						t.Errorf("%s: the panic was lost", where)
					}
				}()
				SynchronizeAccess(d.a, p, func(SyncToken, int) bool { panic("boom") }, 0)
			}()
			if p.level != level || p.nheld != held || p.callback != callback || p.inSync {
				t.Errorf("%s: at %s with %d locks in %s, was at %s with %d in %s", where, p.level, p.nheld, p.callback, level, held, callback)
			}
			if d.a.state.Load() != adapterFailed {
				t.Errorf("%s: the adapter is not marked failed", where)
			}
			d.a.failed = make(chan struct{})
			d.a.state.Store(adapterRunning)
		}
		d.buildIo = func(p *Processor, _ *SRB) bool { boom(p, "BuildIo"); return true }
		d.startIo = func(p *Processor, srb *SRB) bool { boom(p, "StartIo"); d.complete(p, srb); return true }
		b := newBench(t, d, AdapterOptions{})
		b.submitOne()
		boom(b.p, "Passive")
		if !SynchronizeAccess(b.a, b.p, func(SyncToken, int) bool { return true }, 0) {
			t.Error("the locks were not released")
		}
		b.wantNoViolations()
	})
}

// A9: the next handler sees all that a routine has written to plain fields, and the
// other way round. Only the interrupt lock orders the two; with -race the detector
// checks this, too.
func TestA9_Visibility(t *testing.T) {
	forShapes(t, func(t *testing.T, s shape) {
		type pair struct{ a, b, routines, handlers int }
		var state Guarded[pair]
		d := &driver{model: s.model, mode: s.mode, messages: s.messages}
		step := func(x *pair) {
			if x.a != x.b || x.a != x.routines+x.handlers {
				t.Errorf("torn or stale: %+v", *x)
			}
			x.a++
			x.b++
		}
		d.handler = func(_ *Processor, tok SyncToken, _ uint16) bool {
			x := state.Open(tok)
			step(x)
			x.handlers++
			return true
		}
		b := newBench(t, d, AdapterOptions{})
		state.Bind(b.a, b.lockOf(0))
		const rounds = 2000
		var wg sync.WaitGroup
		wg.Go(func() {
			p := b.processor("raiser")
			defer p.Close()
			for range rounds {
				b.w.raise(p, 0)
			}
		})
		wg.Go(func() {
			p := b.processor("caller")
			defer p.Close()
			for range rounds {
				SynchronizeAccess(b.a, p, func(tok SyncToken, g *Guarded[pair]) bool {
					x := g.Open(tok)
					step(x)
					x.routines++
					return true
				}, &state)
			}
		})
		wg.Wait()
		SynchronizeAccess(b.a, b.p, func(tok SyncToken, g *Guarded[pair]) bool {
			if x := g.Open(tok); x.routines != rounds || x.handlers != rounds || x.a != 2*rounds {
				t.Errorf("at the end %+v, want %d of each", *x, rounds)
			}
			return true
		}, &state)
		b.wantNoViolations()
	})
}

// lockOf is the message to bind state to that message m's handler opens.
func (b *bench) lockOf(m int) int {
	if len(b.a.interruptLocks) == 1 {
		return AllMessages
	}
	return m
}

// A10: how long routines hold interrupts off is exported, and a handler makes
// progress however many callers there are.
func TestA10_Bounded(t *testing.T) {
	t.Run("hold times", func(t *testing.T) {
		clock := &testClock{}
		b := newBenchIn(t, &driver{model: FullDuplex}, AdapterOptions{}, SystemConfig{Clock: clock.now})
		hold := func(d time.Duration) {
			SynchronizeAccess(b.a, b.p, func(_ SyncToken, d time.Duration) bool { clock.advance(d); return true }, d)
		}
		for range 97 {
			hold(20 * time.Microsecond)
		}
		hold(60 * time.Microsecond)
		hold(200 * time.Microsecond)
		hold(time.Millisecond)
		got := b.a.Stats(b.p).SyncHold
		if got.Count != 100 || got.P50 < 20*time.Microsecond || got.P50 > 40*time.Microsecond ||
			got.P99 < 200*time.Microsecond || got.P99 > 400*time.Microsecond || got.Max != time.Millisecond || got.Over != [3]uint64{3, 3, 2} {
			t.Errorf("%+v, want 100 with a median of 20 µs, P99 200 µs (to a factor of two), at most 1 ms; 3, 3 and 2 over the limits", got)
		}
	})
	t.Run("progress", func(t *testing.T) {
		const callers, interrupts = 4, 300
		d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
		var handled atomic.Int64
		d.handler = func(*Processor, SyncToken, uint16) bool { handled.Add(1); return true }
		d.buildIo = func(p *Processor, _ *SRB) bool {
			return SynchronizeAccess(d.a, p, func(SyncToken, int) bool { return true }, 0)
		}
		d.startIo = func(p *Processor, srb *SRB) bool { d.complete(p, srb); return true }
		b := newBench(t, d, AdapterOptions{})
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range callers {
			p, srb := b.processor(fmt.Sprintf("caller %d", i)), b.srb(nil)
			srb.Completer = nothing{}
			wg.Go(func() {
				defer p.Close()
				for {
					b.lu.Submit(p, []*SRB{srb})
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		for i := range interrupts { // this loop ends only because the handler gets the lock
			b.w.raise(b.p, pci.Message(i%2))
		}
		close(stop)
		wg.Wait()
		if n := handled.Load(); n != interrupts {
			t.Errorf("%d handler runs, want %d", n, interrupts)
		}
		b.wantNoViolations()
	})
}

// A10, latency: between the raise of an interrupt and its handler at most one routine
// runs, the longest, besides other handlers, however many routines were already
// waiting. The clock is the test's: code that does not advance it takes no time.
func TestA10_HandlerLatency(t *testing.T) {
	const handlerTime = time.Millisecond
	holds := []time.Duration{50 * time.Millisecond, 20 * time.Millisecond, 80 * time.Millisecond, 10 * time.Millisecond}
	forShapes(t, func(t *testing.T, s shape) {
		for raised := 1; raised <= s.messages; raised++ {
			t.Run(fmt.Sprintf("raised=%d", raised), func(t *testing.T) {
				clock := &testClock{}
				d := &driver{model: s.model, mode: s.mode, messages: s.messages}
				var raisedAt, began [4]atomic.Int64
				d.handler = func(_ *Processor, _ SyncToken, m uint16) bool {
					began[m].Store(clock.ns.Load())
					clock.advance(handlerTime)
					return true
				}
				b := newBenchIn(t, d, AdapterOptions{}, SystemConfig{Clock: clock.now})
				inside := make(chan struct{})
				var wg sync.WaitGroup
				var calls atomic.Int64
				call := func(hold time.Duration, wait func()) {
					p := b.processor("caller")
					wg.Go(func() {
						defer p.Close()
						calls.Add(1)
						SynchronizeAccess(b.a, p, func(SyncToken, int) bool { wait(); clock.advance(hold); return true }, 0)
					})
				}
				ready := make(chan struct{})
				call(holds[0], func() { close(inside); await(t, ready, "the waiters") })
				await(t, inside, "the first routine")
				for _, hold := range holds[1:] {
					call(hold, func() {})
				}
				for calls.Load() < int64(len(holds)) {
					runtime.Gosched()
				}
				yieldOften() // the callers are at the lock before the handlers
				for m := range raised {
					p := b.processor("raiser")
					wg.Go(func() {
						defer p.Close()
						raisedAt[m].Store(clock.ns.Load())
						b.w.raise(p, pci.Message(m))
					})
				}
				handlersWait := func() (n int) {
					for i := range b.a.interruptLocks {
						n += int(b.a.interruptLocks[i].waiting.Load())
					}
					return n
				}
				for handlersWait() < raised {
					runtime.Gosched()
				}
				close(ready)
				wg.Wait()
				limit := slices.Max(holds) + time.Duration(raised-1)*handlerTime
				for m := range raised {
					if latency := time.Duration(began[m].Load() - raisedAt[m].Load()); latency > limit {
						t.Errorf("message %d: %s from raise to handler, want at most %s: one routine and the other handlers", m, latency, limit)
					}
				}
				b.wantNoViolations()
			})
		}
	})
}

// A11: nobody waits without need. A long StartIo or BuildIo does not hold up the
// handler, a routine on one adapter does not hold up one on another, and as many BuildIo
// run as there are processors.
func TestA11_NotOverSynchronised(t *testing.T) {
	for _, where := range []string{"BuildIo", "StartIo"} {
		t.Run("long "+where, func(t *testing.T) {
			d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
			inside, handled := make(chan struct{}), make(chan struct{})
			long := func() { close(inside); await(t, handled, "the handler, during a long "+where) }
			d.handler = func(*Processor, SyncToken, uint16) bool { close(handled); return true }
			d.buildIo = func(*Processor, *SRB) bool {
				if where == "BuildIo" {
					long()
				}
				return true
			}
			d.startIo = func(p *Processor, srb *SRB) bool {
				if where == "StartIo" {
					long()
				}
				d.complete(p, srb)
				return true
			}
			b := newBench(t, d, AdapterOptions{})
			p, srb := b.processor("worker"), b.srb(&finished{})
			var wg sync.WaitGroup
			wg.Go(func() { defer p.Close(); b.lu.Submit(p, []*SRB{srb}) })
			await(t, inside, where)
			b.w.raise(b.p, 0)
			wg.Wait()
			b.wantNoViolations()
		})
	}
	t.Run("another adapter", func(t *testing.T) {
		x := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		handled := 0
		y := newBench(t, &driver{model: FullDuplex, handler: func(*Processor, SyncToken, uint16) bool { handled++; return true }}, AdapterOptions{})
		SynchronizeAccess(x.a, x.p, func(SyncToken, int) bool {
			y.w.raise(y.p, 0)
			SynchronizeAccess(y.a, y.p, func(SyncToken, int) bool { return true }, 0)
			return true
		}, 0)
		if handled != 1 {
			t.Errorf("%d handler runs on the other adapter, want 1", handled)
		}
	})
	t.Run("BuildIo on every processor", func(t *testing.T) {
		const workers = 8
		d := &driver{model: HalfDuplex}
		m := newMeeting(t, workers, "eight BuildIo at once")
		d.buildIo = func(*Processor, *SRB) bool { m.attend(); return true }
		d.startIo = func(p *Processor, srb *SRB) bool { d.complete(p, srb); return true }
		b := newBench(t, d, AdapterOptions{})
		var wg sync.WaitGroup
		for i := range workers {
			p, srb := b.processor(fmt.Sprintf("worker %d", i)), b.srb(&finished{})
			wg.Go(func() { defer p.Close(); b.lu.Submit(p, []*SRB{srb}) })
		}
		wg.Wait()
		b.wantNoViolations()
	})
}

// A12: identifiers taken from one pool by BuildIo on many processors and by
// StartIo on many channels, and given back by handlers of many messages, are
// never in use twice, and each SRB completes once. It is the pattern of a real
// driver's bug: one counter, read and incremented without a lock. With
// VHBAD_SOAK set it goes on for 10^7 requests.
func TestA12_UniqueIDs(t *testing.T) {
	requests := 20000
	if os.Getenv("VHBAD_SOAK") != "" {
		requests = 10_000_000
	}
	const workers, depth, ids = 4, 4, 2 * 4 * 4
	type pool struct{ free []byte }
	var shared Guarded[pool]
	var inUse [ids]atomic.Int32
	var clashes atomic.Int64
	d := &driver{model: FullDuplex, mode: InterruptSynchronizeAll, messages: workers, channels: workers}
	take := func(p *Processor) (id byte) {
		SynchronizeAccess(d.a, p, func(tok SyncToken, id *byte) bool {
			x := shared.Open(tok)
			*id = x.free[len(x.free)-1]
			x.free = x.free[:len(x.free)-1]
			return true
		}, &id)
		if inUse[id].Add(1) != 1 {
			clashes.Add(1)
		}
		return id
	}
	var device [workers]struct {
		mu   sync.Mutex
		done []*SRB
	}
	d.buildIo = func(p *Processor, srb *SRB) bool { srb.Extension[0] = take(p); return true }
	d.startIo = func(p *Processor, srb *SRB) bool {
		srb.Extension[1] = take(p)
		q := &device[srb.channel]
		q.mu.Lock()
		q.done = append(q.done, srb)
		q.mu.Unlock()
		return true
	}
	d.handler = func(p *Processor, tok SyncToken, message uint16) bool {
		q := &device[message]
		q.mu.Lock()
		done := q.done
		q.done = nil
		q.mu.Unlock()
		x := shared.Open(tok)
		for _, srb := range done {
			for _, id := range srb.Extension[:2] {
				inUse[id].Add(-1)
				x.free = append(x.free, id)
			}
			d.complete(p, srb)
		}
		return true
	}
	b := newBench(t, d, AdapterOptions{})
	d.commitIo = func(p *Processor, channel int) { b.w.raise(p, pci.Message(channel)) }
	shared.Bind(b.a, AllMessages)
	SynchronizeAccess(b.a, b.p, func(tok SyncToken, _ int) bool {
		for id := range ids {
			shared.Open(tok).free = append(shared.Open(tok).free, byte(id))
		}
		return true
	}, 0)
	var counts [workers]atomic.Int64
	var wg sync.WaitGroup
	for i := range workers {
		p := b.processor(fmt.Sprintf("worker %d", i))
		batch := b.srbs(depth, &finished{})
		for _, s := range batch {
			s.Completer = counter{&counts[i]}
		}
		wg.Go(func() {
			defer p.Close()
			for n := int64(depth); n <= int64(requests/workers); n += depth {
				b.lu.Submit(p, batch)
				for counts[i].Load() < n { // another processor's handler may have them
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	if n := clashes.Load(); n != 0 {
		t.Errorf("%d identifiers were in use twice", n)
	}
	for i := range counts {
		if n := counts[i].Load(); n != int64(requests/workers) {
			t.Errorf("worker %d: %d completions, want %d", i, n, requests/workers)
		}
	}
	b.wantNoViolations()
}

// counter counts completions.
type counter struct{ n *atomic.Int64 }

func (c counter) CompleteSRB(*Processor, *SRB) { c.n.Add(1) }

// A13: the test of exclusion can fail. Each wrong way to synchronize lets a
// routine into a handler's critical section, and the right one does not.
func TestA13_Mutation(t *testing.T) {
	type synchronize func(a *Adapter, p *Processor, routine func()) bool
	locked := func(p *Processor, locks []spinLock, routine func()) bool {
		old := p.raise(Device)
		for i := range locks {
			locks[i].acquire(p)
		}
		routine()
		for i := range slices.Backward(locks) {
			locks[i].release(p)
		}
		p.lower(old)
		return true
	}
	ways := []struct {
		name   string
		shape  shape
		wrong  bool
		access synchronize
	}{
		{name: "a plain call", wrong: true, shape: shape{FullDuplex, InterruptSynchronizeAll, 2}, access: func(_ *Adapter, _ *Processor, routine func()) bool {
			routine()
			return true
		}},
		{name: "no lock in half duplex", wrong: true, shape: shape{HalfDuplex, InterruptSynchronizeAll, 2}, access: func(a *Adapter, p *Processor, routine func()) bool {
			if a.config.SynchronizationModel == HalfDuplex {
				routine() // "StartIo holds the lock already"; BuildIo does not
				return true
			}
			return locked(p, a.interruptLocks, routine)
		}},
		{name: "the first message's lock only", wrong: true, shape: shape{FullDuplex, InterruptSynchronizePerMessage, 2}, access: func(a *Adapter, p *Processor, routine func()) bool {
			return locked(p, a.interruptLocks[:1], routine)
		}},
	}
	for _, s := range shapes {
		ways = append(ways, struct {
			name   string
			shape  shape
			wrong  bool
			access synchronize
		}{name: "SynchronizeAccess " + s.String(), shape: s, access: func(a *Adapter, p *Processor, routine func()) bool {
			return SynchronizeAccess(a, p, func(_ SyncToken, f func()) bool { f(); return true }, routine)
		}})
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			d := &driver{model: way.shape.model, mode: way.shape.mode, messages: way.shape.messages}
			inHandler, entered := make(chan struct{}), make(chan struct{})
			overlap := false
			d.handler = func(*Processor, SyncToken, uint16) bool {
				close(inHandler)
				if way.wrong {
					overlap = await(t, entered, "the routine, during the handler")
					return true
				}
				yieldOften()
				select {
				case <-entered:
					overlap = true
				default:
				}
				return true
			}
			d.buildIo = func(p *Processor, _ *SRB) bool { return way.access(d.a, p, func() { close(entered) }) }
			d.startIo = func(p *Processor, srb *SRB) bool { d.complete(p, srb); return true }
			b := newBench(t, d, AdapterOptions{})
			p := b.processor("raiser")
			var wg sync.WaitGroup
			wg.Go(func() { defer p.Close(); b.w.raise(p, pci.Message(way.shape.messages-1)) })
			await(t, inHandler, "the handler")
			b.submitOne()
			wg.Wait()
			if overlap != way.wrong {
				t.Errorf("overlap %v, want %v", overlap, way.wrong)
			}
		})
	}
}

// A14: a routine during ResetBus has the StartIo lock, every channel and every
// interrupt lock; no request starts and no handler runs inside, and the handler
// afterwards finds the flag that the routine set.
func TestA14_ResetInterplay(t *testing.T) {
	type flags struct{ resetInFlight bool }
	for _, model := range []SynchronizationModel{HalfDuplex, FullDuplex} {
		t.Run(model.String(), func(t *testing.T) {
			d := &driver{model: model, mode: InterruptSynchronizePerMessage, messages: 2}
			if model == FullDuplex {
				d.channels = 2
			}
			var state [2]Guarded[flags]
			var started, handled, missed atomic.Int64
			inside, submitted := make(chan struct{}), make(chan struct{})
			d.startIo = func(p *Processor, srb *SRB) bool { started.Add(1); d.complete(p, srb); return true }
			d.handler = func(_ *Processor, tok SyncToken, m uint16) bool {
				handled.Add(1)
				if !state[m].Open(tok).resetInFlight {
					missed.Add(1)
				}
				return true
			}
			d.resetBus = func(p *Processor, _ uint8) bool {
				return SynchronizeAccess(d.a, p, func(tok SyncToken, _ int) bool {
					if want := 1 + d.channels + d.messages; tok.p.nheld != want || !tok.p.holds(&d.a.startIoLock) {
						t.Errorf("%d locks held, want %d", tok.p.nheld, want)
					}
					close(inside)
					await(t, submitted, "a submission during the reset")
					yieldOften()
					for m := range state {
						state[m].Open(tok).resetInFlight = true
					}
					if s, h := started.Load(), handled.Load(); s != 0 || h != 0 {
						t.Errorf("%d requests started and %d handlers run during the routine", s, h)
					}
					return true
				}, 0)
			}
			b := newBench(t, d, AdapterOptions{})
			for m := range state {
				state[m].Bind(b.a, m)
			}
			var wg sync.WaitGroup
			for m := range state {
				p := b.processor("raiser")
				wg.Go(func() { defer p.Close(); <-inside; b.w.raise(p, pci.Message(m)) })
			}
			p, done := b.processor("submitter"), make(chan struct{})
			srb := b.srb(&finished{each: func(*Processor, *SRB) { close(done) }})
			wg.Go(func() { defer p.Close(); <-inside; b.lu.Submit(p, []*SRB{srb}); close(submitted) })
			if err := b.a.ResetNow(b.p, b.lu, ResetBus); err != nil {
				t.Error(err)
			}
			wg.Wait()
			await(t, done, "the request, after the reset")
			if handled.Load() != 2 || missed.Load() != 0 {
				t.Errorf("%d handlers run, %d of them before the flag was set; want 2 and none", handled.Load(), missed.Load())
			}
			b.wantNoViolations()
		})
	}
}

// A15: SynchronizeAccess does not hold off DPCs. Data that a DPC uses, too, need
// a lock that the DPC takes: the interrupt lock, in the way of this driver.
func TestA15_DpcGap(t *testing.T) {
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("guarded=%t", guarded), func(t *testing.T) {
			d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
			inDpcNow, inRoutine := make(chan struct{}), make(chan struct{})
			overlap := false
			d.passiveInit = func(p *Processor) bool {
				d.a.InitializeDpc(p, &d.dpcs[0], func(p *Processor, _ *Dpc) {
					if guarded {
						h := d.a.AcquireSpinLock(p, InterruptLock, nil)
						defer d.a.ReleaseSpinLock(p, h)
					}
					close(inDpcNow)
					if !guarded {
						overlap = await(t, inRoutine, "a routine beside the DPC")
						return
					}
					yieldOften()
					select {
					case <-inRoutine:
						overlap = true
					default:
					}
				})
				return true
			}
			b := newBench(t, d, AdapterOptions{})
			p := b.processor("DPC's")
			var wg sync.WaitGroup
			wg.Go(func() { defer p.Close(); b.a.IssueDpc(p, &d.dpcs[0]) })
			await(t, inDpcNow, "the DPC")
			SynchronizeAccess(b.a, b.p, func(SyncToken, int) bool { close(inRoutine); return true }, 0)
			wg.Wait()
			if overlap == guarded {
				t.Errorf("overlap %v", overlap)
			}
			b.wantNoViolations()
		})
	}
}

// A16, what the compiler holds: a Guarded has no field and no method but Bind and
// Open that leads to its value, and a token none that makes one.
func TestA16_AccessPath(t *testing.T) {
	g := reflect.TypeFor[*Guarded[int]]()
	var methods []string
	for m := range g.Methods() {
		methods = append(methods, m.Name)
	}
	if !slices.Equal(methods, []string{"Bind", "Open"}) {
		t.Errorf("methods of Guarded %v, want Bind and Open", methods)
	}
	open, _ := g.MethodByName("Open")
	if open.Type.NumIn() != 2 || open.Type.In(1) != reflect.TypeFor[SyncToken]() {
		t.Errorf("Open takes %s, want a SyncToken", open.Type)
	}
	for _, x := range []reflect.Type{g.Elem(), reflect.TypeFor[SyncToken]()} {
		for f := range x.Fields() {
			if f.IsExported() {
				t.Errorf("%s has the exported field %s", x, f.Name)
			}
		}
	}
}

// A17: a routine that has begun ends before the adapter is stopped; while the adapter is
// stopped the call still works; after removal it returns false and does nothing.
func TestA17_LifeCycle(t *testing.T) {
	d := &driver{model: FullDuplex}
	var mu sync.Mutex
	var order []string
	note := func(what string) {
		mu.Lock()
		order = append(order, what)
		mu.Unlock()
	}
	inside, stopping := make(chan struct{}), make(chan struct{})
	d.buildIo = func(p *Processor, _ *SRB) bool {
		return SynchronizeAccess(d.a, p, func(SyncToken, int) bool {
			close(inside)
			await(t, stopping, "Stop")
			yieldOften()
			note("routine ends")
			return true
		}, 0)
	}
	d.startIo = func(p *Processor, srb *SRB) bool { d.complete(p, srb); return true }
	d.control = func(_ *Processor, c ControlType) {
		if c == ControlStopAdapter {
			note("stopped")
		}
	}
	b := newBench(t, d, AdapterOptions{})
	done := &finished{}
	p, srb := b.processor("submitter"), b.srb(done)
	var wg sync.WaitGroup
	wg.Go(func() { defer p.Close(); b.lu.Submit(p, []*SRB{srb}) })
	await(t, inside, "the routine")
	wg.Go(func() {
		for b.a.gate.Load()&gateStopped == 0 {
			runtime.Gosched()
		}
		close(stopping)
	})
	if err := b.a.Stop(b.p); err != nil {
		t.Error(err)
	}
	wg.Wait()
	mu.Lock()
	if want := []string{"routine ends", "stopped"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	mu.Unlock()
	if !SynchronizeAccess(b.a, b.p, func(SyncToken, int) bool { return true }, 0) {
		t.Error("refused while stopped")
	}
	b.a.Remove(b.p)
	if n := len(done.list()); n != 1 {
		t.Errorf("%d completions of what was built when the adapter stopped, want 1", n)
	}
	if SynchronizeAccess(b.a, b.p, func(SyncToken, int) bool { t.Error("routine called"); return true }, 0) {
		t.Error("returned true after removal")
	}
	b.wantNoViolations()
}

// A5, inside the routine: what it must not do there is reported, and does not
// hang.
func TestA5_InsideRoutine(t *testing.T) {
	for _, c := range []struct {
		name  string
		check Check
		do    func(b *bench, p *Processor)
	}{
		{"StartIo lock", CheckLockRules, func(b *bench, p *Processor) {
			b.a.ReleaseSpinLock(p, b.a.AcquireSpinLock(p, StartIoLock, nil))
		}},
		{"DPC lock", CheckLockRules, func(b *bench, p *Processor) {
			b.a.ReleaseSpinLock(p, b.a.AcquireSpinLock(p, DpcLock, b.dpc(0)))
		}},
		{"interrupt lock", CheckLockRules, func(b *bench, p *Processor) {
			b.a.ReleaseSpinLock(p, b.a.AcquireSpinLock(p, InterruptLock, nil))
		}},
		{"allocate", CheckCallingPlace, func(b *bench, p *Processor) { b.a.AllocatePool(p, 64) }},
		{"submit", CheckCallingPlace, func(b *bench, p *Processor) { b.lu.Submit(p, nil) }},
		{"work item", CheckCallingPlace, func(b *bench, p *Processor) { b.a.QueueWorkItem(p, &WorkItem{Routine: func(*Processor) {}}) }},
		{"wait", CheckHoldTime, func(b *bench, p *Processor) { b.a.StallExecution(p, 2*stallSoftLimit) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
			d.passiveInit = func(p *Processor) bool {
				d.a.InitializeDpc(p, &d.dpcs[0], func(*Processor, *Dpc) {})
				return true
			}
			b := newBench(t, d, AdapterOptions{})
			SynchronizeAccess(b.a, b.p, func(tok SyncToken, _ int) bool { c.do(b, tok.p); return true }, 0)
			b.wantOnly(c.check, "SynchronizeAccess routine")
			if b.p.level != Passive || b.p.nheld != 0 {
				t.Errorf("after: %s with %d locks", b.p.level, b.p.nheld)
			}
		})
	}
	t.Run("completing only queues", func(t *testing.T) {
		d := &driver{model: FullDuplex}
		b := newBench(t, d, AdapterOptions{})
		told := false
		srb := b.srb(&finished{each: func(p *Processor, _ *SRB) {
			if told = true; p.level != Dispatch || p.nheld != 0 {
				t.Errorf("told at %s with %d locks held, want Dispatch with none", p.level, p.nheld)
			}
		}})
		b.lu.Submit(b.p, []*SRB{srb})
		d.take()
		SynchronizeAccess(b.a, b.p, func(tok SyncToken, srb *SRB) bool {
			d.complete(tok.p, srb)
			if told {
				t.Error("the owner was told inside the routine")
			}
			return true
		}, srb)
		if !told {
			t.Error("the owner was never told")
		}
		b.wantNoViolations()
	})
}
