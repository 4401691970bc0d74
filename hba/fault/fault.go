package fault

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// notArmed is the armed time of a fault that waits for its mark.
const notArmed = math.MinInt64

// A Fault is a rule in force. It lives on in the next Set if its rule does not
// change.
//
// Concurrency: any goroutine.
type Fault struct {
	rule Rule
	info kindInfo
	ops  Op
	seed uint64
	// end, status and sense say how it ends commands, if it does; with EndNot, how it
	// ends commands that have been executed.
	end    End
	status scsi.Status
	sense  scsi.Sense
	pacer  *pacer

	// armed is when it came into force, on the device's clock.
	armed atomic.Int64
	// matched numbers the commands that match; fired counts those that met the fault,
	// leftOut those of them for which it had no room, held those that it holds now.
	matched, fired, leftOut atomic.Uint64
	held                    atomic.Int64
	// told is when its firing was last reported, and untold how often it has fired
	// since.
	told   atomic.Int64
	untold atomic.Uint64
}

// newFault compiles a rule that has been checked.
func newFault(r Rule, now time.Duration) *Fault {
	f := &Fault{rule: r, seed: seedOf(r.Seed, r.Name), pacer: newPacer(&r.Action)}
	f.info, _ = infoOf(r.Action.Kind)
	f.ops, _ = r.Match.Op.set()
	if f.ops == 0 {
		f.ops = f.info.ops
	}
	if r.Match.hasRange() && r.Match.Op == nil {
		f.ops &= opsRanged
	}
	f.armed.Store(int64(now))
	if r.Match.AtMark != "" && f.ops&OpMark == 0 {
		f.armed.Store(notArmed)
	}
	f.told.Store(math.MinInt64)
	f.compileEnd()
	return f
}

// compileEnd finds out how the fault ends commands.
func (f *Fault) compileEnd() {
	a := &f.rule.Action
	check := func(key scsi.SenseKey, additional scsi.Additional) {
		f.end, f.status, f.sense = EndStatus, scsi.StatusCheckCondition, scsi.Sense{Key: key, Additional: additional}
	}
	// The other kinds end nothing.
	//exhaustive:ignore
	switch a.Kind {
	case KindStatus:
		f.end = EndStatus
		f.status, _ = choose("", a.Status, statuses) // Check has been here
	case KindErrno:
		sense, _ := choose("", a.Errno, errnos)
		check(sense.Key, sense.Additional)
		if a.Errno == errnoShutdown {
			f.end = EndNoDevice
		}
	case KindMediumError:
		check(scsi.KeyMediumError, scsi.UnrecoveredReadError)
	case KindBusy:
		f.end, f.status = EndStatus, scsi.StatusBusy
	case KindTaskSetFull:
		f.end, f.status = EndStatus, scsi.StatusTaskSetFull
	case KindNotReady:
		check(scsi.KeyNotReady, scsi.BecomingReady)
	case KindUnitAttention:
		check(scsi.KeyUnitAttention, scsi.PowerOnResetOccurred)
	case KindWriteProtect:
		check(scsi.KeyDataProtect, scsi.WriteProtected)
	}
	if a.Sense != nil {
		f.sense, _ = a.Sense.parse()
	}
	if f.status == scsi.StatusConditionMet || f.status == scsi.StatusCheckCondition && f.sense.Key == scsi.KeyRecoveredError {
		f.end = EndNot // these say that it is done
	}
}

// Rule returns the rule, with its defaults. It must not be changed.
func (f *Fault) Rule() *Rule { return &f.rule }

// Hostile reports whether a correct drive would never do it.
func (f *Fault) Hostile() bool { return f.info.hostile }

// Class is "hostile" or "legal", for reports.
func (f *Fault) Class() string {
	if f.info.hostile {
		return "hostile"
	}
	return "legal"
}

// States returns all states.
func States() []State { return []State{StateArmed, StateWaiting, StateOver, StateExhausted} }

// Hold counts a command that the fault now holds.
func (f *Fault) Hold() { f.held.Add(1) }

// Release counts a command that the fault no longer holds.
func (f *Fault) Release() { f.held.Add(-1) }

// arm puts the fault into force from now on, if it waits for its mark.
func (f *Fault) arm(now time.Duration) { f.armed.CompareAndSwap(notArmed, int64(now)) }

// inWindow reports whether the fault is in force at now.
func (f *Fault) inWindow(now time.Duration) bool {
	m := &f.rule.Match
	armed := f.armed.Load()
	if armed == notArmed {
		return false
	}
	at := now - time.Duration(armed) - time.Duration(m.Start)
	if at < 0 {
		return false
	}
	if m.Period != 0 {
		at %= time.Duration(m.Period)
	}
	return m.For == 0 || at < time.Duration(m.For)
}

// choose numbers a match and says whether the fault fires on it, and with which random
// numbers.
func (f *Fault) choose() (c chance, fires bool) {
	m := &f.rule.Match
	k := f.matched.Add(1) - 1
	if k < m.Skip {
		return 0, false
	}
	if m.Every > 1 && (k-m.Skip+1)%m.Every != 0 {
		return 0, false
	}
	c = chanceOf(f.seed, k)
	if m.Probability != nil && c.unit() >= *m.Probability {
		return 0, false
	}
	if f.rule.Budget == 0 {
		f.fired.Add(1)
		return c, true
	}
	for {
		n := f.fired.Load()
		if n >= f.rule.Budget {
			return 0, false
		}
		if f.fired.CompareAndSwap(n, n+1) {
			return c, true
		}
	}
}

// State says what has become of a rule.
type State string

// States of rules.
const (
	StateArmed     State = "armed"     // may fire
	StateWaiting   State = "waiting"   // for its start, its mark or another rule
	StateOver      State = "over"      // its time has passed
	StateExhausted State = "exhausted" // its budget is used up
)

// Stats are a rule's counters.
type Stats struct {
	Matched uint64 // commands, before skip, every and probability
	Fired   uint64 // commands that met the fault
	LeftOut uint64 // effects that were left out for want of room
	Held    int64  // commands that it holds now
}

// Stats returns the counters.
func (f *Fault) Stats() Stats {
	return Stats{Matched: f.matched.Load(), Fired: f.fired.Load(), LeftOut: f.leftOut.Load(), Held: f.held.Load()}
}

// State returns what has become of the rule of f.
func (s *Set) State(f *Fault, now time.Duration) State {
	m := &f.rule.Match
	armed := f.armed.Load()
	switch {
	case f.rule.Budget != 0 && f.fired.Load() >= f.rule.Budget:
		return StateExhausted
	case armed == notArmed, now-time.Duration(armed) < time.Duration(m.Start):
		return StateWaiting
	case m.AfterRule != "" && !s.follows(f):
		return StateWaiting
	case !f.inWindow(now):
		if m.Period == 0 {
			return StateOver
		}
		return StateWaiting
	}
	return StateArmed
}
