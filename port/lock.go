package port

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// SpinLock names the locks that a miniport may take.
// Source: storport.h STOR_SPINLOCK.
type SpinLock uint8

// Spin locks, with the values of storport.h.
const (
	DpcLock       SpinLock = 1
	StartIoLock   SpinLock = 2
	InterruptLock SpinLock = 3
)

// lockRank is a lock's place in the total order; see the package comment.
type lockRank uint8

const (
	rankStartIo lockRank = iota
	rankChannel
	rankDpc
	rankOwned // the miniport's own locks
	rankInterrupt
	rankCount
)

var rankNames = [rankCount]string{"StartIo", "channel", "DPC", "miniport", "interrupt"}

// A spinLock is a port lock with a place in the lock order. It is a mutex: on a
// Go scheduler spinning while the owner is off its thread would be waste, and
// sync.Mutex gives way to a waiter of one millisecond, so nobody starves.
//
// A mutex alone would let an interrupt handler wait for every routine that was
// there before it. So handlers come first: anyone else who gets an interrupt lock
// while a handler waits for it gives way. A handler waits only for the holder it
// finds, and for other handlers.
type spinLock struct {
	// The fields that every acquisition needs are next to each other.
	mu sync.Mutex
	// waiting counts the interrupt handlers that wait for mu.
	waiting atomic.Int32
	lockCount

	a     *Adapter
	rank  lockRank
	index int // message, channel or DPC number
	// served counts handlers that waited and got it.
	// +checklocks:mu
	served uint
	_      [16]byte // locks of channels and messages lie side by side; see TestLayout_CacheLines
}

func (l *spinLock) String() string {
	switch l.rank {
	case rankStartIo:
		return "StartIo lock"
	case rankChannel, rankDpc, rankOwned, rankInterrupt, rankCount:
	}
	return fmt.Sprintf("%s lock %d", rankNames[l.rank], l.index)
}

// acquire takes l. It refuses a lock that p holds already, which would hang.
//
// +checklocksignore: the lock is held on return, and tracked at run time.
func (l *spinLock) acquire(p *Processor) bool {
	if p.nheld != 0 && !p.mayAcquire(l) {
		return false
	}
	yieldLock("lock", &l.mu)
	if locked := l.mu.TryLock(); !locked || l.waiting.Load() != 0 {
		l.wait(p, locked)
	}
	l.take(p)
	if l.acquired.due() {
		l.measure(p)
	}
	return true
}

// wait is the slow path of acquire: somebody else has l or, with locked, p has locked l
// but a handler waits for it.
//
// +checklocksignore: see acquire.
func (l *spinLock) wait(p *Processor, locked bool) {
	began := p.sys.nanos()
	if !locked {
		l.mu.Lock()
	}
	if l.waiting.Load() != 0 {
		l.giveWay()
	}
	l.waited(p, began)
}

// acquireForHandler is acquire for the port, which is about to call the
// interrupt handler that l belongs to.
//
// +checklocksignore: see acquire.
func (l *spinLock) acquireForHandler(p *Processor) {
	if p.verify {
		p.mayAcquire(l)
	}
	yieldLock("lock", &l.mu)
	if !l.mu.TryLock() {
		l.waitForHandler(p)
	}
	l.take(p)
	if l.acquired.due() {
		l.measure(p)
	}
}

// waitForHandler is the slow path of acquireForHandler: somebody has l.
//
// +checklocksignore: see acquire.
func (l *spinLock) waitForHandler(p *Processor) {
	began := p.sys.nanos()
	l.waiting.Add(1)
	l.mu.Lock()
	l.waiting.Add(-1)
	l.served++
	l.waited(p, began)
}

// giveWay lets the handlers that wait for l have it first. A processor that wants all
// interrupt locks begins with that of message 0, and only there waits until no handler
// is waiting. For each further lock it lets only one handler pass: it keeps the handlers
// of the lower messages waiting, and an endless stream of interrupts must not hold it up.
//
// +checklocksignore: l is held before and after.
func (l *spinLock) giveWay() {
	for before := l.served; l.waiting.Load() != 0 && (l.index == 0 || l.served == before); {
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
	}
}

// take notes that p holds l.
func (l *spinLock) take(p *Processor) {
	if p.nheld == len(p.held) {
		p.held = append(p.held, nil)
	}
	p.held[p.nheld] = l
	p.nheld++
}

// release gives l back. Locks may be released in any order.
//
// +checklocksignore: see acquire.
func (l *spinLock) release(p *Processor) {
	for i := p.nheld - 1; i >= 0; i-- {
		if p.held[i] == l {
			p.nheld--
			if i < p.nheld { // seldom
				copy(p.held[i:p.nheld], p.held[i+1:p.nheld+1])
			}
			p.held[p.nheld] = nil
			if l.timed {
				l.measured(p)
			}
			yieldPoint("unlock")
			l.mu.Unlock()
			return
		}
	}
	if p.verify {
		p.violate(CheckLockRules, nil, "release of "+l.String()+", which is not held")
		return
	}
	panic("port: release of " + l.String() + ", which is not held")
}

// holds reports whether p holds l.
func (p *Processor) holds(l *spinLock) bool {
	for i := range p.nheld {
		if p.held[i] == l {
			return true
		}
	}
	return false
}

// heldInterruptLocks counts the interrupt locks of a that p holds.
func (p *Processor) heldInterruptLocks(a *Adapter) int {
	n := 0
	for i := range p.nheld {
		if l := p.held[i]; l.rank == rankInterrupt && l.a == a {
			n++
		}
	}
	return n
}

// acquireInterrupts takes every interrupt lock of a, in ascending order of
// message.
func (a *Adapter) acquireInterrupts(p *Processor) bool {
	for i := range a.interruptLocks {
		if !a.interruptLocks[i].acquire(p) {
			for i--; i >= 0; i-- {
				a.interruptLocks[i].release(p)
			}
			return false
		}
	}
	return true
}

func (a *Adapter) releaseInterrupts(p *Processor) {
	for i := len(a.interruptLocks) - 1; i >= 0; i-- {
		a.interruptLocks[i].release(p)
	}
}

// acquireStartIo takes what surrounds StartIo on one channel: the StartIo lock,
// or the channel with concurrent channels, and in half duplex the interrupt
// locks on top.
func (a *Adapter) acquireStartIo(p *Processor, channel int) Level {
	old := p.raise(Dispatch)
	if len(a.channelLocks) > 0 {
		a.channelLocks[channel].acquire(p)
		return old
	}
	a.startIoLock.acquire(p)
	if a.config.SynchronizationModel == HalfDuplex {
		p.raise(Device)
		a.acquireInterrupts(p)
	}
	return old
}

func (a *Adapter) releaseStartIo(p *Processor, channel int, old Level) {
	if len(a.channelLocks) > 0 {
		a.channelLocks[channel].release(p)
		p.lower(old)
		return
	}
	if a.config.SynchronizationModel == HalfDuplex {
		a.releaseInterrupts(p)
	}
	a.startIoLock.release(p)
	p.lower(old)
}

// acquireExclusive takes what surrounds ResetBus and the adapter timer: the
// StartIo lock, in half duplex the interrupt locks, and, if allChannels, every
// channel.
func (a *Adapter) acquireExclusive(p *Processor, allChannels bool) Level {
	old := p.raise(Dispatch)
	a.startIoLock.acquire(p)
	if allChannels {
		for i := range a.channelLocks {
			a.channelLocks[i].acquire(p)
		}
	}
	if a.config.SynchronizationModel == HalfDuplex {
		p.raise(Device)
		a.acquireInterrupts(p)
	}
	return old
}

func (a *Adapter) releaseExclusive(p *Processor, allChannels bool, old Level) {
	if a.config.SynchronizationModel == HalfDuplex {
		a.releaseInterrupts(p)
	}
	if allChannels {
		for i := len(a.channelLocks) - 1; i >= 0; i-- {
			a.channelLocks[i].release(p)
		}
	}
	a.startIoLock.release(p)
	p.lower(old)
}

// A LockHandle is one acquisition of a spin lock. The zero handle is none.
// Source: storport.h STOR_LOCK_HANDLE.
type LockHandle struct {
	lock *spinLock // of all interrupt locks, the last
	old  Level
}

// AcquireSpinLock takes one of the port's locks on top of those that the
// callback was entered with, in the order StartIo, DPC, interrupt. The
// interrupt lock means the locks of all messages and raises to Device; the others
// raise to Dispatch. d names the DPC for DpcLock and is nil otherwise.
//
// FindAdapter and PassiveInitialize may take none: they get a zero handle, which
// is no lock. A lock that the processor already holds gives a zero handle, too. A
// wrong order may deadlock: it panics or, with the verifier on, is reported.
// Source: storport.h StorPortAcquireSpinLock.
func (a *Adapter) AcquireSpinLock(p *Processor, kind SpinLock, d *Dpc) LockHandle {
	if !p.check(routineAcquireSpinLock) {
		return LockHandle{}
	}
	h := LockHandle{old: p.level}
	ok := false
	switch kind {
	case StartIoLock:
		p.raise(Dispatch)
		h.lock = &a.startIoLock
		ok = h.lock.acquire(p)
	case DpcLock:
		p.raise(Dispatch)
		h.lock = &d.lock
		ok = h.lock.acquire(p)
	case InterruptLock:
		p.raise(Device)
		h.lock = &a.interruptLocks[len(a.interruptLocks)-1]
		ok = a.acquireInterrupts(p)
	default:
		panic(fmt.Sprintf("port: AcquireSpinLock of kind %d: want DpcLock, StartIoLock or InterruptLock", kind))
	}
	if !ok {
		p.lower(h.old)
		return LockHandle{}
	}
	return h
}

// ReleaseSpinLock gives a lock back and returns to the level from before it was taken: so
// the lock taken last is released first, unless all were taken at the same level.
// Source: storport.h StorPortReleaseSpinLock.
func (a *Adapter) ReleaseSpinLock(p *Processor, h LockHandle) {
	if h.lock == nil {
		return // AcquireSpinLock was refused and reported
	}
	if p.verify {
		p.checkLockHold(h.lock)
	}
	if h.lock.rank == rankInterrupt {
		a.releaseInterrupts(p)
	} else {
		h.lock.release(p)
	}
	p.lower(p.levelOfHeld(h.lock, h.old))
}

// levelOfHeld is the level to go back to after l was released: to, or a higher one if p
// still holds locks, taken after l, that require it. Below that level an interrupt could be
// serviced that waits for its own processor. If the verifier is on, it reports this (V6).
func (p *Processor) levelOfHeld(l *spinLock, to Level) Level {
	for i := range p.nheld {
		want := Dispatch
		if p.held[i].rank == rankInterrupt {
			want = Device
		}
		if to < want {
			p.breach(fmt.Sprintf("%s released, to go on at %s while holding %s", l, to, p.held[i]))
			to = want
		}
	}
	return to
}

// An MSILock is one acquisition of a message's lock, with the token that opens
// what the lock guards.
type MSILock struct {
	Token SyncToken
	lock  *spinLock
	old   Level
}

// AcquireMSISpinLock takes the lock of one message. The handler of message k may only
// take those of messages above k. It is for adapters with
// InterruptSynchronizePerMessage; in any other mode the verifier objects and
// the one interrupt lock is taken. A message that does not exist has no lock: the call
// panics or, with the verifier on, is reported and returns a value that
// ReleaseMSISpinLock accepts.
//
// Level: any; raises to Device.
// Source: storport.h StorPortAcquireMSISpinLock.
func (a *Adapter) AcquireMSISpinLock(p *Processor, message uint16) MSILock {
	if p.verify && a.config.InterruptSynchronizationMode != InterruptSynchronizePerMessage {
		p.violate(CheckMSILock, nil, "AcquireMSISpinLock with "+a.config.InterruptSynchronizationMode.String())
	}
	if int(message) >= len(a.interrupts) {
		what := fmt.Sprintf("AcquireMSISpinLock of message %d: want 0 to %d", message, len(a.interrupts)-1)
		if !p.verify {
			panic("port: " + what)
		}
		p.violate(CheckMSILock, nil, what)
		return MSILock{old: p.raise(Device)}
	}
	l := a.lockOfMessage(message)
	m := MSILock{lock: l, old: p.raise(Device)}
	if !l.acquire(p) {
		m.lock = nil
		return m
	}
	m.Token = a.tokenFor(p, message)
	return m
}

// ReleaseMSISpinLock gives a message's lock back.
// Source: storport.h StorPortReleaseMSISpinLock.
func (a *Adapter) ReleaseMSISpinLock(p *Processor, m MSILock) {
	if m.lock == nil {
		p.lower(m.old)
		return
	}
	if p.verify {
		p.checkLockHold(m.lock)
	}
	m.lock.release(p)
	p.lower(p.levelOfHeld(m.lock, m.old))
}

// lockOfMessage is the lock that the handler of a message runs under.
func (a *Adapter) lockOfMessage(message uint16) *spinLock {
	if len(a.interruptLocks) == 1 {
		return &a.interruptLocks[0]
	}
	return &a.interruptLocks[message]
}
