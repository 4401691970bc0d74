package porttest

import (
	"fmt"
	"slices"

	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// Options say how a Miniport is to be run. The zero value is one queue in half
// duplex on the interrupt line, completing in the handler.
type Options struct {
	// Model and Interrupts are what FindAdapter asks for.
	Model      port.SynchronizationModel
	Interrupts port.InterruptSynchronizationMode
	// Queues is the number of queues, each with its message; default 1. Channels
	// asks for a channel of StartIo for each.
	Queues   int
	Channels bool
	// QueueEntries is how many commands a queue takes; more are turned away with
	// QUEUE FULL. Default 64.
	QueueEntries int
	// DPC completes SRBs in a DPC instead of the interrupt handler.
	DPC bool
	// NoAbort does without FeatureAbortCommand.
	NoAbort bool
	// Units is the number of logical units on target 0; default 2. Each has
	// Blocks blocks of 512 bytes; default MinBlocks.
	Units, Blocks int

	Hooks  Hooks
	Script Script
}

// Hooks are called first in the miniport's callbacks, with the level and the locks of
// the callback. Nil ones are not called. Tests use them to observe, and to call routines
// that a miniport may call there.
type Hooks struct {
	FindAdapter       func(p *port.Processor, a *port.Adapter, c *port.Config)
	Initialize        func(p *port.Processor, t port.SyncToken)
	PassiveInitialize func(p *port.Processor)
	BuildIo           func(p *port.Processor, srb *port.SRB)
	StartIo           func(p *port.Processor, srb *port.SRB)
	CommitIo          func(p *port.Processor, channel int)
	Interrupt         func(p *port.Processor, t port.SyncToken, message uint16)
	Dpc               func(p *port.Processor)
	ResetBus          func(p *port.Processor, path uint8)
	AdapterControl    func(p *port.Processor, c port.ControlType)
	UnitControl       func(p *port.Processor, c port.UnitControlType, lu *port.LogicalUnit)
}

// An Action is what a Script wants done with an SRB.
type Action uint8

// Actions.
const (
	Continue    Action = iota // go on
	RefuseBusy                // complete as BUSY, SCSI status BUSY
	RefuseFull                // complete as BUSY, SCSI status TASK SET FULL
	Fail                      // complete as StatusUnexpectedBusFree
	KeepHeld                  // let the hardware hold it until Finish; StageStartIo only
	AnswerError               // let the hardware answer StatusParityError; StageStartIo only
)

// A Stage is where a Script is asked.
type Stage uint8

// Stages.
const (
	StageBuildIo Stage = iota
	StageStartIo
)

// A Script decides what becomes of each SRB. It is called at each stage, on
// whatever processor the callback runs on, and must be quick.
type Script func(stage Stage, srb *port.SRB) Action

// Miniport is a miniport for tests of the port. It is its own device.
type Miniport struct {
	o      Options
	a      *port.Adapter
	bar    *port.RegisterRange
	hw     *hardware
	queues []fakeQueue
}

// A fakeQueue is the driver's side of one queue.
type fakeQueue struct {
	m     *Miniport
	index int
	dpc   port.Dpc
	// shared is what the handler shares with the DPC and ResetBus.
	shared port.Guarded[fakeShared]
}

type fakeShared struct {
	reaped []completion // for the DPC
}

var (
	_ port.Miniport           = (*Miniport)(nil)
	_ port.IoBuilder          = (*Miniport)(nil)
	_ port.IoCommitter        = (*Miniport)(nil)
	_ port.MessageInterrupter = (*Miniport)(nil)
	_ port.PassiveInitializer = (*Miniport)(nil)
	_ port.UnitController     = (*Miniport)(nil)
)

// New makes a miniport with its hardware on a machine.
func New(m *Machine, o Options) *Miniport {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.QueueEntries == 0 {
		o.QueueEntries = 64
	}
	if o.Units == 0 {
		o.Units = 2
	}
	if o.Blocks == 0 {
		o.Blocks = MinBlocks
	}
	f := &Miniport{o: o, hw: newHardware(m.IOMMU, o.Queues, o.Units, o.Blocks), queues: make([]fakeQueue, o.Queues)}
	for i := range f.queues {
		f.queues[i].m, f.queues[i].index = f, i
	}
	return f
}

// Function is the device that the miniport drives.
func (m *Miniport) Function() pci.Function { return m.hw }

// Held are the SRBs that the hardware holds, in order of queue and arrival.
func (m *Miniport) Held() []*port.SRB { return m.hw.heldSRBs() }

// Finish lets the hardware complete an SRB that it holds, with p's goroutine.
// False: it does not hold it.
func (m *Miniport) Finish(p *port.Processor, srb *port.SRB) bool { return m.hw.finish(p, srb) }

// Hold makes the hardware keep reads and writes until the result is called with
// a processor to run on.
func (m *Miniport) Hold() (release func(p *port.Processor)) {
	m.hw.hold()
	return func(p *port.Processor) { m.hw.unhold(p) }
}

// RaiseInterrupt raises a queue's interrupt out of turn, with p's goroutine.
func (m *Miniport) RaiseInterrupt(p *port.Processor, queue int) { m.hw.interrupt(p, queue) }

// FindAdapter implements port.Miniport.
func (m *Miniport) FindAdapter(p *port.Processor, a *port.Adapter, c *port.Config) port.FindResult {
	m.a = a
	m.bar = a.GetDeviceBase(p, 0)
	c.SynchronizationModel = m.o.Model
	c.InterruptSynchronizationMode = m.o.Interrupts
	c.MaximumTransferLength = 1 << 20
	c.NumberOfPhysicalBreaks = 256
	c.MaxNumberOfIO = m.o.QueueEntries * m.o.Queues
	c.MaxIOsPerLun = c.MaxNumberOfIO
	c.InitialLunQueueDepth = min(20, c.MaxNumberOfIO)
	c.MaximumNumberOfLogicalUnits = 8
	c.SrbExtensionBytes = 64
	c.LuExtensionBytes = 16
	if !m.o.NoAbort {
		c.Features = port.FeatureAbortCommand
	}
	for i := range m.queues {
		m.queues[i].shared.Bind(a, i)
	}
	if m.o.Hooks.FindAdapter != nil {
		m.o.Hooks.FindAdapter(p, a, c)
	}
	return port.Found
}

// Initialize implements port.Miniport.
func (m *Miniport) Initialize(p *port.Processor, t port.SyncToken) bool {
	if m.o.Hooks.Initialize != nil {
		m.o.Hooks.Initialize(p, t)
	}
	if m.o.Channels && m.o.Model == port.FullDuplex {
		perf := port.PerfConfigurationData{Flags: port.PerfConcurrentChannels, ConcurrentChannels: m.o.Queues}
		if err := m.a.InitializePerfOpts(p, false, &perf); err != nil {
			return false
		}
	}
	if !m.a.EnablePassiveInitialization(p) {
		return false
	}
	m.a.WriteRegisterUlong64(p, m.bar, regEnable, 1)
	return true
}

// PassiveInitialize implements port.PassiveInitializer.
func (m *Miniport) PassiveInitialize(p *port.Processor) bool {
	if m.o.Hooks.PassiveInitialize != nil {
		m.o.Hooks.PassiveInitialize(p)
	}
	for i := range m.queues {
		m.queues[i].dpc.Context = &m.queues[i]
		m.a.InitializeDpc(p, &m.queues[i].dpc, runDpc)
	}
	return true
}

// obey does with srb what the script says at a stage. True: the SRB is completed.
func (m *Miniport) obey(p *port.Processor, stage Stage, srb *port.SRB, c *command) bool {
	if m.o.Script == nil {
		return false
	}
	switch action := m.o.Script(stage, srb); action {
	case Continue:
		return false
	case RefuseBusy:
		m.refuse(p, srb, port.StatusBusy, scsi.StatusBusy)
	case RefuseFull:
		m.refuse(p, srb, port.StatusBusy, scsi.StatusTaskSetFull)
	case Fail:
		m.refuse(p, srb, port.StatusUnexpectedBusFree, scsi.StatusGood)
	case KeepHeld:
		c.hold = true
		return false
	case AnswerError:
		c.fail = port.StatusParityError
		return false
	default:
		panic(fmt.Sprintf("porttest: script answered action %d", action))
	}
	return true
}

func (m *Miniport) refuse(p *port.Processor, srb *port.SRB, status port.Status, scsiStatus scsi.Status) {
	srb.Status, srb.ScsiStatus = status, scsiStatus
	m.a.Complete(p, srb)
}

// BuildIo implements port.IoBuilder.
func (m *Miniport) BuildIo(p *port.Processor, srb *port.SRB) bool {
	if m.o.Hooks.BuildIo != nil {
		m.o.Hooks.BuildIo(p, srb)
	}
	switch srb.Function {
	case port.FunctionExecuteScsi, port.FunctionResetLogicalUnit, port.FunctionResetDevice:
	case port.FunctionAbortCommand:
		if m.o.NoAbort {
			m.refuse(p, srb, port.StatusInvalidRequest, scsi.StatusGood)
			return false
		}
	default:
		m.refuse(p, srb, port.StatusInvalidRequest, scsi.StatusGood)
		return false
	}
	// What StartIo needs is put where only this attempt of this SRB can see it.
	srb.Extension[0] = srb.Lun
	return !m.obey(p, StageBuildIo, srb, nil)
}

// StartIo implements port.Miniport.
func (m *Miniport) StartIo(p *port.Processor, srb *port.SRB) bool {
	if m.o.Hooks.StartIo != nil {
		m.o.Hooks.StartIo(p, srb)
	}
	c := command{
		srb: srb, function: srb.Function, lun: srb.Extension[0], cdb: srb.CDB,
		segments: srb.SGL, dataBytes: srb.DataTransferBytes, victim: srb.VictimSRB,
	}
	if m.obey(p, StageStartIo, srb, &c) {
		return false
	}
	queue := m.a.GetStartIoPerfParams(p, srb).ChannelNumber
	if !m.hw.submit(queue, c, m.o.QueueEntries) {
		m.refuse(p, srb, port.StatusBusy, scsi.StatusTaskSetFull)
		return false
	}
	return true
}

// CommitIo implements port.IoCommitter.
func (m *Miniport) CommitIo(p *port.Processor, channel int) {
	if m.o.Hooks.CommitIo != nil {
		m.o.Hooks.CommitIo(p, channel)
	}
	m.a.WriteRegisterUlong(p, m.bar, regDoorbells+uint32(channel)*4, 0)
}

// Interrupt implements port.Miniport.
func (m *Miniport) Interrupt(p *port.Processor, t port.SyncToken) bool {
	if m.o.Hooks.Interrupt != nil {
		m.o.Hooks.Interrupt(p, t, 0)
	}
	found := false
	for i := range m.queues {
		found = m.service(p, t, &m.queues[i]) || found
	}
	return found
}

// MessageInterrupt implements port.MessageInterrupter.
func (m *Miniport) MessageInterrupt(p *port.Processor, t port.SyncToken, message uint16) bool {
	if m.o.Hooks.Interrupt != nil {
		m.o.Hooks.Interrupt(p, t, message)
	}
	return m.service(p, t, &m.queues[message])
}

// service consumes a queue's completions.
func (m *Miniport) service(p *port.Processor, t port.SyncToken, q *fakeQueue) bool {
	done := m.hw.reap(q.index)
	if len(done) == 0 {
		return false
	}
	shared := q.shared.Open(t)
	if !m.o.DPC && !slices.ContainsFunc(done, isReset) {
		m.complete(p, done)
		return true
	}
	shared.reaped = append(shared.reaped, done...)
	m.a.IssueDpc(p, &q.dpc)
	return true
}

// isReset reports whether a completion is that of a reset, which must come
// after those of all queues that happened before it.
func isReset(c completion) bool {
	return c.srb.Function == port.FunctionResetLogicalUnit || c.srb.Function == port.FunctionResetDevice
}

func runDpc(p *port.Processor, d *port.Dpc) {
	q := d.Context.(*fakeQueue)
	if q.m.o.Hooks.Dpc != nil {
		q.m.o.Hooks.Dpc(p)
	}
	port.SynchronizeAccess(q.m.a, p, completeReaped, q)
}

// completeReaped completes a queue's reaped SRBs under SynchronizeAccess, so
// that ResetBus finds either all of them there or none outstanding.
func completeReaped(t port.SyncToken, q *fakeQueue) bool {
	shared := q.shared.Open(t)
	if slices.ContainsFunc(shared.reaped, isReset) {
		for i := range q.m.queues {
			if other := &q.m.queues[i]; other != q {
				q.m.completeAll(t, other)
			}
		}
	}
	q.m.complete(t.Processor(), shared.reaped)
	shared.reaped = nil
	return true
}

// completeAll completes what a queue has answered, resets aside: those wait for
// their own DPC.
func (m *Miniport) completeAll(t port.SyncToken, q *fakeQueue) {
	shared := q.shared.Open(t)
	done := append(shared.reaped, m.hw.reap(q.index)...)
	shared.reaped = nil
	for _, c := range done {
		if isReset(c) {
			shared.reaped = append(shared.reaped, c)
		} else {
			m.complete(t.Processor(), []completion{c})
		}
	}
	if len(shared.reaped) > 0 {
		m.a.IssueDpc(t.Processor(), &q.dpc)
	}
}

func (m *Miniport) complete(p *port.Processor, list []completion) {
	for _, d := range list {
		srb := d.srb
		srb.Status, srb.ScsiStatus = d.status, d.scsiStatus
		if d.status == port.StatusSuccess && srb.Function == port.FunctionExecuteScsi {
			srb.DataTransferBytes = d.dataBytes
			if scsi.Opcode(srb.CDB[0]) == scsi.OpInquiry {
				m.a.SetDeviceQueueDepth(p, srb.PathID, srb.TargetID, srb.Lun, m.a.Config().MaxIOsPerLun)
			}
		}
		if len(d.sense) > 0 && srb.Flags&port.FlagDisableAutosense == 0 {
			srb.SenseBytes = uint8(copy(srb.Sense[:], d.sense))
			srb.Status |= port.StatusAutosenseValid
		}
		m.a.Complete(p, srb)
	}
}

// ResetBus implements port.Miniport.
func (m *Miniport) ResetBus(p *port.Processor, path uint8) bool {
	if m.o.Hooks.ResetBus != nil {
		m.o.Hooks.ResetBus(p, path)
	}
	return port.SynchronizeAccess(m.a, p, resetAll, m)
}

// resetAll runs under SynchronizeAccess, on top of the StartIo lock and all
// channels: nothing else of the miniport but BuildIo runs.
func resetAll(t port.SyncToken, m *Miniport) bool {
	p := t.Processor()
	dropped := m.hw.reset()
	for i := range m.queues {
		q := &m.queues[i]
		shared := q.shared.Open(t)
		m.complete(p, m.hw.reap(i))
		m.complete(p, shared.reaped)
		shared.reaped = nil
	}
	for _, srb := range dropped {
		m.refuse(p, srb, port.StatusBusReset, scsi.StatusGood)
	}
	return true
}

// AdapterControl implements port.Miniport.
func (m *Miniport) AdapterControl(p *port.Processor, c port.ControlType) port.ControlResult {
	if m.o.Hooks.AdapterControl != nil {
		m.o.Hooks.AdapterControl(p, c)
	}
	switch c {
	case port.ControlQuerySupported:
	case port.ControlStopAdapter:
		m.a.WriteRegisterUlong64(p, m.bar, regEnable, 0)
	case port.ControlRestartAdapter:
		m.a.WriteRegisterUlong64(p, m.bar, regEnable, 1)
	}
	return port.ControlSuccess
}

// UnitControl implements port.UnitController.
func (m *Miniport) UnitControl(p *port.Processor, c port.UnitControlType, lu *port.LogicalUnit) port.ControlResult {
	if m.o.Hooks.UnitControl != nil {
		m.o.Hooks.UnitControl(p, c, lu)
	}
	return port.ControlSuccess
}
