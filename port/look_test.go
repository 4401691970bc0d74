package port

import (
	"testing"
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
