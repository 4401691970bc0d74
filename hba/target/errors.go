package target

import (
	"errors"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/scsi"
)

// fail ends t with CHECK CONDITION. Sense data are in fixed format, except on units
// whose addresses do not fit it; D_SENSE in the control mode page says which.
func (u *Unit) fail(t *Task, s scsi.Sense) { t.fail(s, u.DescriptorSense()) }

// DescriptorSense reports whether sense data are in descriptor format. That changes with
// the capacity.
//
// Concurrency: any goroutine.
func (u *Unit) DescriptorSense() bool { return u.blocks.Load() > 1<<32 }

func (u *Unit) failCode(t *Task, key scsi.SenseKey, code scsi.Additional) {
	u.fail(t, scsi.Sense{Key: key, Additional: code})
}

// invalidCDB ends t because of byte field of its CDB.
func (u *Unit) invalidCDB(t *Task, field int) {
	u.fail(t, scsi.Sense{
		Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInCDB,
		FieldValid: true, FieldInCDB: true, Field: uint16(field),
	})
}

// invalidList ends t because of byte field of its parameter list.
func (u *Unit) invalidList(t *Task, field int) {
	u.fail(t, scsi.Sense{
		Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInParameterList, FieldValid: true, Field: uint16(field),
	})
}

// invalidData ends t because its buffers do not fit its CDB: they are too short
// or of the wrong direction. Nothing is transferred then.
func (u *Unit) invalidData(t *Task) {
	u.failCode(t, scsi.KeyIllegalRequest, scsi.InvalidFieldInInformationUnit)
}

func (u *Unit) outOfRange(t *Task) {
	u.failCode(t, scsi.KeyIllegalRequest, scsi.LBAOutOfRange)
}

func (u *Unit) writeProtected(t *Task) {
	u.failCode(t, scsi.KeyDataProtect, scsi.WriteProtected)
}

// mediumFailed ends t because of the medium's error err. code tells reading from
// writing. lba is the block to blame if err does not say where it stopped, or names a
// place outside the blocks of t: a cache may have failed to make room.
func (u *Unit) mediumFailed(t *Task, err error, code scsi.Additional, lba uint64) {
	first, blocks, _ := scsi.BlockRange(&t.CDB)
	u.rangeFailed(t, err, code, lba, first, uint64(blocks))
}

// rangeFailed is mediumFailed for a part of t: the blocks from first on.
func (u *Unit) rangeFailed(t *Task, err error, code scsi.Additional, lba, first, blocks uint64) {
	var where *media.Error
	if errors.As(err, &where) && where.OffsetBytes >= 0 {
		if at := uint64(where.OffsetBytes) >> u.shift; at-first < blocks {
			lba = at
		}
	}
	switch {
	case errors.Is(err, media.ErrNoSpace):
		u.config.MediumFailed(err)
		u.fail(t, scsi.Sense{
			Key: scsi.KeyDataProtect, Additional: scsi.SpaceAllocationFailed, Information: lba, InformationValid: true,
		})
	case errors.Is(err, media.ErrReadOnly):
		u.writeProtected(t)
	case errors.Is(err, media.ErrRange): // it has just become smaller
		u.outOfRange(t)
	case errors.Is(err, media.ErrClosed):
		u.failCode(t, scsi.KeyHardwareError, scsi.InternalTargetFailure)
	case errors.Is(err, media.ErrPowerLost):
		u.notPowered(t)
	default:
		u.config.MediumFailed(err)
		u.fail(t, scsi.Sense{Key: scsi.KeyMediumError, Additional: code, Information: lba, InformationValid: true})
	}
}

// flushFailed ends t because the medium could not be flushed. Which blocks were
// lost is not known.
func (u *Unit) flushFailed(t *Task, err error) {
	switch {
	case errors.Is(err, media.ErrNoSpace):
		u.config.MediumFailed(err)
		u.failCode(t, scsi.KeyDataProtect, scsi.SpaceAllocationFailed)
	case errors.Is(err, media.ErrClosed):
		u.failCode(t, scsi.KeyHardwareError, scsi.InternalTargetFailure)
	case errors.Is(err, media.ErrPowerLost):
		u.notPowered(t)
	default:
		u.config.MediumFailed(err)
		u.failCode(t, scsi.KeyMediumError, scsi.WriteError)
	}
}
