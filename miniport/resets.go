package miniport

import (
	"runtime"

	"github.com/vhbad/vhbad/port"
)

// A guest is the SRB of a unit's or target's reset that waits for a queue's DPC.
//
// The device answers a reset last, after it has completed what the reset
// aborted, on whatever queues. The SRBs must be completed in that order too, and
// each queue has a DPC of its own; so the reset's SRB goes round: it is completed
// when the DPC of every queue has drained its ring and completed its list since
// the device answered. No DPC waits for another.
//
// A command that StartIo put into another queue's ring before the reset, and
// that the device had not fetched when it executed the reset, is not aborted and
// runs soon. For those too the guest stays until they are completed.
type guest struct {
	srb  *port.SRB
	next *guest
	// limit is the queue's tail when the guest arrived, valid if arrived is set: the
	// guest does not wait for commands from there on.
	limit   uint32
	arrived bool
}

// invite makes g wait for q's next DPC.
func (q *queue) invite(g *guest) {
	for {
		g.next = q.guests.Load()
		if q.guests.CompareAndSwap(g.next, g) {
			return
		}
	}
}

// welcome looks at the guests of a queue whose ring was just drained. Guests that
// wait for commands still in the device stay: another completion will come, and
// with it a DPC. The others become visitors of the DPC.
//
// Level: Device, with the lock of q's message, which opened s.
func (q *queue) welcome(s *queueShared) {
	var next *guest
	for g := q.guests.Swap(nil); g != nil; g = next {
		next = g.next
		if !g.arrived {
			g.limit, g.arrived = q.tail.Load(), true
		}
		if q.holdsScope(s, g) {
			q.invite(g)
			continue
		}
		g.next = s.visitors
		s.visitors = g
	}
}

// holdsScope reports whether the device still has a command, from before g's arrival,
// to the unit or target that g reset.
func (q *queue) holdsScope(s *queueShared, g *guest) bool {
	for i := range s.pool.fresh {
		e := &q.table[i]
		if e.live.Load() == 0 || int32(e.at-g.limit) >= 0 || e.srb.TargetID != g.srb.TargetID || e.srb == g.srb {
			continue
		}
		if g.srb.Function == port.FunctionResetDevice || e.srb.Lun == g.srb.Lun {
			return true
		}
	}
	return false
}

// sendOn passes srb, a successful reset, from q to the next queue, or completes it
// if it has been to all of them.
//
// Level: Dispatch.
func (d *Driver) sendOn(p *port.Processor, q *queue, srb *port.SRB) {
	x := extensionOf(srb.Extension)
	if x.visits == 0 {
		d.touring.Add(1)
	}
	x.visits++
	if int(x.visits) == len(d.queues) {
		d.a.Complete(p, srb)
		d.touring.Add(-1)
		return
	}
	next := d.queues[(q.index+1)%len(d.queues)]
	next.invite(&guest{srb: srb})
	d.a.IssueDpc(p, &next.dpc)
}

// sendVisitors lets q's visitors go on, after q's list was completed.
//
// Level: Dispatch, in q's DPC.
func (d *Driver) sendVisitors(p *port.Processor, q *queue) {
	for g := q.visitors; g != nil; g = g.next {
		d.sendOn(p, q, g.srb)
	}
	q.visitors = nil
}

// ResetBus implements port.Miniport: it resets the whole adapter. No SRB is
// completed before the device says that its DMA has stopped. If it does not say
// so in time, ResetBus keeps the SRBs and fails; until a later call succeeds,
// StartIo turns new SRBs away.
func (d *Driver) ResetBus(p *port.Processor, pathID uint8) bool {
	if pathID != 0 {
		return false
	}
	if !d.quiesce(p) || !d.stopDMA(p) || !port.SynchronizeAccess(d.a, p, reclaim, d) {
		return false
	}
	started := d.start(p)
	d.completeSweep(p)
	if started {
		d.resets.Add(1)
	}
	return started
}

// reclaim takes every SRB that the driver holds into the sweep, and makes the
// rings empty. Commands that completed before the reset keep their result; the
// others get StatusBusReset and their tags a new generation, so that whatever
// the device might still say of them is stale.
//
// Level: Device, every interrupt lock; the device's DMA has stopped.
func reclaim(t port.SyncToken, d *Driver) bool {
	p := t.Processor()
	for _, q := range d.queues {
		s := q.shared.Open(t)
		d.drain(p, q, s)
		d.sweep = append(d.sweep, s.reaped...)
		clear(s.reaped)
		s.reaped = s.reaped[:0]
		for s.visitors != nil {
			g := s.visitors
			s.visitors = g.next
			q.invite(g)
		}
		for i := range s.pool.fresh {
			e := &q.table[i]
			tag := e.live.Load()
			if tag == 0 {
				continue
			}
			x := extensionOf(e.srb.Extension)
			x.completion.Code = codeDropped
			d.sweep = append(d.sweep, e.srb)
			e.srb = nil
			e.live.Store(0)
			s.pool.retire(tag)
		}
		q.rewind(s)
	}
	return true
}

// codeDropped, a code that the device does not have, marks the completion of a
// command that a controller reset dropped.
const codeDropped = 0xff

// completeSweep hands back what reclaim found, and waits for the DPCs that had
// SRBs in hand before.
func (d *Driver) completeSweep(p *port.Processor) {
	for i, srb := range d.sweep {
		d.sweep[i] = nil
		if extensionOf(srb.Extension).completion.Code == codeDropped {
			srb.Status = port.StatusBusReset
			if d.gone.Load() {
				srb.Status = port.StatusNoHBA
			}
		} else {
			d.takeAnswer(p, srb)
		}
		d.a.Complete(p, srb)
	}
	d.sweep = d.sweep[:0]
	for _, q := range d.queues {
		for q.completing.Load() {
			runtime.Gosched()
		}
	}
	// Resets on their way round have nothing left to wait for. One that a DPC has
	// in hand will be back in a list, or completed.
	for d.touring.Load() != 0 {
		for _, q := range d.queues {
			var next *guest
			for g := q.guests.Swap(nil); g != nil; g = next {
				next = g.next
				d.a.Complete(p, g.srb)
				d.touring.Add(-1)
			}
		}
		runtime.Gosched()
	}
}
