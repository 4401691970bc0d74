package port

import (
	"fmt"
	"sync/atomic"
)

// A DpcRoutine does the part of interrupt handling that need not hold up
// interrupts.
//
// Level: Dispatch, no lock held. One instance of a Dpc runs at a time.
// Source: storport.h HW_DPC_ROUTINE.
type DpcRoutine func(p *Processor, d *Dpc)

// A Dpc is a deferred procedure call: queued by IssueDpc, run on the same
// processor when its level drops below Dispatch. There are no arguments: calls
// coalesce, so the work must be found in the state that the DPC drains.
// Source: storport.h STOR_DPC.
type Dpc struct {
	routine DpcRoutine
	a       *Adapter
	lock    spinLock
	state   atomic.Uint32
	next    *Dpc // queue of one processor
	runs    atomic.Uint64
	running atomic.Int32 // the verifier's
	// Context is the miniport's own; set it before the first IssueDpc.
	Context any
}

// States of a Dpc.
//
//	idle ─issue▶ queued ─run▶ running ─end▶ idle
//	               │cancel        │issue
//	               ▼              ▼
//	            cancelled     runningQueued ─end▶ queued (same processor)
const (
	dpcIdle uint32 = iota
	dpcQueued
	dpcCancelled // still on a processor's queue, which drops it; issue revives it
	dpcRunning
	dpcRunningQueued
)

// InitializeDpc prepares d. Its DPC lock ranks after those of DPCs initialized
// earlier on the adapter.
//
// Level: Passive; in PassiveInitialize.
// Source: storport.h StorPortInitializeDpc.
func (a *Adapter) InitializeDpc(p *Processor, d *Dpc, routine DpcRoutine) {
	p.check(routineInitializeDpc)
	d.routine, d.a = routine, a
	a.initLock(&d.lock, rankDpc, a.dpcCount)
	a.dpcCount++
}

// IssueDpc queues d on p. False: it was already queued, and will run after this
// call anyway, or it was never initialized.
//
// Level: any.
// Source: storport.h StorPortIssueDpc.
func (a *Adapter) IssueDpc(p *Processor, d *Dpc) bool {
	if d.routine == nil {
		if p.verify {
			p.violate(CheckCallingPlace, nil, "IssueDpc before InitializeDpc")
		}
		return false
	}
	for {
		yieldPoint("IssueDpc: look at the state")
		s := d.state.Load()
		yieldPoint("IssueDpc: change the state")
		switch s {
		case dpcIdle:
			if d.state.CompareAndSwap(dpcIdle, dpcQueued) {
				p.queueDpc(d)
				return true
			}
		case dpcCancelled:
			if d.state.CompareAndSwap(dpcCancelled, dpcQueued) {
				return true
			}
		case dpcRunning:
			if d.state.CompareAndSwap(dpcRunning, dpcRunningQueued) {
				return true
			}
		default:
			return false
		}
	}
}

// CancelDpc takes d back if it is queued and not yet running.
//
// Level: any.
// Source: storport.h StorPortCancelDpc.
func (a *Adapter) CancelDpc(_ *Processor, d *Dpc) bool {
	for {
		yieldPoint("CancelDpc: look at the state")
		s := d.state.Load()
		yieldPoint("CancelDpc: change the state")
		switch s {
		case dpcQueued:
			if d.state.CompareAndSwap(dpcQueued, dpcCancelled) {
				return true
			}
		case dpcRunningQueued:
			if d.state.CompareAndSwap(dpcRunningQueued, dpcRunning) {
				return true
			}
		default:
			return false
		}
	}
}

func (p *Processor) queueDpc(d *Dpc) {
	d.next = nil
	if p.dpcTail == nil {
		p.dpcHead = d
	} else {
		p.dpcTail.next = d
	}
	p.dpcTail = d
	if p.level == Passive {
		p.drain()
	}
}

// runDpc runs the first queued DPC at Dispatch.
func (p *Processor) runDpc() {
	d := p.dpcHead
	p.dpcHead = d.next
	if p.dpcHead == nil {
		p.dpcTail = nil
	}
	d.next = nil
	for {
		yieldPoint("DPC: running")
		if d.state.CompareAndSwap(dpcQueued, dpcRunning) {
			break
		}
		yieldPoint("DPC: drop it if cancelled")
		if d.state.CompareAndSwap(dpcCancelled, dpcIdle) {
			return
		}
		// Revived between the two, and perhaps cancelled again: look again.
	}
	if p.verify {
		if n := d.running.Add(1); n > 1 {
			p.violate(CheckDpcOverlap, nil, fmt.Sprintf("%d runs of DPC %d at once", n, d.lock.index))
		}
	}
	e := p.enter(inDpc)
	d.routine(p, d)
	p.leave(e)
	if p.verify {
		d.running.Add(-1)
	}
	d.runs.Add(1)
	for {
		yieldPoint("DPC: idle")
		if d.state.CompareAndSwap(dpcRunning, dpcIdle) {
			return
		}
		yieldPoint("DPC: queued again")
		if d.state.CompareAndSwap(dpcRunningQueued, dpcQueued) {
			p.queueDpc(d)
			return
		}
	}
}
