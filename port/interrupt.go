package port

import (
	"fmt"
	"sync/atomic"

	"github.com/vhbad/vhbad/internal/pci"
)

// States of an interrupt. An edge moves it one step; it is never lost and the
// handler never runs twice at once.
//
//	idle ──raise──▶ pending ──service──▶ running ──done──▶ idle
//	                   │ raise: nothing    │ raise
//	                   ▼ (coalesced)       ▼
//	                pending              again ──done──▶ pending, serviced at once
const (
	interruptIdle uint32 = iota
	interruptPending
	interruptRunning
	interruptAgain
)

// An interrupt is one message, or the line, of an adapter.
type interrupt struct {
	a       *Adapter
	message uint16
	lock    *spinLock
	state   atomic.Uint32

	// nextPending links the pending list of the processor that claimed it.
	nextPending *interrupt

	edges     atomic.Uint64 // raised by the device
	runs      atomic.Uint64 // handler calls; written under lock
	unhandled atomic.Uint64 // handler said it was not for it: rare, so it is last; see TestLayout_CacheLines
}

// raiseInterrupt is the adapter's pci.InterruptFunc.
func (a *Adapter) raiseInterrupt(r pci.Runner, m pci.Message) {
	p, ok := r.(*Processor)
	if !ok {
		panic(fmt.Sprintf("port: interrupt %d raised by a runner that is no processor", m))
	}
	if int(m) >= len(a.interrupts) {
		m = 0 // fewer messages connected than the device has: all fold onto the first
	}
	i := &a.interrupts[m]
	i.edges.Add(1)
	for {
		yieldPoint("raise: look at the state")
		s := i.state.Load()
		yieldPoint("raise: change the state")
		switch s {
		case interruptIdle:
			if !i.state.CompareAndSwap(interruptIdle, interruptPending) {
				continue
			}
			if p.level < Device {
				old := p.level
				i.service(p)
				p.lower(old)
			} else {
				p.pend(i)
			}
			return
		case interruptRunning:
			if i.state.CompareAndSwap(interruptRunning, interruptAgain) {
				return
			}
		default: // pending or again: the handler will start after this edge
			return
		}
	}
}

// pend keeps i until the level drops below Device.
func (p *Processor) pend(i *interrupt) {
	if p.pendingTail == nil {
		p.pendingHead = i
	} else {
		p.pendingTail.nextPending = i
	}
	p.pendingTail = i
}

// service runs the handler of a pending interrupt until no edge is left. It
// leaves p at Device: the caller lowers.
func (i *interrupt) service(p *Processor) {
	p.level = Device
	for {
		i.lock.acquireForHandler(p)
		// From here on a new edge asks for another run; before, this run sees
		// what it announces.
		yieldPoint("service: running")
		i.state.Store(interruptRunning)
		e := p.enter(inInterrupt)
		handled := i.a.handle(p, i.message)
		p.leave(e)
		i.runs.Store(i.runs.Load() + 1)
		if !handled {
			i.unhandled.Store(i.unhandled.Load() + 1)
		}
		i.lock.release(p)
		yieldPoint("service: is the line down")
		if i.a.lineMode && i.a.function.Asserted() && handled {
			continue // level-triggered: the line is still up
		}
		yieldPoint("service: idle")
		if i.state.CompareAndSwap(interruptRunning, interruptIdle) {
			return
		}
		yieldPoint("service: again")
		i.state.Store(interruptPending)
	}
}

// handle calls the miniport's handler for message.
func (a *Adapter) handle(p *Processor, message uint16) bool {
	t := a.tokenFor(p, message)
	if a.messages != nil && !a.lineMode {
		return a.messages.MessageInterrupt(p, t, message)
	}
	return a.miniport.Interrupt(p, t)
}
