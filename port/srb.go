package port

import (
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

// Function says what an SRB asks for.
// Source: srb.h SRB_FUNCTION_*.
type Function uint8

// SRB functions that have a meaning here, with the values of srb.h.
const (
	FunctionExecuteScsi      Function = 0x00
	FunctionReleaseQueue     Function = 0x04 // port only: thaw a frozen queue
	FunctionShutdown         Function = 0x07
	FunctionFlush            Function = 0x08
	FunctionAbortCommand     Function = 0x10
	FunctionResetBus         Function = 0x12
	FunctionResetDevice      Function = 0x13 // the target
	FunctionFlushQueue       Function = 0x15 // port only: fail what is queued, thaw
	FunctionLockQueue        Function = 0x18 // port only
	FunctionUnlockQueue      Function = 0x19 // port only
	FunctionQuiesceDevice    Function = 0x1A // port only: completes when nothing is outstanding on the unit
	FunctionResetLogicalUnit Function = 0x20
)

var functionNames = map[Function]string{
	FunctionExecuteScsi: "EXECUTE_SCSI", FunctionReleaseQueue: "RELEASE_QUEUE", FunctionShutdown: "SHUTDOWN",
	FunctionFlush: "FLUSH", FunctionAbortCommand: "ABORT_COMMAND", FunctionResetBus: "RESET_BUS",
	FunctionResetDevice: "RESET_DEVICE", FunctionFlushQueue: "FLUSH_QUEUE", FunctionLockQueue: "LOCK_QUEUE",
	FunctionUnlockQueue: "UNLOCK_QUEUE", FunctionQuiesceDevice: "QUIESCE_DEVICE", FunctionResetLogicalUnit: "RESET_LOGICAL_UNIT",
}

func (f Function) String() string {
	if n, ok := functionNames[f]; ok {
		return n
	}
	return fmt.Sprintf("function %#02x", uint8(f))
}

// Flags modify how the port treats an SRB. Read-only to miniports.
// Source: srb.h SRB_FLAGS_*.
type Flags uint32

// SRB flags, with the values of srb.h.
const (
	FlagQueueActionEnable Flags = 0x00000002 // tagged; without it the unit is drained and the SRB runs alone
	FlagBypassFrozenQueue Flags = 0x00000010
	FlagDisableAutosense  Flags = 0x00000020
	FlagDataIn            Flags = 0x00000040 // device to host
	FlagDataOut           Flags = 0x00000080 // host to device
	FlagNoQueueFreeze     Flags = 0x00000100
	FlagBypassLockedQueue Flags = 0x00080000
)

// QueueAction is the ordering of a tagged SRB within its logical unit.
type QueueAction uint8

// Queue actions, with the values of srb.h.
const (
	SimpleTag      QueueAction = 0x20 // after every older head-of-queue and ordered SRB
	HeadOfQueueTag QueueAction = 0x21 // before everything queued
	OrderedTag     QueueAction = 0x22 // after everything older, before everything younger
)

// Priority is how urgent an SRB is to its originator. The port hands it through
// to the miniport; it changes no order in the port.
// Source: wdm.h IO_PRIORITY_HINT.
type Priority uint8

// Priorities, with the values of wdm.h.
const (
	PriorityVeryLow Priority = iota
	PriorityLow
	PriorityNormal
	PriorityHigh
	PriorityCritical
)

// SenseBufferBytes is the size of SRB.Sense.
const SenseBufferBytes = 64

// HalfReply as SRB.ReplyBytes is the middle of the reply.
const HalfReply = math.MaxUint32

// A Segment is one element of a scatter/gather list: memory as the device sees
// it.
type Segment struct {
	Addr  dma.Addr
	Bytes uint32
}

// A Completer is told when the SRB it belongs to has completed.
type Completer interface {
	// CompleteSRB takes srb back from the port. It may submit SRBs, this one
	// included.
	//
	// Level: Dispatch, no lock held.
	CompleteSRB(p *Processor, srb *SRB)
}

// An Abandoner is a Completer that stops waiting for an SRB when the port gives it up.
// To any other Completer, such an SRB is under way until it comes back.
type Abandoner interface {
	Completer
	// AbandonSRB is called when the port gives srb up: no reset has brought it back
	// from the miniport, or the limits keep it from StartIo while such SRBs are out.
	// Whoever waits for srb should be told that there is no such device. srb, its
	// extension and its data still belong to the miniport, and the device may touch
	// them, until CompleteSRB is called: when a reset works at last, when the device
	// answers after all, or never. AbandonSRB is called at most once, and has returned
	// before CompleteSRB is called.
	//
	// Level: Dispatch, no lock held. It may submit other SRBs.
	AbandonSRB(p *Processor, srb *SRB)
}

// An SRB is one request to a logical unit on its way through port, miniport
// and device. It has the meaning of the vendor's STORAGE_REQUEST_BLOCK (wide
// tag, priority) and no byte layout.
//
// Ownership: the class driver fills the first group of fields and submits; from
// then on the SRB is the port's, from BuildIo to Complete the miniport's, then
// the port's again until Completer gives it back. SRBs are made with
// Adapter.NewSRB, once, and used again and again.
// Source: srb.h SCSI_REQUEST_BLOCK, STORAGE_REQUEST_BLOCK.
type SRB struct {
	// Written by the class driver.

	Function          Function
	QueueAction       QueueAction
	Flags             Flags
	Priority          Priority
	CDBBytes          uint8
	CDB               [16]byte
	Nexus             uint8  // the I_T nexus that it is of: a unit that has lost that refuses it; zero: of none. Ours
	TimeoutSecs       uint32 // TimeOutValue; zero means the unit's default
	DataBuffer        []byte // data in arena memory, DataTransferBytes at least: one piece, whatever scatter/gather list comes of it
	Completer         Completer
	VictimSRB         *SRB   // NextSrb: what FunctionAbortCommand aborts
	DataTransferBytes uint32 // DataTransferLength: asked for, then moved

	// Written by the port.

	PathID, TargetID, Lun uint8
	Tag                   uint32 // unique among the adapter's SRBs
	// SGL is the scatter/gather list of the data, valid from BuildIo to
	// Complete. The miniport must not change or keep it.
	SGL []Segment
	// Extension is the miniport's own memory of Config.SrbExtensionBytes,
	// reachable by DMA (GetPhysicalAddress). It is not zeroed, and what is in it
	// does not survive a StatusBusy completion.
	Extension []byte

	// Written by the miniport before Complete.

	Status     Status
	ScsiStatus scsi.Status
	SenseBytes uint8 // valid bytes in Sense, with StatusAutosenseValid
	Injected   bool  // the device says that the outcome is made up, for statistics; ours
	// CutReply: the device wants the reply that the SRB is for to break off after
	// ReplyBytes, HalfReply for in its middle; ours too.
	CutReply   bool
	ReplyBytes uint32
	// BadCookie: it wants the reply to carry a cookie that is not the request's.
	BadCookie bool
	// ServiceTime is what IoTargetRequestServiceTime said, or zero.
	ServiceTime time.Duration
	Sense       [SenseBufferBytes]byte

	srbPort
}

// srbPort is the port's part of an SRB.
type srbPort struct {
	adapter *Adapter
	lu      *LogicalUnit

	// owner is who may touch the SRB now; Complete moves it from the miniport to
	// the port exactly once for each attempt.
	owner atomic.Uint32

	next *SRB // any one list: a batch, a queue, a completion list

	// pendNext and pendPrev link LogicalUnit.pending while pending is true.
	pendNext, pendPrev *SRB
	pending            bool
	charged            bool // holds one of the adapter's MaxNumberOfIO
	given              giveUpState

	built     bool      // BuildIo returned true; StartIo is next
	recovery  bool      // one of the port's own, a reset most of all: passes every gate
	stage     Stage     // not stageNone: followed, see stage.go; the owner's
	op        Operation // if it is followed
	refused   bool      // by the port, when it was outstanding: no miniport has seen it
	life      uint16    // counts submissions; changed with the unit's mu held
	channel   int
	busyTries int
	attempt   uint32

	seal    seal         // the verifier's
	builtAt atomic.Int64 // when BuildIo was called, ns since 1970; zero: watched no more; the verifier's

	window    dma.Window // for DataBuffer
	mapped    bool       // DataBuffer is
	extWindow dma.Window // zero until first needed
	extAddr   dma.Addr   // non-zero while the extension is mapped
	sglStore  []Segment  // memory for SGL
	sglInline [1]Segment // which it is, unless lists may be longer

	stageAt int64 // when it came to its stage, if it is followed, by System.nanos

	_ [32]byte // whole cache lines; nine fill a page: see srbsAtOnce
}

// A giveUpState says whether the port has given an SRB up. It changes with the unit's
// mu held.
type giveUpState uint8

const (
	givenNot  giveUpState = iota
	givenNow              // its Abandoner is being told
	givenBack             // the same, and the SRB has come back meanwhile
	givenUp               // its Abandoner has been told
)

const (
	ownerClass    uint32 = iota
	ownerPort            // waiting, parked or completed
	ownerKept            // the miniport's, after BuildIo returned false
	ownerMiniport        // the miniport's, from StartIo on
	ownerBuilding        // the miniport's, in BuildIo: the lowest of them; see building
)

// building is the owner value during the current attempt's BuildIo. If that is to return
// false, others may complete the SRB before it does, and the SRB may be in the BuildIo of
// its next life by then.
func (s *SRB) building() uint32 {
	return ownerBuilding + s.attempt%(math.MaxUint32-ownerBuilding)
}

// srbsAtOnce is how many SRBs a processor takes from the heap together: as many as fill a
// page of 4 KiB, for which the allocator has page-aligned blocks. So no two processors
// write to SRBs in the same page, and hardware does not prefetch across the end of a page.
// See TestLayout_Pages.
const srbsAtOnce = 9

// takeSRB returns an unused SRB, and the group for its IOMMU windows. p may be nil.
func (p *Processor) takeSRB() (*SRB, *dma.WindowGroup) {
	if p == nil {
		return new(SRB), nil
	}
	if len(p.srbs) == 0 {
		p.srbs = make([]SRB, srbsAtOnce)
	}
	s := &p.srbs[0]
	p.srbs = p.srbs[1:]
	return s, &p.windows
}

// request describes the request itself: the part of an SRB that does not change while
// it is outstanding, and so may be read by anybody who keeps it from completing.
func (s *SRB) request() string {
	return fmt.Sprintf("SRB tag %d %s [%d:%d:%d] cdb % x",
		s.Tag, s.Function, s.PathID, s.TargetID, s.Lun, s.CDB[:min(int(s.CDBBytes), len(s.CDB))])
}

func (s *SRB) String() string {
	return fmt.Sprintf("%s, %d bytes, status %s, scsi status %#02x, attempt %d",
		s.request(), s.DataTransferBytes, s.Status, uint8(s.ScsiStatus), s.attempt)
}
