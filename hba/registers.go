package hba

// Identity in configuration space. The vendor id is unassigned.
const (
	VendorID = 0x1BAD
	DeviceID = 0x0DB1
	Revision = 1
)

// BAR is the number of the device's one memory range.
const BAR = 0

// Register offsets in bytes. Registers are 64 bits wide and accessed whole,
// except those marked [32].
const (
	RegCapability     = 0x00 // see the Cap functions
	RegVersion        = 0x08 // 1<<16 | minor
	RegControl        = 0x10 // Control bits; reads back what is in force
	RegStatus         = 0x18 // Status bits
	RegInterruptCause = 0x20 // line mode: one bit per queue pair, and CauseEvent; write 1 to clear
	RegInterruptMask  = 0x28 // line mode: causes that do not assert the line
	RegQueueSelect    = 0x30 // queue pair that the queue registers below refer to
	RegQueueSize      = 0x38 // submission entries | completion entries << 32
	RegQueueSubmit    = 0x40 // DMA address of the submission ring
	RegQueueComplete  = 0x48 // DMA address of the completion ring
	RegQueueMessage   = 0x50 // interrupt message of the queue pair
	RegQueueEnable    = 0x58 // write 1: create, 0: delete; reads back as its state
	RegUnitsChanged   = 0x60 // read: number of changes to the set of units so far

	// RegDoorbells starts the doorbells: for queue pair q, the submission tail at
	// RegDoorbells+16q and the completion head at RegDoorbells+16q+8, both [32] and
	// free-running counts. A value equal to the last one, or up to 2^31 behind it, is
	// ignored, so that doorbells may be rung without a lock and overtake each other. A
	// value beyond what the rings can hold causes StatusFatal, and so does a doorbell of
	// a queue pair that does not exist, unless the device is disabled.
	RegDoorbells   = 0x1000
	DoorbellStride = 16
)

// Registers that do not exist read as all ones, as does every access of the
// wrong width; writes to them are lost. Queue registers read 0 while
// RegQueueSelect names no queue pair.

// CauseEvent is the cause of the event message (the last one): the set of units
// or the Status bits have changed. See RegUnitsChanged and RegStatus.
const CauseEvent = 1 << 63

// Control bits. A reset is asynchronous: the write starts it, and ControlReset reads
// back 1 until the device no longer touches host memory. Then everything is as after
// power on, except for RegInterruptMask and a CauseEvent, which stay. Writes to queue
// and control registers are ignored meanwhile.
const (
	ControlEnable = 1 << 0 // the device fetches commands
	ControlReset  = 1 << 1 // stop all DMA, drop all commands, delete all queues; clears itself
)

// Status bits.
const (
	StatusReady = 1 << 0 // enabled and running
	StatusFatal = 1 << 1 // broken until reset: a ring could not be reached, or a doorbell was nonsense
)

// Capability register fields: bits 0-15 queue pairs, 16-31 ring entries (as a
// power of two), 32-39 targets, 40-47 units per target, 48-63 longest transfer
// in units of 64 KiB.
type Capability uint64

// QueuePairs is the number of queue pairs the device offers.
func (c Capability) QueuePairs() int { return int(c & 0xffff) }

// MaxRingEntries is the largest ring, in entries.
func (c Capability) MaxRingEntries() int { return 1 << (c >> 16 & 0xffff) }

// Targets is the number of target addresses.
func (c Capability) Targets() int { return int(c >> 32 & 0xff) }

// UnitsPerTarget is the number of unit addresses of each target.
func (c Capability) UnitsPerTarget() int { return int(c >> 40 & 0xff) }

// MaxTransferBytes is the longest data phase of one command.
func (c Capability) MaxTransferBytes() int { return int(c>>48) << 16 }
