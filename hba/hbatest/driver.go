package hbatest

import (
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// Runner is a pci.Runner with nothing but a name.
type Runner string

// RunnerName implements pci.Runner.
func (r Runner) RunnerName() string { return string(r) }

// Config says what queue pairs a Driver creates.
type Config struct {
	Queues int // queue pairs; 0 means as many as the device has
	// SubmissionEntries and CompletionEntries are the ring sizes; 0 means the
	// largest that the device allows.
	SubmissionEntries, CompletionEntries int
	// Message is the interrupt message of each queue pair; nil means its index.
	Message func(queue int) pci.Message
}

// A Driver drives a device. Its methods may be called from any goroutine,
// unless they say otherwise.
type Driver struct {
	Function pci.Function
	Queues   []*Queue

	bar    pci.Registers
	iommu  *dma.IOMMU
	config Config
	start  uint32 // position that rings start from
}

// NewDriver resets the device, creates queue pairs and enables it. It does not
// connect interrupts. Close gives the memory back.
func NewDriver(fn pci.Function, m *dma.IOMMU, c Config) (*Driver, error) {
	d := &Driver{Function: fn, bar: fn.BAR(hba.BAR), iommu: m}
	capability := hba.Capability(d.Read(hba.RegCapability))
	if c.Queues == 0 {
		c.Queues = capability.QueuePairs()
	}
	if c.SubmissionEntries == 0 {
		c.SubmissionEntries = capability.MaxRingEntries()
	}
	if c.CompletionEntries == 0 {
		c.CompletionEntries = capability.MaxRingEntries()
	}
	if c.Message == nil {
		c.Message = func(queue int) pci.Message { return pci.Message(queue) }
	}
	d.config = c
	for i := range c.Queues {
		q := &Queue{driver: d, index: i}
		d.Queues = append(d.Queues, q)
		for _, ring := range []struct {
			to     **Buffer
			bytes  int
			access dma.Access
		}{
			{&q.submission, c.SubmissionEntries * hba.CommandBytes, dma.Read},
			{&q.completion, c.CompletionEntries * hba.CompletionBytes, dma.Write},
		} {
			b, err := d.NewBuffer(ring.bytes)
			if err != nil {
				d.free()
				return nil, err
			}
			b.Map(ring.access)
			*ring.to = b
		}
	}
	if err := d.Restart(); err != nil {
		d.free()
		return nil, err
	}
	return d, nil
}

// Start is NewDriver for a test, which it fails on an error; the driver is
// closed at the test's end.
func Start(tb testing.TB, fn pci.Function, m *dma.IOMMU, c Config) *Driver {
	tb.Helper()
	d, err := NewDriver(fn, m, c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(d.Close)
	return d
}

// Restart resets the device and creates all queues afresh, empty. No other
// method may be called meanwhile.
func (d *Driver) Restart() error { return d.RestartAt(0) }

// RestartAt is Restart with rings that start from a position. The device must be
// told by other means.
func (d *Driver) RestartAt(position uint32) error {
	d.start = position
	d.Reset()
	for _, q := range d.Queues {
		if err := q.create(); err != nil {
			return err
		}
	}
	d.Write(hba.RegControl, hba.ControlEnable)
	if s := d.Read(hba.RegStatus); s != hba.StatusReady {
		return fmt.Errorf("hbatest: status %#x after enabling, want %#x", s, hba.StatusReady)
	}
	return nil
}

// Reset resets the device and waits until it touches host memory no more.
func (d *Driver) Reset() {
	d.Write(hba.RegControl, hba.ControlReset)
	d.WaitReset()
}

// WaitReset polls until a reset that has been started is over.
func (d *Driver) WaitReset() {
	for d.Read(hba.RegControl)&hba.ControlReset != 0 {
		runtime.Gosched()
	}
}

// Close resets the device and frees the rings.
func (d *Driver) Close() {
	d.Reset()
	d.free()
}

func (d *Driver) free() {
	for _, q := range d.Queues {
		for _, b := range []*Buffer{q.submission, q.completion} {
			if b != nil {
				b.Free()
			}
		}
	}
}

// Read reads a 64-bit register.
func (d *Driver) Read(offset uint32) uint64 { return d.bar.Read64(Runner("driver"), offset) }

// Write writes a 64-bit register.
func (d *Driver) Write(offset uint32, value uint64) {
	d.bar.Write64(Runner("driver"), offset, value)
}

// A Queue is the driver's side of a queue pair. Submitting and consuming are
// each serialised, and run side by side.
type Queue struct {
	driver     *Driver
	index      int
	submission *Buffer
	completion *Buffer

	submitMu sync.Mutex
	// +checklocks:submitMu
	tail uint32

	consumeMu sync.Mutex
	// +checklocks:consumeMu
	head uint32

	// fetched is the last SubmissionHead seen.
	fetchedMu sync.Mutex
	// +checklocks:fetchedMu
	fetched uint32
}

// create makes the queue pair in the device, with empty rings.
func (q *Queue) create() error {
	d, c := q.driver, &q.driver.config
	q.submitMu.Lock()
	q.tail = d.start
	q.submitMu.Unlock()
	q.fetchedMu.Lock()
	q.fetched = d.start
	q.fetchedMu.Unlock()
	q.consumeMu.Lock()
	q.head = d.start
	entries := hba.Completions(q.completion.Bytes)
	for i := range entries {
		// Not the phase of the pass that comes first there.
		position := d.start + (uint32(i)-d.start)&uint32(c.CompletionEntries-1)
		entries[i] = hba.Completion{}
		entries[i].StorePhase(1 - hba.PhaseAt(position, c.CompletionEntries))
	}
	q.consumeMu.Unlock()
	d.Write(hba.RegQueueSelect, uint64(q.index))
	d.Write(hba.RegQueueSize, uint64(c.SubmissionEntries)|uint64(c.CompletionEntries)<<32)
	d.Write(hba.RegQueueSubmit, uint64(q.submission.Addr))
	d.Write(hba.RegQueueComplete, uint64(q.completion.Addr))
	d.Write(hba.RegQueueMessage, uint64(c.Message(q.index)))
	d.Write(hba.RegQueueEnable, 1)
	if d.Read(hba.RegQueueEnable) != 1 {
		return fmt.Errorf("hbatest: the device refused queue pair %d", q.index)
	}
	return nil
}

// Submit puts commands into the ring, without ringing, and returns how many
// found room.
func (q *Queue) Submit(commands ...hba.Command) int {
	q.submitMu.Lock()
	defer q.submitMu.Unlock()
	q.fetchedMu.Lock()
	fetched := q.fetched
	q.fetchedMu.Unlock()
	ring := hba.Commands(q.submission.Bytes)[:q.driver.config.SubmissionEntries]
	for i := range commands {
		if int(q.tail-fetched) >= len(ring) {
			return i
		}
		ring[int(q.tail)&(len(ring)-1)] = commands[i]
		q.tail++
	}
	return len(commands)
}

// Ring rings the submission doorbell. Commands may run on this goroutine.
func (q *Queue) Ring(r pci.Runner) {
	q.submitMu.Lock()
	tail := q.tail
	q.submitMu.Unlock()
	q.RingTail(r, tail)
}

// RingTail rings the submission doorbell with any value.
func (q *Queue) RingTail(r pci.Runner, tail uint32) {
	q.driver.bar.Write32(r, q.doorbell(), tail)
}

// Consume takes completions that are there into out and returns how many. The
// device may not use their places until Ack.
func (q *Queue) Consume(out []hba.Completion) int {
	q.consumeMu.Lock()
	defer q.consumeMu.Unlock()
	entries := hba.Completions(q.completion.Bytes)[:q.driver.config.CompletionEntries]
	n := 0
	for n < len(out) {
		e := &entries[int(q.head)&(len(entries)-1)]
		phase := hba.PhaseAt(q.head, len(entries))
		if e.LoadPhase() != phase {
			break
		}
		out[n] = hba.Completion{
			Tag: e.Tag, Code: e.Code, ScsiStatus: e.ScsiStatus, SenseBytes: e.SenseBytes, Flags: e.Flags,
			DataBytes: e.DataBytes, SubmissionHead: e.SubmissionHead, Sense: e.Sense, ReplyBytes: e.ReplyBytes, Phase: phase,
		}
		q.head++
		n++
	}
	if n > 0 {
		q.fetchedMu.Lock()
		q.fetched = out[n-1].SubmissionHead
		q.fetchedMu.Unlock()
	}
	return n
}

// Ack rings the completion doorbell: what was consumed may be overwritten.
func (q *Queue) Ack(r pci.Runner) {
	q.consumeMu.Lock()
	head := q.head
	q.consumeMu.Unlock()
	q.AckHead(r, head)
}

// AckHead rings the completion doorbell with any value.
func (q *Queue) AckHead(r pci.Runner, head uint32) {
	q.driver.bar.Write32(r, q.doorbell()+8, head)
}

// Tail and Head are the driver's positions in the two rings.
func (q *Queue) Tail() uint32 {
	q.submitMu.Lock()
	defer q.submitMu.Unlock()
	return q.tail
}

// Head is the position of the next completion to consume.
func (q *Queue) Head() uint32 {
	q.consumeMu.Lock()
	defer q.consumeMu.Unlock()
	return q.head
}

// Rings are the memory of both rings, mapped.
func (q *Queue) Rings() (submission, completion *Buffer) { return q.submission, q.completion }

func (q *Queue) doorbell() uint32 {
	return hba.RegDoorbells + hba.DoorbellStride*uint32(q.index)
}

// A Buffer is memory of the arena with an IOMMU window of its own.
type Buffer struct {
	Bytes []byte
	Addr  dma.Addr // valid while mapped

	iommu  *dma.IOMMU
	window dma.Window
}

// NewBuffer allocates n zeroed bytes.
func (d *Driver) NewBuffer(n int) (*Buffer, error) {
	b := d.iommu.Arena().Alloc(n)
	if b == nil {
		return nil, fmt.Errorf("hbatest: no %d bytes left in the arena", n)
	}
	clear(b)
	w, err := d.iommu.NewWindow(nil)
	if err != nil {
		d.iommu.Arena().Free(b)
		return nil, err
	}
	return &Buffer{Bytes: b, iommu: d.iommu, window: w}, nil
}

// MappedBuffer is NewBuffer and Map for a test, which frees it at its end.
func (d *Driver) MappedBuffer(tb testing.TB, n int, access dma.Access) *Buffer {
	tb.Helper()
	b, err := d.NewBuffer(n)
	if err != nil {
		tb.Fatal(err)
	}
	b.Map(access)
	tb.Cleanup(b.Free)
	return b
}

// Map lets the device reach the buffer, under a new address.
func (b *Buffer) Map(access dma.Access) { b.Addr = b.iommu.Map(b.window, b.Bytes, access) }

// Unmap ends that.
func (b *Buffer) Unmap() { b.iommu.Unmap(b.window) }

// Free unmaps the buffer and gives it back.
func (b *Buffer) Free() {
	b.iommu.Unmap(b.window)
	b.iommu.FreeWindow(b.window)
	b.iommu.Arena().Free(b.Bytes)
}

// Segment describes part of the buffer.
func (b *Buffer) Segment(offsetBytes, bytes int) hba.Segment {
	return hba.Segment{Addr: uint64(b.Addr) + uint64(offsetBytes), Bytes: uint32(bytes)}
}
