package port

import (
	"sync"
	"time"
)

// EventType says what a wait does to an Event.
// Source: storport.h STOR_EVENT_TYPE.
type EventType uint8

// Event types.
const (
	NotificationEvent    EventType = iota // stays set, for everybody who waits
	SynchronizationEvent                  // the first wait that succeeds clears it
)

// An Event is something that code at Passive waits for and code at any level
// sets. Go code that has no level waits on a channel instead; an Event is for
// miniports, where the verifier must notice a wait in the wrong place.
// Source: storport.h STOR_EVENT.
type Event struct {
	kind EventType

	mu sync.Mutex
	// +checklocks:mu
	set bool
	// changed is closed when the event is set.
	// +checklocks:mu
	changed chan struct{}
}

// InitializeEvent makes e ready, set or not.
//
// Level: any; before its first use.
// Source: storport.h StorPortInitializeEvent.
func (a *Adapter) InitializeEvent(_ *Processor, e *Event, kind EventType, set bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kind, e.set, e.changed = kind, set, make(chan struct{})
	if set {
		close(e.changed)
	}
}

// SetEvent sets e and wakes those waiting for it.
//
// Level: any.
// Source: storport.h StorPortSetEvent.
func (a *Adapter) SetEvent(_ *Processor, e *Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.set {
		e.set = true
		close(e.changed)
	}
}

// WaitForSingleObject waits until e is set, for timeout at most, and reports
// whether it was; a timeout of zero only looks.
//
// Level: Passive, unless timeout is zero: elsewhere it does not wait, and the
// verifier reports it.
// Source: storport.h StorPortWaitForSingleObject.
func (a *Adapter) WaitForSingleObject(p *Processor, e *Event, timeout time.Duration) bool {
	ok, changed := e.take()
	if ok || timeout <= 0 {
		return ok
	}
	if p.level > Passive {
		if p.verify {
			p.violate(CheckCallingPlace, nil, "WaitForSingleObject waits at "+p.level.String())
		}
		return false
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case <-changed:
		case <-timer.C:
			return false
		}
		if ok, changed = e.take(); ok {
			return true // otherwise another waiter was faster
		}
	}
}

// take reports whether e is set, and clears a SynchronizationEvent that is. If e is not
// set, the channel closes when it is.
func (e *Event) take() (bool, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.set {
		return false, e.changed
	}
	if e.kind == SynchronizationEvent {
		e.set, e.changed = false, make(chan struct{})
	}
	return true, nil
}
