package hba

import (
	"context"
	"slices"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/target"
)

// Faults of a unit as a whole. They take time and wait for commands, so each runs
// on a goroutine of its own, while the command that set it off is held.

// A PowerCut is what the owner of the device is asked to do to a unit's power.
type PowerCut struct {
	Fault       *fault.Fault
	Target, Lun uint8
	// How says how; it may be nil.
	How *fault.PowerCut
}

// An undo is how to end a fault of a unit: by run, or it has limited a unit.
type undo struct {
	fault   *fault.Fault
	run     func()
	limited *target.Unit
}

// triggersLocked sets off what a command that has come to a place does to its
// unit.
//
// +checklocks:d.mu
func (d *Device) triggersLocked(h *hold, at fault.Place) {
	for _, f := range h.decision.Triggers[:h.decision.NTriggers] {
		if (f.Rule().Action.At == fault.PlaceAfter) == (at == fault.PlaceAfter) {
			d.triggerLocked(f, h.unit)
		}
	}
}

// triggerLocked does to a unit what f says, soon.
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

// trigger does to a unit what f says.
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
	// What rules hold ends, what runs is waited for; Close ends the wait, too.
	_ = d.drain(context.Background(), u.Target, u.Lun)
	return unit
}

// plugIn undoes unplug, unless the unit has been removed meanwhile: another may have its
// address by now, and be unplugged, too.
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

func (d *Device) unitAt(u fault.Unit) *target.Unit {
	t := d.targets[u.Target].Load()
	if t == nil {
		return nil
	}
	return t.Unit(u.Lun)
}

// undoLater ends a fault of a unit after the time that its rule says, or when the
// rule is gone, whichever comes first: at once, if that has been while it was done. What
// limits a unit does so from here on.
func (d *Device) undoLater(u *undo) {
	d.undoMu.Lock()
	defer d.undoMu.Unlock()
	if !d.isInForce(u.fault) {
		d.undoLocked(u) // SetFaults has looked already, or waits for undoMu and finds nothing
		return
	}
	if u.limited == nil {
		d.undos = append(d.undos, u)
	} else {
		// The same fault ends later now: a rule may do it with each command.
		d.undos = append(slices.DeleteFunc(d.undos, func(other *undo) bool {
			return other.limited == u.limited && other.fault == u.fault
		}), u)
		d.limitLocked(u.limited)
	}
	if after := u.fault.Rule().Action.For; after != 0 {
		d.clock.AfterFunc(time.Duration(after), func() {
			d.undoTriggersWhere(func(other *undo) bool { return other == u })
		})
	}
}

// undoLocked ends what is not, or not any more, among the undos.
//
// +checklocks:d.undoMu
func (d *Device) undoLocked(u *undo) {
	if u.limited != nil {
		d.limitLocked(u.limited)
		return
	}
	u.run()
}

// limitLocked has a unit's capacity be what the latest fault says that is about it and
// has not ended, if there is one.
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

// undoTriggers ends the faults of units whose rule matches.
func (d *Device) undoTriggers(match func(*fault.Fault) bool) {
	d.undoTriggersWhere(func(u *undo) bool { return match(u.fault) })
}

func (d *Device) undoTriggersWhere(match func(*undo) bool) {
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
		d.undoLocked(u)
	}
}

// A ruleUnit is a rule about time as far as one unit goes.
type ruleUnit struct {
	fault *fault.Fault
	unit  fault.Unit // without its size: a disk that has grown is the same disk
}

// A ruleTimer is when such a rule is asked next. It stays as it is while other rules
// and units come and go, also when it has been asked for the last time.
type ruleTimer struct {
	at   time.Duration
	stop func() bool // ends the call that is due
}

// setTimersLocked has the rules about time asked when it comes; at once, if it has
// passed and they have not been.
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
				t := &ruleTimer{at: start.At}
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

// tick asks a rule about time, and sees to it that it is asked again after its
// period, until it is used up. Periods that nobody was awake for are left out.
func (d *Device) tick(key ruleUnit, t *ruleTimer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.ruleTimers[key] != t {
		return
	}
	s, f := d.Faults(), key.fault
	for _, p := range s.Plans() {
		if timerOf(p, f) == key {
			d.askLocked(p, &fault.Command{Op: fault.OpTime, Timer: f})
		}
	}
	now := d.clock.Now()
	if period := time.Duration(f.Rule().Match.Period); period != 0 && s.State(f, now) != fault.StateExhausted {
		t.at += period * (1 + max(0, now-t.at)/period)
		d.startTimerLocked(key, t)
	}
}

// askLocked has the rules of a unit look at something that is no command, unless the
// unit has been removed.
//
// +checklocks:d.mu
func (d *Device) askLocked(p *fault.Plan, c *fault.Command) {
	var dec fault.Decision
	if u := p.Unit(); d.faults.Load().plan(u.Target, u.Lun) != p || !p.Decide(c, d.clock.Now(), &dec) {
		return
	}
	for _, f := range dec.Triggers[:dec.NTriggers] {
		d.triggerLocked(f, p.Unit())
	}
}

// Mark tells the rules of a mark, and returns how many wait for it.
//
// Concurrency: any goroutine.
func (d *Device) Mark(text string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.Faults()
	n := s.Mark(text, d.clock.Now())
	if n == 0 {
		return 0
	}
	d.setTimersLocked(s)
	for _, p := range s.Plans() {
		d.askLocked(p, &fault.Command{Op: fault.OpMark, Mark: text})
	}
	return n
}
