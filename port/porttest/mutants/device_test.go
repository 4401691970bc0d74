package mutants

import (
	"sync"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// Geometry of the device.
const (
	ringEntries = 8 // one is always free
	unitBlocks  = 128
	unitCount   = 2
	blockBytes  = 512
	barBytes    = 0x100

	// Blocks that cannot be read.
	badMediumLBA   = 100
	badHardwareLBA = 101
)

// Registers: writing anything to regDoorbell+4*queue has that queue fetched.
const (
	regEnable   = 0x00
	regDoorbell = 0x40
)

// A device is the adapter behind the specimen: rings of commands, answers that
// name a command by its id, DMA and interrupts. It runs on whoever touches it.
type device struct {
	r     *rig
	iommu *dma.IOMMU

	mu sync.Mutex
	// +checklocks:mu
	queues []deviceQueue
	// hold keeps reads and writes until release.
	// +checklocks:mu
	hold bool
	// polling: the device looks at its rings by itself and needs no doorbell. It
	// does so when the test calls poll.
	// +checklocks:mu
	polling bool
	// executed counts by request how often its command ran.
	// +checklocks:mu
	executed map[uint32]int
	// +checklocks:mu
	raise pci.InterruptFunc
	// +checklocks:mu
	line bool
	// beforeEnable is called when the driver turns a queue's interrupts on again.
	// +checklocks:mu
	beforeEnable func(queue int)
}

type deviceQueue struct {
	ring       [ringEntries]entry
	head, tail uint32
	held       []entry
	done       []answer
	control    []answer // of resets
	suppressed bool     // the driver looks by itself: no interrupts
}

// An entry is one command in a ring.
type entry struct {
	id       uint32
	function port.Function
	lun      uint8
	cdb      [scsi.CDBMaxBytes]byte
	data     port.Segment
	request  uint32 // the SRB's tag, for the oracles alone
}

// An answer says what became of the command id.
type answer struct {
	id         uint32
	status     port.Status
	scsiStatus scsi.Status
	sense      scsi.Sense
	dataBytes  uint32
}

func newDevice(r *rig, queues int) *device {
	return &device{r: r, iommu: r.iommu, queues: make([]deviceQueue, queues), executed: map[uint32]int{}}
}

// ReadConfig implements pci.Function.
func (d *device) ReadConfig(int, []byte) int { return 0 }

// BAR implements pci.Function.
func (d *device) BAR(int) pci.Registers { return registers{d} }

// Messages implements pci.Function.
//
// +checklocksignore: the number of queues does not change.
func (d *device) Messages() int { return len(d.queues) }

// ConnectInterrupt implements pci.Function.
func (d *device) ConnectInterrupt(mode pci.InterruptMode, raise pci.InterruptFunc, _ func(string) pci.Runner) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.line, d.raise = mode == pci.Line, raise
	return nil
}

// DisconnectInterrupt implements pci.Function.
func (d *device) DisconnectInterrupt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.raise = nil
}

// Asserted implements pci.Function.
func (d *device) Asserted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.queues {
		if len(d.queues[i].done)+len(d.queues[i].control) > 0 {
			return true
		}
	}
	return false
}

// MaskMessage implements pci.Function.
func (d *device) MaskMessage(pci.Message) {}

// UnmaskMessage implements pci.Function.
func (d *device) UnmaskMessage(pci.Runner, pci.Message) {}

// interrupt raises a queue's message, unless the driver looks by itself.
func (d *device) interrupt(r pci.Runner, queue int) {
	d.mu.Lock()
	raise, m := d.raise, pci.Message(queue)
	if d.queues[queue].suppressed {
		raise = nil
	}
	if d.line {
		m = 0
	}
	d.mu.Unlock()
	if raise != nil {
		raise(r, m)
	}
}

type registers struct{ d *device }

// SizeBytes implements pci.Registers.
func (registers) SizeBytes() uint32 { return barBytes }

// Read32 implements pci.Registers.
func (registers) Read32(pci.Runner, uint32) uint32 { return 0 }

// Read64 implements pci.Registers.
func (registers) Read64(pci.Runner, uint32) uint64 { return 0 }

// Write32 implements pci.Registers: a doorbell.
func (g registers) Write32(r pci.Runner, offset, _ uint32) {
	if offset >= regDoorbell {
		g.d.fetch(r, int(offset-regDoorbell)/4)
	}
}

// Write64 implements pci.Registers.
func (registers) Write64(pci.Runner, uint32, uint64) {}

// free is how many commands fit into a queue's ring, and where the next goes.
func (d *device) free(queue int) (n int, tail uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.queues[queue]
	return int(ringEntries - 1 - (q.tail - q.head)), q.tail
}

// put writes a ring entry and publishes it.
func (d *device) put(queue int, tail uint32, e *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.queues[queue]
	q.ring[tail%ringEntries] = *e
	q.tail = tail + 1
}

// busyPolling reports whether the device looks at its rings without a doorbell.
func (d *device) busyPolling() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.polling
}

// setPolling starts or ends that; the device looks a last time.
func (d *device) setPolling(r pci.Runner, on bool) {
	d.fetch(r, 0)
	d.mu.Lock()
	d.polling = on
	d.mu.Unlock()
}

// fetch runs a queue's new commands and raises one interrupt for them.
func (d *device) fetch(r pci.Runner, queue int) {
	d.mu.Lock()
	q := &d.queues[queue]
	for ; q.head != q.tail; q.head++ {
		e := q.ring[q.head%ringEntries]
		switch {
		case e.function != port.FunctionExecuteScsi:
			q.control = append(q.control, d.resetLocked(&e))
		case d.hold:
			q.held = append(q.held, e)
		default:
			q.done = append(q.done, d.runLocked(&e))
		}
	}
	raise := len(q.done)+len(q.control) > 0
	d.mu.Unlock()
	if raise {
		d.interrupt(r, queue)
	}
}

// resetLocked stops the commands in a reset's scope, for good.
//
// +checklocks:d.mu
func (d *device) resetLocked(e *entry) answer {
	for i := range d.queues {
		q := &d.queues[i]
		kept := q.held[:0]
		for _, h := range q.held {
			if e.function == port.FunctionResetLogicalUnit && h.lun != e.lun {
				kept = append(kept, h)
			}
		}
		q.held = kept
	}
	return answer{id: e.id, status: port.StatusSuccess}
}

// stop resets the whole device: no command runs any more, no answer is left.
func (d *device) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.queues {
		q := &d.queues[i]
		q.head, q.held, q.done, q.control = q.tail, nil, nil, nil
	}
}

// reap takes up to limit answers of a queue.
func (d *device) reap(queue, limit int) []answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.queues[queue]
	n := min(limit, len(q.done))
	list := q.done[:n:n]
	q.done = q.done[n:]
	return list
}

// reapControl takes the answers of resets.
func (d *device) reapControl(queue int) []answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.queues[queue]
	list := q.control
	q.control = nil
	return list
}

// answered reports whether answers wait.
func (d *device) answered(queue int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queues[queue].done)+len(d.queues[queue].control) > 0
}

// suppress turns a queue's interrupts off, or on again. What came meanwhile
// raises none.
func (d *device) suppress(queue int, off bool) {
	d.mu.Lock()
	before := d.beforeEnable
	d.mu.Unlock()
	if !off && before != nil {
		before(queue)
	}
	d.mu.Lock()
	d.queues[queue].suppressed = off
	d.mu.Unlock()
}

// holdAll keeps what comes until release.
func (d *device) holdAll() {
	d.mu.Lock()
	d.hold = true
	d.mu.Unlock()
}

// heldEntries are the commands that a queue holds.
func (d *device) heldEntries(queue int) []entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]entry(nil), d.queues[queue].held...)
}

// release runs all that is held, then raises one interrupt for each queue.
func (d *device) release(r pci.Runner) {
	d.mu.Lock()
	d.hold = false
	n := len(d.queues)
	for i := range d.queues {
		q := &d.queues[i]
		for j := range q.held {
			q.done = append(q.done, d.runLocked(&q.held[j]))
		}
		q.held = nil
	}
	d.mu.Unlock()
	for i := range n {
		if d.answered(i) {
			d.interrupt(r, i)
		}
	}
}

// releaseOne runs the oldest held command without an interrupt.
func (d *device) releaseOne(queue int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.queues[queue]
	if len(q.held) > 0 {
		q.done = append(q.done, d.runLocked(&q.held[0]))
		q.held = q.held[1:]
	}
}

// post answers a command that is not there, as a slow device does after a reset.
func (d *device) post(r pci.Runner, queue int, a answer) {
	d.mu.Lock()
	d.queues[queue].done = append(d.queues[queue].done, a)
	d.mu.Unlock()
	d.interrupt(r, queue)
}

// runs is how often the command of a request ran.
func (d *device) runs(request uint32) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.executed[request]
}

// runLocked runs one command.
//
// +checklocks:d.mu
func (d *device) runLocked(e *entry) answer {
	a := answer{id: e.id, status: port.StatusSuccess}
	d.executed[e.request]++
	var reply [scsi.ReportLUNsHeaderBytes + unitCount*scsi.LUNBytes + blockBytes]byte
	n := 0
	switch scsi.Opcode(e.cdb[0]) {
	case scsi.OpReportLUNs:
		n = scsi.PutReportLUNsHeader(reply[:], unitCount)
		for lun := range unitCount {
			n += scsi.PutLUN(reply[n:], uint8(lun))
		}
	case scsi.OpInquiry:
		n = scsi.PutInquiryData(reply[:], &scsi.Inquiry{Peripheral: scsi.PeripheralDisk, Vendor: "VHBAD", Product: "specimen", Revision: "1", CommandQueuing: true})
	case scsi.OpRead16:
		lba, _, _ := scsi.BlockRange(&e.cdb)
		switch lba {
		case badMediumLBA:
			return a.check(scsi.KeyMediumError)
		case badHardwareLBA:
			return a.check(scsi.KeyHardwareError)
		}
		n = stamp(reply[:blockBytes], e.lun, lba)
	default:
		return a.check(scsi.KeyIllegalRequest)
	}
	if n = min(n, int(e.data.Bytes)); n == 0 {
		return a
	}
	b, ok := d.iommu.Translate(e.data.Addr, n, dma.Write)
	if !ok {
		a.status = port.StatusParityError
		return a
	}
	a.dataBytes = uint32(copy(b, reply[:n]))
	return a
}

func (a answer) check(key scsi.SenseKey) answer {
	a.status, a.scsiStatus, a.sense = port.StatusError, scsi.StatusCheckCondition, scsi.Sense{Key: key}
	return a
}

// stamp fills a block with what its place says.
func stamp(b []byte, lun uint8, lba uint64) int {
	for i := range b {
		b[i] = byte(i) ^ byte(lba*31) ^ lun<<6
	}
	return len(b)
}
