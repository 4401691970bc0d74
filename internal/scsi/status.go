package scsi

import "strconv"

// A Status is the status code that ends a command; SAM-5 5.3.1.
type Status uint8

// Status codes.
const (
	StatusGood                Status = 0x00
	StatusCheckCondition      Status = 0x02
	StatusConditionMet        Status = 0x04
	StatusBusy                Status = 0x08
	StatusReservationConflict Status = 0x18
	StatusTaskSetFull         Status = 0x28
	StatusACAActive           Status = 0x30
	StatusTaskAborted         Status = 0x40
)

// String is the status' name in SAM-5, or the number in hexadecimal.
func (s Status) String() string {
	switch s {
	case StatusGood:
		return "GOOD"
	case StatusCheckCondition:
		return "CHECK CONDITION"
	case StatusConditionMet:
		return "CONDITION MET"
	case StatusBusy:
		return "BUSY"
	case StatusReservationConflict:
		return "RESERVATION CONFLICT"
	case StatusTaskSetFull:
		return "TASK SET FULL"
	case StatusACAActive:
		return "ACA ACTIVE"
	case StatusTaskAborted:
		return "TASK ABORTED"
	}
	return "0x" + strconv.FormatUint(uint64(s), 16)
}

// A SenseKey is the coarse reason of a CHECK CONDITION; SPC-4 4.5.6.
type SenseKey uint8

// Sense keys.
const (
	KeyNoSense        SenseKey = 0x0
	KeyRecoveredError SenseKey = 0x1
	KeyNotReady       SenseKey = 0x2
	KeyMediumError    SenseKey = 0x3
	KeyHardwareError  SenseKey = 0x4
	KeyIllegalRequest SenseKey = 0x5
	KeyUnitAttention  SenseKey = 0x6
	KeyDataProtect    SenseKey = 0x7
	KeyBlankCheck     SenseKey = 0x8
	KeyVendorSpecific SenseKey = 0x9
	KeyCopyAborted    SenseKey = 0xa
	KeyAbortedCommand SenseKey = 0xb
	KeyVolumeOverflow SenseKey = 0xd
	KeyMiscompare     SenseKey = 0xe
	KeyCompleted      SenseKey = 0xf
)

var senseKeyNames = [16]string{
	KeyNoSense:        "NO SENSE",
	KeyRecoveredError: "RECOVERED ERROR",
	KeyNotReady:       "NOT READY",
	KeyMediumError:    "MEDIUM ERROR",
	KeyHardwareError:  "HARDWARE ERROR",
	KeyIllegalRequest: "ILLEGAL REQUEST",
	KeyUnitAttention:  "UNIT ATTENTION",
	KeyDataProtect:    "DATA PROTECT",
	KeyBlankCheck:     "BLANK CHECK",
	KeyVendorSpecific: "VENDOR SPECIFIC",
	KeyCopyAborted:    "COPY ABORTED",
	KeyAbortedCommand: "ABORTED COMMAND",
	KeyVolumeOverflow: "VOLUME OVERFLOW",
	KeyMiscompare:     "MISCOMPARE",
	KeyCompleted:      "COMPLETED",
}

// String is the key's name in SPC-4, or the number in hexadecimal.
func (k SenseKey) String() string {
	if int(k) < len(senseKeyNames) && senseKeyNames[k] != "" {
		return senseKeyNames[k]
	}
	return "0x" + strconv.FormatUint(uint64(k), 16)
}

// An Additional is the fine reason of a CHECK CONDITION: the additional sense
// code in the high byte, its qualifier in the low one; SPC-4 4.5.7.
type Additional uint16

// Additional sense codes, in order of value.
const (
	NoAdditionalSense              Additional = 0x0000
	NotReadyCauseNotReportable     Additional = 0x0400
	BecomingReady                  Additional = 0x0401
	NotReadyInitializingRequired   Additional = 0x0402
	WriteError                     Additional = 0x0c00
	InvalidFieldInInformationUnit  Additional = 0x0e03
	UnrecoveredReadError           Additional = 0x1100
	ParameterListLengthError       Additional = 0x1a00
	MiscompareDuringVerify         Additional = 0x1d00
	InvalidCommandOperationCode    Additional = 0x2000
	LBAOutOfRange                  Additional = 0x2100
	InvalidFieldInCDB              Additional = 0x2400
	LogicalUnitNotSupported        Additional = 0x2500
	InvalidFieldInParameterList    Additional = 0x2600
	WriteProtected                 Additional = 0x2700
	SpaceAllocationFailed          Additional = 0x2707
	PowerOnResetOccurred           Additional = 0x2900
	PowerOnOccurred                Additional = 0x2901
	BusDeviceResetFunctionOccurred Additional = 0x2903
	CapacityDataHasChanged         Additional = 0x2a09
	SavingParametersNotSupported   Additional = 0x3900
	ReportedLUNsDataHasChanged     Additional = 0x3f0e
	InternalTargetFailure          Additional = 0x4400
)

// ASC is the additional sense code.
func (a Additional) ASC() uint8 { return uint8(a >> 8) }

// ASCQ is the additional sense code qualifier.
func (a Additional) ASCQ() uint8 { return uint8(a) }

// String is the code's name in SPC-4, or code and qualifier in hexadecimal.
func (a Additional) String() string {
	switch a {
	case NoAdditionalSense:
		return "NO ADDITIONAL SENSE INFORMATION"
	case NotReadyCauseNotReportable:
		return "LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE"
	case BecomingReady:
		return "LOGICAL UNIT IS IN PROCESS OF BECOMING READY"
	case NotReadyInitializingRequired:
		return "LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED"
	case WriteError:
		return "WRITE ERROR"
	case InvalidFieldInInformationUnit:
		return "INVALID FIELD IN COMMAND INFORMATION UNIT"
	case UnrecoveredReadError:
		return "UNRECOVERED READ ERROR"
	case ParameterListLengthError:
		return "PARAMETER LIST LENGTH ERROR"
	case MiscompareDuringVerify:
		return "MISCOMPARE DURING VERIFY OPERATION"
	case InvalidCommandOperationCode:
		return "INVALID COMMAND OPERATION CODE"
	case LBAOutOfRange:
		return "LOGICAL BLOCK ADDRESS OUT OF RANGE"
	case InvalidFieldInCDB:
		return "INVALID FIELD IN CDB"
	case LogicalUnitNotSupported:
		return "LOGICAL UNIT NOT SUPPORTED"
	case InvalidFieldInParameterList:
		return "INVALID FIELD IN PARAMETER LIST"
	case WriteProtected:
		return "WRITE PROTECTED"
	case SpaceAllocationFailed:
		return "SPACE ALLOCATION FAILED WRITE PROTECT"
	case PowerOnResetOccurred:
		return "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED"
	case PowerOnOccurred:
		return "POWER ON OCCURRED"
	case BusDeviceResetFunctionOccurred:
		return "BUS DEVICE RESET FUNCTION OCCURRED"
	case CapacityDataHasChanged:
		return "CAPACITY DATA HAS CHANGED"
	case SavingParametersNotSupported:
		return "SAVING PARAMETERS NOT SUPPORTED"
	case ReportedLUNsDataHasChanged:
		return "REPORTED LUNS DATA HAS CHANGED"
	case InternalTargetFailure:
		return "INTERNAL TARGET FAILURE"
	}
	return "0x" + strconv.FormatUint(uint64(a.ASC()), 16) + "/0x" + strconv.FormatUint(uint64(a.ASCQ()), 16)
}
