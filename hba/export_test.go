package hba

import (
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/target"
)

// StopClock has all writes of lanes take no time, and nothing overtake them.
func (d *Device) StopClock() {
	d.mu.Lock()
	d.now, d.watches = func() time.Time { return time.Time{} }, false
	d.mu.Unlock()
}

// SetPositions makes an idle queue pair's rings start at a position, as if so
// many commands had gone by.
func (d *Device) SetPositions(queueIndex int, position uint32) {
	q := d.slots[queueIndex].queue.Load()
	for _, p := range []interface{ Store(uint32) }{&q.tail, &q.consumed, &q.head, &q.settled, &q.posted} {
		p.Store(position)
	}
}

// Undos counts the faults of units that are to end.
func (d *Device) Undos() int {
	d.undoMu.Lock()
	defer d.undoMu.Unlock()
	return len(d.undos)
}

// Controls counts the aborts, resets and removals that wait for commands.
func (d *Device) Controls() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.controls)
}

// Left describes what a device holds that it should not hold when idle, or "".
func (d *Device) Left() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case len(d.controls) != 0:
		return "controls"
	case d.lines != [lineCount]recordList{}:
		return "records in line"
	case d.parked != 0 || len(d.timed) != 0:
		return "parked records"
	case d.busy != [lineCount]int{}:
		return "busy workers"
	}
	for i := range d.slots {
		q := d.slots[i].queue.Load()
		if q == nil {
			continue
		}
		free := 0
		for rec := q.free; rec != nil; rec = rec.next {
			free++
		}
		switch {
		case free != len(q.records):
			return "records out of the free list"
		case q.engine.Load() != engineIdle:
			return "an engine"
		case q.gate.Load()&^gateFaults != gateOpen:
			return "a gate that is not just open"
		}
	}
	return ""
}

// UnitAt is the unit at an address.
func (d *Device) UnitAt(targetID, lun uint8) *target.Unit {
	return d.unitAt(fault.Unit{Target: targetID, Lun: lun})
}
