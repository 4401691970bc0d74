package hba

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/vhbad/vhbad/hba/fault"
)

// A controlKind says what a control does to the commands that it waits for.
type controlKind uint8

const (
	controlAbort  controlKind = iota // one command, by tag
	controlReset                     // all of a unit or target
	controlDrain                     // none: it only waits
	controlSettle                    // none: it only waits for what is being executed
)

// A control waits until certain commands no longer touch host memory, and then
// completes. It is an OpAbort, OpResetLun or OpResetTarget, RemoveUnit or Settle. It is
// made on a cold path and may be allocated. Guarded by Device.mu.
type control struct {
	kind   controlKind
	target uint8
	lun    uint8
	allLun bool // every unit of the target

	// queue and tag say where it completes; a control that only waits closes done
	// instead.
	queue *queue
	tag   uint32
	done  chan struct{}

	// victim is the record that an abort waits for. Whoever releases a record looks at
	// the controls before the record can be reused.
	victim *record
	// marks are how far the other kinds wait, one for each queue that existed.
	marks []mark
}

// A mark is a position in a queue: the control covers commands before it.
type mark struct {
	queue    *queue
	position uint32
}

func (c *control) meansUnit(cmd *Command) bool {
	return c.target == cmd.Target && (c.allLun || c.lun == cmd.Lun)
}

// means reports whether a command at a position of q is one that c waits for.
func (c *control) means(q *queue, position uint32, cmd *Command) bool {
	if !c.meansUnit(cmd) {
		return false
	}
	for _, m := range c.marks {
		if m.queue == q {
			return int32(m.position-position) > 0
		}
	}
	return false
}

// isAborted reports whether a reset has come before the command was executed.
func (d *Device) isAborted(q *queue, position uint32, cmd *Command) bool {
	yieldLock("lock to ask for resets", &d.mu)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.isAbortedLocked(q, position, cmd)
}

// +checklocks:d.mu
func (d *Device) isAbortedLocked(q *queue, position uint32, cmd *Command) bool {
	for _, c := range d.controls {
		if c.kind == controlReset && c.means(q, position, cmd) {
			return true
		}
	}
	return false
}

// isDrainedLocked reports whether the unit of a command in flight is being removed.
//
// +checklocks:d.mu
func (d *Device) isDrainedLocked(rec *record) bool {
	for _, c := range d.controls {
		if c.kind == controlDrain && c.means(rec.queue, rec.position, &rec.cmd) {
			return true
		}
	}
	return false
}

// startControl begins an abort or reset that the engine of q has fetched. Every earlier
// command on q is posted or has a record.
func (d *Device) startControl(q *queue, position uint32, cmd *Command) {
	if q.gate.Load()&gateFaults != 0 && d.controlFails(q, position, cmd) {
		return
	}
	yieldLock("lock to start a control", &d.mu)
	d.mu.Lock()
	if q.gate.Load()&gateDead != 0 {
		d.mu.Unlock()
		return
	}
	c := &control{queue: q, tag: cmd.Tag, target: cmd.Target, lun: cmd.Lun}
	var match func(rec *record) bool
	if cmd.Opcode == OpAbort {
		c.kind = controlAbort
		if c.victim = q.recordOfTag(binary.LittleEndian.Uint32(cmd.CDB[:])); c.victim == nil {
			q.raise |= d.postLocked(q, cmd.Tag, CodeAbortUnknown)
			d.mu.Unlock()
			return
		}
		match = func(rec *record) bool { return rec == c.victim }
	} else {
		c.kind = controlReset
		c.allLun = cmd.Opcode == OpResetTarget
		c.marks = d.marksLocked((*queue).submitted)
		for i := range c.marks {
			if c.marks[i].queue == q {
				c.marks[i].position = position // commands after the reset are not covered
			}
		}
		match = func(rec *record) bool { return c.means(rec.queue, rec.position, &rec.cmd) }
	}
	d.controls = append(d.controls, c)
	d.updateGatesLocked() // from here on, engines look at controls
	yieldPoint("control: abort and advance")
	q.raise |= d.abortLocked(match) | d.advanceLocked()
	d.mu.Unlock()
}

func (q *queue) submitted() uint32 { return q.tail.Load() }
func (q *queue) fetched() uint32   { return q.head.Load() }

// marksLocked notes a position of each queue.
//
// +checklocks:d.mu
func (d *Device) marksLocked(position func(*queue) uint32) []mark {
	var marks []mark
	for i := range d.slots {
		if q := d.slots[i].queue.Load(); q != nil {
			marks = append(marks, mark{q, position(q)})
		}
	}
	return marks
}

// recordOfTag finds a command in flight. Device.mu is held.
func (q *queue) recordOfTag(tag uint32) *record {
	for i := range q.records {
		if rec := &q.records[i]; rec.state != recordFree && rec.cmd.Tag == tag {
			return rec
		}
	}
	return nil
}

// abortLocked ends the matching commands that wait for a worker or are held by a
// fault, and marks those that run. It returns the queues whose interrupt is to be raised.
//
// +checklocks:d.mu
func (d *Device) abortLocked(match func(*record) bool) (raise uint64) {
	taken := d.takeWaitingLocked(match)
	for rec := taken.pop(); rec != nil; rec = taken.pop() {
		raise |= d.postLocked(rec.queue, rec.cmd.Tag, CodeAborted)
		d.releaseLocked(rec)
	}
	raise |= d.endParkedLocked(match, CodeAborted)
	for _, rec := range d.recordsLocked(recordRunning, match) {
		rec.aborted = true
	}
	return raise
}

// recordsLocked returns the records in a state that match.
//
// +checklocks:d.mu
func (d *Device) recordsLocked(state recordState, match func(*record) bool) (out []*record) {
	for i := range d.slots {
		q := d.slots[i].queue.Load()
		if q == nil {
			continue
		}
		for j := range q.records {
			if rec := &q.records[j]; rec.state == state && match(rec) {
				out = append(out, rec)
			}
		}
	}
	return out
}

// postLocked posts one completion without data. It returns the queue's bit.
//
// +checklocks:d.mu
func (d *Device) postLocked(q *queue, tag uint32, code CompletionCode) (raise uint64) {
	if q.gate.Load()&gateDead != 0 {
		return 0
	}
	var out [1]Completion
	out[0].set(tag, code)
	if !q.postForOthers(out[:]) {
		d.failLocked("the completion ring is not mapped", q.index)
		return 0
	}
	return 1 << q.index
}

// advance completes controls whose commands have ended. The caller is the
// engine of q, which has just settled a batch.
func (d *Device) advance(q *queue) {
	yieldLock("lock to advance", &d.mu)
	d.mu.Lock()
	defer d.mu.Unlock()
	q.raise |= d.advanceLocked()
}

// advanceLocked is advance for any caller. It returns the queues whose
// interrupt is to be raised.
//
// +checklocks:d.mu
func (d *Device) advanceLocked() (raise uint64) {
	kept := d.controls[:0]
	for _, c := range d.controls {
		if !d.isOverLocked(c) {
			kept = append(kept, c)
			continue
		}
		switch c.kind {
		case controlDrain, controlSettle:
			close(c.done)
			continue
		case controlReset:
			d.resetUnits(c)
		case controlAbort:
		}
		raise |= d.postLocked(c.queue, c.tag, CodeExecuted)
	}
	if len(kept) != len(d.controls) {
		clear(d.controls[len(kept):])
		d.controls = kept
		d.updateGatesLocked()
	}
	return raise
}

// isOverLocked reports whether nothing that c waits for is left.
//
// +checklocks:d.mu
func (d *Device) isOverLocked(c *control) bool {
	if c.kind == controlAbort {
		return c.victim.state == recordFree
	}
	for _, m := range c.marks {
		q := m.queue
		if q.gate.Load()&gateDead != 0 {
			// Its engine drops what it has, but may be executing one command.
			if q.engine.Load() == engineRunning {
				return false
			}
		} else if int32(q.settled.Load()-m.position) < 0 {
			return false
		}
		for i := range q.records {
			if c.waitsFor(&q.records[i]) {
				return false
			}
		}
	}
	return true
}

// waitsFor reports whether c waits for the command of a record. Device.mu is held.
func (c *control) waitsFor(rec *record) bool {
	ends := rec.state == recordFree || c.kind == controlSettle && rec.state != recordRunning
	return !ends && c.means(rec.queue, rec.position, &rec.cmd)
}

// notOverLocked returns the reason why the wait of c was given up: err, and a command
// that it waited for, if that has a record.
//
// +checklocks:d.mu
func (d *Device) notOverLocked(c *control, err error) error {
	for _, m := range c.marks {
		for i := range m.queue.records {
			rec := &m.queue.records[i]
			if !c.waitsFor(rec) {
				continue
			}
			what := fault.Describe(&rec.cmd.CDB)
			if !what.Ranged {
				return fmt.Errorf("a %v, tag %#x: %w", what.Op, rec.cmd.Tag, err)
			}
			return fmt.Errorf("a %v of %d blocks at LBA %d, tag %#x: %w", what.Op, what.Blocks, what.LBA, rec.cmd.Tag, err)
		}
	}
	return err
}

// resetUnits tells the units that they have been reset.
func (d *Device) resetUnits(c *control) {
	t := d.targetAt(c.target)
	if t == nil {
		return
	}
	if !c.allLun {
		if u := t.Unit(c.lun); u != nil {
			u.Reset()
		}
		return
	}
	for lun := range uint8(MaxLuns) {
		if u := t.Unit(lun); u != nil {
			u.Reset()
		}
	}
}

// drain waits until no command that has been fetched runs on a unit.
func (d *Device) drain(ctx context.Context, targetID, lun uint8) error {
	return d.wait(ctx, &control{kind: controlDrain, target: targetID, lun: lun})
}

// Settle waits until no command that the device has fetched is being executed on a unit.
// Commands that wait for a worker or are held by a rule either have not begun or lack
// only their answer. Whoever has taken the unit's power away calls Settle before giving
// it back: then nothing that found the power on is still on its way to the medium.
//
// Concurrency: any goroutine. Errors: the context's cause, with a command that has not
// ended.
func (d *Device) Settle(ctx context.Context, targetID, lun uint8) error {
	return d.wait(ctx, &control{kind: controlSettle, target: targetID, lun: lun})
}

// wait waits for the fetched commands that c covers.
func (d *Device) wait(ctx context.Context, c *control) error {
	c.done = make(chan struct{})
	raise := uint64(0)
	d.mu.Lock()
	c.marks = d.marksLocked((*queue).fetched)
	d.controls = append(d.controls, c)
	d.updateGatesLocked()
	if c.kind == controlDrain {
		// Commands held by faults would not end by themselves; see holdLocked for those
		// that would be held from here on.
		raise = d.endParkedLocked(func(rec *record) bool { return c.means(rec.queue, rec.position, &rec.cmd) }, CodeNoDevice)
	}
	raise |= d.advanceLocked()
	d.mu.Unlock()
	d.interruptLater(raise)
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-c.done: // just in time
		return nil
	default:
	}
	d.controls = slices.DeleteFunc(d.controls, func(other *control) bool { return other == c })
	d.updateGatesLocked()
	return d.notOverLocked(c, context.Cause(ctx))
}
