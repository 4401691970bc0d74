package hba

import (
	"math"
	"structs"
)

// Sizes of the entries of both rings and of a scatter/gather element, in bytes.
const (
	CommandBytes    = 64
	CompletionBytes = 64
	SegmentBytes    = 16

	// InlineSegments is how many elements fit into a Command.
	InlineSegments = 2
	// MaxSegments is the longest chained list.
	MaxSegments = 1 << 14
	// CompletionSenseBytes is the room for sense data in a Completion.
	CompletionSenseBytes = 40
)

// Opcode says what a Command is.
type Opcode uint8

// What a queue can be asked to do.
const (
	// OpExecute runs the SCSI command in CDB. The segments add up to DataBytes.
	OpExecute Opcode = 1
	// OpAbort aborts the command of the same queue whose tag is in CDB. It completes
	// after its victim, once the victim no longer touches host memory.
	OpAbort Opcode = 2
	// OpResetLun aborts every command of the logical unit that was submitted before it,
	// on all queues. It completes after all of them, once they no longer touch host
	// memory.
	OpResetLun Opcode = 3
	// OpResetTarget does the same for every logical unit of the target.
	OpResetTarget Opcode = 4
)

// Command flags.
const (
	// CommandDataIn: the device writes host memory.
	CommandDataIn uint8 = 1 << iota
	// CommandDataOut: the device reads host memory.
	CommandDataOut
	// CommandChained: Segments[0] describes a list of Segment in host memory,
	// aligned to 8 bytes; SegmentCount is the number of elements in that list.
	// The list stays in place until the completion.
	CommandChained
)

// A Command is one entry of a submission ring, little endian, in host memory.
// Rings are aligned to CommandBytes.
type Command struct {
	_ structs.HostLayout

	// Tag comes back in the Completion. The driver keeps it unique among the
	// commands outstanding on a queue.
	Tag          uint32
	Opcode       Opcode
	Flags        uint8
	Target       uint8
	Lun          uint8
	DataBytes    uint32
	SegmentCount uint16
	CDBBytes     uint8
	// Nexus is the number of the I_T nexus that the command belongs to. A unit that has
	// lost that nexus does not execute it; see target.Unit.LoseNexus. Zero means none.
	Nexus uint8
	// CDB is the command descriptor block; for OpAbort the first four bytes
	// are the victim's tag.
	CDB      [16]byte
	Segments [InlineSegments]Segment
}

// A Segment is one element of a scatter/gather list.
type Segment struct {
	_ structs.HostLayout

	Addr  uint64 // dma.Addr
	Bytes uint32
	_     uint32
}

// CompletionCode is the device's own verdict; the SCSI status counts only with
// CodeExecuted.
type CompletionCode uint8

// Completion codes.
const (
	CodeExecuted      CompletionCode = iota // see ScsiStatus, DataBytes and Sense
	CodeBadCommand                          // opcode, flags or lengths make no sense
	CodeNoDevice                            // nothing at this target and unit
	CodeDMAFault                            // an address was not mapped
	CodeAborted                             // by OpAbort or a reset
	CodeAbortUnknown                        // OpAbort: no such command
	CodeControlFailed                       // OpAbort, OpResetLun or OpResetTarget: nothing has been done
)

// Completion flags, for whoever tests the layers above the device. No real adapter has
// them.
const (
	// CompletionInjected: a fault rule made the outcome up, or a power cut made it fail.
	CompletionInjected uint8 = 1 << iota
	// CompletionCutReply: the reply that the command is for is to break off after
	// ReplyBytes.
	CompletionCutReply
	// CompletionBadCookie: the reply is to carry a cookie that is not the request's.
	CompletionBadCookie
)

// HalfReply as ReplyBytes leaves the choice to whoever makes the reply: it breaks off in
// the middle.
const HalfReply = math.MaxUint32

// A Completion is one entry of a completion ring, little endian.
type Completion struct {
	_ structs.HostLayout

	Tag        uint32
	Code       CompletionCode
	ScsiStatus uint8
	SenseBytes uint8
	Flags      uint8 // CompletionInjected and the like
	// DataBytes is how much was transferred.
	DataBytes uint32
	// SubmissionHead is how far the device has fetched, as a free-running count: entries
	// before it may be reused. It never decreases from one completion of a ring to the
	// next.
	SubmissionHead uint32
	Sense          [CompletionSenseBytes]byte
	// ReplyBytes is meaningful with CompletionCutReply only.
	ReplyBytes uint32
	// Phase is 1 on the ring's odd passes and 0 on its even ones, the first
	// pass being odd. It is stored last, and atomically: an entry is the
	// driver's once its phase is that of the driver's pass.
	Phase uint32
}
