package porttest

import (
	"errors"
	"slices"
	"sync"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// Registers of the hardware; [64] except the doorbells.
const (
	regStatus    = 0x00 // 1 while enabled
	regEnable    = 0x08 // write 1: enable, 0: disable
	regDoorbells = 0x40 // [32] one for each queue, 4 bytes apart; the value means nothing
	barBytes     = 0x1000
)

// hardware is the device behind Miniport. Its driver hands it command values instead
// of writing them into rings; but data move by DMA through the IOMMU, commands run on
// the goroutine that rings a doorbell, and interrupts have masks, pending bits and a
// line, as in real hardware.
type hardware struct {
	iommu  *dma.IOMMU
	blocks int
	units  [][]byte // bytes at rest, by unit number on target 0

	// mu guards everything below. It is not held while an interrupt is raised.
	mu sync.Mutex
	// +checklocks:mu
	enabled bool
	// +checklocks:mu
	queues []hardwareQueue
	// +checklocks:mu
	messages []hardwareMessage
	// +checklocks:mu
	connected bool
	// +checklocks:mu
	line bool
	// +checklocks:mu
	raise pci.InterruptFunc
	// +checklocks:mu
	holds int
	// +checklocks:mu
	calls int
	// idle is signalled when calls drops to zero.
	// +checklocks:mu
	idle sync.Cond
}

// blockBytes is the block size of the fake's units.
const blockBytes = 512

// A hardwareQueue has a message of its own, of the same number.
type hardwareQueue struct {
	submitted []command // not fetched yet
	held      []command // fetched, kept by Hold or by the script
	done      []completion
}

type hardwareMessage struct{ masked, pending bool }

// A command is what the driver gives the hardware.
type command struct {
	srb       *port.SRB
	function  port.Function
	lun       uint8
	cdb       [scsi.CDBMaxBytes]byte
	segments  []port.Segment // the SRB's own list: valid until it completes
	dataBytes uint32
	victim    *port.SRB
	hold      bool
	fail      port.Status // not zero: the outcome, without execution
}

// A completion is what the hardware says of a command.
type completion struct {
	srb        *port.SRB
	status     port.Status
	scsiStatus scsi.Status
	sense      []byte
	dataBytes  uint32
}

func newHardware(iommu *dma.IOMMU, queues, units, blocks int) *hardware {
	h := &hardware{iommu: iommu, blocks: blocks, queues: make([]hardwareQueue, queues), messages: make([]hardwareMessage, queues)}
	h.idle.L = &h.mu
	for range units {
		h.units = append(h.units, make([]byte, blocks*blockBytes))
	}
	return h
}

// ReadConfig implements pci.Function.
func (h *hardware) ReadConfig(offset int, p []byte) int {
	id := [4]byte{0xAD, 0x1B, 0xFE, 0xCA}
	if offset < 0 || offset >= len(id) {
		return 0
	}
	return copy(p, id[offset:])
}

// BAR implements pci.Function.
func (h *hardware) BAR(n int) pci.Registers {
	if n != 0 {
		return nil
	}
	return hardwareRegisters{h}
}

// Messages implements pci.Function.
//
// +checklocksignore: the number of queues does not change.
func (h *hardware) Messages() int { return len(h.queues) }

// ConnectInterrupt implements pci.Function.
func (h *hardware) ConnectInterrupt(mode pci.InterruptMode, raise pci.InterruptFunc, _ func(string) pci.Runner) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.connected {
		return errors.New("porttest: interrupts are connected")
	}
	h.connected, h.line, h.raise = true, mode == pci.Line, raise
	return nil
}

// DisconnectInterrupt implements pci.Function.
func (h *hardware) DisconnectInterrupt() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.connected = false
	for h.calls > 0 {
		h.idle.Wait()
	}
}

// Asserted implements pci.Function: the line is up while completions wait.
func (h *hardware) Asserted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.queues, func(q hardwareQueue) bool { return len(q.done) > 0 })
}

// MaskMessage implements pci.Function.
func (h *hardware) MaskMessage(m pci.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.messages[m].masked = true
}

// UnmaskMessage implements pci.Function.
func (h *hardware) UnmaskMessage(r pci.Runner, m pci.Message) {
	h.mu.Lock()
	x := &h.messages[m]
	pending := x.pending
	x.masked, x.pending = false, false
	h.mu.Unlock()
	if pending {
		h.interrupt(r, int(m))
	}
}

// interrupt raises the message of a queue.
func (h *hardware) interrupt(r pci.Runner, queue int) {
	h.mu.Lock()
	m := queue
	if h.line {
		m = 0
	}
	if h.messages[m].masked || !h.connected {
		h.messages[m].pending = true
		h.mu.Unlock()
		return
	}
	raise := h.raise
	h.calls++
	h.mu.Unlock()
	raise(r, pci.Message(m))
	h.mu.Lock()
	h.calls--
	if h.calls == 0 {
		h.idle.Broadcast()
	}
	h.mu.Unlock()
}

// hardwareRegisters is the memory range.
type hardwareRegisters struct{ h *hardware }

// SizeBytes implements pci.Registers.
func (hardwareRegisters) SizeBytes() uint32 { return barBytes }

// Read32 implements pci.Registers.
func (hardwareRegisters) Read32(pci.Runner, uint32) uint32 { return ^uint32(0) }

// Read64 implements pci.Registers.
func (r hardwareRegisters) Read64(_ pci.Runner, offset uint32) uint64 {
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	if offset == regStatus && r.h.enabled {
		return 1
	}
	return 0
}

// Write32 implements pci.Registers: a doorbell.
//
// +checklocksignore: the number of queues does not change.
func (r hardwareRegisters) Write32(runner pci.Runner, offset, _ uint32) {
	if q := int(offset-regDoorbells) / 4; offset >= regDoorbells && q < len(r.h.queues) {
		r.h.run(runner, q)
	}
}

// Write64 implements pci.Registers.
func (r hardwareRegisters) Write64(_ pci.Runner, offset uint32, value uint64) {
	if offset == regEnable {
		r.h.mu.Lock()
		r.h.enabled = value != 0
		r.h.mu.Unlock()
	}
}

// submit puts a command into a queue's ring, unless that holds limit commands. There
// is always room for an abort or reset, which are what helps when a ring is full.
func (h *hardware) submit(queue int, c command, limit int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := &h.queues[queue]
	if c.function == port.FunctionExecuteScsi && len(q.submitted)+len(q.held)+len(q.done) >= limit {
		return false
	}
	q.submitted = append(q.submitted, c)
	return true
}

// run fetches and executes what a queue holds and raises one interrupt.
func (h *hardware) run(r pci.Runner, queue int) {
	h.mu.Lock()
	q := &h.queues[queue]
	if h.enabled {
		batch := q.submitted
		q.submitted = nil
		for _, c := range batch {
			h.executeLocked(q, c)
		}
	}
	raise := len(q.done) > 0
	h.mu.Unlock()
	if raise {
		h.interrupt(r, queue)
	}
}

// +checklocks:h.mu
func (h *hardware) executeLocked(q *hardwareQueue, c command) {
	switch c.function {
	case port.FunctionExecuteScsi:
		if c.hold || h.holds > 0 && isMediumAccess(c.cdb[0]) {
			q.held = append(q.held, c)
			return
		}
		q.done = append(q.done, h.scsi(c))
	case port.FunctionAbortCommand:
		status := port.StatusAbortFailed
		for i := range h.queues {
			dropped := h.dropLocked(&h.queues[i], func(v command) bool { return v.srb == c.victim })
			for _, v := range dropped {
				q.done = append(q.done, completion{srb: v, status: port.StatusAborted})
				status = port.StatusSuccess
			}
		}
		q.done = append(q.done, completion{srb: c.srb, status: status})
	default: // a reset of a unit or target
		// The answers go to the reset's own queue, in order.
		for i := range h.queues {
			for _, v := range h.dropLocked(&h.queues[i], func(v command) bool {
				return c.function == port.FunctionResetDevice || v.lun == c.lun
			}) {
				q.done = append(q.done, completion{srb: v, status: port.StatusAborted})
			}
		}
		q.done = append(q.done, completion{srb: c.srb, status: port.StatusSuccess})
	}
}

// dropLocked removes the matching commands from a queue, waiting in its ring or held,
// and returns their SRBs.
//
// +checklocks:h.mu
func (h *hardware) dropLocked(q *hardwareQueue, match func(command) bool) []*port.SRB {
	var dropped []*port.SRB
	drop := func(c command) bool {
		if !match(c) {
			return false
		}
		dropped = append(dropped, c.srb)
		return true
	}
	q.held = slices.DeleteFunc(q.held, drop)
	q.submitted = slices.DeleteFunc(q.submitted, drop)
	return dropped
}

// reap takes a queue's completions.
func (h *hardware) reap(queue int) []completion {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := &h.queues[queue]
	done := q.done
	q.done = nil
	return done
}

// reset stops everything and returns the SRBs of the commands not completed.
func (h *hardware) reset() []*port.SRB {
	h.mu.Lock()
	defer h.mu.Unlock()
	var dropped []*port.SRB
	for i := range h.queues {
		dropped = append(dropped, h.dropLocked(&h.queues[i], func(command) bool { return true })...)
	}
	return dropped
}

// heldSRBs are the SRBs of the commands that are held, in order of queue and
// arrival.
func (h *hardware) heldSRBs() []*port.SRB {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*port.SRB
	for i := range h.queues {
		for _, c := range h.queues[i].held {
			list = append(list, c.srb)
		}
	}
	return list
}

// finish executes the held command of an SRB and raises the interrupt. False:
// it is not held.
func (h *hardware) finish(r pci.Runner, srb *port.SRB) bool {
	h.mu.Lock()
	for i := range h.queues {
		q := &h.queues[i]
		at := slices.IndexFunc(q.held, func(c command) bool { return c.srb == srb })
		if at < 0 {
			continue
		}
		c := q.held[at]
		q.held = slices.Delete(q.held, at, at+1)
		q.done = append(q.done, h.scsi(c))
		h.mu.Unlock()
		h.interrupt(r, i)
		return true
	}
	h.mu.Unlock()
	return false
}

// hold makes the hardware keep reads and writes.
func (h *hardware) hold() {
	h.mu.Lock()
	h.holds++
	h.mu.Unlock()
}

// unhold ends one hold, and executes what was held once the last has ended.
func (h *hardware) unhold(r pci.Runner) {
	h.mu.Lock()
	h.holds--
	var raise []int
	if h.holds == 0 {
		for i := range h.queues {
			q := &h.queues[i]
			for _, c := range q.held {
				q.done = append(q.done, h.scsi(c))
			}
			if q.held = nil; len(q.done) > 0 {
				raise = append(raise, i)
			}
		}
	}
	h.mu.Unlock()
	for _, q := range raise {
		h.interrupt(r, q)
	}
}

func isMediumAccess(opcode uint8) bool {
	switch scsi.Opcode(opcode) {
	case scsi.OpRead16, scsi.OpWrite16:
		return true
	default:
		return false
	}
}

// scsi executes one SCSI command.
func (h *hardware) scsi(c command) completion {
	done := completion{srb: c.srb, status: port.StatusSuccess}
	if c.fail != 0 {
		done.status = c.fail
		return done
	}
	if int(c.lun) >= len(h.units) {
		done.status = port.StatusNoDevice
		return done
	}
	var reply [scsi.ReportLUNsHeaderBytes + 256*scsi.LUNBytes]byte
	n := 0
	switch scsi.Opcode(c.cdb[0]) {
	case scsi.OpInquiry:
		n = scsi.PutInquiryData(reply[:], &scsi.Inquiry{Peripheral: scsi.PeripheralDisk, Vendor: "VHBAD", Product: "porttest", Revision: "1", CommandQueuing: true})
	case scsi.OpReportLUNs:
		n = scsi.PutReportLUNsHeader(reply[:], len(h.units))
		for lun := range h.units {
			n += scsi.PutLUN(reply[n:], uint8(lun))
		}
	case scsi.OpServiceActionIn16:
		n = scsi.PutReadCapacity16Data(reply[:], &scsi.Capacity{Blocks: uint64(h.blocks), BlockBytes: blockBytes})
	case scsi.OpTestUnitReady, scsi.OpSynchronizeCache16:
	case scsi.OpRead16, scsi.OpWrite16:
		return h.readWrite(c, done)
	default:
		return done.check(scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidCommandOperationCode})
	}
	return h.toHost(c, done, reply[:min(n, int(c.dataBytes))])
}

func (d completion) check(s scsi.Sense) completion {
	var b [scsi.FixedSenseBytes]byte
	d.sense = b[:scsi.PutFixedSense(b[:], &s)]
	d.status, d.scsiStatus = port.StatusError, scsi.StatusCheckCondition
	return d
}

func (h *hardware) readWrite(c command, done completion) completion {
	lba, blocks, _ := scsi.BlockRange(&c.cdb)
	if lba >= uint64(h.blocks) || uint64(blocks) > uint64(h.blocks)-lba {
		return done.check(scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.LBAOutOfRange})
	}
	data := h.units[c.lun][int(lba)*blockBytes : (int(lba)+int(blocks))*blockBytes]
	data = data[:min(len(data), int(c.dataBytes))]
	if scsi.Opcode(c.cdb[0]) == scsi.OpRead16 {
		return h.toHost(c, done, data)
	}
	for _, s := range c.segments {
		b, ok := h.iommu.Translate(s.Addr, int(s.Bytes), dma.Read)
		if !ok {
			done.status = port.StatusParityError
			return done
		}
		n := copy(data, b)
		data = data[n:]
		done.dataBytes += uint32(n)
	}
	return done
}

// toHost moves data to the command's segments.
func (h *hardware) toHost(c command, done completion, data []byte) completion {
	for _, s := range c.segments {
		n := min(len(data), int(s.Bytes))
		if n == 0 {
			break
		}
		b, ok := h.iommu.Translate(s.Addr, n, dma.Write)
		if !ok {
			done.status = port.StatusParityError
			return done
		}
		copy(b, data)
		data = data[n:]
		done.dataBytes += uint32(n)
	}
	return done
}
