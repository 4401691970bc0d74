package port

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// Reasons why SRBs must wait. A logical unit's gate and its adapter's are bit
// sets of them; zero is open. They are changed under the unit's (adapter's) mu
// and read without it just before StartIo.
const (
	gatePaused     uint32 = 1 << iota // Pause, PauseDevice
	gateBusy                          // Busy, DeviceBusy, or a BUSY completion
	gateFrozen                        // after an error, until RELEASE_QUEUE or FLUSH_QUEUE
	gateLocked                        // LOCK_QUEUE
	gateRecovering                    // a reset is under way
	gateStopped                       // the adapter is being stopped
	gateRemoved                       // the unit is gone: SRBs complete with NO_DEVICE
	gateGivenUp                       // no reset helped: as gateRemoved, until the miniport has given back all SRBs
	gateLinkDown                      // LinkDown; adapters only
	gateHold                          // the hold time after ResetDetected; adapters only
	gateGone                          // the adapter is gone: built SRBs complete with NO_DEVICE too; adapters only
)

// A LogicalUnit is one unit of an adapter with its queue: SRBs wait here, in
// order of arrival, until the unit and the adapter can take them. The vendor's
// stack presents it to class drivers as a physical device object.
type LogicalUnit struct {
	a      *Adapter
	path   uint8
	target uint8
	lun    uint8
	// inquiry is the latest INQUIRY data, which are immutable; nil: the unit has never
	// answered.
	inquiry atomic.Pointer[[scsi.StandardInquiryBytes]byte]

	// Extension is the miniport's own memory for this unit, of
	// Config.LuExtensionBytes, zeroed when the unit was found.
	Extension []byte

	gate atomic.Uint32
	_    [60]byte // gate is read by every processor, the following fields are written

	// mu guards the queue. It is a leaf: nothing of the miniport and nothing
	// upward is called with it held.
	mu sync.Mutex
	// waiting SRBs are the port's, oldest first.
	// +checklocks:mu
	waiting srbQueue
	// tasksWait: resets or aborts may be among them. They do while the adapter is stopped.
	// +checklocks:mu
	tasksWait bool
	// quiescing SRBs complete when nothing is outstanding.
	// +checklocks:mu
	quiescing srbQueue
	// pending SRBs were given to the miniport and have not been finished,
	// oldest first.
	// +checklocks:mu
	pendingHead *SRB
	// +checklocks:mu
	pendingTail *SRB
	// outstanding is the length of the pending list.
	// +checklocks:mu
	outstanding int
	// aside is how many of those are the port's own, mostly resets: they do not count
	// towards the depth and the order of the others.
	// +checklocks:mu
	aside int
	// +checklocks:mu
	depth int
	// heads counts head-of-queue SRBs outstanding: simple ones wait for them.
	// +checklocks:mu
	heads int
	// exclusive: an ordered or untagged SRB is outstanding and nothing else starts.
	// +checklocks:mu
	exclusive bool
	// busyLeft is how many more completions end gateBusy; zero if only time does.
	// +checklocks:mu
	busyLeft int
	// lockCount counts LOCK_QUEUE.
	// +checklocks:mu
	lockCount int
	// pauseTurn numbers the pauses, so that a timer ends only the one it is for.
	// +checklocks:mu
	pauseTurn uint64
	// busyTimer ends gateBusy at busyUntil; nil before the first BUSY.
	// +checklocks:mu
	busyTimer *time.Timer
	// +checklocks:mu
	busyUntil time.Time
	// timeLeft is the unit's one timer in seconds: -1 when nothing is pending.
	// +checklocks:mu
	timeLeft int64
	// +checklocks:mu
	stats LUStats
	// held says how long the gate was closed.
	// +checklocks:mu
	held gateTimes
	// looks holds what the periodic looks at the queue saw.
	// +checklocks:mu
	looks looks
}

// LUStats is a snapshot of a unit's queue and counters.
type LUStats struct {
	Depth, Outstanding, Waiting int
	Started, Completed          uint64 // SRBs given to the miniport, finished
	Busy, QueueFull             uint64 // BUSY completions, and those for a full queue
	Parked                      uint64 // built, but the unit was not ready for StartIo
	Timeouts                    uint64
	Abandoned                   uint64 // given up after BuildIo
	GivenUp                     bool   // no reset brought the unit back
	// Held is how long SRBs had to wait for each reason, the current wait included.
	Held [GateReasons]time.Duration
	// BusyTime is how long SRBs were outstanding or waiting: an estimate; see lookPeriod.
	BusyTime time.Duration
	// OldestAge is how long the oldest SRB of the unit has been here; see looks.
	OldestAge time.Duration
}

// Path is the bus that the unit is on.
func (lu *LogicalUnit) Path() uint8 { return lu.path }

// Target is the unit's target on that bus.
func (lu *LogicalUnit) Target() uint8 { return lu.target }

// Lun is the unit's number on that target.
func (lu *LogicalUnit) Lun() uint8 { return lu.lun }

// Adapter is the adapter that the unit belongs to.
func (lu *LogicalUnit) Adapter() *Adapter { return lu.a }

// Inquiry is the unit's standard INQUIRY data, as of the latest enumeration. The caller
// must not change it.
func (lu *LogicalUnit) Inquiry() []byte {
	if data := lu.inquiry.Load(); data != nil {
		return data[:]
	}
	return make([]byte, scsi.StandardInquiryBytes)
}

func (lu *LogicalUnit) String() string {
	return fmt.Sprintf("%s [%d:%d:%d]", lu.a.options.Name, lu.path, lu.target, lu.lun)
}

// Stats returns the unit's counters.
func (lu *LogicalUnit) Stats() LUStats {
	now := lu.a.sys.nanos()
	lu.mu.Lock()
	defer lu.mu.Unlock()
	s := lu.stats
	s.Held = lu.held.until(lu.gate.Load(), now)
	s.OldestAge = lu.lookLocked(now)
	s.Depth, s.Outstanding, s.Waiting = lu.depth, lu.outstanding, lu.waiting.n
	s.GivenUp = lu.givenUp()
	return s
}

// srbQueue is a list of SRBs linked by next.
type srbQueue struct {
	head, tail *SRB
	n          int
}

func (q *srbQueue) push(s *SRB) {
	s.next = nil
	if q.tail == nil {
		q.head = s
	} else {
		q.tail.next = s
	}
	q.tail = s
	q.n++
}

func (q *srbQueue) pushFront(s *SRB) {
	s.next = q.head
	q.head = s
	if q.tail == nil {
		q.tail = s
	}
	q.n++
}

func (q *srbQueue) pop() *SRB {
	s := q.head
	q.head = s.next
	if q.head == nil {
		q.tail = nil
	}
	s.next = nil
	q.n--
	return s
}

// prepend puts all of l before what is in q, keeping l's order.
func (q *srbQueue) prepend(l *srbQueue) {
	if l.n == 0 {
		return
	}
	l.tail.next = q.head
	q.head = l.head
	if q.tail == nil {
		q.tail = l.tail
	}
	q.n += l.n
	*l = srbQueue{}
}

// removed reports whether the unit is gone.
func (lu *LogicalUnit) removed() bool { return lu.gate.Load()&gateRemoved != 0 }

// givenUp reports whether no reset has brought the unit back.
func (lu *LogicalUnit) givenUp() bool { return lu.gate.Load()&gateGivenUp != 0 }

// builtGate is the part of a unit's gate that holds back a built SRB.
//
// A built SRB holds resources of the miniport, and only StartIo followed by a completion
// releases those: nothing undoes BuildIo. So unless the adapter is gone, the port does not
// complete such an SRB without StartIo. If its unit is removed or given up, it waits for
// the end of a reset there, and for nothing else: perhaps nobody will open the rest of the
// gate any more. The device will say that there is no such unit.
func builtGate(unit uint32) uint32 {
	if unit&(gateRemoved|gateGivenUp) != 0 {
		return unit & gateRecovering
	}
	return unit
}

// passes reports whether s goes down although its unit's or its adapter's gate is
// closed.
func (s *SRB) passes(unit, adapter uint32) bool {
	if s.recovery {
		return true
	}
	if s.built {
		unit = builtGate(unit)
	}
	gate := unit | adapter
	if s.taskManagement() {
		return gate&(gateStopped|gateGone|gateRemoved) == 0
	}
	if s.Flags&FlagBypassFrozenQueue != 0 {
		gate &^= gateFrozen
	}
	if s.Flags&FlagBypassLockedQueue != 0 {
		gate &^= gateLocked
	}
	return gate == 0
}

// taskManagement reports whether s resets or aborts other SRBs. It must not wait for the
// SRBs that it is to end, so only a missing adapter or unit holds it back.
func (s *SRB) taskManagement() bool {
	switch s.Function {
	case FunctionAbortCommand, FunctionResetBus, FunctionResetDevice, FunctionResetLogicalUnit:
		return true
	default:
		return false
	}
}

// bypassesLocked reports whether s passes a gate that holds back all waiting SRBs, and so
// goes ahead of them.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) bypassesLocked(s *SRB) bool {
	unit, adapter := lu.gate.Load(), lu.a.gate.Load()
	if unit|adapter == 0 || !s.passes(unit, adapter) {
		return false
	}
	for x := lu.waiting.head; x != nil; x = x.next {
		if x.passes(unit, adapter) {
			return false
		}
	}
	return true
}

// bringForwardLocked puts the waiting SRBs that pass a frozen or locked gate before those
// that do not, and keeps the order among each. The gate may have closed when they waited
// already, and those behind which they wait may wait for ever.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) bringForwardLocked() {
	unit, adapter := lu.gate.Load(), lu.a.gate.Load()
	if unit&(gateFrozen|gateLocked) == 0 || unit&^(gateFrozen|gateLocked)|adapter != 0 {
		return // the flags that let an SRB pass those are of no use against the rest
	}
	var pass, stay srbQueue
	for lu.waiting.head != nil {
		if s := lu.waiting.pop(); s.passes(unit, adapter) {
			pass.push(s)
		} else {
			stay.push(s)
		}
	}
	stay.prepend(&pass)
	lu.waiting = stay
}

// alone reports whether s runs with nothing else outstanding on its unit.
func (s *SRB) alone() bool {
	return (s.Flags&FlagQueueActionEnable == 0 || s.QueueAction == OrderedTag) && !s.taskManagement()
}

// mayStartLocked reports whether s can go to the miniport now.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) mayStartLocked(s *SRB) bool {
	if s.recovery {
		return true
	}
	if unit, adapter := lu.gate.Load(), lu.a.gate.Load(); unit|adapter != 0 && !s.passes(unit, adapter) {
		return false
	}
	if s.taskManagement() {
		return true
	}
	if lu.exclusive || lu.leftLocked() <= 0 {
		return false
	}
	if s.alone() {
		return lu.outstanding == lu.aside
	}
	return lu.heads == 0 || s.QueueAction == HeadOfQueueTag
}

// leftLocked is how many more SRBs the unit's depth allows: negative if the depth has
// shrunk meanwhile.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) leftLocked() int { return lu.depth - (lu.outstanding - lu.aside) }

// linkLocked makes s outstanding.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) linkLocked(p *Processor, s *SRB) {
	if p.verify && !s.recovery && !s.taskManagement() {
		lu.checkLimitsLocked(p, s)
	}
	s.pendNext, s.pendPrev = nil, lu.pendingTail
	if lu.pendingTail == nil {
		lu.pendingHead = s
		lu.timeLeft = int64(s.timeout())
	} else {
		lu.pendingTail.pendNext = s
	}
	lu.pendingTail = s
	s.pending = true
	lu.outstanding++
	switch {
	case s.recovery:
		lu.aside++
	case s.alone():
		lu.exclusive = true
	case s.QueueAction == HeadOfQueueTag:
		lu.heads++
	}
}

// unlinkLocked makes s no longer outstanding.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) unlinkLocked(s *SRB) {
	if s.pendPrev == nil {
		lu.pendingHead = s.pendNext
	} else {
		s.pendPrev.pendNext = s.pendNext
	}
	if s.pendNext == nil {
		lu.pendingTail = s.pendPrev
	} else {
		s.pendNext.pendPrev = s.pendPrev
	}
	s.pendNext, s.pendPrev, s.pending = nil, nil, false
	lu.outstanding--
	switch {
	case s.recovery:
		lu.aside--
	case s.alone():
		lu.exclusive = false
	case s.QueueAction == HeadOfQueueTag:
		lu.heads--
	}
}

// rearmLocked sets the unit's timer after a completion: to the timeout of the
// request that is now the oldest, or off. The unit is timed, not the request. If the
// unit is gone, SRBs that still wait are timed as well.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) rearmLocked() {
	lu.timeLeft = -1
	switch {
	case lu.pendingHead != nil:
		lu.timeLeft = int64(lu.pendingHead.timeout())
	case lu.waiting.head != nil && lu.removed():
		lu.timeLeft = int64(lu.waiting.head.timeout())
	}
}

// timeout is the SRB's time in seconds.
func (s *SRB) timeout() uint32 {
	if s.TimeoutSecs != 0 {
		return s.TimeoutSecs
	}
	return s.adapter.options.DefaultTimeoutSecs
}

// enqueueLocked puts s at the end of the queue or, if it is a head-of-queue SRB, at the
// front. See bringForwardLocked for those that pass a closed gate.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) enqueueLocked(s *SRB) {
	lu.tasksWait = lu.tasksWait || s.taskManagement()
	if s.QueueAction == HeadOfQueueTag && s.Flags&FlagQueueActionEnable != 0 {
		lu.waiting.pushFront(s)
		return
	}
	lu.waiting.push(s)
}

// closeGateLocked adds a reason to wait.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) closeGateLocked(reason uint32) { lu.setGateLocked(lu.gate.Load() | reason) }

// +checklocks:lu.mu
func (lu *LogicalUnit) openGateLocked(reason uint32) { lu.setGateLocked(lu.gate.Load() &^ reason) }

// +checklocks:lu.mu
func (lu *LogicalUnit) setGateLocked(gate uint32) {
	if old := lu.gate.Load(); old != gate {
		lu.held.change(old, gate, lu.a.sys.nanos())
		lu.gate.Store(gate)
	}
}
