package port

import (
	"fmt"

	"github.com/vhbad/vhbad/internal/scsi"
)

// Complete gives srb back to the port with its final Status: it is the only way
// out for an SRB that the miniport owns, and the last time the miniport may
// touch it. The device must be done with the SRB's memory, which is unmapped
// here. The port tells the SRB's owner later, at Dispatch with no lock held.
//
// Level: any; from every callback that has an SRB.
// Source: storport.h StorPortNotification(RequestComplete).
func (a *Adapter) Complete(p *Processor, srb *SRB) {
	owner := srb.owner.Load()
	for owner > ownerPort && !srb.owner.CompareAndSwap(owner, ownerPort) {
		owner = srb.owner.Load() // BuildIo has just returned false
	}
	if owner <= ownerPort {
		if p.verify {
			p.violate(CheckDoubleCompletion, srb, "completed an SRB that is not the miniport's")
			return
		}
		panic("port: completed an SRB that is not the miniport's: " + srb.String())
	}
	if p.verify {
		p.checkCompletion(a, srb, owner)
	}
	if srb.stage != stageNone {
		srb.reached(p, StageComplete)
	}
	a.unmap(srb)
	if p.verify {
		srb.sealUp()
	}
	p.completed.push(srb)
	if p.level == Passive {
		p.drain()
	}
}

// checkCompletion is the verifier's part of Complete: V1, V2, V11. owner is the
// SRB's owner before.
func (p *Processor) checkCompletion(a *Adapter, s *SRB, owner uint32) {
	p.trail.add("Complete", s.Tag)
	code := s.Status.Code()
	switch {
	case s.adapter != a:
		p.violate(CheckDoubleCompletion, s, "completed on adapter "+a.options.Name+", which the SRB does not belong to")
	case code == StatusPending:
		p.violate(CheckStatus, s, "completed with status PENDING")
	case s.Status&StatusQueueFrozen != 0:
		p.violate(CheckStatus, s, "completed with QUEUE_FROZEN, which is the port's to set")
	case !s.Status.valid():
		p.violate(CheckStatus, s, "completed with an unknown status")
	case s.Status&StatusAutosenseValid != 0 && (s.SenseBytes == 0 || int(s.SenseBytes) > len(s.Sense)):
		p.violate(CheckStatus, s, fmt.Sprintf("completed with AUTOSENSE_VALID and %d bytes of sense data", s.SenseBytes))
	case code != StatusBusy || owner != ownerMiniport:
		// BUSY of what StartIo has not seen: the device has not seen it either.
	case p.current != s:
		p.violate(CheckBusyAfterDevice, s, "completed BUSY after StartIo: the device may have seen it, and would do it twice")
	case p.wrote:
		p.violate(CheckBusyAfterDevice, s, "completed BUSY after a register write in its StartIo: the device may have seen it")
	}
}

// finishByPort completes an SRB that the miniport does not own.
func (p *Processor) finishByPort(s *SRB, status Status) {
	s.Status = status
	s.Injected, s.CutReply, s.BadCookie = false, false, false
	s.stage = stageNone // it did not go the way that others go
	if p.verify {
		s.resultChanged()
	}
	p.completed.push(s)
}

// finishCompleted does the port's part for every SRB that completed on p: it
// updates the units' accounts, requeues SRBs that were BUSY, starts waiting ones,
// and gives the rest back to their owners.
//
// Level: Dispatch, no lock held.
func (p *Processor) finishCompleted() {
	s := p.completed.head
	p.completed = srbQueue{}
	if p.verify {
		for x := s; x != nil; x = x.next {
			p.checkSealed(x)
		}
	}
	for s != nil {
		lu := s.lu
		a := lu.a
		var run srbQueue
		yieldPoint("finish: account")
		lu.mu.Lock()
		oldest := lu.pendingHead
		t := lu.settleLocked(p, s)
		if t.answered > 0 || lu.pendingHead != oldest || lu.pendingHead == nil && lu.waiting.head == nil {
			lu.rearmLocked()
		}
		lu.countBusyLocked(t.ended) // what was BUSY itself does not count
		if lu.outstanding == 0 {
			lu.reviveLocked() // it answered after all
			lu.endQuiesceLocked(p, StatusSuccess)
		}
		want := min(lu.waiting.n, lu.leftLocked())
		left, credits := t.freed, 0
		if want > 0 {
			// What was freed is used again at once; more only if that is short.
			credits = min(want, left)
			left -= credits
			if want > credits {
				credits += a.reserve(want - credits)
			}
			lu.startWaitingLocked(p, &run, &credits)
			lu.stats.Started += uint64(run.n)
		}
		starved := lu.starvedLocked(credits)
		lu.mu.Unlock()
		a.unreserve(p, left+credits)
		if starved {
			a.retryStarved(p)
		}
		yieldPoint("finish: adapter's gate")
		if gate := a.gate.Load(); gate != 0 {
			a.noteCompletions(p, t.freed-t.uncounted)
		}
		p.giveBack(t.done)
		if run.head != nil {
			a.issue(p, run.head)
		}
		s = t.rest
	}
}

// A settlement is the result of settleLocked for a list of SRBs.
type settlement struct {
	done      *SRB // a list, for their owners
	rest      *SRB // of the list: those of other units
	answered  int  // were outstanding, and it is the unit or its miniport that has answered
	ended     int  // of those, go to their owners, and have not completed before a BUSY one
	freed     int  // had one of the adapter's MaxNumberOfIO
	uncounted int  // of those, were BUSY and wait again, or were refused by the port
}

// settleLocked takes the unit's SRBs in list out of its accounts; those of other units
// are left in rest. SRBs that were BUSY and may be tried again go back to the front of the
// queue; the others are done, except those that abandon passes on.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) settleLocked(p *Processor, list *SRB) (t settlement) {
	var done, again srbQueue
	s := list
	for s != nil && s.lu == lu {
		next := s.next
		wasPending, wasCharged := s.pending, s.charged
		if wasPending {
			lu.unlinkLocked(s)
			lu.stats.Completed++
			if !s.refused {
				t.answered++
			}
		}
		if wasCharged {
			s.charged = false
			t.freed++
		}
		switch {
		case s.given == givenNow:
			s.given = givenBack // abandon passes it on
		case isBusy(s) && lu.retryBusyLocked(s):
			if s.stage != stageNone {
				s.reached(p, StageQueue)
			}
			if wasCharged {
				t.uncounted++
			}
			t.ended = 0 // a new wait has begun
			again.push(s)
		default:
			switch {
			case wasPending && !s.refused:
				t.ended++
			case wasCharged && s.refused:
				t.uncounted++
			}
			lu.freezeLocked(s)
			done.push(s)
		}
		s = next
	}
	lu.waiting.prepend(&again)
	t.done, t.rest = done.head, s
	return t
}

// giveBack returns the SRBs of a list to their owners, and tells the owners that they
// are complete.
func (p *Processor) giveBack(list *SRB) {
	for s := list; s != nil; {
		next := s.next
		s.next = nil
		if s.stage != stageNone {
			s.reached(p, stageDone)
		}
		s.owner.Store(ownerClass)
		e := p.enter(inCompleteSRB)
		s.Completer.CompleteSRB(p, s)
		p.leave(e)
		s = next
	}
}

// isBusy reports whether s was turned away and is to be tried again.
func isBusy(s *SRB) bool {
	code := s.Status.Code()
	return code == StatusBusy || code == StatusLinkDown || code == StatusError && (s.ScsiStatus == scsi.StatusBusy || s.ScsiStatus == scsi.StatusTaskSetFull)
}

// retryBusyLocked decides about a BUSY completion. True: the SRB goes back to the
// front of the queue, to be built and started again, and the unit waits a while: until
// QueueFullWaitPercent of the outstanding SRBs have completed if the queue was full, for
// BusyPauseTime otherwise. Resets and aborts, which no such wait holds back, go to their
// owner.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) retryBusyLocked(s *SRB) bool {
	a := lu.a
	lu.stats.Busy++
	s.busyTries++
	if s.recovery || s.taskManagement() || s.given != givenNot || lu.removed() || lu.givenUp() || a.options.BusyRetryCount > 0 && s.busyTries > a.options.BusyRetryCount {
		return false
	}
	s.owner.Store(ownerPort)
	lu.closeGateLocked(gateBusy)
	if s.ScsiStatus == scsi.StatusTaskSetFull {
		lu.stats.QueueFull++
		if n := lu.outstanding * a.options.QueueFullWaitPercent / 100; n > 0 || lu.outstanding > 0 {
			lu.busyLeft = max(1, n)
			return true
		}
	}
	lu.busyLeft = 0
	lu.endBusyLaterLocked()
	return true
}

// countBusyLocked counts n completions towards the end of gateBusy.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) countBusyLocked(n int) {
	if lu.busyLeft == 0 {
		return
	}
	lu.busyLeft -= n
	if lu.busyLeft <= 0 || lu.outstanding == 0 {
		lu.busyLeft = 0
		lu.openGateLocked(gateBusy)
	}
}

// freezeLocked freezes the unit's queue if s failed and asked for that.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) freezeLocked(s *SRB) {
	if s.Flags&FlagNoQueueFreeze != 0 || s.recovery || !freezes(s.Status.Code()) {
		return
	}
	lu.closeGateLocked(gateFrozen)
	s.Status |= StatusQueueFrozen
}

// freezes reports whether a status is of the kind that freezes a queue: a
// device error, a timeout, or a reset or abort while the request ran.
func freezes(code Status) bool {
	switch code {
	case StatusError, StatusTimeout, StatusCommandTimeout, StatusBusReset, StatusAborted:
		return true
	default:
		return false
	}
}
