package port

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// The reset road. A unit whose timer ran out gets, one after the other until
// one helps: a logical unit reset, a target reset, a bus reset. The first two
// are SRBs that pass every gate; the last is ResetBus. Only the miniport hands
// SRBs back, and only when its device has stopped using their memory.

// ResetLevel is a step of the reset road.
type ResetLevel uint8

// Reset levels, in the order in which they are tried.
const (
	ResetUnit ResetLevel = iota
	ResetTarget
	ResetBus
	ResetLevels // number of levels
)

func (l ResetLevel) String() string { return [...]string{"unit", "target", "bus"}[l] }

// A ResetReport says how one step of the reset road went.
type ResetReport struct {
	Level ResetLevel
	// Path is the bus, Unit the unit on whose account it was: nil if a bus was reset
	// that has none.
	Path uint8
	Unit *LogicalUnit
	// OK is what the miniport said, Outstanding how many SRBs it still holds.
	OK          bool
	Outstanding int
}

// recover brings a unit back whose timer ran out; gateRecovering is closed.
//
// Level: Passive, on the recovery service.
func (a *Adapter) recover(p *Processor, lu *LogicalUnit) {
	log := a.sys.log.With("adapter", a.options.Name, "unit", lu.String())
	stuck, oldest := lu.stuck()
	if stuck > 0 {
		log.Warn("request timed out, resetting", "outstanding", stuck, "oldest", oldest)
	}
	for level := ResetUnit; stuck > 0 && level < ResetLevels; level++ {
		if a.isGone() {
			return // SurpriseRemove sees to what is outstanding
		}
		if lu.removed() && a.state.Load() != adapterFailed {
			a.reopen(p, lu, false) // it is timed on: see timeLeaver
			return
		}
		ok, left := a.reset(p, scopeOf(lu, level))
		if ok && left == 0 {
			log.Warn("reset done", "level", level.String())
			stuck = 0
			break
		}
		log.Error("reset failed", "level", level.String(), "outstanding", left)
	}
	if stuck > 0 {
		a.giveUp(p, lu)
		return
	}
	a.reopen(p, lu, true)
}

// A scope is what one reset covers.
type scope struct {
	level ResetLevel
	path  uint8
	lu    *LogicalUnit // on whose account; nil: the bus's own
}

func scopeOf(lu *LogicalUnit, level ResetLevel) scope { return scope{level, lu.path, lu} }

// has reports whether u is reset, too.
func (s scope) has(u *LogicalUnit) bool {
	switch s.level {
	case ResetUnit: // by address: to the miniport, a unit that left it is the same
		return u.path == s.path && u.target == s.lu.target && u.lun == s.lu.lun
	case ResetTarget:
		return u.path == s.path && u.target == s.lu.target
	case ResetBus, ResetLevels:
	}
	return u.path == s.path
}

func (s scope) String() string {
	if s.lu != nil {
		return fmt.Sprintf("%s: %s reset", s.lu, s.level)
	}
	return fmt.Sprintf("bus %d: reset", s.path)
}

// reset does one step with everything in its scope held back. It reports success and
// how many SRBs the miniport still holds of the units that were in the scope at the start:
// units that come meanwhile are not held back, and do not count. Units that left are in
// the scope like others: the miniport knows addresses, not whether their units are in
// service.
func (a *Adapter) reset(p *Processor, s scope) (ok bool, left int) {
	var units []*LogicalUnit
	for _, u := range a.units.Load().all {
		if s.has(u) {
			units = append(units, u)
		}
	}
	if a.halted || a.isGone() {
		return false, heldByMiniport(units) // a reset would start what was stopped
	}
	a.resets[s.level].Add(1)
	closed := holdBack(units)
	a.passStartIo(p)
	ok = a.callReset(p, s)
	left = heldByMiniport(units)
	if ok && left != 0 && p.verify {
		p.violate(CheckResetOutstanding, nil, fmt.Sprintf("%s succeeded with %d SRBs still at the miniport", s, left))
	}
	for _, u := range closed {
		u.mu.Lock()
		u.endResetLocked(ok && left == 0) // its timer goes on: that others are reset gives it no more time
		u.mu.Unlock()
	}
	a.kick(p)
	if s.level == ResetBus {
		a.noteBusReset(s.path, ok)
	}
	a.mu.Lock()
	tell := a.onReset
	a.mu.Unlock()
	if tell != nil {
		tell(ResetReport{Level: s.level, Path: s.path, Unit: s.lu, OK: ok, Outstanding: left})
	}
	return ok, left
}

// holdBack closes the gates of units for a reset, and returns those whose gate it closed:
// for the others a reset is under way already.
func holdBack(units []*LogicalUnit) (closed []*LogicalUnit) {
	for _, u := range units {
		u.mu.Lock()
		if u.gate.Load()&gateRecovering == 0 {
			u.closeGateLocked(gateRecovering)
			closed = append(closed, u)
		}
		u.mu.Unlock()
	}
	return closed
}

// passStartIo waits until whoever has found a gate open that was closed since has left
// StartIo: its locks have been free by then.
func (a *Adapter) passStartIo(p *Processor) {
	old := a.acquireExclusive(p, true)
	a.releaseExclusive(p, true, old)
}

// noteBusReset schedules another reset of a bus whose reset has failed, unless a reset of
// that bus succeeds by then. A miniport whose ResetBus has failed may turn away everything
// until one succeeds, so there may be no request left whose time-out would ask for one.
// However many resets fail, one timer runs.
func (a *Adapter) noteBusReset(path uint8, ok bool) {
	a.mu.Lock()
	a.busBroken[path] = !ok
	if ok {
		a.resetAgainIn = 0
	}
	start := !ok && !a.resetAgainQueued
	a.resetAgainQueued = a.resetAgainQueued || start
	a.mu.Unlock()
	if start {
		a.resetLater()
	}
}

// firstAgain is the delay before the first retry of a failed bus reset: shorter than it
// takes until SRBs turned away as BUSY meanwhile have been tried for the last time.
const firstAgain = time.Second

// backOff is how long to wait before the next retry, if the wait before was last: twice
// as long each time, up to what a reset or a request may take, whichever is less.
func (a *Adapter) backOff(last time.Duration) time.Duration {
	most := min(a.options.ResetTimeout, time.Duration(a.options.DefaultTimeoutSecs)*time.Second)
	return min(max(2*last, firstAgain), most)
}

// resetLater starts the timer of noteBusReset.
func (a *Adapter) resetLater() {
	a.mu.Lock()
	in := a.backOff(a.resetAgainIn)
	a.resetAgainIn = in
	a.mu.Unlock()
	a.after(in, func(*Processor) { a.recovery.post(a.resetAgain) })
}

// resetAgain resets each bus whose reset has failed. If the adapter is stopped, it
// reschedules itself.
//
// Level: Passive, on the recovery service.
func (a *Adapter) resetAgain(p *Processor) {
	if a.isGone() {
		return
	}
	a.mu.Lock()
	a.resetAgainQueued = a.halted
	broken := a.busBroken
	a.mu.Unlock()
	if a.halted {
		a.resetLater()
		return
	}
	for path, is := range broken {
		if is {
			a.resetBus(p, uint8(path))
		}
	}
}

// resetBus resets one bus, which may have no units.
func (a *Adapter) resetBus(p *Processor, path uint8) {
	s, units := scope{level: ResetBus, path: path}, a.units.Load().list
	if i := slices.IndexFunc(units, s.has); i >= 0 {
		s.lu = units[i]
	}
	ok, left := a.reset(p, s)
	a.sys.log.Warn("hardware reset", "adapter", a.options.Name, "bus", path, "success", ok, "outstanding", left)
}

// callReset does one step and reports success.
func (a *Adapter) callReset(p *Processor, s scope) bool {
	switch s.level {
	case ResetUnit:
		return a.sendOwn(context.Background(), p, s.lu, a.resetSRBs[0], FunctionResetLogicalUnit)
	case ResetTarget:
		return a.sendOwn(context.Background(), p, s.lu, a.resetSRBs[1], FunctionResetDevice)
	case ResetBus, ResetLevels:
	}
	return a.callResetBus(p, s.path)
}

// sendOwn sends one of the port's own SRBs, a reset or the last SRB of a stop, and waits
// for it: at most ResetTimeout, not after ctx, and for that of a stop not after the
// adapter has failed, as a reset may still bring it back. An SRB that does not come back
// stays the miniport's; until it does, sendOwn with it fails.
func (a *Adapter) sendOwn(ctx context.Context, p *Processor, lu *LogicalUnit, srb *SRB, f Function) bool {
	if c, out := srb.Completer.(ownCompleter); out {
		select {
		case <-c: // late
		default:
			return false
		}
	}
	done := make(chan Status, 1)
	srb.Function = f
	srb.Flags = FlagNoQueueFreeze | FlagQueueActionEnable
	srb.QueueAction = HeadOfQueueTag
	srb.CDBBytes, srb.DataTransferBytes = 0, 0
	srb.Completer = ownCompleter(done)
	lu.Submit(p, []*SRB{srb})
	var failed <-chan struct{}
	if srb == a.controlSRB {
		failed = a.failed
	}
	timer := time.NewTimer(a.options.ResetTimeout)
	defer timer.Stop()
	select {
	case status := <-done:
		done <- status
	case <-timer.C:
	case <-ctx.Done():
	case <-failed:
	case <-a.gone:
	}
	select {
	case status := <-done: // perhaps just in time
		srb.Completer = nil
		return status.Code() == StatusSuccess
	default:
		return false
	}
}

// isGone reports whether the hardware is known to be gone.
func (a *Adapter) isGone() bool {
	select {
	case <-a.gone:
		return true
	default:
		return false
	}
}

// ownCompleter passes on the status of one of the port's own SRBs. It is the SRB's
// Completer while that is out.
type ownCompleter chan Status

// CompleteSRB implements Completer.
func (c ownCompleter) CompleteSRB(_ *Processor, srb *SRB) { c <- srb.Status }

// heldByMiniport counts the SRBs of units that the miniport still holds, reset SRBs
// aside.
func heldByMiniport(units []*LogicalUnit) int {
	n := 0
	for _, u := range units {
		n += u.heldByMiniport()
	}
	return n
}

// heldByMiniport counts the unit's SRBs that the miniport still holds, reset SRBs aside.
func (lu *LogicalUnit) heldByMiniport() int {
	n := 0
	lu.mu.Lock()
	defer lu.mu.Unlock()
	for srb := lu.pendingHead; srb != nil; srb = srb.pendNext {
		if owner := srb.owner.Load(); !srb.recovery && !srb.taskManagement() && (owner == ownerMiniport || owner == ownerKept) {
			n++
		}
	}
	return n
}

// reopen ends the resets made for a unit: its timer starts anew.
func (a *Adapter) reopen(p *Processor, lu *LogicalUnit, helped bool) {
	lu.mu.Lock()
	lu.endResetLocked(helped)
	lu.rearmLocked()
	lu.mu.Unlock()
	a.kick(p)
}

// endResetLocked ends a reset for a unit; if it helped, a unit that was given up works
// again.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) endResetLocked(helped bool) {
	lu.openGateLocked(gateRecovering)
	if helped {
		lu.reviveLocked()
	}
}

// ResetNow takes a unit down the reset road from level on as if it had timed
// out, and waits for the result.
//
// Level: Passive. Errors: ErrWrongPlace, ErrAdapterStopped, no such level, a reset is
// already under way, or this one failed.
func (a *Adapter) ResetNow(p *Processor, lu *LogicalUnit, level ResetLevel) error {
	if err := p.mayWait(a, routineResetNow); err != nil {
		return err
	}
	if level >= ResetLevels {
		return fmt.Errorf("%s: reset level %d: want 0 to %d", lu, uint8(level), uint8(ResetLevels-1))
	}
	done := make(chan bool, 1)
	lu.mu.Lock()
	busy := lu.gate.Load()&gateRecovering != 0
	lu.closeGateLocked(gateRecovering)
	lu.mu.Unlock()
	if busy {
		return fmt.Errorf("%s: a reset is under way already", lu)
	}
	posted := a.recovery.post(func(p *Processor) {
		ok, left := a.reset(p, scopeOf(lu, level))
		a.reopen(p, lu, ok && left == 0)
		done <- ok
	})
	if !posted {
		return fmt.Errorf("%s: %w", a.options.Name, ErrAdapterStopped)
	}
	if !<-done {
		return fmt.Errorf("%s: %s reset failed", lu, level)
	}
	return nil
}

// HardwareReset asks the port to reset the whole adapter soon: a ResetBus for each
// bus in turn, with its units held back meanwhile. It is for a miniport that finds its
// hardware broken and would rather not wait for a unit's timer. Calls before the
// reset begins coalesce. False: the adapter is going away.
//
// Level: any.
// Source: storport.h StorPortHardwareReset.
func (a *Adapter) HardwareReset(*Processor) bool {
	a.mu.Lock()
	queued := a.hardwareResetQueued
	a.hardwareResetQueued = true
	a.mu.Unlock()
	if queued || a.recovery.post(a.hardwareReset) {
		return true
	}
	a.mu.Lock()
	a.hardwareResetQueued = false
	a.mu.Unlock()
	return false
}

// hardwareReset is HardwareReset on the recovery service.
func (a *Adapter) hardwareReset(p *Processor) {
	a.mu.Lock()
	a.hardwareResetQueued = false
	a.mu.Unlock()
	for path := range a.config.NumberOfBuses {
		a.resetBus(p, uint8(path))
	}
}
