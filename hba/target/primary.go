package target

import (
	"github.com/vhbad/vhbad/internal/scsi"
)

// inquiry is INQUIRY; SPC-4 6.6.
func (u *Unit) inquiry(t *Task) {
	n, _ := scsi.AllocationBytes(&t.CDB)
	var b [512]byte
	length := 0
	page := scsi.VPDPage(t.CDB[2])
	switch t.CDB[1] {
	case 0:
		if page != 0 {
			u.invalidCDB(t, 2)
			return
		}
		length = scsi.PutInquiryData(b[:], &scsi.Inquiry{
			Peripheral: scsi.PeripheralDisk, CommandQueuing: true,
			Vendor: u.config.Vendor, Product: u.config.Product, Revision: u.config.Revision,
		})
	case scsi.CDBEVPD:
		if length = u.putVPD(b[:], page); length == 0 {
			u.invalidCDB(t, 2)
			return
		}
	default:
		u.invalidCDB(t, 1)
		return
	}
	in := t.dataIn(n)
	in.put(b[:length])
}

// vpdPages is the list of pages; the last one is there only with logical block
// provisioning.
var vpdPages = []scsi.VPDPage{
	scsi.VPDSupportedPages, scsi.VPDUnitSerialNumber, scsi.VPDDeviceIdentification,
	scsi.VPDBlockLimits, scsi.VPDBlockCharacteristics, scsi.VPDLogicalBlockProvisioning,
}

// putVPD writes a page of vital product data and returns its length, 0 if there
// is no such page.
func (u *Unit) putVPD(b []byte, page scsi.VPDPage) int {
	switch page {
	case scsi.VPDSupportedPages:
		pages := vpdPages
		if !u.provisioned {
			pages = pages[:len(pages)-1]
		}
		return scsi.PutVPDSupportedPages(b, pages)
	case scsi.VPDUnitSerialNumber:
		return scsi.PutVPDSerial(b, u.config.Serial)
	case scsi.VPDDeviceIdentification:
		return scsi.PutVPDIdentification(b, &u.identification)
	case scsi.VPDBlockLimits:
		return scsi.PutVPDBlockLimits(b, u.blockLimits())
	case scsi.VPDBlockCharacteristics:
		c := scsi.BlockCharacteristics{RotationRate: scsi.RotationNone}
		if u.config.Rotational {
			c.RotationRate = 7200
		}
		return scsi.PutVPDBlockCharacteristics(b, &c)
	case scsi.VPDLogicalBlockProvisioning:
		if !u.provisioned {
			return 0
		}
		// A read-only unit has holes, but nothing makes new ones.
		return scsi.PutVPDProvisioning(b, &scsi.Provisioning{
			Unmap: u.thin, WriteSame16: u.thin, WriteSame10: u.thin, ReadZeros: true, Anchor: u.anchor, Thin: true,
		})
	}
	return 0
}

func (u *Unit) blockLimits() *scsi.BlockLimits {
	l := &scsi.BlockLimits{
		WriteSameNonZero:   true,
		MaxCompareAndWrite: u.maxCompare,
		OptimalGranularity: uint16(min(u.config.PhysicalBlockBytes>>u.shift, 1<<16-1)),
		MaxTransfer:        u.maxBlocks,
	}
	if !u.config.ReadOnly {
		l.MaxWriteSame = maxWriteSameBytes >> u.shift
	}
	if u.thin {
		l.MaxUnmap, l.MaxUnmapDescriptors = maxUnmapBlocks, maxUnmapDescriptors
		l.OptimalUnmap = max(u.config.PhysicalBlockBytes, 4096) >> u.shift
		l.UnmapAlignmentValid = true
	}
	return l
}

// requestSense is REQUEST SENSE; SPC-4 6.39. Sense data are delivered along with CHECK
// CONDITION, so all that is left to report is the unit's condition.
func (u *Unit) requestSense(t *Task) {
	s := scsi.Sense{Key: scsi.KeyNoSense, Additional: scsi.NoAdditionalSense}
	if code, ok := u.takeAttention(); ok {
		s = scsi.Sense{Key: scsi.KeyUnitAttention, Additional: code}
	} else if u.conditions.Load()&conditionStopped != 0 {
		s = scsi.Sense{Key: scsi.KeyNotReady, Additional: scsi.NotReadyInitializingRequired}
	}
	putSenseData(t, &s)
}

// reportLUNs is REPORT LUNS, which the target answers. A unit that is not attached to
// one knows only of itself.
func (u *Unit) reportLUNs(t *Task) {
	at := u.target.Load()
	if at == nil {
		at = NewTarget()
		units := [MaxUnits]*Unit{0: u}
		at.units.Store(&units)
	}
	if field, ok := at.reportLUNs(t); !ok {
		u.invalidCDB(t, int(field))
	}
}

// startStop is START STOP UNIT; SBC-3 5.25. Stopping flushes first.
func (u *Unit) startStop(t *Task, mayBlock bool) (done bool) {
	how := t.CDB[4]
	if how&(scsi.StartStopPowerCondition|scsi.StartStopLoadEject) != 0 {
		u.invalidCDB(t, 4)
		return true
	}
	if how&scsi.StartStopStart != 0 {
		u.setStopped(t, false)
		return true
	}
	if how&scsi.StartStopNoFlush == 0 {
		if !u.mayRun(mayBlock, 0) {
			return false
		}
		if !u.flushFor(t) {
			return true
		}
	}
	u.setStopped(t, true)
	return true
}

// setStopped sets or clears conditionStopped on behalf of t, unless the power has gone
// since t came.
func (u *Unit) setStopped(t *Task, stopped bool) {
	u.cycleMu.Lock()
	defer u.cycleMu.Unlock()
	if u.powerCycles.Load() != t.cycle {
		return
	}
	if stopped {
		u.conditions.Or(conditionStopped)
	} else {
		u.conditions.And(^conditionStopped)
	}
}
