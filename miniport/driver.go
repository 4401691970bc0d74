package miniport

import (
	"encoding/binary"
	"io"
	"log/slog"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/port"
)

// Interrupts says which interrupts the driver asks for.
type Interrupts uint8

// Interrupt modes.
const (
	// PerMessage uses messages with a lock each: handlers of different queue
	// pairs run in parallel.
	PerMessage Interrupts = iota
	// AllMessages uses messages under one lock.
	AllMessages
	// Line uses the interrupt line.
	Line
)

func (i Interrupts) String() string {
	switch i {
	case AllMessages:
		return "all"
	case Line:
		return "line"
	case PerMessage:
	}
	return "per-message"
}

// Limits and defaults of Options.
const (
	// MaxQueues is the largest number of queue pairs the driver uses.
	MaxQueues = hba.MaxQueuePairs
	// DefaultRingEntries is the ring size if Options does not say.
	DefaultRingEntries = 1024
	// MinRingEntries is the smallest ring.
	MinRingEntries = 2 * reservedEntries
	// MaxRingEntries is the largest ring: as many entries as leave the magazines
	// their tags.
	MaxRingEntries = 1<<tagIndexBits - magazineTags*magazineProcessors
	// DefaultResetTimeout bounds one wait for the device to stop its DMA.
	DefaultResetTimeout = 400 * time.Millisecond
)

// reservedEntries of each ring are for resets and aborts: a ring full of commands
// that are stuck is when those are needed.
const reservedEntries = 2

// Options are what an administrator may choose. The zero value is the fastest:
// full duplex, one channel and one message for each queue pair.
type Options struct {
	// HalfDuplex asks the port to hold the interrupt lock across StartIo.
	HalfDuplex bool
	// Interrupts is the interrupt mode.
	Interrupts Interrupts
	// SingleMessage completes every queue pair on message 0.
	SingleMessage bool
	// Queues is how many queue pairs to use, at most MaxQueues; zero means all
	// that the device has.
	Queues int
	// RingEntries is the size of each ring in entries; it is rounded up to a
	// power of two, and kept within MaxRingEntries and what the device can do.
	RingEntries int
	// ResetTimeout bounds each wait for the device to stop its DMA. When it
	// passes, ResetBus fails with all SRBs kept, and can be called again.
	ResetTimeout time.Duration
	// Log may be nil.
	Log *slog.Logger
}

// A Driver drives one adapter. It is the adapter's device extension.
//
// Concurrency: as port.Miniport says for each callback; Stats and Resets from
// any goroutine.
type Driver struct {
	o   Options
	log *slog.Logger

	// Set by FindAdapter.
	a            *port.Adapter
	registers    *port.RegisterRange
	queues       []*queue
	eventMessage uint16
	line         bool
	perMessage   bool
	maxIO        int

	// channels: the port runs StartIo on as many channels as there are queues.
	// Set by Initialize.
	channels bool

	// magazines holds a magazine for each processor and queue; see tags.go.
	magazines []magazine

	// stopped: the device takes no commands, because of a reset or a stop. Set
	// by ResetBus, with all of StartIo excluded, and by AdapterControl; CommitIo
	// looks at it after it has announced itself in queue.ringers.
	stopped atomic.Bool
	// gone: the hardware was removed by surprise. Set before stopped, for good.
	gone atomic.Bool

	// unitsSeen is the last value of the device's count of changes to its units.
	unitsSeen atomic.Uint64
	resets    atomic.Uint64

	// touring counts unit and target resets on their way round the queues.
	touring atomic.Int32

	// sweep is where ResetBus collects SRBs; its own.
	sweep []*port.SRB
}

var (
	_ port.Miniport           = (*Driver)(nil)
	_ port.IoBuilder          = (*Driver)(nil)
	_ port.IoCommitter        = (*Driver)(nil)
	_ port.MessageInterrupter = (*Driver)(nil)
	_ port.PassiveInitializer = (*Driver)(nil)
)

// New makes a driver for one adapter.
func New(o Options) *Driver {
	if o.RingEntries <= 0 {
		o.RingEntries = DefaultRingEntries
	}
	if o.ResetTimeout <= 0 {
		o.ResetTimeout = DefaultResetTimeout
	}
	d := &Driver{o: o, log: o.Log}
	if d.log == nil {
		d.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	d.stopped.Store(true)
	return d
}

// FindAdapter implements port.Miniport.
func (d *Driver) FindAdapter(p *port.Processor, a *port.Adapter, c *port.Config) port.FindResult {
	var id [4]byte
	if a.GetBusData(p, 0, id[:]) != len(id) || binary.LittleEndian.Uint16(id[:]) != hba.VendorID ||
		binary.LittleEndian.Uint16(id[2:]) != hba.DeviceID {
		return port.FindNotFound
	}
	registers := a.GetDeviceBase(p, hba.BAR)
	if registers == nil {
		d.log.Error("the device has no registers", "bar", hba.BAR)
		return port.FindError
	}
	capability := hba.Capability(a.ReadRegisterUlong64(p, registers, hba.RegCapability))
	queues := min(capability.QueuePairs(), MaxQueues)
	if d.o.Queues > 0 {
		queues = min(queues, d.o.Queues)
	}
	entries := min(1<<bits.Len(uint(d.o.RingEntries-1)), MaxRingEntries, capability.MaxRingEntries())
	if queues == 0 || entries < MinRingEntries || capability.MaxTransferBytes() == 0 {
		d.log.Error("the device cannot be used", "queue_pairs", queues, "ring_entries", entries, "max_transfer_bytes", capability.MaxTransferBytes())
		return port.FindBadConfig
	}
	d.a, d.registers = a, registers
	d.line = d.o.Interrupts == Line
	d.perMessage = d.o.Interrupts == PerMessage
	d.eventMessage = uint16(capability.QueuePairs())
	d.maxIO = queues * (entries - reservedEntries)
	if err := a.SetFeatureList(p, port.ControlSurpriseRemoval); err != nil {
		d.log.Error("the port takes no feature list", "error", err)
		return port.FindError
	}
	d.configure(c, capability)
	if d.queues == nil {
		d.makeQueues(queues, entries)
	}
	ringBytes := entries * (hba.CommandBytes + hba.CompletionBytes)
	memory := a.GetUncachedExtension(p, c, queues*ringBytes)
	if memory == nil {
		d.log.Error("no memory for the rings", "bytes", queues*ringBytes)
		return port.FindError
	}
	for i, q := range d.queues {
		ring := memory[i*ringBytes : (i+1)*ringBytes]
		q.setMemory(p, ring[:entries*hba.CommandBytes], ring[entries*hba.CommandBytes:])
		q.shared.Bind(a, int(q.message))
	}
	return port.Found
}

// configure tells the port what the driver and a device of that capability can do.
func (d *Driver) configure(c *port.Config, capability hba.Capability) {
	c.SynchronizationModel = port.FullDuplex
	if d.o.HalfDuplex {
		c.SynchronizationModel = port.HalfDuplex
	}
	switch d.o.Interrupts {
	case PerMessage:
		c.InterruptSynchronizationMode = port.InterruptSynchronizePerMessage
	case AllMessages:
		c.InterruptSynchronizationMode = port.InterruptSynchronizeAll
	case Line:
		c.InterruptSynchronizationMode = port.InterruptSupportNone
	}
	c.MaximumTransferLength = uint32(min(capability.MaxTransferBytes(), maxTransferBytes))
	c.NumberOfPhysicalBreaks = maxSegments - 1
	c.MaxNumberOfIO = d.maxIO
	c.MaxIOsPerLun = d.maxIO
	c.InitialLunQueueDepth = min(c.InitialLunQueueDepth, d.maxIO)
	c.MaximumNumberOfTargets = capability.Targets()
	c.MaximumNumberOfLogicalUnits = capability.UnitsPerTarget()
	c.SrbExtensionBytes = extensionBytes
	c.Features = port.FeatureAbortCommand
}

// makeQueues makes the driver's side of the queue pairs.
func (d *Driver) makeQueues(queues, entries int) {
	// A magazine for each processor that there can be, as far as tags go round.
	magazines := min(magazineProcessors, d.a.System().MaxProcessors())
	tags := entries + magazineTags*magazines
	// Everything that can be outstanding, and resets, of which there are few.
	reaped := d.maxIO + reapedSlack
	d.magazines = make([]magazine, magazines*queues)
	d.sweep = make([]*port.SRB, 0, queues*(entries+reaped))
	for i := range queues {
		q := &queue{
			d:     d,
			index: i,
			mask:  uint32(entries - 1),
			table: make([]tagEntry, tags),
			spare: make([]*port.SRB, 0, reaped),
		}
		if !d.line && !d.o.SingleMessage {
			q.message = uint16(i)
		}
		d.queues = append(d.queues, q)
	}
}

// reapedSlack is room for SRBs that the port sends beyond MaxNumberOfIO: the
// resets of its recovery.
const reapedSlack = 1024
