package port

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// wantViolations checks that exactly n violations of c were seen, and no others.
func (b *bench) wantViolations(c Check, n int) {
	b.t.Helper()
	list := b.sys.Verifier().Violations()
	for _, v := range list {
		if v.Check != c {
			b.t.Errorf("violation: %s", v)
		}
	}
	if len(list) != n {
		b.t.Errorf("%d violations, want %d of %s", len(list), n, c)
	}
}

// Timers run once, with the StartIo lock, can be cancelled and requested again
// from their routine; one that is pending is not requested twice.
func TestTimer(t *testing.T) {
	for _, model := range []SynchronizationModel{HalfDuplex, FullDuplex} {
		t.Run(model.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &driver{model: model}, AdapterOptions{})
				var tm Timer
				if err := b.a.RequestTimer(b.p, &tm, nil, time.Second); !errors.Is(err, ErrTimerFreed) {
					t.Errorf("before InitializeTimer: %v", err)
				}
				b.a.InitializeTimer(b.p, &tm)
				var mu sync.Mutex
				var at []time.Duration
				start := time.Now()
				var routine TimerRoutine
				routine = func(p *Processor, tm *Timer) {
					mu.Lock()
					defer mu.Unlock()
					at = append(at, time.Since(start))
					if !p.holds(&b.a.startIoLock) || (p.heldInterruptLocks(b.a) > 0) != (model == HalfDuplex) {
						t.Errorf("locks held: %v", p.held[:p.nheld])
					}
					if len(at) == 1 {
						if err := b.a.RequestTimer(p, tm, routine, 2*time.Second); err != nil {
							t.Error(err)
						}
					}
				}
				request := func(d time.Duration, want error) {
					t.Helper()
					if err := b.a.RequestTimer(b.p, &tm, routine, d); !errors.Is(err, want) {
						t.Errorf("RequestTimer(%s): %v, want %v", d, err, want)
					}
				}
				request(5*time.Second, nil)
				request(time.Second, ErrTimerPending)
				request(0, nil) // cancel
				request(3*time.Second, nil)
				time.Sleep(10 * time.Second)
				request(time.Second, nil)
				b.a.FreeTimer(b.p, &tm)
				time.Sleep(10 * time.Second)
				request(time.Second, ErrTimerFreed)
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				if len(at) != 2 || at[0] != 3*time.Second || at[1] != 5*time.Second {
					t.Errorf("ran after %v, want 3s and 5s", at)
				}
				b.wantNoViolations()
			})
		})
	}
}

// The adapter's one timer: a later request replaces the earlier, zero cancels.
func TestRequestTimerCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		ran := make(chan string, 4)
		note := func(what string) func(*Processor) { return func(*Processor) { ran <- what } }
		b.a.RequestTimerCall(b.p, note("replaced"), 3*time.Second)
		b.a.RequestTimerCall(b.p, note("kept"), 5*time.Second)
		time.Sleep(10 * time.Second)
		b.a.RequestTimerCall(b.p, note("cancelled"), 3*time.Second)
		b.a.RequestTimerCall(b.p, note("cancel"), 0)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(ran) != 1 || <-ran != "kept" {
			t.Errorf("%d routines ran, want the second only", len(ran))
		}
	})
}

// DelayExecution sleeps at Passive.
func TestDelayExecution(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		start := time.Now()
		b.a.DelayExecution(b.p, 7*time.Second)
		if d := time.Since(start); d != 7*time.Second {
			t.Errorf("%s, want 7s", d)
		}
		if b.a.QueryTimerMinInterval(b.p) <= 0 {
			t.Error("QueryTimerMinInterval: want more than zero")
		}
	})
}

// A work item runs once at Passive, and not again until it has begun.
func TestQueueWorkItem(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	gate, levels := make(chan struct{}), make(chan Level, 2)
	blocker := &WorkItem{Routine: func(*Processor) { <-gate }}
	w := &WorkItem{Routine: func(p *Processor) { levels <- p.Level() }}
	b.a.QueueWorkItem(b.p, blocker)
	if !b.a.QueueWorkItem(b.p, w) || b.a.QueueWorkItem(b.p, w) {
		t.Error("QueueWorkItem: want true once, then false")
	}
	close(gate)
	if l := <-levels; l != Passive {
		t.Errorf("work item at %s", l)
	}
	if !b.a.QueueWorkItem(b.p, w) {
		t.Error("QueueWorkItem after the run: want true")
	}
	<-levels
	b.wantNoViolations()
}

// A notification event lets everybody through, a synchronization event one each
// time; a wait above Passive is refused and reported.
func TestEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		var n, s Event
		b.a.InitializeEvent(b.p, &n, NotificationEvent, false)
		b.a.InitializeEvent(b.p, &s, SynchronizationEvent, true)
		start := time.Now()
		if b.a.WaitForSingleObject(b.p, &n, 5*time.Second) || time.Since(start) != 5*time.Second {
			t.Errorf("wait for an event that is not set: true, or after %s", time.Since(start))
		}
		if !b.a.WaitForSingleObject(b.p, &s, 0) || b.a.WaitForSingleObject(b.p, &s, 0) {
			t.Error("synchronization event: want true once, then false")
		}
		var wg sync.WaitGroup
		through := make(chan *Event, 8)
		for _, e := range []*Event{&n, &n, &s, &s} {
			p := b.processor("waiter")
			wg.Go(func() {
				if b.a.WaitForSingleObject(p, e, time.Minute) {
					through <- e
				}
			})
		}
		synctest.Wait()
		b.a.SetEvent(b.p, &n)
		b.a.SetEvent(b.p, &s)
		wg.Wait()
		close(through)
		count := map[*Event]int{}
		for e := range through {
			count[e]++
		}
		if count[&n] != 2 || count[&s] != 1 {
			t.Errorf("%d waits for the notification event, %d for the synchronization event; want 2 and 1", count[&n], count[&s])
		}
		b.wantNoViolations()
		old := b.p.raise(Dispatch)
		if b.a.WaitForSingleObject(b.p, &s, time.Minute) {
			t.Error("wait at Dispatch: true")
		}
		b.p.lower(old)
		b.wantViolations(CheckCallingPlace, 1)
	})
}

// A miniport's own lock excludes, raises to Dispatch, and has its place in the
// order: after StartIo and DPC, before interrupt.
func TestKSpinLock(t *testing.T) {
	var first, second KSpinLock
	d := &driver{model: FullDuplex}
	d.passiveInit = func(p *Processor) bool {
		d.a.InitializeSpinlock(p, &first)
		d.a.InitializeSpinlock(p, &second)
		return true
	}
	b := newBench(t, d, AdapterOptions{})
	var wg sync.WaitGroup
	counter := 0
	for range 4 {
		p := b.processor("worker")
		wg.Go(func() {
			for range 1000 {
				h := b.a.AcquireSpinLockEx(p, &first)
				if p.Level() != Dispatch {
					t.Errorf("level %s", p.Level())
				}
				counter++
				b.a.ReleaseSpinLock(p, h)
			}
		})
	}
	wg.Wait()
	if counter != 4000 || b.p.Level() != Passive {
		t.Errorf("counted %d, want 4000", counter)
	}
	order := []func() LockHandle{
		func() LockHandle { return b.a.AcquireSpinLock(b.p, StartIoLock, nil) },
		func() LockHandle { return b.a.AcquireSpinLockEx(b.p, &first) },
		func() LockHandle { return b.a.AcquireSpinLockEx(b.p, &second) },
		func() LockHandle { return b.a.AcquireSpinLock(b.p, InterruptLock, nil) },
	}
	var held []LockHandle
	for _, take := range order {
		held = append(held, take())
	}
	for _, h := range slices.Backward(held) {
		b.a.ReleaseSpinLock(b.p, h)
	}
	b.wantNoViolations()
	h := b.a.AcquireSpinLockEx(b.p, &second)
	h2 := b.a.AcquireSpinLockEx(b.p, &first)
	b.a.ReleaseSpinLock(b.p, h2)
	b.a.ReleaseSpinLock(b.p, h)
	b.wantViolations(CheckLockRules, 1)
}

// Pool is zeroed, counted, bounded and freed once; in half duplex StartIo may not
// have it.
func TestPool(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	x := b.a.AllocatePool(b.p, 100)
	if len(x) != 100 || b.a.Stats(b.p).PoolBytes != 100 {
		t.Errorf("%d bytes, %d counted, want 100", len(x), b.a.Stats(b.p).PoolBytes)
	}
	if b.a.AllocatePool(b.p, maxPoolBytes) != nil || b.a.AllocatePool(b.p, 0) != nil {
		t.Error("AllocatePool beyond the limit, or of nothing: not nil")
	}
	var inStartIo []byte
	d.startIo = func(p *Processor, srb *SRB) bool {
		inStartIo = b.a.AllocatePool(p, 10)
		d.complete(p, srb)
		return true
	}
	s := b.srb(&finished{})
	b.lu.Submit(b.p, []*SRB{s})
	if st := b.a.Stats(b.p); len(inStartIo) != 10 || st.PoolInStartIo != 1 {
		t.Errorf("%d bytes in StartIo, %d calls counted", len(inStartIo), st.PoolInStartIo)
	}
	b.wantNoViolations()
	if !b.a.FreePool(b.p, x) || b.a.FreePool(b.p, x) || !b.a.FreePool(b.p, inStartIo) {
		t.Error("FreePool: want true once each")
	}
	b.wantViolations(CheckCallingPlace, 1)
	if n := b.a.Stats(b.p).PoolBytes; n != 0 {
		t.Errorf("%d bytes left", n)
	}

	half := &driver{model: HalfDuplex}
	h := newBench(t, half, AdapterOptions{})
	half.startIo = func(p *Processor, srb *SRB) bool {
		if h.a.AllocatePool(p, 10) != nil {
			t.Error("AllocatePool in StartIo in half duplex: not nil")
		}
		half.complete(p, srb)
		return true
	}
	h.lu.Submit(h.p, []*SRB{h.srb(&finished{})})
	h.wantViolations(CheckCallingPlace, 1)
}

// DMA memory is reachable while it is allocated, by address and back.
func TestDmaMemory(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	m, err := b.a.AllocateDmaMemory(b.p, 512)
	if err != nil {
		t.Fatal(err)
	}
	copy(m.Bytes, "ring")
	if got, ok := b.sys.iommu.Translate(m.Addr, 4, dma.Read); !ok || string(got) != "ring" {
		t.Errorf("the device reads %q, %t", got, ok)
	}
	addr := m.Addr
	b.a.FreeDmaMemory(b.p, m)
	if _, ok := b.sys.iommu.Translate(addr, 4, dma.Read); ok {
		t.Error("the device still reads what was freed")
	}
	for _, n := range []int{0, -1, dma.MaxMapBytes + 1} {
		if _, err := b.a.AllocateDmaMemory(b.p, n); err == nil {
			t.Errorf("AllocateDmaMemory(%d): no error", n)
		}
	}
	if _, err := b.a.AllocateDmaMemory(b.p, 1<<20); !errors.Is(err, ErrNoResources) {
		t.Errorf("more than there is: %v, want ErrNoResources", err)
	}
}

// GetPhysicalAddress and GetVirtualAddress are inverse, for the uncached extension
// and for an SRB's.
func TestAddresses(t *testing.T) {
	d := &driver{model: FullDuplex}
	var uncached []byte
	d.findAdapter = func(p *Processor, c *Config) {
		c.SrbExtensionBytes = 128
		uncached = d.a.GetUncachedExtension(p, c, 4096)
		if again := d.a.GetUncachedExtension(p, c, 8192); &again[0] != &uncached[0] || len(again) != 4096 {
			t.Error("the second GetUncachedExtension: not the first one's memory")
		}
	}
	b := newBench(t, d, AdapterOptions{})
	inverse := func(srb *SRB, memory []byte) {
		t.Helper()
		addr := b.a.GetPhysicalAddress(b.p, srb, memory[16:32])
		back := b.a.GetVirtualAddress(b.p, srb, addr)
		if addr == 0 || len(back) != len(memory)-16 || &back[0] != &memory[16] {
			t.Errorf("address %#x leads to %d bytes", addr, len(back))
		}
		if b.a.GetVirtualAddress(b.p, srb, addr-17) != nil || b.a.GetVirtualAddress(b.p, srb, addr+dma.Addr(len(memory))) != nil {
			t.Error("an address outside: not nil")
		}
	}
	inverse(nil, uncached)
	if b.a.GetPhysicalAddress(b.p, nil, make([]byte, 8)) != 0 {
		t.Error("foreign memory has an address")
	}
	d.buildIo = func(_ *Processor, srb *SRB) bool { inverse(srb, srb.Extension); return true }
	d.startIo = func(p *Processor, srb *SRB) bool {
		if got := b.a.GetSystemAddress(p, srb); string(got) != "data" {
			t.Errorf("GetSystemAddress: %q", got)
		}
		if list := b.a.GetScatterGatherList(p, srb); len(list) != 1 || list[0].Bytes != 4 {
			t.Errorf("GetScatterGatherList: %v", list)
		}
		d.complete(p, srb)
		return true
	}
	s := b.srb(&finished{})
	memory := b.arena.Alloc(4096)
	defer b.arena.Free(memory)
	copy(memory, "data")
	s.DataBuffer, s.DataTransferBytes = memory[:4], 4
	s.Flags |= FlagDataOut
	b.lu.Submit(b.p, []*SRB{s})
	b.wantNoViolations()
}

// A list for own memory is built at Dispatch, after the call, and ends with Put.
func TestScatterGatherList(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	memory := b.arena.Alloc(4096)
	defer b.arena.Free(memory)
	var l ScatterGatherList
	ran := false
	build := func(buffer []byte, direction Flags) error {
		return b.a.BuildScatterGatherList(b.p, &l, buffer, direction, func(p *Processor, l *ScatterGatherList) {
			ran = true
			got, ok := b.sys.iommu.Translate(l.Segments[0].Addr, int(l.Segments[0].Bytes), dma.Read)
			if p.Level() != Dispatch || !ok || &got[0] != &memory[0] {
				t.Errorf("routine at %s, memory found: %t", p.Level(), ok)
			}
		})
	}
	old := b.p.raise(Dispatch)
	for what, err := range map[string]error{
		"nothing": build(nil, FlagDataOut), "no direction": build(memory, 0), "Put": b.a.PutScatterGatherList(b.p, &l),
		"memory of the heap": build(make([]byte, 4096), FlagDataOut),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if err := build(memory, FlagDataOut); err != nil {
		t.Fatal(err)
	}
	if ran {
		t.Error("the routine ran before BuildScatterGatherList returned")
	}
	if err := build(memory, FlagDataOut); err == nil {
		t.Error("a list in use: no error")
	}
	b.p.lower(old)
	if !ran {
		t.Error("the routine did not run")
	}
	b.wantNoViolations()
	if err := b.a.PutScatterGatherList(b.p, &l); err == nil {
		t.Error("Put at Passive: no error")
	}
	b.wantViolations(CheckCallingPlace, 1)
	old = b.p.raise(Dispatch)
	if err := b.a.PutScatterGatherList(b.p, &l); err != nil || l.Segments != nil {
		t.Errorf("Put: %v", err)
	}
	b.p.lower(old)
}

// A list that is put back before its routine's turn comes has no turn any more; one that is
// built again has one.
func TestScatterGatherList_PutBeforeRoutine(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	memory := b.arena.Alloc(4096)
	defer b.arena.Free(memory)
	var l ScatterGatherList
	runs := 0
	build := func() {
		t.Helper()
		if err := b.a.BuildScatterGatherList(b.p, &l, memory, FlagDataIn, func(_ *Processor, l *ScatterGatherList) {
			if runs++; len(l.Segments) != 1 {
				t.Errorf("the routine got %d segments, want 1", len(l.Segments))
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	put := func() {
		t.Helper()
		if err := b.a.PutScatterGatherList(b.p, &l); err != nil {
			t.Fatal(err)
		}
	}
	old := b.p.raise(Dispatch)
	build()
	put()
	b.p.lower(old)
	if runs != 0 {
		t.Errorf("%d runs for a list that was put back, want none", runs)
	}
	old = b.p.raise(Dispatch)
	build()
	put()
	build()
	b.p.lower(old)
	if runs != 1 {
		t.Errorf("%d runs for a list that was put back and built again, want 1", runs)
	}
	old = b.p.raise(Dispatch)
	put()
	b.p.lower(old)
	b.wantNoViolations()
}

// Changes that come before the look are looked at together, the highest wins, and
// the routine runs with the StartIo lock.
func TestStateChangeDetected(t *testing.T) {
	r := &recorder{driver: driver{model: FullDuplex}}
	r.has(0)
	b := stage(t, r)
	gate := make(chan struct{})
	b.a.QueueWorkItem(b.p, &WorkItem{Routine: func(*Processor) { <-gate }})
	seen := make(chan StateChange, 2)
	done := func(p *Processor, c StateChange, found bool) {
		if !found || !p.holds(&b.a.startIoLock) || len(b.a.LogicalUnits()) != 1 {
			t.Errorf("found %t, %d units, locks %v", found, len(b.a.LogicalUnits()), p.held[:p.nheld])
		}
		seen <- c
	}
	for _, c := range []StateChange{UnitChanged, BusChanged, TargetChanged} {
		if !b.a.StateChangeDetected(b.p, c, done) {
			t.Errorf("change %d refused", c)
		}
	}
	if b.a.StateChangeDetected(b.p, 0, done) || b.a.StateChangeDetected(b.p, BusChanged+1, done) {
		t.Error("an unknown change was accepted")
	}
	close(gate)
	if c := <-seen; c != BusChanged {
		t.Errorf("change %d, want %d", c, BusChanged)
	}
	b.a.Remove(b.p)
	if len(seen) != 0 {
		t.Error("the routine ran more than once")
	}
	b.wantNoViolations()
}

// While the link is down nothing new starts and nothing times out; it ends by
// LinkUp or by time.
func TestLinkDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{DefaultTimeoutSecs: 5})
		s := b.srbs(3, &finished{})
		b.lu.Submit(b.p, s[:1])
		b.wantStarted(s[0])
		if b.a.LinkUp(b.p) {
			t.Error("LinkUp without LinkDown: true")
		}
		b.a.LinkDown(b.p)
		b.lu.Submit(b.p, s[1:2])
		time.Sleep(20 * time.Second)
		synctest.Wait()
		b.wantStarted()
		if n := b.a.timeouts.Load(); n != 0 {
			t.Errorf("%d timeouts with the link down", n)
		}
		if !b.a.LinkUp(b.p) {
			t.Error("LinkUp: false")
		}
		b.wantStarted(s[1])
		b.d.complete(b.p, s[0])
		b.d.complete(b.p, s[1])
		b.a.LinkDown(b.p)
		b.lu.Submit(b.p, s[2:])
		time.Sleep(29 * time.Second)
		synctest.Wait()
		b.wantStarted()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		b.wantStarted(s[2])
		b.d.complete(b.p, s[2])
		b.wantNoViolations()
	})
}

// After ResetDetected new SRBs wait for the hold time; older ones still out at its end
// are a violation.
func TestResetDetected_Hold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex, features: func(c *Config) { c.BusResetHoldTime = 2 * time.Second }}
		b := newBench(t, d, AdapterOptions{})
		s := b.srbs(3, &finished{})
		b.lu.Submit(b.p, s[:1])
		b.wantStarted(s[0])
		b.a.ResetDetected(b.p)
		s[0].Status = StatusBusReset
		b.a.Complete(b.p, s[0])
		b.lu.Submit(b.p, s[1:2])
		time.Sleep(time.Second)
		b.a.ResetDetected(b.p) // the hold time begins again
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		b.wantStarted()
		time.Sleep(time.Second)
		synctest.Wait()
		b.wantStarted(s[1])
		b.wantNoViolations()
		b.a.ResetDetected(b.p)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		b.d.complete(b.p, s[1])
		b.wantViolations(CheckResetOutstanding, 1)
	})
}

// Each type of notification does what the routine of its name does.
func TestNotification_Types(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const hold = 2 * time.Second
		d := &driver{model: FullDuplex, features: func(c *Config) { c.BusResetHoldTime = hold }}
		b := newBench(t, d, AdapterOptions{})
		done := &finished{}
		s := b.srbs(3, done)

		b.lu.Submit(b.p, s[:1])
		b.wantStarted(s[0])
		s[0].Status = StatusSuccess
		b.a.Notification(b.p, NotifyRequestComplete, s[0])
		if got := done.list(); len(got) != 1 || got[0] != s[0] {
			t.Errorf("RequestComplete: %d completions, want 1", len(got))
		}

		b.a.Notification(b.p, NotifyLinkDown, nil)
		b.lu.Submit(b.p, s[1:2])
		b.wantStarted()
		b.a.Notification(b.p, NotifyLinkUp, nil)
		b.wantStarted(s[1])
		b.d.complete(b.p, s[1])

		b.a.Notification(b.p, NotifyResetDetected, nil)
		b.lu.Submit(b.p, s[2:])
		time.Sleep(hold - time.Millisecond)
		synctest.Wait()
		b.wantStarted()
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		b.wantStarted(s[2])
		b.d.complete(b.p, s[2])
		b.wantNoViolations()
	})
	t.Run("BusChangeDetected", func(t *testing.T) {
		r := &recorder{driver: driver{model: FullDuplex}}
		r.has(0)
		b := stage(t, r)
		added := make(chan []*LogicalUnit, 1)
		b.a.OnUnitsChanged(func(a, _ []*LogicalUnit) { added <- a })
		b.a.Notification(b.p, NotifyBusChangeDetected, nil)
		if units := <-added; len(units) != 1 || units[0].Lun() != 0 {
			t.Errorf("%v were added, want unit 0", units)
		}
		b.a.Remove(b.p)
		b.wantNoViolations()
	})
}

// HardwareReset calls ResetBus for each bus, one without units as well, which comes
// first here.
func TestHardwareReset(t *testing.T) {
	d := &driver{model: FullDuplex}
	d.features = func(c *Config) { c.NumberOfBuses = 2 }
	b := newBench(t, d, AdapterOptions{})
	b.lu = b.a.unitAt(1, 0, 0)
	b.a.mu.Lock()
	b.a.replaceUnitsLocked([]*LogicalUnit{b.lu})
	b.a.mu.Unlock()
	reports := make(chan ResetReport, 2)
	b.a.OnReset(func(r ResetReport) { reports <- r })
	reset := make(chan uint8, 2)
	d.resetBus = func(p *Processor, path uint8) bool {
		for _, srb := range d.take() {
			srb.Status = StatusBusReset
			d.a.Complete(p, srb)
		}
		reset <- path
		return true
	}
	done := make(signal, 1)
	s := b.srb(&finished{})
	s.Completer = done
	b.lu.Submit(b.p, []*SRB{s})
	if !b.a.HardwareReset(b.p) {
		t.Error("HardwareReset: false")
	}
	<-done
	for path, lu := range []*LogicalUnit{nil, b.lu} {
		if got := <-reset; got != uint8(path) {
			t.Errorf("bus %d was reset, want %d", got, path)
		}
		if got, want := <-reports, (ResetReport{Level: ResetBus, Path: uint8(path), Unit: lu, OK: true}); got != want {
			t.Errorf("report %+v, want %+v", got, want)
		}
	}
	if s.Status != StatusBusReset {
		t.Errorf("what was on the bus: %s", s)
	}
	b.wantNoViolations()
}

// What may change in Initialize changes there, and nowhere else.
func TestNegotiation(t *testing.T) {
	d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 3}
	d.findAdapter = func(p *Processor, _ *Config) {
		if err := d.a.SetFeatureList(p, ControlSurpriseRemoval, controlTypes); err == nil {
			t.Error("SetFeatureList with an unknown type: no error")
		}
	}
	d.initialize = func(p *Processor, _ SyncToken) bool {
		if err := d.a.UpdateAdapterMaxIO(p, 8); err != nil {
			t.Error(err)
		}
		if err := d.a.UpdateAdapterMaxIO(p, 0); err == nil {
			t.Error("UpdateAdapterMaxIO(0): no error")
		}
		var perf PerfConfigurationData
		if err := d.a.InitializePerfOpts(p, true, &perf); err != nil || perf.Flags&PerfConcurrentChannels == 0 {
			t.Errorf("query: flags %#x, %v", perf.Flags, err)
		}
		for _, bad := range []PerfConfigurationData{
			{Flags: PerfNoSGL},
			{Flags: PerfConcurrentChannels},
			{Flags: PerfConcurrentChannels, ConcurrentChannels: MaxChannels + 1},
			{Flags: PerfInterruptMessageRanges},
			{Flags: PerfOptimizeForCompletionDuringStartIo},
			{Flags: PerfDpcRedirection},
			{Flags: PerfDpcRedirectionCurrentCPU},
			{Flags: PerfDpcRedirection | PerfDpcRedirectionCurrentCPU | PerfInterruptMessageRanges, FirstRedirectionMessageNumber: 2, LastRedirectionMessageNumber: 1},
			{Flags: PerfDpcRedirection | PerfDpcRedirectionCurrentCPU | PerfInterruptMessageRanges, LastRedirectionMessageNumber: 3},
		} {
			if err := d.a.InitializePerfOpts(p, false, &bad); err == nil {
				t.Errorf("%+v: no error", bad)
			}
		}
		return d.a.InitializePerfOpts(p, false, &PerfConfigurationData{
			Flags:                         PerfConcurrentChannels | PerfDpcRedirection | PerfDpcRedirectionCurrentCPU | PerfInterruptMessageRanges,
			ConcurrentChannels:            4,
			FirstRedirectionMessageNumber: 1, LastRedirectionMessageNumber: 2,
		}) == nil
	}
	b := newBench(t, d, AdapterOptions{})
	if c := b.a.Config(); c.MaxNumberOfIO != 8 || c.MaxIOsPerLun != 8 || c.InitialLunQueueDepth != 8 {
		t.Errorf("limits %d, %d, %d; want 8", c.MaxNumberOfIO, c.MaxIOsPerLun, c.InitialLunQueueDepth)
	}
	for number, want := range []uint16{1, 2, 1, 2, 1} {
		if got := b.a.GetMessageInterruptIDFromProcessorIndex(b.p, number); got != want {
			t.Errorf("message of processor %d: %d, want %d", number, got, want)
		}
	}
	if i, ok := b.a.GetMSIInfo(b.p, 2); !ok || i.Message != 2 || i.Shared {
		t.Errorf("GetMSIInfo(2): %+v, %t", i, ok)
	}
	if _, ok := b.a.GetMSIInfo(b.p, 3); ok {
		t.Error("GetMSIInfo(3): true")
	}
	b.wantNoViolations()
	if b.a.UpdateAdapterMaxIO(b.p, 8) == nil || b.a.SetFeatureList(b.p) == nil || b.a.EnablePassiveInitialization(b.p) {
		t.Error("outside their callbacks: no error")
	}
	b.wantViolations(CheckCallingPlace, 3)
}

// What rides on an SRB arrives: priority down, service time up.
func TestRequestInfo(t *testing.T) {
	d := &driver{model: FullDuplex}
	d.startIo = func(p *Processor, srb *SRB) bool {
		if i := d.a.GetRequestInfo(p, srb); i.Priority != PriorityHigh {
			t.Errorf("priority %d", i.Priority)
		}
		d.a.IoTargetRequestServiceTime(p, srb, time.Millisecond)
		d.complete(p, srb)
		return true
	}
	b := newBench(t, d, AdapterOptions{})
	s := b.srb(&finished{})
	s.Priority = PriorityHigh
	b.lu.Submit(b.p, []*SRB{s})
	if s.ServiceTime != time.Millisecond {
		t.Errorf("service time %s", s.ServiceTime)
	}
	b.wantNoViolations()
}

// CompleteRequest completes nothing and is reported; a buffer overrun panics.
func TestCompleteRequest(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	done := &finished{}
	s := b.srb(done)
	b.lu.Submit(b.p, []*SRB{s})
	b.a.CompleteRequest(b.p, 0, 0, 0, StatusBusReset)
	if n := len(done.list()); n != 0 {
		t.Errorf("%d completions", n)
	}
	b.wantViolations(CheckCallingPlace, 1)
	func() {
		defer func() {
			if r, _ := recover().(string); !strings.Contains(r, "buffer overrun") {
				t.Errorf("BufferOverrunDetected: panic %q", r)
			}
		}()
		b.a.BufferOverrunDetected(b.p)
	}()
}

// The log says which adapter and which callback.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	d := &driver{model: FullDuplex}
	d.passiveInit = func(p *Processor) bool {
		d.a.LogSystemEvent(p, slog.LevelWarn, "hot", slog.Int("degrees", 99))
		d.a.LogError(p, "broken")
		d.a.DebugPrint(p, "unheard")
		return true
	}
	b := newBenchIn(t, d, AdapterOptions{Name: "hba7"}, SystemConfig{Log: slog.New(slog.NewTextHandler(&out, nil))})
	for _, want := range []string{`level=WARN msg=hot adapter=hba7 callback=PassiveInitialize degrees=99`, `level=ERROR msg=broken adapter=hba7`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in the log:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "unheard") {
		t.Error("a debug message that nobody asked for")
	}
	b.wantNoViolations()
}

// barWire has registers that are just memory.
type barWire struct {
	wire
	words [16]uint32
}

func (w *barWire) BAR(n int) pci.Registers {
	if n != 0 {
		return nil
	}
	return w
}

func (w *barWire) ReadConfig(offset int, b []byte) int { return copy(b, []byte{1, 2, 3, 4}[offset:]) }
func (w *barWire) SizeBytes() uint32                   { return uint32(4 * len(w.words)) }
func (w *barWire) Read32(_ pci.Runner, offset uint32) uint32 {
	return w.words[offset/4]
}

func (w *barWire) Read64(r pci.Runner, offset uint32) uint64 {
	return uint64(w.Read32(r, offset)) | uint64(w.Read32(r, offset+4))<<32
}
func (w *barWire) Write32(_ pci.Runner, offset, value uint32) { w.words[offset/4] = value }
func (w *barWire) Write64(r pci.Runner, offset uint32, value uint64) {
	w.Write32(r, offset, uint32(value))
	w.Write32(r, offset+4, uint32(value>>32))
}

// Registers are read and written in both widths, singly and in runs, and only
// inside the range.
func TestRegisters(t *testing.T) {
	d := &driver{model: FullDuplex}
	var r, freed *RegisterRange
	d.findAdapter = func(p *Processor, _ *Config) {
		r, freed = d.a.GetDeviceBase(p, 0), d.a.GetDeviceBase(p, 0)
		if d.a.GetDeviceBase(p, 1) != nil {
			t.Error("GetDeviceBase of a range that is not there: not nil")
		}
		d.a.FreeDeviceBase(p, freed)
		var id [8]byte
		if n := d.a.GetBusData(p, 2, id[:]); n != 2 || id[0] != 3 {
			t.Errorf("GetBusData: %d bytes % x", n, id)
		}
	}
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, d: d, sys: newSystem(t, SystemConfig{IOMMU: dma.NewIOMMU(arena), Verify: true})}
	b.p = b.processor("test")
	w := &barWire{wire: wire{messages: 1}}
	if b.a, err = b.sys.AddAdapter(b.p, w, d, AdapterOptions{}); err != nil {
		t.Fatal(err)
	}
	defer b.a.Remove(b.p)
	b.a.WriteRegisterUlong(b.p, r, 0, 0x11111111)
	b.a.WriteRegisterUlong64(b.p, r, 8, 0x3333333322222222)
	b.a.WriteRegisterBufferUlong(b.p, r, 16, []uint32{4, 5})
	b.a.WriteRegisterBufferUlong64(b.p, r, 24, []uint64{6, 7})
	var words [4]uint32
	var longs [2]uint64
	b.a.ReadRegisterBufferUlong(b.p, r, 8, words[:])
	b.a.ReadRegisterBufferUlong64(b.p, r, 24, longs[:])
	if b.a.ReadRegisterUlong(b.p, r, 0) != 0x11111111 || b.a.ReadRegisterUlong64(b.p, r, 8) != 0x3333333322222222 ||
		words != [4]uint32{0x22222222, 0x33333333, 4, 5} || longs != [2]uint64{6, 7} {
		t.Errorf("registers: %#x", w.words)
	}
	b.wantNoViolations()
	b.a.WriteRegisterUlong(b.p, r, 64, 1)
	b.a.WriteRegisterUlong(b.p, r, 2, 1)
	if b.a.ReadRegisterUlong64(b.p, r, 60) != ^uint64(0) || b.a.ReadRegisterUlong(b.p, freed, 0) != ^uint32(0) {
		t.Error("outside the range: want all ones")
	}
	b.wantViolations(CheckRegisterRange, 4)
}

// GetLogicalUnit finds units by address, and a unit's own memory is zeroed.
func TestGetLogicalUnit(t *testing.T) {
	d := &driver{model: FullDuplex}
	d.features = func(c *Config) { c.LuExtensionBytes = 32 }
	b := newBench(t, d, AdapterOptions{})
	lu := b.a.GetLogicalUnit(b.p, 0, 0, 0)
	if lu != b.lu || b.a.GetLogicalUnit(b.p, 0, 1, 0) != nil {
		t.Errorf("found %v; want the one unit, and nothing at [0:1:0]", lu)
	}
	if !bytes.Equal(lu.Extension, make([]byte, 32)) {
		t.Errorf("extension % x, want 32 zero bytes", lu.Extension)
	}
}

// maskWire notes masks.
type maskWire struct {
	wire
	masked map[pci.Message]bool
}

func (w *maskWire) MaskMessage(m pci.Message)                 { w.masked[m] = true }
func (w *maskWire) UnmaskMessage(_ pci.Runner, m pci.Message) { w.masked[m] = false }

// MaskMsixInterrupt reaches the device, for the one message that is meant.
func TestMaskMsixInterrupt(t *testing.T) {
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
	b := &bench{t: t, d: d, sys: newSystem(t, SystemConfig{IOMMU: dma.NewIOMMU(arena), Verify: true})}
	b.p = b.processor("test")
	w := &maskWire{wire: wire{messages: 2}, masked: map[pci.Message]bool{}}
	if b.a, err = b.sys.AddAdapter(b.p, w, d, AdapterOptions{}); err != nil {
		t.Fatal(err)
	}
	defer b.a.Remove(b.p)
	b.a.MaskMsixInterrupt(b.p, 1, true)
	if !w.masked[1] || w.masked[0] {
		t.Errorf("masked: %v, want message 1", w.masked)
	}
	b.a.MaskMsixInterrupt(b.p, 1, false)
	if w.masked[1] {
		t.Error("message 1 stayed masked")
	}
}

// StallExecution does not return early.
func TestStallExecution(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	old := b.p.raise(Dispatch)
	start := time.Now()
	b.a.DelayExecution(b.p, 100*time.Microsecond) // at Dispatch the same
	if d := time.Since(start); d < 100*time.Microsecond {
		t.Errorf("%s, want 100µs or more", d)
	}
	b.p.lower(old)
	b.wantNoViolations()
}

// Without FeatureAbortCommand no abort reaches the miniport.
func TestAbort_NeedsFeature(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	victim, abort := b.srb(&finished{}), b.srb(&finished{})
	b.lu.Submit(b.p, []*SRB{victim})
	abort.Function, abort.VictimSRB = FunctionAbortCommand, victim
	b.lu.Submit(b.p, []*SRB{abort})
	if abort.Status != StatusInvalidRequest {
		t.Errorf("%s", abort)
	}
	b.wantStarted(victim)
	d.complete(b.p, victim)
}

// Ready ends Busy before the completions do.
func TestReady(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	s := b.srbs(2, &finished{})
	b.lu.Submit(b.p, s[:1])
	b.wantStarted(s[0])
	b.a.Busy(b.p, 1)
	b.lu.Submit(b.p, s[1:])
	b.wantStarted()
	b.a.Ready(b.p)
	b.wantStarted(s[1])
	b.d.complete(b.p, s[0])
	b.d.complete(b.p, s[1])
	b.wantNoViolations()
}

// An abort goes to the channel where its victim is; that may complete, and be on its way
// again on another processor, meanwhile.
func TestAbort_Channel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex, channels: 2, features: func(c *Config) { c.Features = FeatureAbortCommand }}
		b := newBench(t, d, AdapterOptions{})
		victim, abort := b.srb(&finished{}), b.srb(&finished{})
		abort.Function, abort.VictimSRB = FunctionAbortCommand, victim
		p := b.processor("another")
		for p.number%2 == b.p.number%2 {
			p = b.processor("another")
		}
		b.lu.Submit(p, []*SRB{victim})
		b.lu.Submit(b.p, []*SRB{abort})
		b.wantStarted(victim, abort)
		if victim.channel == b.p.number%2 || abort.channel != victim.channel {
			t.Errorf("the abort is on channel %d, its victim on %d", abort.channel, victim.channel)
		}
		d.complete(b.p, victim)
		d.complete(b.p, abort)

		b.lu.Submit(p, []*SRB{victim})
		// Nothing but time orders the two, so that the race detector sees whether build does.
		const built = 50 * time.Millisecond
		d.buildIo = func(_ *Processor, srb *SRB) bool {
			if srb == abort {
				time.Sleep(2 * built)
			}
			return true
		}
		var aborted sync.WaitGroup
		aborted.Go(func() { b.lu.Submit(b.p, []*SRB{abort}) })
		time.Sleep(built)
		d.complete(p, victim)
		b.lu.Submit(p, []*SRB{victim})
		aborted.Wait()
		d.complete(p, victim)
		d.complete(b.p, abort)
		b.wantNoViolations()
	})
}

// A request to run something later without a routine is refused at once: later it would
// end the process on one of the port's goroutines.
func TestNoRoutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		var timer Timer
		b.a.InitializeTimer(b.p, &timer)
		if err := b.a.RequestTimer(b.p, &timer, nil, time.Second); err == nil {
			t.Error("RequestTimer: no error")
		}
		memory := b.arena.Alloc(4096)
		defer b.arena.Free(memory)
		old := b.p.raise(Dispatch)
		if err := b.a.BuildScatterGatherList(b.p, &ScatterGatherList{}, memory, FlagDataIn, nil); err == nil {
			t.Error("BuildScatterGatherList: no error")
		}
		b.p.lower(old)
		b.wantNoViolations()
		if b.a.QueueWorkItem(b.p, &WorkItem{}) {
			t.Error("QueueWorkItem: true")
		}
		b.wantOnly(CheckCallingPlace, "QueueWorkItem without a routine")
		time.Sleep(2 * time.Second)
	})
}
