package target

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vhbad/vhbad/internal/scsi"
)

// MaxUnits is how many units a target can have: numbers 0 to MaxUnits-1.
const MaxUnits = 256

// A Target is a set of logical units by number.
type Target struct {
	mu sync.Mutex // serialises changes of units

	// units is the table, replaced as a whole: index is the unit's number.
	units atomic.Pointer[[MaxUnits]*Unit]

	// reported says that the list of units has been read, so that changes must be
	// reported.
	reported atomic.Bool
}

// NewTarget returns a target without units.
func NewTarget() *Target {
	t := &Target{}
	t.units.Store(new([MaxUnits]*Unit))
	return t
}

// Unit is the logical unit at lun, or nil.
//
// Concurrency: any goroutine.
func (t *Target) Unit(lun uint8) *Unit { return t.units.Load()[lun] }

// AddUnit attaches u at lun. Other units report that the list has changed.
//
// Errors: lun is taken, or u is attached already.
func (t *Target) AddUnit(lun uint8, u *Unit) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	units := *t.units.Load()
	if units[lun] != nil {
		return fmt.Errorf("target: logical unit %d is there already", lun)
	}
	if !u.target.CompareAndSwap(nil, t) {
		return fmt.Errorf("target: unit %q is attached already", u.config.Serial)
	}
	with := units
	with[lun] = u
	t.units.Store(&with)
	t.tellLocked(&units) // after that: see reportLUNs
	return nil
}

// RemoveUnit detaches the unit at lun. Commands that it already has keep running; the
// caller waits for them before it closes the medium. Other units report that the list
// has changed.
//
// Errors: there is no unit at lun.
func (t *Target) RemoveUnit(lun uint8) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	units := *t.units.Load()
	u := units[lun]
	if u == nil {
		return fmt.Errorf("target: no logical unit %d to remove", lun)
	}
	units[lun] = nil
	t.units.Store(&units)
	u.target.Store(nil)
	t.tellLocked(&units)
	return nil
}

// tellLocked sets the unit attention for a changed list on every unit.
//
// +checklocks:t.mu
func (t *Target) tellLocked(units *[MaxUnits]*Unit) {
	if !t.reported.Load() {
		return
	}
	for _, u := range units {
		if u != nil {
			u.conditions.Or(attentionLUNs)
		}
	}
}

// Execute runs task on the unit at lun, or answers for an address without one.
// See Unit.Execute.
//
// Concurrency: any number of calls, each with its own task.
func (t *Target) Execute(lun uint8, task *Task, mayBlock bool) (done bool) {
	if u := t.units.Load()[lun]; u != nil {
		return u.Execute(task, mayBlock)
	}
	t.executeAbsent(task)
	return true
}

// executeAbsent is the device server of addresses without a unit: SPC-4 4.5.2
// wants INQUIRY, REPORT LUNS and REQUEST SENSE to work there.
func (t *Target) executeAbsent(task *Task) {
	task.Status, task.TransferredBytes, task.SenseBytes, task.NoPower = scsi.StatusGood, 0, 0, false
	notSupported := scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.LogicalUnitNotSupported}
	op := scsi.Opcode(task.CDB[0])
	n, _ := scsi.AllocationBytes(&task.CDB)
	switch {
	case task.CDBBytes < scsi.CDBBytes(op):
		task.fail(notSupported, false)
	case op == scsi.OpInquiry:
		if task.CDB[1] != 0 || task.CDB[2] != 0 {
			task.fail(scsi.Sense{
				Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInCDB,
				FieldValid: true, FieldInCDB: true, Field: 1,
			}, false)
			return
		}
		var b [scsi.StandardInquiryBytes]byte
		scsi.PutInquiryData(b[:], &scsi.Inquiry{
			Peripheral: scsi.PeripheralAbsent, Vendor: defaultVendor, Product: defaultProduct, Revision: defaultRevision,
		})
		in := task.dataIn(n)
		in.put(b[:])
	case op == scsi.OpReportLUNs:
		if field, ok := t.reportLUNs(task); !ok {
			task.fail(scsi.Sense{
				Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInCDB,
				FieldValid: true, FieldInCDB: true, Field: field,
			}, false)
		}
	case op == scsi.OpRequestSense:
		putSenseData(task, &notSupported)
	default:
		task.fail(notSupported, false)
	}
}

// putSenseData answers REQUEST SENSE with s.
func putSenseData(task *Task, s *scsi.Sense) {
	var b [SenseMaxBytes]byte
	n := 0
	if task.CDB[1]&scsi.CDBDESC != 0 {
		n = scsi.PutDescriptorSense(b[:], s)
	} else {
		n = scsi.PutFixedSense(b[:], s)
	}
	in := task.dataIn(uint32(task.CDB[4]))
	in.put(b[:n])
}

// Values of SELECT REPORT; SPC-4 table 296.
const (
	reportAddressable = 0x00
	reportWellKnown   = 0x01
	reportAll         = 0x02
)

// reportLUNsMinBytes is the shortest allocation length that REPORT LUNS takes.
const reportLUNsMinBytes = 16

// reportLUNs answers REPORT LUNS, or names the byte of the CDB that is wrong.
func (t *Target) reportLUNs(task *Task) (field uint16, ok bool) {
	n, _ := scsi.AllocationBytes(&task.CDB)
	if n < reportLUNsMinBytes {
		return 6, false
	}
	var units *[MaxUnits]*Unit
	switch task.CDB[2] {
	case reportAddressable, reportAll:
		// Before the list is read: a change is in the table before the units are told,
		// so that any change missing from this list will be reported.
		t.reported.Store(true)
		for _, u := range t.units.Load() {
			if u != nil {
				u.conditions.And(^attentionLUNs)
			}
		}
		units = t.units.Load()
	case reportWellKnown: // there are none
		units = new([MaxUnits]*Unit)
	default:
		return 2, false
	}
	count := 0
	for _, u := range units {
		if u != nil {
			count++
		}
	}
	in := task.dataIn(n)
	var b [scsi.LUNBytes]byte
	scsi.PutReportLUNsHeader(b[:], count)
	in.put(b[:])
	for lun, u := range units {
		if u != nil {
			scsi.PutLUN(b[:], uint8(lun))
			in.put(b[:])
		}
	}
	return 0, true
}
