package port

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
