package port

// EndUnwanted ends the SRBs of a unit that nobody wants any more, as far as they wait for
// BuildIo: they complete with StatusRequestFlushed and are never executed. It returns how
// many others there are that StartIo has not seen: those are built and wait, or they are
// on their way on another processor. They go down, for the miniport has resources for
// them; a later call sees that they have.
//
// unwanted is called with a lock held. It may look at what does not change while an SRB
// is outstanding, and at atomics.
//
// Level: Passive or Dispatch, no lock held.
// It is ours: no vendor's routine stands behind it.
func (lu *LogicalUnit) EndUnwanted(p *Processor, unwanted func(*SRB) bool) (left int) {
	old := p.raise(Dispatch)
	lu.mu.Lock()
	var kept srbQueue
	for lu.waiting.head != nil {
		s := lu.waiting.pop()
		ends := unwanted(s)
		switch {
		case !ends:
		case s.built:
			left++
		default:
			p.finishByPort(s, StatusRequestFlushed)
			continue
		}
		kept.push(s)
	}
	lu.waiting = kept
	for s := lu.pendingHead; s != nil; s = s.pendNext {
		if s.owner.Load() != ownerMiniport && unwanted(s) {
			left++
		}
	}
	lu.mu.Unlock()
	lu.dispatch(p) // what waited behind them
	p.lower(old)
	return left
}
