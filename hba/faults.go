package hba

import (
	"slices"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

// Faults. While rules are in force, each queue's gate says so, and its engine has every
// command examined before it runs. A command that meets a fault gets a record, like one
// that would block, with a hold that remembers the decision; from then on parking.go and
// the workers deal with it. Without rules the engine pays for none of this: it looks at
// the gate anyway.

// A faultTable is the rules in force, by address.
type faultTable struct {
	set   *fault.Set
	plans [MaxTargets]*[target.MaxUnits]*fault.Plan
}

// newFaultTable leaves out plans for addresses without a unit: whoever removed the unit
// has already taken its rules from the table, and a unit attached later is a different
// one.
func (d *Device) newFaultTable(s *fault.Set) *faultTable {
	d.unitMu.Lock()
	defer d.unitMu.Unlock()
	t := &faultTable{set: s}
	for _, p := range s.Plans() {
		u := p.Unit()
		if d.unitAt(u) == nil && d.unplugged[address{u.Target, u.Lun}] == nil {
			continue
		}
		if t.plans[u.Target] == nil {
			t.plans[u.Target] = new([target.MaxUnits]*fault.Plan)
		}
		t.plans[u.Target][u.Lun] = p
	}
	return t
}

// plan returns the plan in force at an address, or nil.
func (t *faultTable) plan(targetID, lun uint8) *fault.Plan {
	if int(targetID) >= len(t.plans) || t.plans[targetID] == nil {
		return nil
	}
	return t.plans[targetID][lun]
}

// without returns t less the plan at an address.
func (t *faultTable) without(targetID, lun uint8) *faultTable {
	if t.plan(targetID, lun) == nil {
		return t
	}
	less := *t
	units := *t.plans[targetID]
	units[lun] = nil
	less.plans[targetID] = &units
	return &less
}

// planOf returns the plan in force for a command, or nil.
func (d *Device) planOf(c *Command) *fault.Plan {
	if table := d.faults.Load(); table != nil {
		return table.plan(c.Target, c.Lun)
	}
	return nil
}

// A treatment is what becomes of a command that was examined.
type treatment uint8

const (
	treatmentNone    treatment = iota // nothing unusual
	treatmentTaken                    // it is no longer the engine's
	treatmentAborted                  // it has been aborted, and is still the engine's
)

// misbehave has the rules examine a command. The caller is the engine.
func (d *Device) misbehave(q *queue, position uint32, c *Command) treatment {
	plan := d.planOf(c)
	if plan == nil || !c.valid() {
		return treatmentNone
	}
	if u := d.unitAt(plan.Unit()); u == nil || u.HasLost(c.Nexus) { // a lost nexus fails in no other way
		return treatmentNone
	}
	cmd := q.exec.describe(d, plan, c)
	dec := &q.decision
	if !plan.Decide(&cmd, d.clock.Now(), dec) {
		return treatmentNone
	}
	d.tellBroken(plan.Unit(), c.Nexus, dec)
	if dec.RingFull != nil {
		d.fillRing(q, dec.RingFull, dec.RingFullFor)
	}
	return d.take(q, position, c, func(h *hold) { h.command, h.decision, h.unit = cmd, *dec, plan.Unit() })
}

// describe describes a valid command for the rules of its unit.
func (x *executor) describe(d *Device, plan *fault.Plan, c *Command) fault.Command {
	cmd := plan.Describe(&c.CDB)
	cmd.Tag = c.Tag
	if cmd.Op == fault.OpTrim && c.Flags&CommandDataOut != 0 && x.gather(d.iommu, c, dma.Read) == CodeExecuted {
		cmd.AddUnmap(x.unmapList())
	}
	return cmd
}

// fillRing keeps the engine of q from taking more from its submission ring for some
// time; commands already taken go on. The caller is the engine.
func (d *Device) fillRing(q *queue, f *fault.Fault, span time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.gate.Load()&gateDead != 0 || d.closed || !d.isInForce(f) {
		return
	}
	until := d.clock.Now() + span
	if i := q.fullBy(f); i >= 0 {
		q.full[i].until = max(q.full[i].until, until) // its timer looks again
		return
	}
	q.full = append(q.full, fullRing{f, until})
	d.updateGatesLocked()
	d.clock.AfterFunc(span, func() { d.emptyRing(q, f) })
}

// fullBy is the index of a fault in full, or -1. Device.mu is held.
func (q *queue) fullBy(f *fault.Fault) int {
	return slices.IndexFunc(q.full, func(r fullRing) bool { return r.by == f })
}

// emptyRing undoes fillRing for a fault if its time is up, and otherwise schedules
// itself again. If the rule has gone meanwhile, SetFaults has undone it already.
func (d *Device) emptyRing(q *queue, f *fault.Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := q.fullBy(f)
	if i < 0 || d.closed {
		return
	}
	if left := q.full[i].until - d.clock.Now(); left > 0 {
		d.clock.AfterFunc(left, func() { d.emptyRing(q, f) })
		return
	}
	q.full = slices.Delete(q.full, i, i+1)
	d.updateGatesLocked()
	q.runLater()
}

// emptyRingsLocked undoes fillRing for rules that are no longer in force. It returns the
// queues to run once the caller has updated the gates.
//
// +checklocks:d.mu
func (d *Device) emptyRingsLocked() (run []*queue) {
	for i := range d.slots {
		q := d.slots[i].queue.Load()
		if q == nil || len(q.full) == 0 {
			continue
		}
		if q.full = slices.DeleteFunc(q.full, func(r fullRing) bool { return !d.isInForce(r.by) }); len(q.full) == 0 {
			run = append(run, q)
		}
	}
	return run
}

// take gives a command that meets a fault a record and sends it on its way.
func (d *Device) take(q *queue, position uint32, c *Command, fill func(*hold)) treatment {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.gate.Load()&gateDead != 0 {
		return treatmentTaken // dropped
	}
	if d.isAbortedLocked(q, position, c) {
		return treatmentAborted
	}
	rec := d.newRecordLocked(q, position, c)
	if rec.hold == nil {
		rec.hold = new(hold)
	}
	h := rec.hold
	rec.held = true
	fill(h)
	h.stage, h.by, h.heapIndex = stageArrived, nil, notInHeap
	q.raise |= d.proceedLocked(rec)
	return treatmentTaken
}

// executeHeld runs a command as its decision says. The caller is a worker.
func (x *executor) executeHeld(d *Device, rec *record, out *Completion, t *tally) {
	h := rec.hold
	dec := &h.decision
	out.set(rec.cmd.Tag, CodeExecuted)
	switch dec.End {
	case fault.EndNoDevice:
		out.Code, out.Flags = CodeNoDevice, CompletionInjected
	case fault.EndDone:
		x.neverDone(d, rec, out)
	case fault.EndNot:
		x.executeOtherwise(d, h, rec.cmd, out, t)
	case fault.EndStatus:
	}
	met := out.Code == CodeExecuted && scsi.Status(out.ScsiStatus) == scsi.StatusConditionMet // a PRE-FETCH is done, too
	if dec.Status != scsi.StatusGood && (out.isGood() || met) {
		out.ScsiStatus, out.Flags = uint8(dec.Status), CompletionInjected
		if dec.Status == scsi.StatusCheckCondition {
			d.putSense(out, h.unit, &dec.Sense)
		}
	}
}

// executeWatched executes a command that met no fault, while rules look at what it may
// overwrite: they may have come since. The caller is a worker.
func (x *executor) executeWatched(d *Device, plan *fault.Plan, c *Command, out *Completion, t *tally) {
	if !c.valid() {
		x.run(d, c, out, t, true)
		return
	}
	h := hold{command: x.describe(d, plan, c), unit: plan.Unit()}
	x.executeOtherwise(d, &h, *c, out, t)
}

// executeOtherwise executes a command in the way that its decision says.
func (x *executor) executeOtherwise(d *Device, h *hold, c Command, out *Completion, t *tally) {
	dec := &h.decision
	dec.Watch(d.planOf(&c), &h.command) // rules may have come since the command did
	var old []overwritten
	if dec.Overwrites() {
		old = d.overwrites(h)
	}
	ignored := dec.NoFUA && c.CDBBytes > 6 && c.CDB[1]&scsi.CDBFUA != 0
	if ignored {
		c.CDB[1] &^= scsi.CDBFUA
	}
	if dec.Redirect {
		scsi.SetLBA(&c.CDB, dec.Target)
	}
	if dec.Short {
		c.setBlocks(uint32(dec.Keep))
	}
	x.inMemory = dec.Corrupts()
	x.run(d, &c, out, t, true)
	x.inMemory = false
	if !out.isGood() {
		return
	}
	if dec.Overwrites() {
		x.wrote(d, h, old)
	}
	if dec.Short {
		out.Flags |= CompletionInjected
	}
	switch {
	case h.command.Op == fault.OpWrite && (ignored || dec.Redirect):
		d.doneOtherwise(h, &c, ignored)
	case ignored:
		d.ignoredByRead(h)
	}
	if dec.Corrupts() && x.live(d.iommu, dma.Write) {
		dec.Corrupt(&h.command, int(h.unit.BlockBytes), x.segments)
	}
}

// setBlocks changes the transfer length of a READ or WRITE. Six bytes of CDB cannot say 0,
// ten can.
func (c *Command) setBlocks(n uint32) {
	op := scsi.Opcode(c.CDB[0])
	if n != 0 || c.CDBBytes < 6 || scsi.CDBBytes(op) != 6 {
		scsi.SetBlocks(&c.CDB, n)
		return
	}
	lba, _, _ := scsi.BlockRange(&c.CDB)
	control := c.CDB[5]
	put := scsi.PutRead10
	if op == scsi.OpWrite6 {
		put = scsi.PutWrite10
	}
	c.CDBBytes = uint8(put(&c.CDB, uint32(lba), 0, false, false))
	c.CDB[9] = control
}

// isGood reports whether the unit has executed the command, with status GOOD.
func (c *Completion) isGood() bool {
	return c.Code == CodeExecuted && c.ScsiStatus == uint8(scsi.StatusGood)
}

// spoilReply requests what a decision says is to happen to the client's reply.
func (c *Completion) spoilReply(dec *fault.Decision) {
	if dec.BadCookie {
		c.Flags |= CompletionBadCookie
	}
	f := dec.CutReply
	if f == nil {
		return
	}
	c.Flags |= CompletionCutReply
	c.ReplyBytes = HalfReply
	if after := f.Rule().Action.After; after != nil {
		c.ReplyBytes = uint32(*after)
	}
}

// An overwritten is what the blocks from lba on held before a write, for a rule that
// keeps it.
type overwritten struct {
	keeper *fault.Versions
	lba    uint64
	data   []byte
}

// overwrites reads what a write is about to overwrite.
func (d *Device) overwrites(h *hold) (all []overwritten) {
	unit := d.unitAt(h.unit)
	if unit == nil {
		return nil
	}
	for _, v := range h.decision.Keepers(&h.command) {
		lba, blocks, ok := h.decision.Clip(v, &h.command)
		if !ok {
			continue
		}
		old := make([]byte, blocks*uint64(h.unit.BlockBytes))
		if _, err := unit.Medium().ReadAt(old, int64(lba)*int64(h.unit.BlockBytes)); err == nil {
			all = append(all, overwritten{v, lba, old})
		}
	}
	return all
}

// wrote shows rules what has been written, and what it has overwritten. For an UNMAP the
// ranges come from its list, which may have gaps.
func (x *executor) wrote(d *Device, h *hold, old []overwritten) {
	c := &h.command
	if c.Op != fault.OpTrim {
		lba := c.LBA
		if h.decision.Redirect {
			lba = h.decision.Target
		}
		h.wroteBlocks(lba, c.Blocks, old)
		return
	}
	if !x.live(d.iommu, dma.Read) {
		return
	}
	list := x.unmapList()
	n, ok := scsi.ParseUnmapHeader(list)
	for at := scsi.UnmapHeaderBytes; ok && n >= scsi.UnmapDescriptorBytes; n -= scsi.UnmapDescriptorBytes {
		var lba uint64
		var blocks uint32
		if lba, blocks, ok = scsi.ParseUnmapDescriptor(list[at:]); ok {
			h.wroteBlocks(lba, uint64(blocks), old)
		}
		at += scsi.UnmapDescriptorBytes
	}
}

// wroteBlocks is wrote for those of the blocks from lba on that the command has written.
func (h *hold) wroteBlocks(lba, blocks uint64, old []overwritten) {
	h.decision.Heal(&h.command, lba, blocks)
	blockBytes := uint64(h.unit.BlockBytes)
	lba, end := h.decision.Written(&h.command, lba, blocks)
	for _, o := range old {
		from, to := max(lba, o.lba), min(end, o.lba+uint64(len(o.data))/blockBytes)
		if from < to {
			o.keeper.Keep(from, o.data[(from-o.lba)*blockBytes:(to-o.lba)*blockBytes])
		}
	}
}

// Handshake has the rules of a unit examine a client that is about to get the unit. If
// the client has to wait, over is called when the wait has ended, unless stop is called
// first; otherwise stop is nil and over is not called.
//
// Concurrency: any goroutine.
func (d *Device) Handshake(targetID, lun uint8, over func()) (stop func() bool) {
	table := d.faults.Load()
	if table == nil {
		return nil
	}
	var dec fault.Decision
	if p := table.plan(targetID, lun); p == nil || !p.Decide(&fault.Command{Op: fault.OpHandshake}, d.clock.Now(), &dec) || dec.Delay == 0 {
		return nil
	}
	return d.clock.AfterFunc(dec.Delay, over)
}

// controlFails has the rules examine an abort or reset, and reports whether they have
// dealt with it.
func (d *Device) controlFails(q *queue, position uint32, c *Command) bool {
	plan := d.planOf(c)
	if plan == nil {
		return false
	}
	cmd := fault.Command{Op: fault.OpAbort}
	switch c.Opcode {
	case OpResetLun:
		cmd.Op = fault.OpResetLun
	case OpResetTarget:
		cmd.Op = fault.OpResetTarget
	case OpAbort, OpExecute:
	}
	var dec fault.Decision
	if !plan.Decide(&cmd, d.clock.Now(), &dec) || dec.ResetFails == nil {
		return false
	}
	code := CodeControlFailed
	if dec.Silent {
		treated := d.take(q, position, c, func(h *hold) {
			*h = hold{decision: fault.Decision{Lost: dec.ResetFails}}
			h.out.set(c.Tag, code)
		})
		if treated == treatmentTaken {
			return true
		}
		code = CodeAborted
	}
	d.mu.Lock()
	q.raise |= d.postLocked(q, c.Tag, code)
	d.mu.Unlock()
	return true
}

// resetFailsLocked has the rules examine a reset of the whole device.
//
// +checklocks:d.mu
func (d *Device) resetFailsLocked() bool {
	table := d.faults.Load()
	if table == nil {
		return false
	}
	var dec fault.Decision
	return table.set.Bus().Decide(&fault.Command{Op: fault.OpResetBus}, d.clock.Now(), &dec) && dec.ResetFails != nil
}

// SetFaults puts rules into force in place of the previous ones; nil means none. Rules
// apply only to units that are attached or unplugged. Whatever rules that are gone have
// held goes on, in a ring as well; lost answers are given, and suppressed interrupts are
// raised.
//
// Concurrency: any goroutine.
func (d *Device) SetFaults(s *fault.Set) {
	d.mu.Lock()
	if s == nil || len(s.Faults()) == 0 {
		d.faults.Store(nil)
	} else {
		d.faults.Store(d.newFaultTable(s))
	}
	d.resetStuck = false
	emptied := d.emptyRingsLocked()
	d.updateGatesLocked()
	for _, q := range emptied {
		q.runLater()
	}
	_, raise := d.letGoLocked(-1, func(h *hold) bool {
		if h.by != nil {
			return !d.isInForce(h.by)
		}
		return !d.areInForce(h.decision.Fired()) // any of them may have contributed to the delay
	})
	for f, queues := range d.muted {
		if !d.isInForce(f) {
			raise |= queues
			delete(d.muted, f)
		}
	}
	d.endHauntingsLocked(func(h *haunting) bool { return !d.isInForce(h.by) })
	d.setTimersLocked(s)
	d.mu.Unlock()
	d.interruptLater(raise)
	d.undoTriggers(func(u *undo) bool { return !d.isInForce(u.fault) })
}

// isInForce reports whether a fault is in force. That does not change while the caller
// holds mu.
func (d *Device) isInForce(f *fault.Fault) bool { return d.Faults().Fault(f.Rule().Name) == f }

func (d *Device) areInForce(faults []*fault.Fault) bool {
	return !slices.ContainsFunc(faults, func(f *fault.Fault) bool { return !d.isInForce(f) })
}

// Faults returns the rules in force; nil if there are none.
func (d *Device) Faults() *fault.Set {
	if t := d.faults.Load(); t != nil {
		return t.set
	}
	return nil
}

// Now is the time on the clock that rules go by.
func (d *Device) Now() time.Duration { return d.clock.Now() }

// ReleaseHeld lets up to n commands that f holds go on, the longest held first; all of
// them if n is zero. It returns how many. Commands that f meets later are held again.
//
// Concurrency: any goroutine.
func (d *Device) ReleaseHeld(f *fault.Fault, n int) int {
	if n == 0 {
		n = -1
	}
	d.mu.Lock()
	released, raise := d.letGoLocked(n, func(h *hold) bool { return h.by == f })
	d.mu.Unlock()
	d.interruptLater(raise)
	return released
}
