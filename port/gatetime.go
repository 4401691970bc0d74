package port

import (
	"math/bits"
	"time"
)

// A GateReason is why SRBs of a unit or of the whole adapter had to wait.
type GateReason uint8

// Gate reasons. GatePaused, GateBusy, GateStopped, GateLinkDown and GateHold apply to
// adapters; the first five and GateGivenUp apply to units.
const (
	GatePaused     GateReason = iota // Pause, PauseDevice
	GateBusy                         // Busy, DeviceBusy, or a BUSY completion
	GateFrozen                       // after an error
	GateLocked                       // LOCK_QUEUE
	GateRecovering                   // a reset is under way
	GateStopped                      // the adapter is stopped
	gateReasonRemoved
	GateGivenUp  // no reset helped
	GateLinkDown // LinkDown
	GateHold     // the hold time after a reset
	gateReasonGone
	GateReasons // number of reasons, for tables
)

// String returns the reason as a metric label.
func (r GateReason) String() string {
	return [...]string{"paused", "busy", "frozen", "locked", "recovering", "stopped", "removed", "given_up", "link_down", "hold", "gone", "none"}[min(r, GateReasons)]
}

// gateTimes add up how long the reasons of a gate held. Gates change only when
// something is wrong, so the clock is rarely read.
type gateTimes struct {
	since [GateReasons]int64 // by System.nanos, while the reason holds
	total [GateReasons]time.Duration
}

// change notes that a gate goes from old to next.
func (t *gateTimes) change(old, next uint32, now int64) {
	for changed := old ^ next; changed != 0; changed &= changed - 1 {
		r := bits.TrailingZeros32(changed)
		if old&(1<<r) != 0 {
			t.total[r] += time.Duration(now - t.since[r])
		} else {
			t.since[r] = now
		}
	}
}

// until returns the times up to now of a gate whose reasons are gate.
func (t *gateTimes) until(gate uint32, now int64) [GateReasons]time.Duration {
	total := *t
	total.change(gate, 0, now)
	return total.total
}

// closeGateLocked adds a reason to wait.
//
// +checklocks:a.mu
func (a *Adapter) closeGateLocked(reason uint32) { a.setGateLocked(a.gate.Load() | reason) }

// +checklocks:a.mu
func (a *Adapter) openGateLocked(reason uint32) { a.setGateLocked(a.gate.Load() &^ reason) }

// +checklocks:a.mu
func (a *Adapter) setGateLocked(gate uint32) {
	if old := a.gate.Load(); old != gate {
		a.held.change(old, gate, a.sys.nanos())
		a.gate.Store(gate)
	}
}
