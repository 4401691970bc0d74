package port

import "slices"

// giveUp fails a unit that no reset brought back. Waiting and new SRBs complete with
// StatusNoDevice, except those that open or close its queue, and those waiting for SRBs
// that the miniport holds are told to wait no more. These SRBs stay with the miniport,
// since their memory may still be written; the reset road is taken again after another
// timeout. The unit works again when a reset helps, or when the miniport has given back
// everything, including built SRBs that could not go down: so no SRB that was given up is
// executed after a later one.
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
	lu.dispatch(p) // built SRBs go down as far as the limits allow: see builtGate
	held, abandoned := lu.abandonAll(p)
	a.sys.log.Error("unit given up: no reset brought it back", "adapter", a.options.Name, "unit", lu.String(), "held", held, "abandoned", abandoned)
}

// abandonAll abandons the SRBs that the miniport holds of a unit that is given up or
// removed, and returns how many are outstanding and how many were abandoned now.
//
// Level: Dispatch, no lock held.
func (lu *LogicalUnit) abandonAll(p *Processor) (held, abandoned int) {
	lu.mu.Lock()
	var stuck []*SRB
	if lu.givenUp() || lu.removed() { // it may have come back meanwhile
		stuck = lu.abandonLocked()
	}
	held = lu.outstanding
	lu.mu.Unlock()
	for _, s := range stuck {
		lu.abandon(p, s)
	}
	return held, len(stuck)
}

// A removed unit is no longer reset for its own sake: no SRB goes to it, and a reset of
// its target or bus would end the SRBs of other units. Its SRBs that have not come back are
// still timed, and then abandoned. Once the adapter has failed there are no other units,
// and it goes down the reset road like all.

// timeLeaver does a removed unit's timing, once a second.
//
// Level: Passive, on the timer service.
func (a *Adapter) timeLeaver(p *Processor, lu *LogicalUnit) {
	lu.mu.Lock()
	idle := lu.outstanding == 0 && lu.waiting.n == 0 // for ever
	expired := lu.countDownLocked()
	if expired {
		lu.rearmLocked()
	}
	lu.mu.Unlock()
	switch {
	case idle:
		yieldLock("timeLeaver", &a.mu)
		a.mu.Lock()
		if t := a.units.Load(); slices.Contains(t.left, lu) {
			yieldPoint("timeLeaver: take it out")
			a.units.Store(newUnitTable(t.list, slices.DeleteFunc(slices.Clone(t.left), func(u *LogicalUnit) bool { return u == lu })))
		}
		a.mu.Unlock()
	case expired && a.abandonUnits(p, lu) > 0:
		a.timeouts.Add(1)
	}
}

// abandonUnits abandons the SRBs of removed units that have not come back, and returns
// how many it abandoned.
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

// abandonLocked returns the SRBs to abandon, and marks them: those that the miniport
// holds, or has built and the limits keep from StartIo, and that have an Abandoner to tell.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) abandonLocked() (abandoned []*SRB) {
	for s := lu.pendingHead; s != nil; s = s.pendNext {
		if owner := s.owner.Load(); (owner == ownerMiniport || owner == ownerKept) && s.mayAbandon() {
			abandoned = append(abandoned, s)
		}
	}
	for s := lu.waiting.head; s != nil; s = s.next {
		if s.built && s.mayAbandon() {
			abandoned = append(abandoned, s)
		}
	}
	for _, s := range abandoned {
		s.given = givenNow
	}
	lu.stats.Abandoned += uint64(len(abandoned))
	return abandoned
}

// mayAbandon reports whether s has an Abandoner that has not been told. The unit's mu is
// held.
func (s *SRB) mayAbandon() bool {
	_, ok := s.Completer.(Abandoner)
	return ok && !s.recovery && s.given == givenNot
}

// reviveLocked lets a unit that was given up work again, unless SRBs that were given up
// with it still have to go down: those go before later ones, and come back first.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) reviveLocked() {
	if !lu.givenUp() {
		return
	}
	for s := lu.waiting.head; s != nil; s = s.next {
		if s.given != givenNot {
			return
		}
	}
	lu.openGateLocked(gateGivenUp)
}

// abandon tells s's Abandoner, and hands s back if it has come back meanwhile.
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
