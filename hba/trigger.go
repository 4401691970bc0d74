package hba

import (
	"context"
	"slices"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/target"
)

// Faults of a unit as a whole. They take time and wait for commands, so each runs on a
// goroutine of its own, while the command that triggered it is held.

// A PowerCut is a request to the owner of the device to cut a unit's power.
type PowerCut struct {
	Fault       *fault.Fault
	Target, Lun uint8
	// How says how the power fails; it may be nil.
	How *fault.PowerCut
}

// An undo says how to end a fault of a unit: by calling run, or, if limited is set, by
// limiting that unit anew.
type undo struct {
	fault   *fault.Fault
	run     func()
	limited *target.Unit
	stop    func() bool // of the timer that ends it, nil without one; guarded by undoMu
}

// stopTimer lets go of an undo that has been taken out of the undos. Device.undoMu is held.
func (u *undo) stopTimer() {
	if u.stop != nil {
		u.stop()
	}
}

// triggersLocked sets off the unit faults of a command that has come to a place.
//
// +checklocks:d.mu
func (d *Device) triggersLocked(h *hold, at fault.Place) {
	for _, f := range h.decision.Triggers[:h.decision.NTriggers] {
		if (f.Rule().Action.At == fault.PlaceAfter) == (at == fault.PlaceAfter) {
			d.triggerLocked(f, h.unit)
		}
	}
}

// triggerLocked does what f says to a unit, on a goroutine of its own.
//
// +checklocks:d.mu
func (d *Device) triggerLocked(f *fault.Fault, u fault.Unit) {
	if d.closed || !d.isInForce(f) {
		return
	}
	d.goroutines.Go(func() {
		d.trigger(f, u)
		d.ReleaseHeld(f, 0)
	})
}

// trigger does what f says to a unit.
func (d *Device) trigger(f *fault.Fault, u fault.Unit) {
	a := &f.Rule().Action
	// The others concern commands.
	//exhaustive:ignore
	switch a.Kind {
	case fault.KindPowerCut:
		if d.onPowerCut != nil {
			d.onPowerCut(PowerCut{Fault: f, Target: u.Target, Lun: u.Lun, How: a.Power})
		}
	case fault.KindDisconnect:
		if d.onDisconnect != nil {
			d.onDisconnect(u.Target, u.Lun)
		}
	case fault.KindUnplug:
		if unit := d.unplug(u); unit != nil {
			d.undoLater(&undo{fault: f, run: func() { d.plugIn(u, unit) }})
		}
	case fault.KindCapacity:
		if unit := d.unitAt(u); unit != nil {
			d.undoLater(&undo{fault: f, limited: unit})
		}
	}
}

// unplug pulls a unit out, as RemoveUnit does, but keeps it and its rules. It returns
// the unit, or nil if there was none.
func (d *Device) unplug(u fault.Unit) *target.Unit {
	d.unitMu.Lock()
	unit, err := d.detachLocked(u.Target, u.Lun)
	if err == nil {
		d.unplugged[address{u.Target, u.Lun}] = unit
	}
	d.unitMu.Unlock()
	if err != nil {
		return nil
	}
	// Commands held by rules end, running ones are waited for; Close ends the wait, too.
	_ = d.drain(context.Background(), u.Target, u.Lun)
	return unit
}

// plugIn undoes unplug, unless the unit has been removed meanwhile: another unit may be
// at its address by now, and be unplugged, too.
func (d *Device) plugIn(u fault.Unit, unit *target.Unit) {
	if d.isClosed() {
		return
	}
	d.unitMu.Lock()
	defer d.unitMu.Unlock()
	at := address{u.Target, u.Lun}
	if d.unplugged[at] != unit {
		return
	}
	delete(d.unplugged, at)
	unit.PluggedIn()
	if err := d.attachLocked(u.Target, u.Lun, unit); err != nil {
		d.log.Error("a unit that was unplugged cannot be plugged in again", "target", u.Target, "unit", u.Lun, "error", err)
	}
}

// targetAt returns the target of a number, which may be out of range; nil: none.
func (d *Device) targetAt(targetID uint8) *target.Target {
	if int(targetID) >= len(d.targets) {
		return nil
	}
	return d.targets[targetID].Load()
}

func (d *Device) unitAt(u fault.Unit) *target.Unit {
	t := d.targetAt(u.Target)
	if t == nil {
		return nil
	}
	return t.Unit(u.Lun)
}

// undoLater ends a fault of a unit after the time that its rule gives, or when the rule
// is removed, whichever comes first: at once, if it was removed while the fault was
// being carried out. A limit takes effect from here on.
func (d *Device) undoLater(u *undo) {
	d.undoMu.Lock()
	defer d.undoMu.Unlock()
	if !d.isInForce(u.fault) {
		d.undoLocked(u) // SetFaults has looked already, or waits for undoMu and will find nothing
		return
	}
	if u.limited == nil {
		d.undos = append(d.undos, u)
	} else {
		// The same fault now ends later: a rule may set the limit with each command.
		d.undos = append(slices.DeleteFunc(d.undos, func(other *undo) bool {
			same := other.limited == u.limited && other.fault == u.fault
			if same {
				other.stopTimer()
			}
			return same
		}), u)
		d.limitLocked(u.limited)
	}
	if after := u.fault.Rule().Action.For; after != 0 {
		u.stop = d.clock.AfterFunc(time.Duration(after), func() {
			d.undoTriggers(func(other *undo) bool { return other == u })
		})
	}
}

// undoLocked ends a fault that is not, or no longer, among the undos.
//
// +checklocks:d.undoMu
func (d *Device) undoLocked(u *undo) {
	if u.limited != nil {
		d.limitLocked(u.limited)
		return
	}
	u.run()
}

// limitLocked sets a unit's capacity to that of the latest fault that limits it and has
// not ended, if any.
//
// +checklocks:d.undoMu
func (d *Device) limitLocked(unit *target.Unit) {
	limit := int64(0)
	for _, u := range d.undos {
		if u.limited == unit {
			limit = int64(u.fault.Rule().Action.Size)
		}
	}
	unit.Limit(limit)
}

// undoTriggers ends the faults of units that match.
func (d *Device) undoTriggers(match func(*undo) bool) {
	d.undoMu.Lock()
	defer d.undoMu.Unlock()
	var ended []*undo
	d.undos = slices.DeleteFunc(d.undos, func(u *undo) bool {
		if !match(u) {
			return false
		}
		ended = append(ended, u)
		return true
	})
	for _, u := range ended {
		u.stopTimer()
		d.undoLocked(u)
	}
}

// A ruleUnit is a rule about time as it applies to one unit.
type ruleUnit struct {
	fault *fault.Fault
	unit  fault.Unit // without its size: a disk that has grown is the same disk
}

// A ruleTimer says when such a rule is asked next. It persists while other rules and
// units come and go, even after the rule has been asked for the last time.
type ruleTimer struct {
	at time.Duration
	// asOf is the time that the rule is asked about, however late the call comes: at, or
	// when the unit came, if that was later.
	asOf time.Duration
	stop func() bool // ends the call that is due
}

// setTimersLocked arranges for the rules about time to be asked when their time comes;
// at once, if it has passed and they have not been asked.
//
// +checklocks:d.mu
func (d *Device) setTimersLocked(s *fault.Set) {
	there := make(map[fault.Unit]bool)
	for _, p := range s.Plans() {
		there[timerOf(p, nil).unit] = true
	}
	for key, t := range d.ruleTimers {
		if !there[key.unit] || s.Fault(key.fault.Rule().Name) != key.fault {
			t.stop()
			delete(d.ruleTimers, key)
		}
	}
	for _, p := range s.Plans() {
		for _, start := range p.Starts() {
			if key := timerOf(p, start.Fault); d.ruleTimers[key] == nil {
				t := &ruleTimer{at: start.At, asOf: start.AsOf}
				d.ruleTimers[key] = t
				d.startTimerLocked(key, t)
			}
		}
	}
}

func timerOf(p *fault.Plan, f *fault.Fault) ruleUnit {
	u := p.Unit()
	u.Blocks = 0
	return ruleUnit{f, u}
}

// +checklocks:d.mu
func (d *Device) startTimerLocked(key ruleUnit, t *ruleTimer) {
	t.stop = d.clock.AfterFunc(max(0, t.at-d.clock.Now()), func() { d.tick(key, t) })
}

// tick asks a rule about time, and arranges for it to be asked again after its period,
// until it is used up. Periods that were missed are skipped.
func (d *Device) tick(key ruleUnit, t *ruleTimer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.ruleTimers[key] != t {
		return
	}
	s, f := d.Faults(), key.fault
	for _, p := range s.Plans() {
		if timerOf(p, f) == key {
			d.askLocked(p, &fault.Command{Op: fault.OpTime, Timer: f}, t.asOf)
		}
	}
	now := d.clock.Now()
	if period := time.Duration(f.Rule().Match.Period); period != 0 && s.State(f, now) != fault.StateExhausted {
		t.at += period * (1 + max(0, now-t.at)/period)
		t.asOf = t.at
		d.startTimerLocked(key, t)
	}
}

// askLocked has the rules of a unit examine an event, which is no command, as of a time,
// unless the unit has been removed.
//
// +checklocks:d.mu
func (d *Device) askLocked(p *fault.Plan, c *fault.Command, at time.Duration) {
	var dec fault.Decision
	if u := p.Unit(); d.faults.Load().plan(u.Target, u.Lun) != p || !p.Decide(c, at, &dec) {
		return
	}
	for _, f := range dec.Triggers[:dec.NTriggers] {
		d.triggerLocked(f, p.Unit())
	}
}

// Mark announces a mark to the rules, and returns how many wait for it.
//
// Concurrency: any goroutine.
func (d *Device) Mark(text string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, now := d.Faults(), d.clock.Now()
	n := s.Mark(text, now)
	if n == 0 {
		return 0
	}
	d.setTimersLocked(s)
	for _, p := range s.Plans() {
		d.askLocked(p, &fault.Command{Op: fault.OpMark, Mark: text}, now)
	}
	return n
}
