package port

import "fmt"

// The port watches itself: exceeding a limit that it promises the miniport is a bug in
// the port, and the verifier reports it like any other (V4, V15, V17).

// checkLimitsLocked checks the unit before s becomes outstanding.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) checkLimitsLocked(p *Processor, s *SRB) {
	if lu.leftLocked() <= 0 {
		p.violateFor(CheckPortLimits, s.request(), fmt.Sprintf("%s: one more than the queue depth of %d", lu, lu.depth))
	}
	if used := lu.a.outstanding.Load(); used > int64(lu.a.config.MaxNumberOfIO) {
		p.violateFor(CheckPortLimits, s.request(), fmt.Sprintf("%s: %d outstanding, MaxNumberOfIO is %d", lu, used, lu.a.config.MaxNumberOfIO))
	}
	if s.Flags&FlagQueueActionEnable == 0 && lu.exclusive {
		p.violateFor(CheckUntagged, s.request(), lu.String()+": an untagged SRB beside one that runs alone")
	}
}

// checkStart checks an SRB that is about to be started. It counts the channel's StartIo
// calls up; the caller counts down.
func (p *Processor) checkStart(a *Adapter, s *SRB) {
	if owner := s.owner.Load(); owner != ownerPort || !s.built {
		p.violateFor(CheckBuildIoFalse, s.request(), "StartIo next for an SRB that BuildIo did not pass on")
	}
	if n := a.starting[s.channel].Add(1); n > 1 {
		p.violateFor(CheckPortLimits, s.request(), fmt.Sprintf("%d calls of StartIo at once on channel %d", n, s.channel))
	}
}

// checkRefused is V4 for an SRB that StartIo has refused, which must have completed: it went
// nowhere, so nothing would complete it later. builtAt tells the attempt from a later one.
func (p *Processor) checkRefused(s *SRB, builtAt int64) {
	if s.owner.Load() == ownerMiniport && s.builtAt.Load() == builtAt {
		p.violateFor(CheckBuildIoFalse, s.request(), "StartIo returned false, and the SRB was not completed")
	}
}

// checkOverdue is V4: SRBs for which BuildIo returned false must be completed within
// their time-out. It is called once a second.
func (lu *LogicalUnit) checkOverdue(p *Processor) {
	now := p.sys.now().UnixNano()
	var overdue []string
	lu.mu.Lock()
	for s := lu.pendingHead; s != nil; s = s.pendNext {
		at := s.builtAt.Load()
		if s.owner.Load() == ownerKept && at != 0 && now-at > int64(s.timeout())*1e9 && s.builtAt.CompareAndSwap(at, 0) {
			overdue = append(overdue, s.request())
		}
	}
	lu.mu.Unlock()
	for _, srb := range overdue {
		p.violateFor(CheckBuildIoFalse, srb, "BuildIo returned false, and the SRB was not completed within its TimeOutValue")
	}
}
