package port

// StateChange says which part of an adapter has changed.
// Source: storport.h STOR_STATE_CHANGE flags.
type StateChange uint8

// State changes. A higher one includes the lower ones.
const (
	UnitChanged StateChange = iota + 1
	TargetChanged
	BusChanged
)

// StateChangeDetected makes the port enumerate again because the miniport saw a change,
// and then call done. One such enumeration is under way at a time: calls before it
// begins coalesce into it, and the highest change wins; a later call causes another.
// The port always enumerates the whole adapter, so what changed matters only to done.
// A nil done is not called.
//
// done's level: Dispatch with the StartIo lock, in half duplex Device with the
// interrupt locks too; found reports whether the enumeration succeeded.
//
// Level: any. False: no such change, or the adapter is being removed.
// Source: storport.h StorPortStateChangeDetected, HW_STATE_CHANGE.
func (a *Adapter) StateChangeDetected(_ *Processor, change StateChange, done func(p *Processor, change StateChange, found bool)) bool {
	if change < UnitChanged || change > BusChanged {
		return false
	}
	a.mu.Lock()
	queued := a.stateChange != 0
	a.stateChange = max(a.stateChange, change)
	if done != nil {
		a.stateChangeDone = done
	}
	a.mu.Unlock()
	if queued || a.enumerator.post(a.lookAgain) {
		return true
	}
	a.mu.Lock()
	a.stateChange, a.stateChangeDone = 0, nil
	a.mu.Unlock()
	return false
}

// lookAgain is StateChangeDetected on the enumerator.
func (a *Adapter) lookAgain(p *Processor) {
	a.mu.Lock()
	change, done := a.stateChange, a.stateChangeDone
	a.stateChange, a.stateChangeDone = 0, nil
	a.mu.Unlock()
	err := a.Enumerate(p) // it is logged
	if done == nil {
		return
	}
	old := a.acquireExclusive(p, false)
	e := p.enter(inStateChange)
	done(p, change, err == nil)
	p.leave(e)
	a.releaseExclusive(p, false, old)
}
