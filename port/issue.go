package port

import (
	"fmt"

	"github.com/vhbad/vhbad/internal/dma"
)

// Submit hands SRBs to the unit, in order. What the unit can take goes to the
// miniport at once: BuildIo for each with no lock held, StartIo for each under
// the StartIo lock or the channel, CommitIo. The rest waits in the unit's queue.
// When Submit returns to Passive it has delivered the interrupts and run the
// DPCs that arrived on p, so SRBs may have completed before it returns.
//
// Level: Passive or Dispatch, no lock held; from anywhere else the SRBs complete
// with StatusInvalidRequest. Ownership: the SRBs are the port's until their
// Completer is called; the slice is the caller's again on return.
func (lu *LogicalUnit) Submit(p *Processor, batch []*SRB) {
	a := lu.a
	old := p.raise(Dispatch)
	if !p.check(routineSubmit) {
		lu.refuse(p, batch)
		p.lower(old)
		return
	}
	var run srbQueue
	yieldPoint("Submit: reserve")
	credits := a.reserve(len(batch))
	yieldPoint("Submit: queue")
	lu.mu.Lock()
	for _, s := range batch {
		if s.owner.Load() != ownerClass {
			lu.mu.Unlock()
			panic(submittedTwice(s))
		}
		lu.address(s)
		s.owner.Store(ownerPort)
		s.built, s.busyTries = false, 0
		s.ServiceTime = 0
		s.stage, s.given, s.refused = stageNone, givenNot, false
		s.life++
		if p.samples.due() {
			p.follow(s)
		}
		if p.verify {
			p.trail.add("submit", s.Tag)
		}
		switch {
		case lu.removed() || lu.givenUp() && !s.recovery && !isQueueFunction(s.Function):
			p.finishByPort(s, StatusNoDevice)
		case isQueueFunction(s.Function):
			lu.queueFunctionLocked(p, s)
		case s.recovery || s.taskManagement() && lu.mayStartLocked(s):
			lu.linkLocked(p, s)
			run.push(s)
		case (lu.waiting.head == nil || lu.bypassesLocked(s)) && credits > 0 && lu.mayStartLocked(s):
			credits--
			s.charged = true
			lu.linkLocked(p, s)
			run.push(s)
		default:
			lu.enqueueLocked(s)
		}
	}
	if lu.waiting.head != nil && credits > 0 {
		// A head-of-queue SRB, or one behind a queue function, may be able to go.
		lu.startWaitingLocked(p, &run, &credits)
	}
	lu.stats.Started += uint64(run.n)
	starved := lu.starvedLocked(credits)
	lu.mu.Unlock()
	a.sendOff(p, &run, credits, starved)
	p.lower(old)
}

// address says in s where it goes, and forgets what the last unit had to say.
func (lu *LogicalUnit) address(s *SRB) {
	s.lu, s.PathID, s.TargetID, s.Lun = lu, lu.path, lu.target, lu.lun
	s.SenseBytes = 0
}

// submittedTwice is the panic of a Submit of an SRB that is not the class driver's.
func submittedTwice(s *SRB) string {
	return "port: submitted while it belongs to the port or the miniport: " + s.String()
}

// startTasksLocked moves the waiting resets and aborts that may start from the queue to
// run: like those that come now, they wait neither for other SRBs nor for a credit.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) startTasksLocked(p *Processor, run *srbQueue) {
	if !lu.tasksWait || lu.a.gate.Load()&(gateStopped|gateGone) != 0 {
		return
	}
	lu.tasksWait = false
	var stay srbQueue
	for lu.waiting.head != nil {
		s := lu.waiting.pop()
		if s.taskManagement() && lu.mayStartLocked(s) {
			lu.linkLocked(p, s)
			run.push(s)
			continue
		}
		lu.tasksWait = lu.tasksWait || s.taskManagement()
		stay.push(s)
	}
	lu.waiting = stay
}

// startWaitingLocked moves the SRBs that may start from the queue to run.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) startWaitingLocked(p *Processor, run *srbQueue, credits *int) {
	lu.startTasksLocked(p, run)
	lu.bringForwardLocked()
	for lu.waiting.head != nil && *credits > 0 && lu.mayStartLocked(lu.waiting.head) {
		s := lu.waiting.pop()
		*credits--
		s.charged = true
		lu.linkLocked(p, s)
		run.push(s)
	}
}

// starvedLocked reports whether SRBs wait because of the adapter's MaxNumberOfIO: the
// completions that would let them start may all be other units'.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) starvedLocked(credits int) bool {
	return credits == 0 && lu.waiting.head != nil && lu.leftLocked() > 0
}

// dispatch starts the SRBs in the unit's queue that may start.
//
// Level: Dispatch, no lock held.
func (lu *LogicalUnit) dispatch(p *Processor) {
	a := lu.a
	var run srbQueue
	yieldPoint("dispatch")
	lu.mu.Lock()
	lu.startTasksLocked(p, &run)
	credits := 0
	if want := min(lu.waiting.n, lu.leftLocked()); want > 0 {
		credits = a.reserve(want)
		lu.startWaitingLocked(p, &run, &credits)
	}
	lu.stats.Started += uint64(run.n)
	starved := lu.starvedLocked(credits)
	lu.mu.Unlock()
	a.sendOff(p, &run, credits, starved)
}

// sendOff issues the SRBs of run, once the unit's lock is released. credits were reserved
// for more of them; starved says that yet more wait for some.
//
// Level: Dispatch, no lock held.
func (a *Adapter) sendOff(p *Processor, run *srbQueue, credits int, starved bool) {
	a.unreserve(p, credits)
	if run.head != nil {
		a.issue(p, run.head)
	}
	if starved {
		a.retryStarved(p)
	}
}

// reserve takes up to n of the adapter's MaxNumberOfIO and returns how many.
func (a *Adapter) reserve(n int) int {
	for {
		used := a.outstanding.Load()
		got := min(int64(n), int64(a.config.MaxNumberOfIO)-used)
		if got <= 0 {
			return 0
		}
		if a.outstanding.CompareAndSwap(used, used+got) {
			return int(got)
		}
	}
}

// unreserve gives n back, and lets units that found none left try again.
func (a *Adapter) unreserve(p *Processor, n int) {
	if n == 0 {
		return
	}
	yieldPoint("unreserve")
	if a.outstanding.Add(int64(-n)) == 0 && a.gate.Load() != 0 {
		a.noteCompletions(p, 0) // Stop or Busy may have been waiting for just that
	}
	yieldPoint("unreserve: does anybody starve")
	if a.starved.Load() && a.starved.CompareAndSwap(true, false) {
		a.kick(p)
	}
}

// retryStarved notes that a unit found the adapter full; if that has changed
// meanwhile, it tries again.
func (a *Adapter) retryStarved(p *Processor) {
	yieldPoint("starve")
	a.starved.Store(true)
	yieldPoint("starve: still full")
	if a.outstanding.Load() < int64(a.config.MaxNumberOfIO) && a.starved.CompareAndSwap(true, false) {
		a.kick(p)
	}
}

// issue brings SRBs, linked by next and outstanding, to the miniport.
//
// Level: Dispatch, no lock held.
func (a *Adapter) issue(p *Processor, s *SRB) {
	var run srbQueue
	channel := 0
	if n := len(a.channelLocks); n > 0 {
		channel = p.number % n
	}
	for s != nil {
		next := s.next // s may complete, and be submitted again, inside BuildIo
		if s.built && s.stage != stageNone {
			s.reached(p, StageStart) // it was parked
		}
		if s.built || a.build(p, s, channel) {
			run.push(s)
		}
		s = next
	}
	for run.head != nil {
		a.start(p, &run)
	}
}

// refuse completes SRBs that were submitted from where that is not allowed.
func (lu *LogicalUnit) refuse(p *Processor, batch []*SRB) {
	for _, s := range batch {
		if !s.owner.CompareAndSwap(ownerClass, ownerPort) {
			panic(submittedTwice(s))
		}
		lu.address(s)
		p.finishByPort(s, StatusInvalidRequest)
	}
}

// build maps s's data and runs BuildIo. It reports whether StartIo is next.
func (a *Adapter) build(p *Processor, s *SRB, channel int) bool {
	if p.verify {
		p.unseal(s)
	}
	s.attempt++
	if s.stage != stageNone {
		s.reached(p, StageBuild)
	}
	if s.Function == FunctionAbortCommand {
		a.aborts.Add(1)
		channel = s.lu.channelOf(s.VictimSRB, channel) // where the miniport has the victim
	}
	s.channel = channel
	s.Status, s.ScsiStatus, s.Injected, s.CutReply, s.BadCookie = StatusPending, 0, false, false, false
	if s.Function == FunctionAbortCommand && a.config.Features&FeatureAbortCommand == 0 || !a.mapData(s) {
		s.refused = true
		p.finishByPort(s, StatusInvalidRequest)
		return false
	}
	if p.verify {
		p.trail.add("BuildIo", s.Tag)
		s.builtAt.Store(a.sys.now().UnixNano())
	}
	building := s.building()
	s.owner.Store(building)
	if a.builder != nil {
		e := p.enterWith(inBuildIo, s)
		ok := a.builder.BuildIo(p, s)
		p.leave(e)
		if !ok {
			// Completed, or the miniport will: but for this note it is not ours to
			// touch.
			s.owner.CompareAndSwap(building, ownerKept)
			return false
		}
	}
	// Until StartIo the SRB is the port's again, as BuildIo left it.
	if !s.owner.CompareAndSwap(building, ownerPort) {
		if p.verify {
			p.violateFor(CheckBuildIoCompleted, s.request(), "BuildIo returned true for an SRB that it completed")
		}
		return false // completion goes its way; to start it would be a second life
	}
	s.built = true
	if s.stage != stageNone {
		s.reached(p, StageStart)
	}
	return true
}

// channelOf returns the channel on which victim is at the miniport, or otherwise if it is
// not there. The victim is not the caller's and may be in its next life already: its channel
// is stable only while it is known to be outstanding.
func (lu *LogicalUnit) channelOf(victim *SRB, otherwise int) int {
	lu.mu.Lock()
	defer lu.mu.Unlock()
	for s := lu.pendingHead; s != nil; s = s.pendNext {
		if s == victim && s.owner.Load() == ownerMiniport {
			return s.channel
		}
	}
	return otherwise
}

// start runs StartIo for the SRBs at run's head that share a channel.
func (a *Adapter) start(p *Processor, run *srbQueue) {
	channel := run.head.channel
	started := false
	var parked srbQueue
	old := a.acquireStartIo(p, channel)
	for run.head != nil && run.head.channel == channel {
		s := run.pop()
		// The unit may have become busy, frozen or under reset since BuildIo.
		yieldPoint("StartIo: gates")
		if unit, adapter := s.lu.gate.Load(), a.gate.Load(); unit|adapter != 0 && !s.passes(unit, adapter) {
			parked.push(s)
			continue
		}
		var builtAt int64
		if p.verify {
			p.trail.add("StartIo", s.Tag)
			p.checkStart(a, s)
			builtAt = s.builtAt.Load()
		}
		s.built = false
		s.owner.Store(ownerMiniport)
		e := p.enterWith(inStartIo, s)
		ok := a.miniport.StartIo(p, s)
		p.leave(e)
		if p.verify {
			a.starting[channel].Add(-1)
		}
		if !ok && p.verify {
			p.trail.add("StartIo refused", s.Tag)
			p.checkRefused(s, builtAt)
		}
		started = true
	}
	a.releaseStartIo(p, channel, old)
	if started && a.committer != nil {
		e := p.enter(inCommitIo)
		a.committer.CommitIo(p, channel)
		p.leave(e)
	}
	for parked.head != nil {
		lu := parked.head.lu
		var group srbQueue
		for parked.head != nil && parked.head.lu == lu {
			group.push(parked.pop())
		}
		lu.park(p, &group)
	}
}

// park puts built SRBs back to the front of their unit's queue: StartIo follows
// when the unit is ready again, without another BuildIo.
func (lu *LogicalUnit) park(p *Processor, group *srbQueue) {
	n, freed := group.n, 0
	yieldPoint("park")
	lu.mu.Lock()
	for s := group.head; s != nil; s = s.next {
		lu.unlinkLocked(s)
		lu.tasksWait = lu.tasksWait || s.taskManagement()
		if s.charged { // task management is not, unless the adapter was restarted just then
			s.charged = false
			freed++
		}
		if s.stage != stageNone {
			s.reached(p, StageQueue)
		}
	}
	gone := lu.a.gate.Load()&gateGone != 0 || lu.removed() && lu.a.state.Load() == adapterFailed
	lu.countBusyLocked(0) // no completion may be left to end it
	if lu.outstanding == 0 {
		lu.endQuiesceLocked(p, StatusSuccess)
	}
	lu.waiting.prepend(group)
	lu.rearmLocked()
	lu.stats.Parked += uint64(n)
	lu.stats.Started -= uint64(n)
	if gone {
		lu.failAllLocked(p) // failUnits has been here and found nothing
	}
	lu.mu.Unlock()
	lu.a.unreserve(p, freed)
	// The gate may have opened after it was checked; who opens it from now on sees the queue.
	// And others that pass it may have waited for what was parked.
	lu.a.kick(p)
}

// mapData maps s's data and builds its scatter/gather list, which covers exactly the bytes
// to be moved. False: the class driver exceeded the adapter's limits, gave no direction, or
// its buffer is too short, misaligned or not arena memory.
func (a *Adapter) mapData(s *SRB) bool {
	s.SGL = s.sglStore[:0]
	if s.DataTransferBytes == 0 {
		return true
	}
	if s.DataTransferBytes > a.config.MaximumTransferLength {
		return false
	}
	access := accessOf(s.Flags)
	if access == 0 {
		return false
	}
	bytes := int(s.DataTransferBytes)
	if bytes > len(s.DataBuffer) || bytes > dma.MaxMapBytes {
		return false
	}
	b := s.DataBuffer[:bytes]
	if !a.sys.iommu.Arena().Has(b) || !isAligned(b, a.config.AlignmentMask) {
		return false
	}
	addr := a.sys.iommu.Map(s.window, b, access)
	s.mapped = true
	if !a.options.StrictSegments {
		s.SGL = append(s.SGL, Segment{Addr: addr, Bytes: uint32(len(b))})
		return true
	}
	for len(b) > 0 {
		n := min(len(b), strictSegmentBytes)
		s.SGL = append(s.SGL, Segment{Addr: addr, Bytes: uint32(n)})
		addr += dma.Addr(n)
		b = b[n:]
	}
	if len(s.SGL) > int(a.config.NumberOfPhysicalBreaks)+1 {
		a.unmap(s)
		return false
	}
	return true
}

// strictSegmentBytes is the length of elements with StrictSegments: a page.
const strictSegmentBytes = 4096

// unmap ends the device's access to s's memory.
func (a *Adapter) unmap(s *SRB) {
	if s.mapped {
		a.sys.iommu.Unmap(s.window)
		s.mapped = false
	}
	if s.extAddr != 0 {
		a.sys.iommu.Unmap(s.extWindow)
		s.extAddr = 0
	}
}

// kick schedules dispatchAll on p. It may be called at any level.
func (a *Adapter) kick(p *Processor) { a.IssueDpc(p, &a.kickDpc) }

// dispatchAll dispatches every unit; it is kickDpc's routine. Removed units are included,
// as they may have built SRBs.
func (a *Adapter) dispatchAll(p *Processor, _ *Dpc) {
	for _, lu := range a.units.Load().all {
		lu.dispatch(p)
	}
}

func isQueueFunction(f Function) bool {
	return f == FunctionReleaseQueue || f == FunctionFlushQueue || f == FunctionLockQueue || f == FunctionUnlockQueue || f == FunctionQuiesceDevice
}

// queueFunctionLocked executes a function that concerns the queue itself.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) queueFunctionLocked(p *Processor, s *SRB) {
	status := StatusSuccess
	switch s.Function {
	case FunctionReleaseQueue:
		lu.openGateLocked(gateFrozen)
	case FunctionFlushQueue:
		lu.failWaitingLocked(p, StatusRequestFlushed)
		lu.openGateLocked(gateFrozen)
	case FunctionLockQueue:
		lu.lockCount++
		lu.closeGateLocked(gateLocked)
	case FunctionUnlockQueue:
		if lu.lockCount == 0 {
			status = StatusInvalidRequest
			break
		}
		lu.lockCount--
		if lu.lockCount == 0 {
			lu.openGateLocked(gateLocked)
		}
	case FunctionQuiesceDevice:
		if lu.givenUp() {
			status = StatusNoDevice // nobody knows when it will be quiet
			break
		}
		if lu.outstanding > 0 {
			lu.quiescing.push(s)
			return
		}
	default:
		panic(fmt.Sprintf("port: %s is no queue function", s.Function))
	}
	p.finishByPort(s, status)
	lu.a.kick(p)
}

// endQuiesceLocked completes the SRBs that wait for the unit to be quiet: it is
// now, or it never will be.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) endQuiesceLocked(p *Processor, status Status) {
	for lu.quiescing.head != nil {
		p.finishByPort(lu.quiescing.pop(), status)
	}
}

// failWaitingLocked completes waiting SRBs, except built ones: those hold
// resources of the miniport, which only StartIo and completion give back.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) failWaitingLocked(p *Processor, status Status) {
	var kept srbQueue
	for lu.waiting.head != nil {
		if s := lu.waiting.pop(); s.built {
			kept.push(s)
		} else {
			p.finishByPort(s, status)
		}
	}
	lu.waiting = kept
}
