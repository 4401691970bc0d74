package port

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestLook: the age of what is outstanding or waits, and how long a unit was busy.
func TestLook(t *testing.T) {
	clock := &testClock{}
	d := &driver{model: FullDuplex}
	b := newUncheckedBench(t, d, AdapterOptions{}, SystemConfig{Clock: clock.now})
	defer b.remove()
	b.a.service.stop() // it looks, too
	first, second := b.srb(&finished{}), b.srb(&finished{})
	step := func(what string, oldest, busy time.Duration) {
		t.Helper()
		if s := b.lu.Stats(); s.OldestAge != oldest || s.BusyTime != busy {
			t.Errorf("%s: oldest %v, busy %v; want %v, %v", what, s.OldestAge, s.BusyTime, oldest, busy)
		}
	}
	pass := func(d time.Duration) {
		clock.advance(d)
		b.a.look(b.p)
	}
	const tick = lookPeriod
	pass(tick)
	step("idle", 0, 0)
	b.lu.Submit(b.p, []*SRB{first})
	pass(tick)
	step("seen once", 0, tick)
	b.a.PauseDevice(b.p, 0, 0, 0, 3600)
	b.lu.Submit(b.p, []*SRB{second})
	pass(3 * tick)
	step("seen again, after a late look", 3*tick, 3*tick)
	d.complete(b.p, d.take()[0])
	step("the second one is oldest", 0, 3*tick)
	pass(tick)
	b.a.ResumeDevice(b.p, 0, 0, 0)
	pass(tick)
	step("started, and as old as before", 2*tick, 5*tick)
	d.complete(b.p, d.take()[0])
	b.lu.Submit(b.p, []*SRB{second})
	step("another life of the same SRB", 0, 5*tick)
}

// TestLook_Rests: looks that see nothing for long enough say so, and one that sees that
// something has come and gone says that too.
func TestLook_Rests(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newUncheckedBench(t, d, AdapterOptions{}, SystemConfig{})
	defer b.remove()
	b.a.service.stop() // it looks, too
	looks := func(what string, again bool, n int) {
		t.Helper()
		for i := range n {
			if got := b.a.look(b.p); got != again {
				t.Fatalf("%s: look %d returned %t", what, i, got)
			}
		}
	}
	b.a.quietLooks = 0
	looks("nothing yet", true, restAfter-1)
	looks("quiet", false, 3)
	b.lu.Submit(b.p, []*SRB{b.srb(&finished{})})
	looks("outstanding", true, 2*restAfter)
	d.complete(b.p, d.take()[0])
	looks("over", true, restAfter-1)
	looks("quiet again", false, 1)
	b.lu.Submit(b.p, []*SRB{b.srb(&finished{})})
	d.complete(b.p, d.take()[0])
	looks("come and gone", true, restAfter)
	looks("quiet once more", false, 1)
}

// TestService_Rests: a service looks ten times a second as long as there is something to
// see, then once a second.
func TestService_Rests(t *testing.T) {
	b := newUncheckedBench(t, &driver{model: FullDuplex}, AdapterOptions{}, SystemConfig{})
	defer b.remove()
	synctest.Test(t, func(t *testing.T) {
		v, err := b.a.sys.newService("timer")
		if err != nil {
			t.Fatal(err)
		}
		var busy, looks, ticks atomic.Int32
		go v.run(func(*Processor) { ticks.Add(1) }, func(*Processor) bool {
			looks.Add(1)
			return busy.Load() != 0
		})
		for i, c := range []struct{ busy, looks int32 }{{1, 100}, {0, 10}, {0, 10}, {1, 91}, {1, 100}} {
			busy.Store(c.busy)
			looks.Store(0)
			ticks.Store(0)
			time.Sleep(10*time.Second + time.Millisecond)
			// A look that changes the pace is one more, or one less, of the other's.
			if got := looks.Load(); got < c.looks-1 || got > c.looks+1 || ticks.Load() != 10 {
				t.Errorf("ten seconds %d: %d looks, want %d; %d ticks, want 10", i, got, c.looks, ticks.Load())
			}
		}
		v.stop()
	})
}

// TestGateTimes: how long SRBs were held back, for each reason and until now.
func TestGateTimes(t *testing.T) {
	clock := &testClock{}
	b := newUncheckedBench(t, &driver{model: FullDuplex}, AdapterOptions{}, SystemConfig{Clock: clock.now})
	defer b.remove()
	b.a.PauseDevice(b.p, 0, 0, 0, 3600)
	clock.advance(time.Second)
	b.a.PauseDevice(b.p, 0, 0, 0, 3600)
	b.a.Pause(b.p, 3600)
	clock.advance(2 * time.Second)
	b.a.ResumeDevice(b.p, 0, 0, 0)
	clock.advance(4 * time.Second)
	b.a.LinkDown(b.p)
	clock.advance(8 * time.Second)
	b.a.LinkUp(b.p)
	b.a.Resume(b.p)
	clock.advance(time.Hour)
	if got, want := b.lu.Stats().Held, [GateReasons]time.Duration{GatePaused: 3 * time.Second}; got != want {
		t.Errorf("the unit's gate was closed for %v, want %v", got, want)
	}
	want := [GateReasons]time.Duration{GatePaused: 14 * time.Second, GateLinkDown: 8 * time.Second}
	if got := b.a.Stats(b.p).Held; got != want {
		t.Errorf("the adapter's gate was closed for %v, want %v", got, want)
	}
	for reason, gate := range map[GateReason]uint32{
		GatePaused: gatePaused, GateBusy: gateBusy, GateFrozen: gateFrozen, GateLocked: gateLocked, GateRecovering: gateRecovering,
		GateStopped: gateStopped, GateGivenUp: gateGivenUp, GateLinkDown: gateLinkDown, GateHold: gateHold,
	} {
		if 1<<reason != gate {
			t.Errorf("reason %s stands for gate %#x, want %#x", reason, 1<<reason, gate)
		}
	}
}
