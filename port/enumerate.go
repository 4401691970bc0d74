package port

import (
	"fmt"
	"slices"

	"github.com/vhbad/vhbad/internal/scsi"
)

// Enumeration asks every target which units it has and every unit what it is,
// over the same road as any request.

// enumTries bounds how often one enumeration command is sent: a unit attention
// or a reset takes one try each.
const enumTries = 5

// enumBufferBytes holds the list of 256 units.
const enumBufferBytes = scsi.ReportLUNsHeaderBytes + 256*scsi.LUNBytes

// Execute sends srb and waits until it has completed.
//
// Level: Passive, no lock held. It replaces srb's Completer.
func (lu *LogicalUnit) Execute(p *Processor, srb *SRB) {
	if !p.check(lu.a, routineExecute) {
		panic("port: Execute at " + p.level.String() + ": it waits")
	}
	done := make(waitCompleter, 1)
	srb.Completer = done
	lu.Submit(p, []*SRB{srb})
	<-done
}

// waitCompleter lets one goroutine wait for an SRB.
type waitCompleter chan struct{}

// CompleteSRB implements Completer.
func (c waitCompleter) CompleteSRB(*Processor, *SRB) { c <- struct{}{} }

// Enumerate looks for logical units, and tells OnUnitsChanged what came and
// went. New units are ready for SRBs when it returns; those that are gone
// complete what they get with StatusNoDevice.
//
// Level: Passive; concurrent calls take turns.
func (a *Adapter) Enumerate(p *Processor) error {
	if err := p.mayWait(a, routineEnumerate); err != nil {
		return err
	}
	a.enumMu.Lock()
	defer a.enumMu.Unlock()
	if a.state.Load() != adapterRunning {
		return fmt.Errorf("%s: enumerate: %w", a.options.Name, ErrAdapterStopped)
	}
	srb, err := a.NewSRB(1)
	if err != nil {
		return fmt.Errorf("%s: enumerate: %w", a.options.Name, err)
	}
	defer a.FreeSRB(srb)
	buffer := a.sys.iommu.Arena().Alloc(enumBufferBytes)
	if buffer == nil {
		return fmt.Errorf("%s: enumerate: no memory for %d bytes", a.options.Name, enumBufferBytes)
	}
	defer a.sys.iommu.Arena().Free(buffer)

	before := a.units.Load().list
	var now, added []*LogicalUnit
	for path := range a.config.NumberOfBuses {
		for target := range a.config.MaximumNumberOfTargets {
			found, err := a.enumerateTarget(p, srb, buffer, uint8(path), uint8(target))
			if err != nil {
				a.replaceUnits(before)
				return fmt.Errorf("%s: enumerate target %d:%d: %w", a.options.Name, path, target, err)
			}
			now = append(now, found...)
		}
	}
	var removed []*LogicalUnit
	for _, lu := range before {
		if !slices.Contains(now, lu) {
			removed = append(removed, lu)
		}
	}
	for _, lu := range now {
		if !slices.Contains(before, lu) {
			added = append(added, lu)
		}
	}
	if !a.replaceUnits(now) {
		return fmt.Errorf("%s: enumerate: %w", a.options.Name, ErrAdapterStopped)
	}
	controller, _ := a.miniport.(UnitController)
	for _, lu := range removed {
		a.detach(p, lu)
		a.unitControl(p, controller, UnitRemove, lu)
	}
	for _, lu := range added {
		a.unitControl(p, controller, UnitStart, lu)
	}
	a.mu.Lock()
	tell := a.onUnits
	a.mu.Unlock()
	if tell != nil && (len(added) > 0 || len(removed) > 0) {
		tell(added, removed)
	}
	return nil
}

func (a *Adapter) unitControl(p *Processor, c UnitController, t UnitControlType, lu *LogicalUnit) {
	if c == nil {
		return
	}
	e := p.enter(inUnitControl)
	c.UnitControl(p, t, lu)
	p.leave(e)
}

// enumerateTarget returns the units of one target.
func (a *Adapter) enumerateTarget(p *Processor, srb *SRB, buffer []byte, path, target uint8) ([]*LogicalUnit, error) {
	first := a.unitAt(path, target, 0)
	srb.CDBBytes = uint8(scsi.PutReportLUNs(&srb.CDB, uint32(len(buffer))))
	a.enumCommand(p, first, srb, buffer)
	switch srb.Status.Code() {
	case StatusSuccess, StatusDataOverrun:
	case StatusNoDevice, StatusInvalidLun, StatusInvalidTargetID, StatusSelectionTimeout:
		return nil, nil // nobody there
	default:
		return nil, fmt.Errorf("REPORT LUNS: %s", srb)
	}
	var present [256]bool
	if _, ok := scsi.ParseReportLUNs(buffer[:min(int(srb.DataTransferBytes), len(buffer))], &present); !ok {
		return nil, fmt.Errorf("REPORT LUNS: %d bytes make no list", srb.DataTransferBytes)
	}
	var units []*LogicalUnit
	for lun := range a.config.MaximumNumberOfLogicalUnits {
		if !present[lun] {
			continue
		}
		lu := a.unitAt(path, target, uint8(lun))
		srb.CDBBytes = uint8(scsi.PutInquiry(&srb.CDB, scsi.StandardInquiryBytes))
		a.enumCommand(p, lu, srb, buffer[:scsi.StandardInquiryBytes])
		code := srb.Status.Code()
		q, ok := scsi.ParseInquiryData(buffer[:min(int(srb.DataTransferBytes), scsi.StandardInquiryBytes)])
		if code != StatusSuccess && code != StatusDataOverrun || !ok || !q.Present() {
			continue
		}
		copy(lu.inquiry[:], buffer)
		units = append(units, lu)
	}
	return units, nil
}

// unitAt returns the unit at an address, or a new one if there is none in
// service. A new one is put into the table at once: its commands must be timed
// and started like any, and the miniport may call SetDeviceQueueDepth at the
// first INQUIRY.
func (a *Adapter) unitAt(path, target, lun uint8) *LogicalUnit {
	old := a.unit(path, target, lun)
	if old != nil && old.gate.Load()&gateRemoved == 0 {
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
	if a.gate.Load()&gateGone != 0 {
		lu.gate.Store(gateRemoved) // nobody else knows it yet
		return
	}
	list := slices.DeleteFunc(slices.Clone(a.units.Load().list), func(u *LogicalUnit) bool { return u == old })
	a.units.Store(&unitTable{list: append(list, lu)})
}

// replaceUnits makes list the table. False: the adapter is gone.
func (a *Adapter) replaceUnits(list []*LogicalUnit) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gate.Load()&gateGone != 0 {
		return false
	}
	a.units.Store(&unitTable{list: list})
	return true
}

// forget takes a unit out of the table.
func (a *Adapter) forget(lu *LogicalUnit) {
	a.enumMu.Lock()
	defer a.enumMu.Unlock()
	a.replaceUnits(slices.DeleteFunc(a.LogicalUnits(), func(u *LogicalUnit) bool { return u == lu }))
}

// enumCommand sends the command in srb's CDB, which reads into data.
func (a *Adapter) enumCommand(p *Processor, lu *LogicalUnit, srb *SRB, data []byte) {
	for range enumTries {
		clear(data)
		srb.Function = FunctionExecuteScsi
		srb.Flags = FlagDataIn | FlagNoQueueFreeze | FlagQueueActionEnable
		srb.QueueAction = SimpleTag
		srb.DataBuffers[0] = data
		srb.DataTransferBytes = uint32(len(data))
		lu.Execute(p, srb)
		switch srb.Status.Code() {
		case StatusError, StatusBusReset, StatusAborted, StatusTimeout, StatusBusy:
		default:
			return
		}
	}
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
	a.worker.post(func(p *Processor) {
		a.mu.Lock()
		a.rescanQueued = false
		a.mu.Unlock()
		if err := a.Enumerate(p); err != nil {
			a.sys.log.Error("enumeration after a bus change", "adapter", a.options.Name, "error", err)
		}
	})
}
