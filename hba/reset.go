package hba

import "slices"

// A reset deletes every queue. A queue is deleted in two steps. First its gate is marked
// dead, which stops fetching and drops what waits for a worker. It is gone once its
// engine has stopped and no worker runs a command of it, because only then is host
// memory its driver's again. Whoever ends such work checks whether it was the last
// (settle), so nobody but Close has to wait.

// startResetLocked begins a reset, unless one is under way.
//
// +checklocks:d.mu
func (d *Device) startResetLocked() {
	if d.resetting {
		return
	}
	d.resetting = true
	d.enabled = false
	d.resets.Add(1)
	d.log.Debug("device reset")
	for i := range d.slots {
		if q := d.slots[i].queue.Load(); q != nil {
			d.closeQueueLocked(q)
		}
	}
	d.settleLocked()
}

// closeQueueLocked begins a queue's deletion.
//
// +checklocks:d.mu
func (d *Device) closeQueueLocked(q *queue) {
	yieldPoint("reset: close the gate")
	q.gate.Store(gateDead)
	taken := d.takeWaitingLocked(func(rec *record) bool { return rec.queue == q })
	for rec := taken.pop(); rec != nil; rec = taken.pop() {
		d.releaseLocked(rec)
	}
	d.endHauntingsLocked(func(h *haunting) bool { return h.queue == q && h.kind != hauntTransfer })
	d.endParkedLocked(func(rec *record) bool { return rec.queue == q }, CodeAborted) // which is not posted
	d.controls = slices.DeleteFunc(d.controls, func(c *control) bool { return c.queue == q })
	d.updateGatesLocked()
}

// settle completes what was waiting for an engine or a worker to stop.
func (d *Device) settle() {
	yieldLock("lock to settle", &d.mu)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settleLocked()
}

// +checklocks:d.mu
func (d *Device) settleLocked() {
	gone := true
	for i := range d.slots {
		q := d.slots[i].queue.Load()
		if q == nil {
			continue
		}
		yieldPoint("reset: is the engine gone")
		if q.gate.Load()&gateDead != 0 && q.busy == 0 && q.engine.CompareAndSwap(engineIdle, engineGone) {
			d.slots[i].queue.Store(nil)
			continue
		}
		gone = false
	}
	if len(d.controls) != 0 {
		d.interruptLater(d.advanceLocked())
	}
	if !d.resetting || !gone {
		return
	}
	for i := range d.slots {
		d.slots[i].regs = queueRegisters{}
	}
	d.queueSelect = 0
	d.intr.clearCauses(^uint64(CauseEvent))
	d.fatal = false
	d.resetting = false
	d.quiet.Broadcast()
}

// updateGatesLocked notifies the engines of a change.
//
// +checklocks:d.mu
func (d *Device) updateGatesLocked() {
	var gate uint32
	if d.enabled && !d.fatal && !d.resetting {
		gate |= gateOpen
	}
	if len(d.controls) != 0 {
		gate |= gateControl
	}
	if d.faults.Load() != nil {
		gate |= gateFaults
	}
	for i := range d.slots {
		if q := d.slots[i].queue.Load(); q != nil && q.gate.Load()&gateDead == 0 {
			yieldPoint("gates: change one")
			if len(q.full) != 0 {
				q.gate.Store(gate &^ gateOpen)
			} else {
				q.gate.Store(gate)
			}
		}
	}
}
