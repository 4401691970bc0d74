package port

import "fmt"

// Status is an SRB's outcome. The low six bits are the code; the port alone
// sets StatusQueueFrozen, the miniport sets StatusAutosenseValid. Compare
// Code().
// Source: srb.h SRB_STATUS_*.
type Status uint8

// SRB status codes, with the values of srb.h.
const (
	StatusPending               Status = 0x00
	StatusSuccess               Status = 0x01
	StatusAborted               Status = 0x02
	StatusAbortFailed           Status = 0x03
	StatusError                 Status = 0x04 // ScsiStatus is not GOOD
	StatusBusy                  Status = 0x05 // not taken; the port builds and starts it again
	StatusInvalidRequest        Status = 0x06
	StatusInvalidPathID         Status = 0x07
	StatusNoDevice              Status = 0x08
	StatusTimeout               Status = 0x09
	StatusSelectionTimeout      Status = 0x0A
	StatusCommandTimeout        Status = 0x0B
	StatusMessageRejected       Status = 0x0D
	StatusBusReset              Status = 0x0E
	StatusParityError           Status = 0x0F
	StatusRequestSenseFailed    Status = 0x10
	StatusNoHBA                 Status = 0x11
	StatusDataOverrun           Status = 0x12 // more or fewer bytes than asked for: see DataTransferBytes
	StatusUnexpectedBusFree     Status = 0x13
	StatusPhaseSequenceFailure  Status = 0x14
	StatusBadSrbBlockLength     Status = 0x15
	StatusRequestFlushed        Status = 0x16
	StatusInvalidLun            Status = 0x20
	StatusInvalidTargetID       Status = 0x21
	StatusBadFunction           Status = 0x22
	StatusErrorRecovery         Status = 0x23
	StatusNotPowered            Status = 0x24
	StatusLinkDown              Status = 0x25
	StatusInsufficientResources Status = 0x26
	StatusThrottledRequest      Status = 0x27
	StatusInternalError         Status = 0x30 // the port could not deliver it

	StatusQueueFrozen    Status = 0x40
	StatusAutosenseValid Status = 0x80

	statusCodeMask = 0x3f
)

// Code is s without the two flags.
func (s Status) Code() Status { return s & statusCodeMask }

var statusNames = map[Status]string{
	StatusPending: "PENDING", StatusSuccess: "SUCCESS", StatusAborted: "ABORTED", StatusAbortFailed: "ABORT_FAILED",
	StatusError: "ERROR", StatusBusy: "BUSY", StatusInvalidRequest: "INVALID_REQUEST", StatusInvalidPathID: "INVALID_PATH_ID",
	StatusNoDevice: "NO_DEVICE", StatusTimeout: "TIMEOUT", StatusSelectionTimeout: "SELECTION_TIMEOUT",
	StatusCommandTimeout: "COMMAND_TIMEOUT", StatusMessageRejected: "MESSAGE_REJECTED", StatusBusReset: "BUS_RESET",
	StatusParityError: "PARITY_ERROR", StatusRequestSenseFailed: "REQUEST_SENSE_FAILED", StatusNoHBA: "NO_HBA",
	StatusDataOverrun: "DATA_OVERRUN", StatusUnexpectedBusFree: "UNEXPECTED_BUS_FREE",
	StatusPhaseSequenceFailure: "PHASE_SEQUENCE_FAILURE", StatusBadSrbBlockLength: "BAD_SRB_BLOCK_LENGTH",
	StatusRequestFlushed: "REQUEST_FLUSHED", StatusInvalidLun: "INVALID_LUN", StatusInvalidTargetID: "INVALID_TARGET_ID",
	StatusBadFunction: "BAD_FUNCTION", StatusErrorRecovery: "ERROR_RECOVERY", StatusNotPowered: "NOT_POWERED",
	StatusLinkDown: "LINK_DOWN", StatusInsufficientResources: "INSUFFICIENT_RESOURCES",
	StatusThrottledRequest: "THROTTLED_REQUEST", StatusInternalError: "INTERNAL_ERROR",
}

func (s Status) valid() bool {
	_, ok := statusNames[s.Code()]
	return ok
}

func (s Status) String() string {
	name, ok := statusNames[s.Code()]
	if !ok {
		name = fmt.Sprintf("status %#02x", uint8(s.Code()))
	}
	if s&StatusAutosenseValid != 0 {
		name += "|AUTOSENSE_VALID"
	}
	if s&StatusQueueFrozen != 0 {
		name += "|QUEUE_FROZEN"
	}
	return name
}
