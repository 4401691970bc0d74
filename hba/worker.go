package hba

import (
	"fmt"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// States of a record.
type recordState uint8

const (
	recordFree    recordState = iota // in its queue's free list
	recordWaiting                    // in one of Device.lines
	recordRunning                    // on a worker
	recordParked                     // held by a fault; see parking.go
)

// A record is a command that is, or will be, on a worker. Its queue has one for each
// command that can be in flight. Guarded by Device.mu, except for cmd, which does not
// change while the record is in use.
type record struct {
	cmd      Command
	queue    *queue
	position uint32
	// powerCycle is its unit's when the command arrived: if the power has been cut
	// since, the command is forgotten. Zero if there is no unit.
	powerCycle uint32
	state      recordState
	aborted    bool  // completes with CodeAborted
	held       bool  // has met a fault, which is in hold
	hold       *hold // made when it is first needed
	line       line
	lane       *lane  // nil if it has none
	arrival    uint64 // position in the order of all records ever put in line
	// next links free records and those in line.
	next *record
}

// isForgotten reports whether the unit has lost its power since a command arrived, which
// was in powerCycle; see record.powerCycle.
func isForgotten(powerCycle uint32, unit *target.Unit) bool {
	return powerCycle != 0 && powerCycle != unit.PowerCycle()
}

// A line is one of those in which commands wait for a worker. Commands that may take
// long have their own, which never gets all workers: however many flushes and trims
// hang, reads go on, and so does GET LBA STATUS, which a read may depend on. Between the
// lines, first come is first served.
type line uint8

const (
	lineTransfers line = iota // READ and WRITE
	lineStatus                // GET LBA STATUS, along with everything else that has its operation code
	lineOthers
	lineCount
)

func lineOf(c *Command) line {
	// Whatever else there is.
	//exhaustive:ignore
	switch scsi.Opcode(c.CDB[0]) {
	case scsi.OpRead6, scsi.OpRead10, scsi.OpRead12, scsi.OpRead16,
		scsi.OpWrite6, scsi.OpWrite10, scsi.OpWrite12, scsi.OpWrite16:
		return lineTransfers
	case scsi.OpServiceActionIn16:
		return lineStatus
	}
	return lineOthers
}

// Shares of the workers that are reserved, at least one worker each if there are enough.
const (
	transferShare = 4 // for transfers
	statusShare   = 8 // for transfers and GET LBA STATUS
)

// kept returns how many of so many workers may run what is not a transfer, and how many
// may run what is neither a transfer nor GET LBA STATUS.
func kept(workers int) (maxStatus, maxOthers int) {
	maxStatus = max(1, workers-max(1, workers/transferShare))
	return maxStatus, max(1, maxStatus-max(1, workers/statusShare))
}

// A recordList is a queue of records, first in first out.
type recordList struct {
	first, last *record
	length      int
}

func (l *recordList) push(rec *record) {
	rec.next = nil
	if l.last == nil {
		l.first = rec
	} else {
		l.last.next = rec
	}
	l.last = rec
	l.length++
}

func (l *recordList) pop() *record {
	rec := l.first
	if rec == nil {
		return nil
	}
	l.first = rec.next
	if l.first == nil {
		l.last = nil
	}
	rec.next = nil
	l.length--
	return rec
}

// take removes the records that match and returns them.
func (l *recordList) take(match func(*record) bool) (taken recordList) {
	old := *l
	*l = recordList{}
	for rec := old.pop(); rec != nil; rec = old.pop() {
		if match(rec) {
			taken.push(rec)
		} else {
			l.push(rec)
		}
	}
	return taken
}

// handOver gives a command to the workers. False: it has been aborted, and is
// still the engine's.
func (d *Device) handOver(q *queue, position uint32, c *Command) bool {
	yieldLock("lock to hand over", &d.mu)
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.gate.Load()&gateDead != 0 {
		return true // dropped
	}
	if d.isAbortedLocked(q, position, c) {
		return false
	}
	d.lineUpLocked(d.newRecordLocked(q, position, c))
	return true
}

// newRecordLocked takes a record for a command of q.
//
// +checklocks:d.mu
func (d *Device) newRecordLocked(q *queue, position uint32, c *Command) *record {
	rec := q.free
	if rec == nil {
		panic(fmt.Sprintf("hba: queue %d has more than %d commands in flight", q.index, len(q.records)))
	}
	q.free = rec.next
	rec.cmd, rec.queue, rec.position, rec.aborted, rec.held = *c, q, position, false, false
	rec.powerCycle = 0
	if scsi.Opcode(c.CDB[0]) != scsi.OpReportLUNs { // the target answers it
		if u := d.unitAt(fault.Unit{Target: c.Target, Lun: c.Lun}); u != nil {
			if rec.powerCycle = u.PowerCycle(); u.IsOff() {
				rec.powerCycle-- // a command that arrives without power must not run when it is back
			}
		}
	}
	return rec
}

// lineUpLocked puts a record in line for a worker.
//
// +checklocks:d.mu
func (d *Device) lineUpLocked(rec *record) {
	rec.state = recordWaiting
	rec.line, rec.lane, rec.arrival = lineOf(&rec.cmd), nil, d.arrivals
	d.arrivals++
	if d.queueLocked(rec) {
		d.work.Signal()
	}
}

// takeWaitingLocked removes the records in line that match and returns them.
//
// +checklocks:d.mu
func (d *Device) takeWaitingLocked(match func(*record) bool) (taken recordList) {
	for i := range d.lines {
		some := d.lines[i].take(match)
		for rec := some.pop(); rec != nil; rec = some.pop() {
			if rec.lane != nil {
				rec.lane.led = false
			}
			taken.push(rec)
		}
	}
	for _, l := range d.lanesMade {
		some := l.waiting.take(match)
		for rec := some.pop(); rec != nil; rec = some.pop() {
			taken.push(rec)
		}
		if !l.led {
			d.leadLocked(l)
		}
	}
	return taken
}

// nextInLineLocked returns the line that a worker serves next. False: none.
//
// +checklocks:d.mu
func (d *Device) nextInLineLocked() (next line, ok bool) {
	maxStatus, maxOthers := kept(d.workers)
	others := d.busy[lineOthers]
	allowed := [lineCount]bool{
		lineTransfers: true,
		lineStatus:    d.busy[lineStatus]+others < maxStatus,
		lineOthers:    d.busy[lineStatus]+others < maxStatus && others < maxOthers,
	}
	arrival := uint64(0)
	for i := range d.lines {
		rec := d.lines[i].first
		if rec != nil && allowed[i] && (!ok || rec.arrival < arrival) {
			next, arrival, ok = line(i), rec.arrival, true
		}
	}
	return next, ok
}

// releaseLocked gives a record back to its queue.
//
// +checklocks:d.mu
func (d *Device) releaseLocked(rec *record) {
	rec.state, rec.lane = recordFree, nil
	rec.next = rec.queue.free
	rec.queue.free = rec
}

// worker is the body of a worker goroutine: it runs commands that may block.
func (d *Device) worker(own int) {
	w := crew{exec: newExecutor(), own: own}
	for rec := d.nextRecord(&w); rec != nil; rec = d.nextRecord(&w) {
		for rec != nil {
			d.execute(&w, rec)
			rec = d.finish(&w)
		}
	}
}

// execute runs a command, which may take as long as it likes.
func (d *Device) execute(w *crew, rec *record) {
	var t tally
	w.exec.task.PowerCycle = rec.powerCycle
	if rec.held {
		w.exec.executeHeld(d, rec, &w.out, &t)
		w.out.spoilReply(&rec.hold.decision)
	} else if plan := d.planOf(&rec.cmd); plan != nil && plan.Watches(&rec.cmd.CDB) {
		w.exec.executeWatched(d, plan, &rec.cmd, &w.out, &t)
	} else {
		w.exec.run(d, &rec.cmd, &w.out, &t, true)
	}
	t.addTo(rec.queue.count)
}

// nextRecord waits for a command. Nil: the device is closed.
func (d *Device) nextRecord(w *crew) *record {
	d.mu.Lock()
	defer d.mu.Unlock()
	next, ok := d.nextInLineLocked()
	for !ok {
		if d.closed && !d.resetting {
			return nil
		}
		d.work.Wait()
		next, ok = d.nextInLineLocked()
	}
	rec := d.lines[next].pop()
	rec.state = recordRunning
	rec.queue.busy++
	d.busy[next]++
	d.beginLocked(w, rec)
	return rec
}

// finish ends the command that w has run, which no longer touches host memory.
// It returns the next of the same run; if there is none, everything is posted.
func (d *Device) finish(w *crew) (next *record) {
	yieldLock("lock to finish", &d.mu)
	d.mu.Lock()
	if next = d.nextOfRunLocked(w); next != nil {
		d.mu.Unlock()
		return next
	}
	rec := w.done[w.count-1]
	d.busy[rec.line]--
	if rec.line != lineTransfers {
		d.work.Signal() // another may go now, and this worker may have a transfer to do
	}
	var raise uint64
	if q := rec.queue; rec.held && !rec.aborted && q.gate.Load()&gateDead == 0 {
		q.busy--
		rec.hold.out = w.out
		w.done[0], w.count = nil, 0
		raise = d.proceedLocked(rec)
		if len(d.controls) != 0 {
			raise |= d.advanceLocked()
		}
	} else {
		raise = d.postDoneLocked(w)
	}
	d.mu.Unlock()
	d.interruptAll(raise, source{own: w.own})
	return nil
}

// interruptLater raises interrupts for a caller that has no runner: the event
// goroutine does it.
func (d *Device) interruptLater(set uint64) {
	if set != 0 {
		d.raiseLater.Or(set)
		d.intr.wake()
	}
}

// interruptAll raises the interrupts of the queue pairs in a bit set.
func (d *Device) interruptAll(set uint64, src source) {
	for i := range d.slots {
		if set&(1<<i) == 0 {
			continue
		}
		if q := d.slots[i].queue.Load(); q != nil {
			q.interrupt(src, int(q.unannounced.Swap(0)))
		}
	}
}
