package port

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// Enumeration asks every target which units it has and every unit what it is,
// over the same road as any request.

// enumTries bounds how often one enumeration command is sent: a unit attention
// or a reset takes one try each.
const enumTries = 5

// enumBufferBytes holds the list of 256 units.
const enumBufferBytes = scsi.ReportLUNsHeaderBytes + 256*scsi.LUNBytes

// Enumerate looks for logical units, and tells OnUnitsChanged which came and
// went. New units are ready for SRBs when it returns; those that are gone
// complete SRBs with StatusNoDevice. If some address has not said what is there, the
// port enumerates again by itself: after 1 s, then after twice the previous delay, up to
// ResetTimeout or the SRBs' time-out, whichever is less. If the adapter is stopped, it
// enumerates when restarted. The error is that of the first target that failed; the
// others are enumerated nevertheless.
//
// Level: Passive, not in UnitControl or OnUnitsChanged's function; concurrent calls take turns.
func (a *Adapter) Enumerate(p *Processor) error {
	if err := p.mayWait(a, routineEnumerate); err != nil {
		return err
	}
	<-a.enumTurn
	defer func() { a.enumTurn <- struct{}{} }()
	a.mu.Lock()
	state := a.state.Load()
	a.enumAtRestart = a.enumAtRestart || state == adapterStopped
	a.mu.Unlock()
	if state != adapterRunning {
		return fmt.Errorf("%s: enumerate: %w", a.options.Name, ErrAdapterStopped)
	}
	c := &census{a: a}
	defer c.free()
	err := a.takeCensus(p, c)
	if missed := cmp.Or(err, c.missed); missed == nil {
		a.enumerateNoMore()
	} else if !errors.Is(missed, ErrAdapterStopped) && a.enumerateAgain() {
		a.sys.log.Warn("not every unit has been found out about: they are asked again", "adapter", a.options.Name, "error", missed)
	}
	if err != nil {
		return fmt.Errorf("%s: enumerate: %w", a.options.Name, err)
	}
	return nil
}

// takeCensus makes the table what c finds, and announces the changes. Of a target that
// cannot be asked, all known units stay.
func (a *Adapter) takeCensus(p *Processor, c *census) error {
	before := a.units.Load().list
	var now []*LogicalUnit
	var failed error
	for path := range a.config.NumberOfBuses {
		for target := range a.config.MaximumNumberOfTargets {
			found, err := c.target(p, uint8(path), uint8(target))
			if err != nil {
				found = a.unitsOf(uint8(path), uint8(target))
				failed = cmp.Or(failed, fmt.Errorf("target %d:%d: %w", path, target, err))
			}
			now = append(now, found...)
		}
	}
	removed, added := missingFrom(now, before), missingFrom(before, now)
	if !a.dropUnits(p, now) {
		return ErrAdapterStopped
	}
	controller, _ := a.miniport.(UnitController)
	for _, lu := range removed {
		a.unitControl(p, controller, UnitRemove, lu)
	}
	for _, lu := range added {
		a.unitControl(p, controller, UnitStart, lu)
	}
	a.mu.Lock()
	tell := a.onUnits
	a.mu.Unlock()
	if tell != nil && (len(added) > 0 || len(removed) > 0) {
		tellUnits(p, tell, added, removed)
	}
	return failed
}

// missingFrom returns the units that are not in list.
func missingFrom(list, units []*LogicalUnit) (missing []*LogicalUnit) {
	has := make(map[*LogicalUnit]bool, len(list))
	for _, lu := range list {
		has[lu] = true
	}
	for _, lu := range units {
		if !has[lu] {
			missing = append(missing, lu)
		}
	}
	return missing
}

// tellUnits tells OnUnitsChanged's function.
func tellUnits(p *Processor, tell func(added, removed []*LogicalUnit), added, removed []*LogicalUnit) {
	e := p.enter(inUnitsChanged)
	tell(added, removed)
	p.leave(e)
}

func (a *Adapter) unitControl(p *Processor, c UnitController, t UnitControlType, lu *LogicalUnit) {
	if c == nil {
		return
	}
	e := p.enter(inUnitControl)
	c.UnitControl(p, t, lu)
	p.leave(e)
}

// A census holds the SRB and the buffer that an enumeration asks with. They are made anew
// when the port gives the SRB up: then the old ones belong to the miniport.
type census struct {
	a      *Adapter
	srb    *SRB
	buffer []byte
	missed error // why there may be a unit that has not been found
}

func (c *census) make(p *Processor) (err error) {
	if c.srb != nil {
		return nil
	}
	srb, err := c.a.NewSRB(p)
	if err != nil {
		return err
	}
	buffer := c.a.sys.iommu.Arena().Alloc(enumBufferBytes)
	if buffer == nil {
		c.a.FreeSRB(srb)
		return fmt.Errorf("no memory for %d bytes", enumBufferBytes)
	}
	c.srb, c.buffer = srb, buffer
	return nil
}

func (c *census) free() {
	if c.srb != nil {
		c.a.FreeSRB(c.srb)
		c.a.sys.iommu.Arena().Free(c.buffer)
	}
}

// target returns the units of one target. It asks the unit at LUN 0; if that has been
// given up, or fails, it asks the other known units in turn, and at last an address
// without a unit, where REPORT LUNS works, too, if the target is well (SPC-4 4.5.2).
// If none answers, all known units stay; if none is known, a failure is an error.
func (c *census) target(p *Processor, path, target uint8) ([]*LogicalUnit, error) {
	first, known := c.a.unitAt(path, target, 0), c.a.unitsOf(path, target)
	var failed error
	for i, lu := range append([]*LogicalUnit{first}, known...) {
		if i > 0 && lu == first {
			continue
		}
		answered, err := c.reportLUNs(p, lu)
		if err != nil {
			return nil, err
		}
		if !answered {
			continue
		}
		switch {
		case c.hasData():
			return c.list(p, path, target)
		case c.saysNobody():
			if lu == first {
				return nil, nil
			}
		default:
			failed = fmt.Errorf("REPORT LUNS: %s", c.srb)
		}
	}
	if lu := c.a.absentAt(path, target); lu != nil {
		switch answered, err := c.reportLUNs(p, lu); {
		case err != nil:
			return nil, err
		case answered && c.hasData():
			return c.list(p, path, target)
		}
	}
	if c.missed = fmt.Errorf("target %d:%d does not say which units it has", path, target); len(known) == 0 {
		return nil, failed
	}
	return known, nil
}

// hasData reports whether the last command has read data, perhaps fewer than asked for.
func (c *census) hasData() bool {
	code := c.srb.Status.Code()
	return code == StatusSuccess || code == StatusDataOverrun
}

// saysNobody reports whether the last command has found no unit at its address.
func (c *census) saysNobody() bool {
	switch c.srb.Status.Code() {
	case StatusNoDevice, StatusInvalidLun, StatusInvalidTargetID, StatusSelectionTimeout:
		return true
	default:
		return false
	}
}

// reportLUNs asks a unit which units its target has. False: it has been given up.
func (c *census) reportLUNs(p *Processor, lu *LogicalUnit) (answered bool, err error) {
	if lu.givenUp() {
		return false, nil
	}
	if err := c.make(p); err != nil {
		return false, err
	}
	c.srb.CDBBytes = uint8(scsi.PutReportLUNs(&c.srb.CDB, enumBufferBytes))
	// If it is given up now, it may be the port that has answered.
	return c.command(p, lu, enumBufferBytes) && !lu.givenUp(), nil
}

// list sends INQUIRY to the units in the answer to REPORT LUNS, and returns those that
// are present.
func (c *census) list(p *Processor, path, target uint8) ([]*LogicalUnit, error) {
	var present [256]bool
	if _, ok := scsi.ParseReportLUNs(c.buffer[:min(int(c.srb.DataTransferBytes), len(c.buffer))], &present); !ok {
		return nil, fmt.Errorf("REPORT LUNS: %d bytes make no list", c.srb.DataTransferBytes)
	}
	var units []*LogicalUnit
	for lun := range c.a.config.MaximumNumberOfLogicalUnits {
		if !present[lun] {
			continue
		}
		lu := c.a.unitAt(path, target, uint8(lun))
		is, err := c.isUnit(p, lu)
		if err != nil {
			return nil, err
		}
		if is {
			units = append(units, lu)
		}
	}
	return units, nil
}

// isUnit sends INQUIRY to a unit, and reports whether it is present. A known unit stays
// until it, or the adapter, says that it is gone: it may be without power.
func (c *census) isUnit(p *Processor, lu *LogicalUnit) (bool, error) {
	if err := c.make(p); err != nil {
		return false, err
	}
	srb := c.srb
	srb.CDBBytes = uint8(scsi.PutInquiry(&srb.CDB, scsi.StandardInquiryBytes))
	if !c.command(p, lu, scsi.StandardInquiryBytes) || lu.givenUp() {
		return c.isStill(lu), nil
	}
	if c.saysNobody() {
		return false, nil
	}
	if !c.hasData() {
		return c.isStill(lu), nil
	}
	q, ok := scsi.ParseInquiryData(c.buffer[:min(int(srb.DataTransferBytes), scsi.StandardInquiryBytes)])
	if !ok || !q.Present() {
		return false, nil
	}
	data := [scsi.StandardInquiryBytes]byte(c.buffer)
	if old := lu.inquiry.Load(); old == nil || *old != data {
		lu.inquiry.Store(&data)
	}
	return true, nil
}

// isStill is isUnit for a unit that does not answer now: it stays if it ever has.
func (c *census) isStill(lu *LogicalUnit) bool {
	if !lu.answered() {
		c.missed = fmt.Errorf("%s does not say what it is", lu)
	}
	return lu.answered()
}

// answered reports whether the unit has ever said what it is.
func (lu *LogicalUnit) answered() bool { return lu.inquiry.Load() != nil }

// unitsOf returns the units of a target that are known.
func (a *Adapter) unitsOf(path, target uint8) (units []*LogicalUnit) {
	for _, lu := range a.units.Load().list {
		if lu.path == path && lu.target == target && lu.answered() {
			units = append(units, lu)
		}
	}
	return units
}

// absentAt returns a new unit at an address of the target where none is known, or nil if
// there is no such address.
func (a *Adapter) absentAt(path, target uint8) *LogicalUnit {
	for lun := a.config.MaximumNumberOfLogicalUnits - 1; lun >= 0; lun-- {
		if lu := a.unit(path, target, uint8(lun)); lu == nil || lu.removed() {
			return a.unitAt(path, target, uint8(lun))
		}
	}
	return nil
}

// unitAt returns the unit at an address, or a new one if there is none in
// service. A new one is put into the table at once: its commands must be timed
// and started like any others, and the miniport may call SetDeviceQueueDepth at the
// first INQUIRY.
func (a *Adapter) unitAt(path, target, lun uint8) *LogicalUnit {
	old := a.unit(path, target, lun)
	if old != nil && !old.removed() {
		return old
	}
	lu := &LogicalUnit{a: a, path: path, target: target, lun: lun, depth: a.config.InitialLunQueueDepth, timeLeft: -1}
	if n := a.config.LuExtensionBytes; n > 0 {
		lu.Extension = make([]byte, n)
	}
	a.publish(lu, old)
	return lu
}

// publish puts a unit into the table, in the place of old if that is not nil.
func (a *Adapter) publish(lu, old *LogicalUnit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.unitsEndedLocked() {
		lu.gate.Store(gateRemoved) // nobody else knows it yet
		return
	}
	list := slices.DeleteFunc(slices.Clone(a.units.Load().list), func(u *LogicalUnit) bool { return u == old })
	a.replaceUnitsLocked(append(list, lu))
}

// replaceUnitsLocked makes list the table's list; units that were in the old one only
// have left. Listed or left, a unit stays in the table until it is idle.
//
// +checklocks:a.mu
func (a *Adapter) replaceUnitsLocked(list []*LogicalUnit) (dropped []*LogicalUnit) {
	dropped = missingFrom(list, a.units.Load().all)
	a.units.Store(newUnitTable(list, dropped))
	return dropped
}

// unitsEndedLocked reports whether the adapter is gone or has failed: failUnits has ended
// all units, or will.
//
// +checklocks:a.mu
func (a *Adapter) unitsEndedLocked() bool {
	return a.gate.Load()&gateGone != 0 || a.state.Load() == adapterFailed
}

// dropUnits makes list the table's list, and detaches units that were in the old one
// only. False: the adapter is gone or has failed.
//
// Level: Passive.
func (a *Adapter) dropUnits(p *Processor, list []*LogicalUnit) bool {
	a.mu.Lock()
	if a.unitsEndedLocked() {
		a.mu.Unlock()
		return false
	}
	dropped := a.replaceUnitsLocked(list)
	a.mu.Unlock()
	for _, lu := range dropped {
		if !lu.removed() {
			a.detach(p, lu)
		}
	}
	return true
}

// forget takes a detached unit out of the table's list and announces its removal, unless
// an enumeration has already.
func (a *Adapter) forget(p *Processor, lu *LogicalUnit) {
	<-a.enumTurn
	defer func() { a.enumTurn <- struct{}{} }()
	a.mu.Lock()
	list := a.LogicalUnits()
	i := slices.Index(list, lu)
	if i < 0 || a.gate.Load()&gateGone != 0 {
		a.mu.Unlock()
		return
	}
	a.replaceUnitsLocked(slices.Delete(list, i, i+1))
	tell := a.onUnits
	a.mu.Unlock()
	controller, _ := a.miniport.(UnitController)
	a.unitControl(p, controller, UnitRemove, lu)
	if tell != nil {
		tellUnits(p, tell, nil, []*LogicalUnit{lu})
	}
}

// command sends the command in the SRB's CDB, which reads up to inBytes into the
// buffer. False: the port has given it up.
func (c *census) command(p *Processor, lu *LogicalUnit, inBytes int) bool {
	a, srb, buffer := c.a, c.srb, c.buffer
	for range enumTries {
		clear(buffer[:inBytes])
		srb.Function = FunctionExecuteScsi
		// A class driver that has one unit's queue closed does not keep the others from being found.
		srb.Flags = FlagDataIn | FlagNoQueueFreeze | FlagQueueActionEnable | FlagBypassFrozenQueue | FlagBypassLockedQueue
		srb.QueueAction = SimpleTag
		srb.DataBuffer = buffer[:inBytes]
		srb.DataTransferBytes = uint32(inBytes)
		back := lu.Execute(p, srb, func() {
			a.FreeSRB(srb)
			a.sys.iommu.Arena().Free(buffer)
		})
		if !back {
			c.srb, c.buffer = nil, nil
			return false
		}
		switch srb.Status.Code() {
		case StatusError, StatusBusReset, StatusAborted, StatusTimeout, StatusBusy:
		default:
			return true
		}
	}
	return true
}

// BusChangeDetected has the port enumerate again, soon and on a goroutine that
// may wait.
//
// Level: any.
// Source: storport.h StorPortNotification(BusChangeDetected).
func (a *Adapter) BusChangeDetected(*Processor) {
	a.mu.Lock()
	queued := a.rescanQueued
	a.rescanQueued = true
	a.mu.Unlock()
	if queued {
		return
	}
	a.enumerator.post(func(p *Processor) {
		a.mu.Lock()
		a.rescanQueued = false
		a.mu.Unlock()
		_ = a.Enumerate(p) // it is logged
	})
}

// enumerateAgain schedules another enumeration after one that has missed something.
// However many have, one timer runs. It reports whether this one is the first to miss
// something since an enumeration that did not.
func (a *Adapter) enumerateAgain() (first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.enumAgain != nil {
		return false
	}
	first = a.enumAgainIn == 0
	a.enumAgainIn = a.backOff(a.enumAgainIn)
	var timer *time.Timer
	timer = a.after(a.enumAgainIn, func(p *Processor) {
		a.mu.Lock()
		latest := a.enumAgain == timer
		if latest {
			a.enumAgain = nil
		}
		a.mu.Unlock()
		if latest {
			a.BusChangeDetected(p)
		}
	})
	a.enumAgain = timer
	return first
}

// enumerateNoMore cancels what enumerateAgain has scheduled.
func (a *Adapter) enumerateNoMore() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.enumAgain != nil {
		a.enumAgain.Stop() // too late: it sees that it is not the latest
	}
	a.enumAgain, a.enumAgainIn = nil, 0
}
