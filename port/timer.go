package port

import (
	"errors"
	"sync"
	"time"
)

// ErrTimerPending means that a Timer was requested while it was already running.
var ErrTimerPending = errors.New("port: the timer is pending")

// ErrTimerFreed means that a Timer was never initialized, or was freed.
var ErrTimerFreed = errors.New("port: the timer is not initialized")

// timerMinInterval is what the Go runtime's timers achieve on any system.
const timerMinInterval = time.Millisecond

// A TimerRoutine runs when a Timer's time has come.
//
// Level: Dispatch with the StartIo lock, in half duplex Device with the
// interrupt locks too. With concurrent channels StartIo does not take the
// StartIo lock, so the two may overlap. It may request its timer again.
// Source: storport.h HW_TIMER_EX.
type TimerRoutine func(p *Processor, t *Timer)

// A Timer is a timer of a miniport, in addition to the adapter's own timer
// (RequestTimerCall). The zero Timer must be initialized before use.
type Timer struct {
	// Context is the miniport's own; set it before the first request.
	Context any

	a *Adapter // set once, by InitializeTimer

	mu sync.Mutex
	// +checklocks:mu
	ready bool
	// +checklocks:mu
	pending bool
	// turn numbers the requests, so that one that was cancelled does nothing.
	// +checklocks:mu
	turn uint64
}

// InitializeTimer makes t ready for RequestTimer.
//
// Level: up to Dispatch; best in FindAdapter.
// Source: storport.h StorPortInitializeTimer.
func (a *Adapter) InitializeTimer(p *Processor, t *Timer) {
	p.check(routineInitializeTimer)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.a, t.ready = a, true
}

// RequestTimer runs routine once after d, not earlier; a d of zero cancels the
// previous request. There is no tolerable-delay parameter: timers are not coalesced
// here.
//
// Level: any. Errors: ErrTimerPending, ErrTimerFreed, no routine.
// Source: storport.h StorPortRequestTimer.
func (a *Adapter) RequestTimer(_ *Processor, t *Timer, routine TimerRoutine, d time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !t.ready:
		return ErrTimerFreed
	case d <= 0:
		t.pending = false
		t.turn++
		return nil
	case t.pending:
		return ErrTimerPending
	case routine == nil:
		return errors.New("port: RequestTimer without a routine")
	}
	t.pending = true
	t.turn++
	turn := t.turn
	a.after(d, func(p *Processor) { t.expire(p, turn, routine) })
	return nil
}

// expire runs routine if its request is still the one that counts.
func (t *Timer) expire(p *Processor, turn uint64, routine TimerRoutine) {
	old := t.a.acquireExclusive(p, false)
	if t.begin(turn) {
		e := p.enter(inTimer)
		routine(p, t)
		p.leave(e)
	}
	t.a.releaseExclusive(p, false, old)
}

// begin ends the request of a turn and reports whether it was in force.
func (t *Timer) begin(turn uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.pending || t.turn != turn {
		return false
	}
	t.pending = false
	return true
}

// FreeTimer cancels t and takes it out of use. Its routine may still be running on
// another processor, unless the caller holds the StartIo lock.
//
// Level: up to Dispatch.
// Source: storport.h StorPortFreeTimer.
func (a *Adapter) FreeTimer(p *Processor, t *Timer) {
	p.check(routineFreeTimer)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ready, t.pending = false, false
	t.turn++
}

// QueryTimerMinInterval is the shortest time for which a timer is of use.
//
// Level: any.
// Source: storport.h StorPortQueryTimerMinInterval.
func (a *Adapter) QueryTimerMinInterval(*Processor) time.Duration { return timerMinInterval }

// DelayExecution waits for d: asleep at Passive, where it may take as long as it
// likes, and otherwise busy as in StallExecution.
//
// Level: any; not in StartIo.
// Source: storport.h StorPortDelayExecution.
func (a *Adapter) DelayExecution(p *Processor, d time.Duration) {
	if p.level > Passive {
		a.StallExecution(p, d)
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}
