package disk

import (
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// verdict is what is to be done about a completed SRB.
type verdict uint8

const (
	verdictDone  verdict = iota // it worked
	verdictRetry                // send it again, a bounded number of times
	verdictFail                 // tell the client
)

// judge maps an SRB's outcome to a verdict and, for verdictFail and for a retry
// that is one too many, to the client's error. want is how many bytes had to be
// moved.
//
// Source of the division of labour: "Storage Class Driver's RetryRequest
// Routine": the port retries failures of the transport, the class driver those that the
// device reports, resets and timeouts.
func judge(srb *port.SRB, want uint32) (verdict, nbd.Errno) {
	switch srb.Status.Code() {
	case port.StatusSuccess:
		return judgeDone(srb, want)
	case port.StatusError:
		return judgeScsi(srb, want)
	case port.StatusBusy, port.StatusThrottledRequest, port.StatusInsufficientResources,
		port.StatusAborted, port.StatusBusReset, port.StatusTimeout, port.StatusCommandTimeout,
		port.StatusRequestFlushed, port.StatusParityError, port.StatusUnexpectedBusFree, port.StatusLinkDown:
		return verdictRetry, nbd.EIO
	case port.StatusNoDevice, port.StatusInvalidPathID, port.StatusInvalidLun, port.StatusInvalidTargetID,
		port.StatusNoHBA, port.StatusSelectionTimeout, port.StatusNotPowered:
		return verdictFail, nbd.ESHUTDOWN
	case port.StatusInvalidRequest, port.StatusBadFunction, port.StatusBadSrbBlockLength:
		return verdictFail, nbd.EINVAL
	default:
		return verdictFail, nbd.EIO
	}
}

// judgeDone maps the outcome of an SRB that the unit says is done.
func judgeDone(srb *port.SRB, want uint32) (verdict, nbd.Errno) {
	if srb.DataTransferBytes != want {
		return verdictFail, nbd.EIO // a short transfer; NBD has none
	}
	return verdictDone, nbd.OK
}

// blame says what caused an SRB's failure: an injected fault, an abort from outside, or
// the request itself.
func blame(srb *port.SRB) nbd.Blame {
	if srb.Injected {
		return nbd.BlameInjected
	}
	switch srb.Status.Code() {
	case port.StatusAborted, port.StatusBusReset, port.StatusTimeout, port.StatusCommandTimeout, port.StatusRequestFlushed,
		port.StatusNoDevice, port.StatusNoHBA, port.StatusNotPowered, port.StatusLinkDown, port.StatusUnexpectedBusFree:
		return nbd.BlameAborted
	case port.StatusError:
		if srb.ScsiStatus == scsi.StatusTaskAborted {
			return nbd.BlameAborted
		}
		if srb.Status&port.StatusAutosenseValid != 0 {
			if sense, ok := scsi.ParseSense(srb.Sense[:srb.SenseBytes]); ok && sense.Key == scsi.KeyAbortedCommand {
				return nbd.BlameAborted
			}
		}
	default:
	}
	return nbd.BlameNone
}

// judgeScsi maps a SCSI status and its sense data.
func judgeScsi(srb *port.SRB, want uint32) (verdict, nbd.Errno) {
	switch srb.ScsiStatus {
	case scsi.StatusBusy, scsi.StatusTaskSetFull, scsi.StatusTaskAborted, scsi.StatusACAActive:
		return verdictRetry, nbd.EIO
	case scsi.StatusReservationConflict:
		return verdictFail, nbd.EPERM
	case scsi.StatusConditionMet:
		return judgeDone(srb, want)
	default:
	}
	if srb.Status&port.StatusAutosenseValid == 0 {
		return verdictFail, nbd.EIO
	}
	sense, ok := scsi.ParseSense(srb.Sense[:srb.SenseBytes])
	if !ok {
		return verdictFail, nbd.EIO
	}
	switch sense.Key {
	case scsi.KeyRecoveredError:
		return judgeDone(srb, want)
	case scsi.KeyUnitAttention, scsi.KeyAbortedCommand:
		return verdictRetry, nbd.EIO
	case scsi.KeyNotReady:
		return verdictFail, nbd.EIO
	case scsi.KeyDataProtect:
		if sense.Additional == scsi.SpaceAllocationFailed {
			return verdictFail, nbd.ENOSPC
		}
		return verdictFail, nbd.EPERM
	case scsi.KeyIllegalRequest:
		if sense.Additional == scsi.LogicalUnitNotSupported {
			return verdictFail, nbd.ESHUTDOWN // its target is there, and it is not any more
		}
		if sense.Additional == scsi.LBAOutOfRange && writes(srb) {
			return verdictFail, nbd.ENOSPC
		}
		return verdictFail, nbd.EINVAL
	default:
		return verdictFail, nbd.EIO
	}
}

// unitAttention returns the unit attention that srb reports, if it does.
func unitAttention(srb *port.SRB) (scsi.Additional, bool) {
	if srb.Status.Code() != port.StatusError || srb.Status&port.StatusAutosenseValid == 0 {
		return 0, false
	}
	sense, ok := scsi.ParseSense(srb.Sense[:srb.SenseBytes])
	return sense.Additional, ok && sense.Key == scsi.KeyUnitAttention
}

// failedBlock is the block that srb names in the sense data of its failure.
func failedBlock(srb *port.SRB) (lba uint64, ok bool) {
	if srb.Status.Code() != port.StatusError || srb.Status&port.StatusAutosenseValid == 0 {
		return 0, false
	}
	sense, ok := scsi.ParseSense(srb.Sense[:srb.SenseBytes])
	if !ok || !sense.InformationValid {
		return 0, false
	}
	// With other keys the information field means something else.
	//exhaustive:ignore
	switch sense.Key {
	case scsi.KeyMediumError, scsi.KeyHardwareError, scsi.KeyDataProtect:
		return sense.Information, true
	}
	return 0, false
}

// writes reports whether srb would have changed the medium.
func writes(srb *port.SRB) bool {
	return srb.Flags&port.FlagDataOut != 0 || scsi.Opcode(srb.CDB[0]) == scsi.OpWriteSame16
}
