package port

import "fmt"

// AllMessages is the message number of state that every interrupt handler may
// touch: only a token of all the locks opens it.
const AllMessages = -1

// A SyncToken proves that its holder runs with interrupt locks of an adapter
// held: it is given to interrupt handlers, to Initialize, to routines under
// SynchronizeAccess, and by AcquireMSISpinLock. There is no other way to get
// one, and it must not outlive the call it was given for.
type SyncToken struct {
	a       *Adapter
	p       *Processor
	message int // AllMessages: every lock
}

// Processor is the processor that holds the locks.
func (t SyncToken) Processor() *Processor { return t.p }

// tokenFor is the token of one message's handler. Where there is only one
// interrupt lock, it covers everything.
func (a *Adapter) tokenFor(p *Processor, message uint16) SyncToken {
	if len(a.interruptLocks) == 1 {
		return SyncToken{a: a, p: p, message: AllMessages}
	}
	return SyncToken{a: a, p: p, message: int(message)}
}

// Guarded is a part of the device extension that the interrupt handler shares
// with other callbacks. It opens only with a SyncToken, so that no code path
// can touch it without the lock: the compiler asks for the token, and Open
// checks that it is the right one.
//
// State that two handlers of different messages share is bound to AllMessages;
// state of one message to that message, which its handler's token opens.
type Guarded[T any] struct {
	a       *Adapter
	message int
	value   T
}

// Bind says whose locks guard the value: those of a, for one message or
// AllMessages. It is called once, before the value is used.
func (g *Guarded[T]) Bind(a *Adapter, message int) { g.a, g.message = a, message }

// Open gives access to the value for as long as t lasts. It panics if t is of
// another adapter or of another message's lock.
func (g *Guarded[T]) Open(t SyncToken) *T {
	if t.a != g.a || t.a == nil || (t.message != AllMessages && t.message != g.message) {
		panic(fmt.Sprintf("port: Guarded state of message %d opened with a token of message %d", g.message, t.message))
	}
	if t.p.verify {
		t.check()
	}
	return &g.value
}

// check reports a token that has outlived its locks.
func (t SyncToken) check() {
	if t.message != AllMessages {
		if t.p.holds(t.a.lockOfMessage(uint16(t.message))) {
			return
		}
	} else if t.p.heldInterruptLocks(t.a) == len(t.a.interruptLocks) {
		return
	}
	t.p.violate(CheckLockRules, nil, "SyncToken used after its locks were released")
}

// SynchronizeAccess runs routine so that it cannot overlap any interrupt
// handler of a, nor another such routine, and returns what routine returned.
//
// It may be called from every callback that does not run inside an interrupt
// handler, in either duplex model. Whether locks must be taken is decided by
// what p holds already, never by the model: in half duplex StartIo holds them
// and BuildIo does not. With a lock per message it takes all of them, in
// ascending order. routine runs at Device level; it must be short, and must not
// take the StartIo or a DPC lock, wait, or call SynchronizeAccess. Interrupts
// that arrive on p meanwhile are serviced after it.
//
// From an interrupt handler, from FindAdapter or Initialize, nested, or after the
// adapter was removed it returns false without calling routine; the verifier reports all
// but the last. If routine panics, the locks are released, the adapter is
// marked failed and the panic goes on.
//
// It is a function and not a method so that c needs no boxing and routine no
// closure.
// Source: storport.h StorPortSynchronizeAccess; "Synchronized Access within
// Unsynchronized Miniport Driver Routines".
func SynchronizeAccess[C any](a *Adapter, p *Processor, routine func(t SyncToken, c C) bool, c C) bool {
	s, ok := a.beginSynchronized(p)
	if !ok {
		return false
	}
	defer s.end()
	result := routine(SyncToken{a: a, p: p, message: AllMessages}, c)
	s.returned = true
	return result
}

// syncSample says that one in so many calls of SynchronizeAccess has its hold
// time measured; with the verifier on, every one.
const syncSample = 64

// synchronized is one call of SynchronizeAccess.
type synchronized struct {
	a        *Adapter
	p        *Processor
	entered  entered
	old      Level
	watch    stopwatch
	sampled  bool // the hold time is measured
	took     bool // this call acquired the locks
	returned bool // the routine did not panic
}

func (a *Adapter) beginSynchronized(p *Processor) (synchronized, bool) {
	if a.state.Load() == adapterRemoved {
		return synchronized{}, false
	}
	if p.inSync || p.callback == inInterrupt || p.callback == inInitialize || p.callback == inFindAdapter {
		if p.verify {
			p.violate(CheckSynchronizeAccess, nil, "SynchronizeAccess from "+p.callback.String())
		}
		return synchronized{}, false
	}
	s := synchronized{a: a, p: p, old: p.raise(Device)}
	switch n := p.heldInterruptLocks(a); n {
	case len(a.interruptLocks):
	case 0:
		if !a.acquireInterrupts(p) {
			p.lower(s.old)
			return synchronized{}, false
		}
		s.took = true
	default:
		p.lower(s.old)
		if p.verify {
			p.violate(CheckSynchronizeAccess, nil, fmt.Sprintf("SynchronizeAccess with %d of %d message locks held", n, len(a.interruptLocks)))
		}
		return synchronized{}, false
	}
	a.syncCount++ // under interrupt lock 0
	if s.sampled = p.verify || a.syncCount%syncSample == 0; s.sampled {
		s.watch = p.startWatch()
	}
	s.entered = p.enter(inSynchronized)
	p.inSync = true
	return s, true
}

func (s *synchronized) end() {
	p := s.p
	if s.sampled {
		d := s.watch.elapsed(p)
		s.a.syncHold.add(d)
		s.a.syncTimes.Add(d)
	}
	p.inSync = false
	if s.returned {
		p.leave(s.entered)
	} else {
		// A panic: leave things as they were before, whatever the routine did.
		s.a.fail("a SynchronizeAccess routine panicked")
		for p.nheld > s.entered.nheld {
			p.held[p.nheld-1].release(p)
		}
		p.callback = s.entered.callback
		if p.verify {
			p.frames = p.frames[:s.entered.frame]
		}
	}
	if s.took {
		s.a.releaseInterrupts(p)
	}
	p.lower(s.old)
}
