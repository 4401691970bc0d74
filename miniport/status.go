package miniport

import (
	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// outcome is the one place where the device's verdict becomes an SRB status. It
// fills ScsiStatus, the sense data and DataTransferBytes as well.
//
//	completion code   SCSI status           SRB status
//	Executed          GOOD, all data        SUCCESS
//	Executed          GOOD, short read or   DATA_OVERRUN, DataTransferBytes is
//	                  write                 what was moved
//	Executed          GOOD, other commands  SUCCESS, DataTransferBytes likewise:
//	                  short                 they ask for "up to"
//	Executed          CONDITION MET         SUCCESS
//	Executed          CHECK CONDITION       ERROR, AUTOSENSE_VALID with sense
//	Executed          TASK ABORTED          ABORTED
//	Executed          anything else         ERROR (the port retries BUSY and TASK
//	                                        SET FULL)
//	BadCommand        -                     INVALID_REQUEST
//	NoDevice          -                     NO_DEVICE
//	DMAFault          -                     PARITY_ERROR: the transfer went wrong
//	Aborted           -                     ABORTED
//	AbortUnknown      -                     SUCCESS: the victim finished first
//	ControlFailed     -                     ERROR
//	unknown           -                     PHASE_SEQUENCE_FAILURE
//
// A BUSY that the port retries must leave DataTransferBytes alone, so it is
// changed only where a final answer says how much was moved.
func (d *Driver) outcome(srb *port.SRB, c *hba.Completion) port.Status {
	switch c.Code {
	case hba.CodeExecuted:
		if srb.Function != port.FunctionExecuteScsi {
			return port.StatusSuccess
		}
		return executed(srb, c)
	case hba.CodeBadCommand:
		return port.StatusInvalidRequest
	case hba.CodeNoDevice:
		return port.StatusNoDevice
	case hba.CodeDMAFault:
		return port.StatusParityError
	case hba.CodeAborted:
		return port.StatusAborted
	case hba.CodeControlFailed:
		return port.StatusError
	case hba.CodeAbortUnknown:
		if srb.Function == port.FunctionAbortCommand {
			return port.StatusSuccess
		}
	}
	return port.StatusPhaseSequenceFailure
}

// executed maps the answer of a logical unit.
func executed(srb *port.SRB, c *hba.Completion) port.Status {
	srb.ScsiStatus = scsi.Status(c.ScsiStatus)
	switch srb.ScsiStatus {
	case scsi.StatusGood, scsi.StatusConditionMet:
		if c.DataBytes == srb.DataTransferBytes {
			return port.StatusSuccess
		}
		if c.DataBytes > srb.DataTransferBytes {
			return port.StatusPhaseSequenceFailure
		}
		srb.DataTransferBytes = c.DataBytes
		if isReadOrWrite(srb) {
			return port.StatusDataOverrun
		}
		return port.StatusSuccess
	case scsi.StatusCheckCondition:
		srb.DataTransferBytes = min(srb.DataTransferBytes, c.DataBytes)
		n := min(int(c.SenseBytes), len(c.Sense), len(srb.Sense))
		if n == 0 || srb.Flags&port.FlagDisableAutosense != 0 {
			return port.StatusError
		}
		copy(srb.Sense[:n], c.Sense[:n])
		srb.SenseBytes = uint8(n)
		return port.StatusError | port.StatusAutosenseValid
	case scsi.StatusTaskAborted:
		return port.StatusAborted
	case scsi.StatusBusy, scsi.StatusReservationConflict, scsi.StatusTaskSetFull, scsi.StatusACAActive:
	}
	return port.StatusError
}

// isReadOrWrite reports whether srb must move all of its data or fail.
func isReadOrWrite(srb *port.SRB) bool {
	switch scsi.Opcode(srb.CDB[0]) {
	case scsi.OpRead6, scsi.OpRead10, scsi.OpRead12, scsi.OpRead16,
		scsi.OpWrite6, scsi.OpWrite10, scsi.OpWrite12, scsi.OpWrite16:
		return true
	default:
		return false
	}
}
