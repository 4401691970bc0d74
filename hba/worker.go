package hba

import (
	"fmt"

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

// A record is a command that is or will be on a worker. Its queue has one for
// each command that can be in flight. Guarded by Device.mu, but for cmd, which
// does not change while the record is in use.
type record struct {
	cmd      Command
	queue    *queue
	position uint32
	state    recordState
	aborted  bool  // completes with CodeAborted
	held     bool  // has met a fault, which hold is about
	hold     *hold // made when it is first needed
	line     line
	arrival  uint64 // when it was put in line, in records
	// next links free records and those in line.
	next *record
}

// A line is one of those in which commands wait for a worker. What may take long
// has its own, and never gets all workers: however many flushes and trims hang,
// reads go on, and so do looks for holes, which may be for a read. Between the
// lines, first come is first served.
type line uint8

const (
	lineTransfers line = iota // READ and WRITE
	lineStatus                // GET LBA STATUS, if nothing else has its operation code
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

// Shares of the workers that are kept, but one at least if there are enough.
const (
	transferShare = 4 // for transfers
	statusShare   = 8 // for transfers and looks for holes
)

// kept returns how many of so many workers may run what is no transfer, and how
// many may run what is no look for holes either.
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
	return rec
}

// lineUpLocked puts a record in line for a worker.
//
// +checklocks:d.mu
func (d *Device) lineUpLocked(rec *record) {
	rec.state = recordWaiting
	rec.line, rec.arrival = lineOf(&rec.cmd), d.arrivals
	d.arrivals++
	d.lines[rec.line].push(rec)
	d.work.Signal()
}

// takeWaitingLocked removes the records in line that match and returns them.
//
// +checklocks:d.mu
func (d *Device) takeWaitingLocked(match func(*record) bool) (taken recordList) {
	for i := range d.lines {
		some := d.lines[i].take(match)
		for rec := some.pop(); rec != nil; rec = some.pop() {
			taken.push(rec)
		}
	}
	return taken
}

// nextInLineLocked is the line that a worker serves next. False: none.
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
	rec.state = recordFree
	rec.next = rec.queue.free
	rec.queue.free = rec
}

// worker is the body of a worker goroutine: it runs commands that may block.
func (d *Device) worker(own int) {
	var (
		exec executor
		out  [1]Completion
	)
	for {
		rec := d.nextRecord()
		if rec == nil {
			return
		}
		var t tally
		if rec.held {
			exec.executeHeld(d, rec, &out[0], &t)
		} else {
			exec.run(d, &rec.cmd, &out[0], &t, true)
		}
		t.addTo(rec.queue.count)
		d.finish(rec, &out, source{own: own})
	}
}

// nextRecord waits for a command. Nil: the device is closed.
func (d *Device) nextRecord() *record {
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
	return rec
}

// finish completes a command that ran on a worker. It no longer touches host
// memory.
func (d *Device) finish(rec *record, out *[1]Completion, src source) {
	yieldLock("lock to finish", &d.mu)
	d.mu.Lock()
	q := rec.queue
	q.busy--
	d.busy[rec.line]--
	if rec.line != lineTransfers {
		d.work.Signal() // another may go now, and this worker may have a transfer to do
	}
	var raise uint64
	if rec.held && !rec.aborted && q.gate.Load()&gateDead == 0 {
		rec.hold.out = out[0]
		raise = d.proceedLocked(rec)
	} else {
		raise = d.completeLocked(rec, out)
	}
	if len(d.controls) != 0 {
		raise |= d.advanceLocked()
	}
	if q.gate.Load()&gateDead != 0 {
		d.settleLocked()
	}
	d.mu.Unlock()
	d.interruptAll(raise, src)
}

// completeLocked posts what a worker has found out about a command. It returns the
// queue's bit.
//
// +checklocks:d.mu
func (d *Device) completeLocked(rec *record, out *[1]Completion) (raise uint64) {
	q := rec.queue
	if rec.aborted {
		out[0].set(rec.cmd.Tag, CodeAborted)
	}
	// Posted before the record is released: until then a reset waits.
	if !q.post(out[:]) {
		d.failLocked("the completion ring is not mapped", q.index)
	}
	d.releaseLocked(rec)
	if q.gate.Load()&gateDead != 0 {
		return 0
	}
	return 1 << q.index
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
			q.interrupt(src, 1) // nearly always
		}
	}
}
