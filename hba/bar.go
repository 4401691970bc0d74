package hba

import (
	"math"
	"math/bits"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// registers is the device's BAR.
type registers struct{ d *Device }

// queueRegisters is what the queue registers of one queue pair hold. They are
// guarded by Device.mu.
type queueRegisters struct {
	size, submit, complete, message uint64
}

// SizeBytes implements pci.Registers. The doorbells end before the middle; the
// MSI-X structures follow there.
func (b registers) SizeBytes() uint32 {
	doorbells := uint(RegDoorbells + DoorbellStride*len(b.d.slots))
	return 2 << bits.Len(doorbells-1)
}

// Read32 implements pci.Registers.
func (b registers) Read32(_ pci.Runner, offset uint32) uint32 {
	i, submission, ok := b.doorbell(offset)
	if !ok {
		return math.MaxUint32
	}
	q := b.d.slots[i].queue.Load()
	switch {
	case q == nil:
		return 0
	case submission:
		return q.tail.Load()
	default:
		return q.consumed.Load()
	}
}

// Write32 implements pci.Registers: it rings a doorbell. Commands may run and
// interrupts may be delivered on this goroutine before it returns.
func (b registers) Write32(r pci.Runner, offset, value uint32) {
	i, submission, ok := b.doorbell(offset)
	if !ok {
		return
	}
	s := &b.d.slots[i]
	if submission {
		s.count.submissionDoorbells.Add(1)
	} else {
		s.count.completionDoorbells.Add(1)
	}
	q := s.queue.Load()
	switch {
	case q == nil:
		b.d.strayDoorbell(i)
	case submission:
		q.submit(r, value)
	default:
		q.consume(r, value)
	}
}

func (b registers) doorbell(offset uint32) (index int, submission, ok bool) {
	at := offset - RegDoorbells
	index = int(at / DoorbellStride)
	if offset < RegDoorbells || index >= len(b.d.slots) || at%8 != 0 {
		return 0, false, false
	}
	return index, at%DoorbellStride == 0, true
}

// Read64 implements pci.Registers.
func (b registers) Read64(_ pci.Runner, offset uint32) uint64 {
	d := b.d
	switch offset {
	case RegCapability:
		return uint64(d.cap)
	case RegVersion:
		return 1 << 16
	case RegInterruptCause:
		return d.intr.causes()
	case RegInterruptMask:
		return d.intr.maskedCauses()
	case RegUnitsChanged:
		return d.unitsChanged.Load()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch offset {
	case RegControl:
		return bit(d.enabled, ControlEnable) | bit(d.resetting || d.resetStuck, ControlReset)
	case RegStatus:
		return bit(d.enabled && !d.fatal && !d.resetting, StatusReady) | bit(d.fatal, StatusFatal)
	case RegQueueSelect:
		return d.queueSelect
	case RegQueueSize, RegQueueSubmit, RegQueueComplete, RegQueueMessage, RegQueueEnable:
	default:
		return math.MaxUint64
	}
	if d.queueSelect >= uint64(len(d.slots)) {
		return 0
	}
	s := &d.slots[d.queueSelect]
	switch offset {
	case RegQueueSize:
		return s.regs.size
	case RegQueueSubmit:
		return s.regs.submit
	case RegQueueComplete:
		return s.regs.complete
	case RegQueueMessage:
		return s.regs.message
	default: // RegQueueEnable
		return bit(s.queue.Load() != nil, 1)
	}
}

func bit(on bool, value uint64) uint64 {
	if on {
		return value
	}
	return 0
}

// Write64 implements pci.Registers. Enabling the device may run commands that
// are in the rings on this goroutine.
func (b registers) Write64(r pci.Runner, offset uint32, value uint64) {
	d := b.d
	switch offset {
	case RegControl:
		d.writeControl(r, value)
	case RegInterruptCause:
		d.intr.clearCauses(value)
	case RegInterruptMask:
		d.intr.maskCauses(source{runner: r}, value)
	case RegQueueSelect, RegQueueSize, RegQueueSubmit, RegQueueComplete, RegQueueMessage:
		d.mu.Lock()
		d.writeQueueRegisterLocked(offset, value)
		d.mu.Unlock()
	case RegQueueEnable:
		yieldLock("lock for RegQueueEnable", &d.mu)
		d.mu.Lock()
		d.enableQueueLocked(value&1 != 0)
		d.mu.Unlock()
	default: // read-only or nothing there
	}
}

func (d *Device) writeControl(r pci.Runner, value uint64) {
	yieldLock("lock for RegControl", &d.mu)
	d.mu.Lock()
	if d.resetting || d.closed {
		d.mu.Unlock()
		return
	}
	if value&ControlReset != 0 {
		if d.resetStuck = d.resetFailsLocked(); !d.resetStuck {
			d.startResetLocked()
		}
		d.mu.Unlock()
		return
	}
	d.enabled = value&ControlEnable != 0
	d.updateGatesLocked()
	d.mu.Unlock()
	for i := range d.slots {
		if q := d.slots[i].queue.Load(); q != nil {
			q.run(source{runner: r})
		}
	}
}

// +checklocks:d.mu
func (d *Device) writeQueueRegisterLocked(offset uint32, value uint64) {
	switch {
	case d.resetting || d.closed:
		return
	case offset == RegQueueSelect:
		d.queueSelect = value
		return
	case d.queueSelect >= uint64(len(d.slots)):
		return
	}
	regs := &d.slots[d.queueSelect].regs
	switch offset {
	case RegQueueSize:
		regs.size = value
	case RegQueueSubmit:
		regs.submit = value
	case RegQueueComplete:
		regs.complete = value
	case RegQueueMessage:
		regs.message = value
	}
}

// enableQueueLocked creates or deletes the selected queue pair. If it cannot be created,
// RegQueueEnable reads 0. Deleting drops the queue's commands and is asynchronous like a
// reset: RegQueueEnable reads 1 until they no longer touch host memory.
//
// +checklocks:d.mu
func (d *Device) enableQueueLocked(enable bool) {
	if d.queueSelect >= uint64(len(d.slots)) || d.resetting || d.closed {
		return
	}
	s := &d.slots[d.queueSelect]
	q := s.queue.Load()
	switch {
	case !enable && q != nil:
		d.closeQueueLocked(q)
		d.settleLocked()
	case enable && q == nil:
		if q = d.newQueue(int(d.queueSelect), s.regs); q != nil {
			s.queue.Store(q)
			d.updateGatesLocked()
		}
	}
}

// newQueue makes a queue from its registers, or returns nil if they make no
// sense.
func (d *Device) newQueue(index int, regs queueRegisters) *queue {
	submission, completion := regs.size&math.MaxUint32, regs.size>>32
	most := d.cap.MaxRingEntries()
	if !validEntries(submission, most) || !validEntries(completion, most) ||
		regs.submit%CommandBytes != 0 || regs.complete%CompletionBytes != 0 ||
		regs.message >= uint64(d.Messages()) {
		return nil
	}
	q := &queue{
		dev:               d,
		index:             index,
		count:             &d.slots[index].count,
		submission:        dma.Addr(regs.submit),
		completion:        dma.Addr(regs.complete),
		submissionEntries: uint32(submission),
		completionEntries: uint32(completion),
		message:           pci.Message(regs.message),
		records:           make([]record, completion),
	}
	q.exec = newExecutor()
	sub, ok := q.submissionRing()
	if !ok || !isAligned(sub) {
		return nil
	}
	comp, ok := q.completionRing()
	if !ok || !isAligned(comp) {
		return nil
	}
	for i := range q.records {
		q.records[i].next = q.free
		q.free = &q.records[i]
	}
	return q
}
