package hba

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

// Commands that a fault holds are parked: they have a record, and occupy neither
// an engine nor a worker. There can be as many as the rings have entries. Aborts
// and resets end them as they end what waits for a worker.

// A holdStage is how far a command with a decision has come.
type holdStage uint8

const (
	stageArrived      holdStage = iota
	stageDelayed                // waits for Decision.Delay
	stageHeld                   // held by Decision.HoldBefore
	stageRunning                // in line for a worker, or with one
	stageDelayedAfter           // waits for Decision.DelayAfter
	stageHeldAfter              // held by Decision.HoldAfter
	stageAnswer                 // is answered, or lost
)

// A hold is what a record remembers of a command that met a fault. Guarded by
// Device.mu, but for what does not change while a worker has the command.
type hold struct {
	command  fault.Command
	decision fault.Decision
	unit     fault.Unit

	stage holdStage
	// by is the fault that holds the command; nil if it only waits for time to pass.
	by *fault.Fault
	// since numbers parked commands in order; due is when the command goes on by itself.
	since     uint64
	due       time.Duration
	heapIndex int
	// out is the answer, once the command has been executed.
	out Completion
}

const (
	forever   = time.Duration(math.MaxInt64)
	notInHeap = -1
)

// A timedRecords is a heap by due time.
type timedRecords []*record

// Len implements heap.Interface.
func (t timedRecords) Len() int { return len(t) }

// Less implements heap.Interface. If two are due at once, the one parked first goes
// first.
func (t timedRecords) Less(i, j int) bool {
	a, b := t[i].hold, t[j].hold
	return a.due < b.due || a.due == b.due && a.since < b.since
}

// Swap implements heap.Interface.
func (t timedRecords) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].hold.heapIndex, t[j].hold.heapIndex = i, j
}

// Push implements heap.Interface.
func (t *timedRecords) Push(x any) {
	rec := x.(*record)
	rec.hold.heapIndex = len(*t)
	*t = append(*t, rec)
}

// Pop implements heap.Interface.
func (t *timedRecords) Pop() any {
	old := *t
	rec := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	rec.hold.heapIndex = notInHeap
	return rec
}

// proceedLocked takes a held command as far as it can go now: until it is parked, in
// line for a worker, or answered. It returns the queues whose interrupt is to be raised.
// A rule that has been removed since it was asked no longer holds anything.
//
// +checklocks:d.mu
func (d *Device) proceedLocked(rec *record) (raise uint64) {
	h := rec.hold
	dec := &h.decision
	if h.stage == stageArrived && rec.cmd.Opcode != OpExecute {
		h.stage = stageHeldAfter // an abort or reset is not executed
	}
	for {
		h.stage++
		switch h.stage {
		case stageDelayed:
			if dec.Delay > 0 && d.areInForce(dec.Fired()) {
				return d.holdLocked(rec, nil, d.clock.Now()+dec.Delay)
			}
		case stageHeld:
			d.triggersLocked(h, fault.PlaceBefore)
			if f := dec.HoldBefore; f != nil && d.isInForce(f) {
				return d.holdLocked(rec, f, d.endOf(dec.HoldBeforeFor))
			}
		case stageRunning:
			d.lineUpLocked(rec)
			return 0
		case stageDelayedAfter:
			if dec.DelayAfter > 0 && d.areInForce(dec.Fired()) {
				return d.holdLocked(rec, nil, d.clock.Now()+dec.DelayAfter)
			}
		case stageHeldAfter:
			d.triggersLocked(h, fault.PlaceAfter)
			if f := dec.HoldAfter; f != nil && d.isInForce(f) {
				return d.holdLocked(rec, f, d.endOf(dec.HoldAfterFor))
			}
		default: // stageAnswer
			return d.answerLocked(rec)
		}
	}
}

// endOf returns when a hold of the given span ends; zero means never.
func (d *Device) endOf(span time.Duration) time.Duration {
	if span == 0 {
		return forever
	}
	return d.clock.Now() + span
}

// answerLocked ends a held command, unless its answer is lost.
//
// +checklocks:d.mu
func (d *Device) answerLocked(rec *record) (raise uint64) {
	q, h := rec.queue, rec.hold
	dec := &h.decision
	d.checkPowerLocked(rec)
	if f := dec.Mistagged; f != nil && d.isInForce(f) {
		dec.Mistagged = nil
		dec.Lost = f
		wrong := h.out
		wrong.Tag ^= wrongTag
		raise = q.postSurplus(&wrong, dec, f)
	}
	if f := dec.Lost; f != nil && d.isInForce(f) {
		return raise | d.holdLocked(rec, f, forever)
	}
	if f := dec.DMAAfter; f != nil && h.out.DataBytes != 0 { // before the answer: whoever has that finds this scheduled
		d.hauntLaterLocked(rec, f, dec.DMAAfterFor, hauntTransferAnswered)
	}
	one := [1]Completion{h.out}
	if !q.postForOthers(one[:]) {
		d.failLocked("the completion ring is not mapped", q.index)
	}
	if f := dec.NoInterrupt; f != nil && d.isInForce(f) {
		d.muted[f] |= 1 << q.index
	} else {
		raise |= 1 << q.index
	}
	if f := dec.Duplicate; f != nil {
		raise |= q.postSurplus(&h.out, dec, f)
	}
	d.releaseLocked(rec)
	if len(d.controls) != 0 {
		raise |= d.advanceLocked()
	}
	return raise
}

// checkPowerLocked makes a held command fail if its unit has lost its power since the
// command arrived: what it did may be gone, and what it promised is.
//
// +checklocks:d.mu
func (d *Device) checkPowerLocked(rec *record) {
	h := rec.hold
	if rec.cmd.Opcode != OpExecute || h.out.Code != CodeExecuted {
		return
	}
	if u := d.unitAt(h.unit); u == nil || !isForgotten(rec.powerCycle, u) {
		return
	}
	d.setNoPower(&h.out, rec.cmd.Tag, h.unit)
	h.out.spoilReply(&h.decision) // the rule spoils this reply as it would have the original one
}

// wrongTag turns a tag into one that the driver is not using: it differs in the highest
// bit, which drivers use last, or for generations.
const wrongTag = 1 << 31

// postSurplus posts a completion that answers no command, as f demands, if the ring has
// room beyond what commands need; otherwise it counts in the decision that f was left
// out. It returns the queue's bit, or zero.
func (q *queue) postSurplus(c *Completion, dec *fault.Decision, f *fault.Fault) (raise uint64) {
	// Counted first: an engine that has not seen it yet fetches one batch at the most,
	// and there is room for that, too.
	surplus := q.surplus.Add(1)
	if q.head.Load()+surplus-q.consumed.Load()+batchCommands > q.completionEntries {
		q.surplus.Add(^uint32(0))
		if q.tail.Load() != q.head.Load() {
			q.runLater() // an engine may have stopped for want of the room that this took
		}
		dec.LeaveOut(f)
		return 0
	}
	one := [1]Completion{*c}
	q.postForOthers(one[:])
	return 1 << q.index
}

// holdLocked parks a command, unless its unit is being removed: then it ends the
// command, as it ended those that were parked when the removal began.
//
// +checklocks:d.mu
func (d *Device) holdLocked(rec *record, f *fault.Fault, due time.Duration) (raise uint64) {
	if !d.isDrainedLocked(rec) {
		d.parkLocked(rec, f, due)
		return 0
	}
	return d.endLocked(rec, CodeNoDevice) | d.advanceLocked()
}

// parkLocked parks a command, held by f if that is not nil, until due.
//
// +checklocks:d.mu
func (d *Device) parkLocked(rec *record, f *fault.Fault, due time.Duration) {
	h := rec.hold
	rec.state = recordParked
	h.by, h.due = f, due
	h.since = d.arrivals
	d.arrivals++
	d.parked++
	if f != nil {
		f.Hold()
	}
	if due != forever {
		heap.Push(&d.timed, rec)
		d.armLocked()
	}
}

// unparkLocked takes a command out of the parking. The caller decides where it goes.
//
// +checklocks:d.mu
func (d *Device) unparkLocked(rec *record) {
	h := rec.hold
	if h.heapIndex != notInHeap {
		heap.Remove(&d.timed, h.heapIndex)
	}
	if h.by != nil {
		h.by.Release()
		h.by = nil
	}
	d.parked--
	rec.state = recordRunning // until the caller decides; d.mu is held
}

// armLocked sets a timer for when the first parked command is due.
//
// +checklocks:d.mu
func (d *Device) armLocked() {
	if len(d.timed) == 0 {
		return
	}
	due := d.timed[0].hold.due
	if d.stopTimer != nil && d.timerDue <= due {
		return
	}
	if d.stopTimer != nil {
		d.stopTimer()
	}
	d.timerDue = due
	d.stopTimer = d.clock.AfterFunc(max(0, due-d.clock.Now()), d.timeHasCome)
}

// timeHasCome lets the commands that are due go on.
func (d *Device) timeHasCome() {
	d.mu.Lock()
	d.stopTimer = nil
	raise := uint64(0)
	now := d.clock.Now()
	for len(d.timed) > 0 && d.timed[0].hold.due <= now {
		rec := d.timed[0]
		d.unparkLocked(rec)
		raise |= d.proceedLocked(rec)
	}
	d.armLocked()
	d.mu.Unlock()
	d.interruptLater(raise)
}

// parkedLocked lists the parked commands that match, the first parked first.
//
// +checklocks:d.mu
func (d *Device) parkedLocked(match func(*record) bool) []*record {
	if d.parked == 0 {
		return nil
	}
	out := d.recordsLocked(recordParked, match)
	slices.SortFunc(out, func(a, b *record) int { return cmp.Compare(a.hold.since, b.hold.since) })
	return out
}

// letGoLocked lets up to n matching parked commands go on; all of them if n is negative.
// Lost ones are answered. It returns how many there were, some of which may be parked
// again by now.
//
// +checklocks:d.mu
func (d *Device) letGoLocked(n int, match func(*hold) bool) (released int, raise uint64) {
	for _, rec := range d.parkedLocked(func(rec *record) bool { return match(rec.hold) }) {
		if released == n {
			break
		}
		released++
		d.unparkLocked(rec)
		if h := rec.hold; h.stage == stageAnswer {
			h.decision.Lost = nil
			raise |= d.answerLocked(rec)
		} else {
			raise |= d.proceedLocked(rec)
		}
	}
	return released, raise
}

// endParkedLocked ends the matching parked commands with code. It returns the queues
// whose interrupt is to be raised.
//
// +checklocks:d.mu
func (d *Device) endParkedLocked(match func(*record) bool, code CompletionCode) (raise uint64) {
	for _, rec := range d.parkedLocked(match) {
		d.unparkLocked(rec)
		raise |= d.endLocked(rec, code)
	}
	return raise
}

// endLocked ends a held command that is not parked with code.
//
// +checklocks:d.mu
func (d *Device) endLocked(rec *record, code CompletionCode) (raise uint64) {
	d.comeBackLocked(rec)
	raise = d.postLocked(rec.queue, rec.cmd.Tag, code)
	d.releaseLocked(rec)
	return raise
}

// lateDefault is the delay of a late completion or transfer whose rule gives none.
const lateDefault = 10 * time.Millisecond

// A haunting is a late completion or transfer that is to come. Guarded by Device.mu,
// except for what does not change.
type haunting struct {
	queue    *queue
	command  Command
	unit     fault.Unit
	decision fault.Decision
	by       *fault.Fault
	kind     hauntKind
	stop     func() bool
	// bytes is how much is transferred at the most: of what was answered, as much as then.
	bytes uint32
	// powerCycle is the record's: a unit that has lost its power since transfers
	// nothing.
	powerCycle uint32
}

// A hauntKind is what a haunting does.
type hauntKind uint8

const (
	hauntCompletion       hauntKind = iota // answers once more
	hauntTransfer                          // transfers, of a command that was ended
	hauntTransferAnswered                  // transfers, of a command that was answered
)

// comeBackLocked schedules a late completion or transfer for a command that was ended,
// if its fault demands one.
//
// +checklocks:d.mu
func (d *Device) comeBackLocked(rec *record) {
	dec := &rec.hold.decision
	switch {
	case dec.Late == nil:
	case dec.LateDMA:
		d.hauntLaterLocked(rec, dec.Late, dec.LateFor, hauntTransfer)
	default:
		d.hauntLaterLocked(rec, dec.Late, dec.LateFor, hauntCompletion)
	}
}

// hauntLaterLocked schedules a late answer or data transfer for a command that ends now;
// it does not come if its rule has gone by then. The device remembers as many of these
// as a ring has entries, and counts those that it leaves out.
//
// +checklocks:d.mu
func (d *Device) hauntLaterLocked(rec *record, f *fault.Fault, after time.Duration, kind hauntKind) {
	if d.closed || !d.isInForce(f) {
		return
	}
	dec := &rec.hold.decision
	if len(d.hauntings) >= len(rec.queue.records) {
		dec.LeaveOut(f)
		return
	}
	if after == 0 {
		after = lateDefault
	}
	h := &haunting{
		queue: rec.queue, command: rec.cmd, unit: rec.hold.unit, decision: *dec, by: f, kind: kind,
		bytes: rec.cmd.DataBytes, powerCycle: rec.powerCycle,
	}
	if kind == hauntTransferAnswered {
		h.bytes = rec.hold.out.DataBytes
	}
	d.hauntings[h] = struct{}{}
	h.stop = d.clock.AfterFunc(after, func() { d.haunt(h) })
}

// endHauntingsLocked cancels the matching hauntings.
//
// +checklocks:d.mu
func (d *Device) endHauntingsLocked(match func(*haunting) bool) {
	for h := range d.hauntings {
		if match(h) {
			h.stop()
			delete(d.hauntings, h)
		}
	}
}

// haunt answers a command that was ended long ago, or transfers its data.
func (d *Device) haunt(h *haunting) {
	d.mu.Lock()
	if _, ok := d.hauntings[h]; !ok {
		d.mu.Unlock()
		return
	}
	delete(d.hauntings, h)
	d.goroutines.Add(1) // until Close may go on; the count is not zero before
	defer d.goroutines.Done()
	raise := uint64(0)
	if h.kind == hauntCompletion && h.queue.gate.Load()&gateDead == 0 {
		var out Completion
		out.set(h.command.Tag, CodeExecuted)
		out.DataBytes = h.command.DataBytes
		raise = h.queue.postSurplus(&out, &h.decision, h.by)
	}
	d.mu.Unlock()
	d.interruptLater(raise)
	if h.kind != hauntCompletion {
		d.transferLate(h)
	}
}

// latePieceBytes is how much transferLate reads at once.
const latePieceBytes = 64 << 10

// transferLate writes to host memory what a READ would have, bypassing all checks of the
// unit. Memory that the driver has unmapped is not reached: that is a DMA fault. The
// driver does not wait for this command before it unmaps memory, and the medium may take
// its time, so the mapping is looked up anew for each piece that has been read, and is kept
// only while that is copied.
func (d *Device) transferLate(h *haunting) {
	c, unit := &h.command, d.unitAt(h.unit)
	lba, blocks, ok := scsi.BlockRange(&c.CDB)
	if unit == nil || !ok || isForgotten(h.powerCycle, unit) {
		return
	}
	var x executor
	if x.gather(d.iommu, c, dma.Write) != CodeExecuted {
		return // counted by the IOMMU; no command ends here
	}
	off := int64(lba) * int64(h.unit.BlockBytes)
	rest := min(int64(blocks)*int64(h.unit.BlockBytes), int64(h.bytes)) // the READ's buffers may be longer
	piece := make([]byte, min(c.DataBytes, latePieceBytes))
	for _, s := range x.list {
		left := int(min(int64(s.Bytes), rest))
		rest -= int64(left)
		for addr := dma.Addr(s.Addr); left > 0; {
			p := piece[:min(left, len(piece))]
			if _, err := unit.Medium().ReadAt(p, off); err != nil || isForgotten(h.powerCycle, unit) {
				return
			}
			if !d.iommu.Use(addr, len(p), dma.Write, func(to []byte) { stray(to, p) }) {
				return
			}
			off += int64(len(p))
			addr += dma.Addr(len(p))
			left -= len(p)
		}
	}
}

// stray copies data to memory that belongs to somebody else by now. That is the fault's
// purpose, so the race detector must not report it.
//
//go:norace
func stray(to, data []byte) {
	for i := range data { //nolint:staticcheck // copy would tell the race detector
		to[i] = data[i]
	}
}
