package port

import "slices"

// giveUp fails a unit that no reset brought back: what waits and what comes
// completes with StatusNoDevice, and who waits for what the miniport holds is told
// to wait no more. That itself stays with the miniport, since its memory may still be
// written; the reset road is taken again after another timeout. The unit works again
// when a reset helps, or when the miniport has given back everything: so nothing that
// was given up is done after what comes later.
//
// Level: Passive, on the recovery service.
func (a *Adapter) giveUp(p *Processor, lu *LogicalUnit) {
	old := p.raise(Dispatch)
	defer p.lower(old)
	lu.mu.Lock()
	if lu.outstanding == 0 { // all has come back while the last reset failed
		lu.mu.Unlock()
		a.reopen(p, lu, true)
		return
	}
	lu.closeGateLocked(gateGivenUp)
	lu.openGateLocked(gateRecovering)
	lu.failWaitingLocked(p, StatusNoDevice)
	lu.endQuiesceLocked(p, StatusNoDevice)
	lu.rearmLocked()
	lu.mu.Unlock()
	lu.dispatch(p) // built SRBs go down: the miniport's resources that they hold come back so
	held, abandoned := lu.abandonAll(p)
	a.sys.log.Error("unit given up: no reset brought it back", "adapter", a.options.Name, "unit", lu.String(), "held", held, "abandoned", abandoned)
}

// abandonAll abandons what the miniport holds of a unit that is given up or removed,
// and returns how much it holds and how much of that is abandoned now.
//
// Level: Dispatch, no lock held.
func (lu *LogicalUnit) abandonAll(p *Processor) (held, abandoned int) {
	lu.mu.Lock()
	var stuck []*SRB
	if lu.gate.Load()&(gateGivenUp|gateRemoved) != 0 { // it may have come back meanwhile
		stuck = lu.abandonLocked()
	}
	held = lu.outstanding
	lu.mu.Unlock()
	for _, s := range stuck {
		lu.abandon(p, s)
	}
	return held, len(stuck)
}

// A unit that has left the table cannot be reset any more: no SRB goes to it, and a
// reset of its target or bus would end what the others do. What the miniport still
// holds of it is timed on and then abandoned.

// leave has a unit timed that has just left the table, if the miniport holds SRBs of
// it. If the adapter has gone meanwhile, nobody times it any more.
//
// Level: Passive.
func (a *Adapter) leave(p *Processor, lu *LogicalUnit) {
	lu.mu.Lock()
	idle := lu.outstanding == 0
	lu.mu.Unlock()
	if idle {
		return
	}
	a.mu.Lock()
	if !slices.Contains(a.left, lu) {
		a.left = append(a.left, lu)
	}
	gone := a.gate.Load()&gateGone != 0
	a.mu.Unlock()
	if gone {
		a.abandonUnits(p, lu)
	}
}

// leavers are the units that leave has timed.
func (a *Adapter) leavers() []*LogicalUnit {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.left)
}

// timeLeaver is a second of a unit that leave has timed.
//
// Level: Passive, on the timer service.
func (a *Adapter) timeLeaver(p *Processor, lu *LogicalUnit) {
	lu.mu.Lock()
	idle := lu.outstanding == 0
	expired := lu.countDownLocked()
	if expired {
		lu.rearmLocked()
	}
	lu.mu.Unlock()
	switch {
	case idle:
		a.mu.Lock()
		a.left = slices.DeleteFunc(a.left, func(u *LogicalUnit) bool { return u == lu })
		a.mu.Unlock()
	case expired && a.abandonUnits(p, lu) > 0:
		a.timeouts.Add(1)
	}
}

// abandonUnits abandons what the miniport holds of units that are removed, and
// returns how much that is.
//
// Level: Passive.
func (a *Adapter) abandonUnits(p *Processor, units ...*LogicalUnit) (total int) {
	old := p.raise(Dispatch)
	defer p.lower(old)
	for _, lu := range units {
		held, abandoned := lu.abandonAll(p)
		if abandoned > 0 {
			a.sys.log.Error("removed unit: the miniport has not handed back what it holds", "adapter", a.options.Name, "unit", lu.String(), "held", held, "abandoned", abandoned)
		}
		total += abandoned
	}
	return total
}

// abandonLocked returns what is to be abandoned: SRBs that the miniport holds and
// that somebody waits for who need not.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) abandonLocked() (abandoned []*SRB) {
	for s := lu.pendingHead; s != nil; s = s.pendNext {
		if owner := s.owner.Load(); s.recovery || s.given != givenNot || owner != ownerMiniport && owner != ownerKept {
			continue
		}
		if _, ok := s.Completer.(Abandoner); ok {
			s.given = givenNow
			lu.stats.Abandoned++
			abandoned = append(abandoned, s)
		}
	}
	return abandoned
}

// abandon tells s's Abandoner, and hands s back if it has come meanwhile.
//
// Level: Dispatch, no lock held.
func (lu *LogicalUnit) abandon(p *Processor, s *SRB) {
	e := p.enter(inCompleteSRB)
	s.Completer.(Abandoner).AbandonSRB(p, s)
	p.leave(e)
	yieldPoint("abandon: has it come back")
	lu.mu.Lock()
	back := s.given == givenBack
	s.given = givenUp
	lu.mu.Unlock()
	if !back {
		return
	}
	s.stage = stageNone
	s.owner.Store(ownerClass)
	e = p.enter(inCompleteSRB)
	s.Completer.CompleteSRB(p, s)
	p.leave(e)
}
