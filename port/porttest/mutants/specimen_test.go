package mutants

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// A gene is one place where the specimen can be bred wrong. Zero is the good
// one.
type gene uint8

const (
	good gene = iota
	idOutsideSync
	completeTwice
	completeAfterFalse
	trueAfterComplete
	falseWithoutComplete
	startWithoutComplete
	permanentAsBusy
	statusPending
	statusFrozen
	statusUnknown
	extensionAfterComplete
	resultAfterComplete
	listAfterComplete
	extensionAssumedZero
	lengthTouchedOnBusy
	busyAfterDoorbell
	resetBusKeepsDMA
	resetBusForgets
	resetUnitForgets
	resetUnitHitsTarget
	resetBusInBulk
	resetNeverAnswered
	flagAfterSync
	noGeneration
	oneAnswerPerInterrupt
	noRecheck
	dpcArgument
	sharedSense
	interruptDenied
	kickDecidedEarly
	ringWithoutLock
	ringFullUnchecked
	depthTooLarge
	capacityOutsideSync
	buildOrderAssumed
	doorbellBeforeEntry
	breaksUnset
)

// extMagic marks an extension that BuildIo has filled.
const extMagic = 0x5bec1e5

// idSlots is how many commands a queue's driver side can have.
const idSlots = 16

// A hooks are called first thing in the callbacks named, with their level and
// locks.
type hooks struct {
	findAdapter func(m *specimen, p *port.Processor, c *port.Config)
	initialize  func(m *specimen, p *port.Processor, t port.SyncToken)
	buildIo     func(m *specimen, p *port.Processor, srb *port.SRB)
	startIo     func(m *specimen, p *port.Processor, srb *port.SRB)
	passive     func(m *specimen)
	interrupt   func(m *specimen, p *port.Processor, t port.SyncToken, queue int)
	dpc         func(m *specimen, p *port.Processor)
	// capacity is called before BuildIo looks at the capacity and when it does.
	capacity func(looking bool)
}

// A synchronizer stands where port.SynchronizeAccess stands.
type synchronizer func(a *port.Adapter, p *port.Processor, routine func(port.SyncToken, *probe) bool, c *probe) bool

// A specimen is the miniport that mutants are bred from. BuildIo takes an id for
// the request from a pool that the interrupt handler gives ids back to, which is
// the vendor's case for SynchronizeAccess in an unsynchronized routine; StartIo
// publishes; the handler drains; the DPC completes.
type specimen struct {
	r    *rig
	dev  *device
	a    *port.Adapter
	bar  *port.RegisterRange
	gene atomic.Uint32
	o    options

	hooks       [2]hooks // the scenario's and the mutant's
	synchronize synchronizer
	drained     func(p *port.Processor) // the handler is about to return

	queues []driverQueue
	// starting counts the calls of StartIo that are under way, by channel.
	starting []occupancy

	// The capacity belongs to the handler's state. It is atomic so that a torn pair
	// is seen by the oracle and not by the race detector.
	blocks, lastLBA atomic.Uint32

	// What follows is for mutants alone, and atomic.
	nextID      atomic.Uint32
	sharedKey   atomic.Uint32
	earlyKick   atomic.Bool
	busyOnce    atomic.Bool
	kept        atomic.Pointer[port.SRB]
	prepared    chan entry
	leakedToken port.SyncToken
}

type driverQueue struct {
	m     *specimen
	index int
	dpc   port.Dpc
	// kick says that CommitIo has to ring the doorbell. The channel guards it, but
	// a port without that lock is one of the mutants.
	kick   atomic.Bool
	shared port.Guarded[shared]
	// holders is for the oracles: who was given an id.
	holders [idSlots]atomic.Pointer[port.SRB]
}

// shared is what the handler shares with other callbacks.
type shared struct {
	free   []uint32 // slot numbers
	slots  [idSlots]slot
	reaped []reaped
	// reset: one is under way and the handler is to look for its answer.
	reset bool
}

// A slot is an id of a command: the slot's number, and its generation, so that
// the answer to an earlier command is known.
type slot struct {
	srb        *port.SRB // set by StartIo
	generation uint32
}

type reaped struct {
	srb *port.SRB
	answer
}

func newSpecimen(r *rig, o options) *specimen {
	m := &specimen{r: r, dev: r.dev, o: o, queues: make([]driverQueue, o.queues), starting: make([]occupancy, o.queues), synchronize: port.SynchronizeAccess[*probe]}
	for i := range m.queues {
		m.queues[i].m, m.queues[i].index = m, i
	}
	m.prepared = make(chan entry, 64)
	m.blocks.Store(unitBlocks)
	m.lastLBA.Store(unitBlocks - 1)
	return m
}

func (m *specimen) is(g gene) bool { return gene(m.gene.Load()) == g }

// FindAdapter implements port.Miniport.
func (m *specimen) FindAdapter(p *port.Processor, a *port.Adapter, c *port.Config) port.FindResult {
	m.a = a
	m.bar = a.GetDeviceBase(p, 0)
	c.SynchronizationModel = m.o.model
	c.InterruptSynchronizationMode = m.o.interrupts
	c.MaximumTransferLength = 1 << 16
	if !m.is(breaksUnset) {
		c.NumberOfPhysicalBreaks = 16
	}
	c.MaxNumberOfIO, c.MaxIOsPerLun, c.InitialLunQueueDepth = 12, 12, 4
	c.MaximumNumberOfLogicalUnits = unitCount
	c.SrbExtensionBytes = 64
	for i := range m.queues {
		m.queues[i].shared.Bind(a, i)
	}
	for _, h := range m.hooks {
		if h.findAdapter != nil {
			h.findAdapter(m, p, c)
		}
	}
	return port.Found
}

// Initialize implements port.Miniport.
func (m *specimen) Initialize(p *port.Processor, t port.SyncToken) bool {
	for i := range m.queues {
		s := m.queues[i].shared.Open(t)
		for n := range uint32(idSlots) {
			s.free = append(s.free, n)
		}
	}
	if m.o.queues > 1 {
		perf := port.PerfConfigurationData{Flags: port.PerfConcurrentChannels, ConcurrentChannels: m.o.queues}
		if err := m.a.InitializePerfOpts(p, false, &perf); err != nil {
			return false
		}
	}
	for _, h := range m.hooks {
		if h.initialize != nil {
			h.initialize(m, p, t)
		}
	}
	return m.a.EnablePassiveInitialization(p)
}

// PassiveInitialize implements port.PassiveInitializer.
func (m *specimen) PassiveInitialize(p *port.Processor) bool {
	for i := range m.queues {
		q := &m.queues[i]
		q.dpc.Context = q
		m.a.InitializeDpc(p, &q.dpc, runDpc)
	}
	for _, h := range m.hooks {
		if h.passive != nil {
			h.passive(m)
		}
	}
	return true
}

// queueOf is the queue that an SRB goes to.
func (m *specimen) queueOf(p *port.Processor, srb *port.SRB) *driverQueue {
	return m.queueOfChannel(m.a.GetStartIoPerfParams(p, srb).ChannelNumber)
}

func (m *specimen) queueOfChannel(channel int) *driverQueue {
	if m.is(ringWithoutLock) {
		channel = 0 // one ring for all channels
	}
	return &m.queues[channel]
}

func (m *specimen) finish(p *port.Processor, srb *port.SRB, status port.Status, scsiStatus scsi.Status) {
	srb.Status, srb.ScsiStatus = status, scsiStatus
	m.a.Complete(p, srb)
}

// BuildIo implements port.IoBuilder.
func (m *specimen) BuildIo(p *port.Processor, srb *port.SRB) bool {
	for _, h := range m.hooks {
		if h.buildIo != nil {
			h.buildIo(m, p, srb)
		}
	}
	if m.is(kickDecidedEarly) {
		m.earlyKick.Store(!m.dev.busyPolling())
	}
	m.checkCapacity(p)
	q := m.queueOf(p, srb)
	if srb.Function == port.FunctionExecuteScsi && scsi.Opcode(srb.CDB[0]) == scsi.OpRead16 {
		if lba, _, _ := scsi.BlockRange(&srb.CDB); lba >= unitBlocks {
			return m.refuse(p, srb)
		}
	}
	id, ok := m.takeID(p, q, srb)
	if !ok {
		m.finish(p, srb, port.StatusBusy, scsi.StatusTaskSetFull)
		return false
	}
	if m.is(extensionAssumedZero) && srb.Extension[8] != 0 {
		m.finish(p, srb, port.StatusInvalidRequest, scsi.StatusGood)
		return false
	}
	binary.LittleEndian.PutUint32(srb.Extension[0:], extMagic)
	binary.LittleEndian.PutUint32(srb.Extension[4:], id)
	if m.is(buildOrderAssumed) {
		m.prepared <- entry{lun: srb.Lun, cdb: srb.CDB}
	}
	return true
}

// checkCapacity reads what the handler changes when the device grows: two words
// that belong together.
func (m *specimen) checkCapacity(p *port.Processor) {
	m.capacityHook(true)
	if m.is(capacityOutsideSync) {
		compareCapacity(port.SyncToken{}, m)
		return
	}
	port.SynchronizeAccess(m.a, p, compareCapacity, m)
}

func compareCapacity(_ port.SyncToken, m *specimen) bool {
	blocks, last := m.blocks.Load(), m.lastLBA.Load()
	if blocks != last+1 {
		m.r.fail(oracleTorn, "%d blocks, the last of them is %d", blocks, last)
	}
	m.capacityHook(false)
	return true
}

func (m *specimen) capacityHook(looking bool) {
	if h := m.hooks[0].capacity; h != nil {
		h(looking)
	}
}

// grow is the part of the handler that changes the capacity.
func (m *specimen) grow(between func()) {
	m.blocks.Add(1)
	between()
	m.lastLBA.Add(1)
}

// refuse ends a request that no device need see.
func (m *specimen) refuse(p *port.Processor, srb *port.SRB) bool {
	switch {
	case m.is(falseWithoutComplete):
		srb.Status = port.StatusInvalidRequest
		return false
	case m.is(permanentAsBusy):
		m.finish(p, srb, port.StatusBusy, scsi.StatusBusy)
		return false
	}
	m.finish(p, srb, port.StatusInvalidRequest, scsi.StatusGood)
	if m.is(completeAfterFalse) {
		m.a.Complete(p, srb)
	}
	return m.is(trueAfterComplete)
}

// A claim is the argument of routines that run under SynchronizeAccess.
type claim struct {
	m   *specimen
	q   *driverQueue
	srb *port.SRB
	id  uint32
}

// takeID takes an id from the queue's pool. False: there is none.
func (m *specimen) takeID(p *port.Processor, q *driverQueue, srb *port.SRB) (uint32, bool) {
	c := claim{m: m, q: q, srb: srb}
	if m.is(idOutsideSync) {
		// The counter is read, and increased a moment later.
		c.id = m.nextID.Load() % idSlots
		m.r.meet(windowID)
		m.nextID.Store(c.id + 1)
	} else if !port.SynchronizeAccess(m.a, p, takeIDSynchronized, &c) {
		return 0, false
	}
	if old := q.holders[c.id%idSlots].Swap(srb); old != nil {
		m.r.fail(oracleDuplicateID, "id %d has two holders: tags %d and %d", c.id, old.Tag, srb.Tag)
	}
	m.r.meet(windowClaimed)
	return c.id, true
}

func takeIDSynchronized(t port.SyncToken, c *claim) bool {
	s := c.q.shared.Open(t)
	c.m.r.meet(windowID)
	if len(s.free) == 0 {
		return false
	}
	n := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	c.id = s.slots[n].generation*idSlots + n
	return true
}

// giveBack ends an id: what is answered to it from now on is stale.
func (q *driverQueue) giveBack(s *shared, id uint32) {
	n := id % idSlots
	s.slots[n].srb = nil
	if !q.m.is(noGeneration) {
		s.slots[n].generation++
	}
	s.free = append(s.free, n)
	q.holders[n].Store(nil)
}

// StartIo implements port.Miniport.
func (m *specimen) StartIo(p *port.Processor, srb *port.SRB) bool {
	q := m.queueOf(p, srb)
	starting := &m.starting[m.a.GetStartIoPerfParams(p, srb).ChannelNumber]
	if !starting.enter() {
		m.r.fail(oracleStartIo, "two calls of StartIo at once on one channel")
	}
	defer starting.leave()
	for _, h := range m.hooks {
		if h.startIo != nil {
			h.startIo(m, p, srb)
		}
	}
	if binary.LittleEndian.Uint32(srb.Extension) != extMagic {
		m.r.fail(oracleExtension, "StartIo found an extension that BuildIo has not filled")
		m.finish(p, srb, port.StatusInvalidRequest, scsi.StatusGood)
		return true
	}
	if m.is(startWithoutComplete) && srb.Function == port.FunctionExecuteScsi {
		return false
	}
	c := claim{m: m, q: q, srb: srb, id: binary.LittleEndian.Uint32(srb.Extension[4:])}
	if srb.Function != port.FunctionExecuteScsi {
		return m.startReset(p, &c)
	}
	free, tail := m.dev.free(q.index)
	if free == 0 && !m.is(ringFullUnchecked) {
		port.SynchronizeAccess(m.a, p, giveBackSynchronized, &c)
		m.busy(p, srb)
		return true
	}
	port.SynchronizeAccess(m.a, p, fillSlot, &c)
	m.r.meet(windowRing)
	if m.is(doorbellBeforeEntry) {
		m.ring(p, q)
	}
	m.dev.put(q.index, tail, m.entry(&c))
	q.kick.Store(!m.is(doorbellBeforeEntry))
	if m.is(busyAfterDoorbell) && !m.busyOnce.Swap(true) {
		m.ring(p, q)
		m.finish(p, srb, port.StatusBusy, scsi.StatusBusy)
	}
	return true
}

// busy turns a request away: the port starts it over with BuildIo.
func (m *specimen) busy(p *port.Processor, srb *port.SRB) {
	if m.is(lengthTouchedOnBusy) {
		srb.DataTransferBytes = 0
	}
	m.finish(p, srb, port.StatusBusy, scsi.StatusTaskSetFull)
}

func (m *specimen) entry(c *claim) *entry {
	e := &entry{id: c.id, function: c.srb.Function, lun: c.srb.Lun, cdb: c.srb.CDB, request: c.srb.Tag}
	if len(c.srb.SGL) > 0 {
		e.data = c.srb.SGL[0]
	}
	if m.is(buildOrderAssumed) {
		first := <-m.prepared
		e.lun, e.cdb = first.lun, first.cdb
	}
	return e
}

func giveBackSynchronized(t port.SyncToken, c *claim) bool {
	c.q.giveBack(c.q.shared.Open(t), c.id)
	return true
}

func fillSlot(t port.SyncToken, c *claim) bool {
	c.q.shared.Open(t).slots[c.id%idSlots].srb = c.srb
	return true
}

// startReset sends a reset. The handler looks for its answer while reset is set.
func (m *specimen) startReset(p *port.Processor, c *claim) bool {
	if m.is(resetNeverAnswered) {
		m.kept.Store(c.srb)
		return true
	}
	port.SynchronizeAccess(m.a, p, sendReset, c)
	if m.is(flagAfterSync) {
		port.SynchronizeAccess(m.a, p, noteReset, c)
	}
	return true
}

func sendReset(t port.SyncToken, c *claim) bool {
	if !c.m.is(flagAfterSync) {
		noteReset(t, c)
	}
	c.q.shared.Open(t).slots[c.id%idSlots].srb = c.srb
	_, tail := c.m.dev.free(c.q.index)
	c.m.dev.put(c.q.index, tail, c.m.entry(c))
	c.m.ring(t.Processor(), c.q)
	return true
}

func noteReset(t port.SyncToken, c *claim) bool {
	c.q.shared.Open(t).reset = true
	return true
}

func (m *specimen) ring(p *port.Processor, q *driverQueue) {
	m.a.WriteRegisterUlong(p, m.bar, regDoorbell+4*uint32(q.index), 1)
}

// CommitIo implements port.IoCommitter.
func (m *specimen) CommitIo(p *port.Processor, channel int) {
	q := m.queueOfChannel(channel)
	kick := q.kick.Swap(false) && !m.dev.busyPolling()
	if m.is(kickDecidedEarly) {
		kick = m.earlyKick.Load()
	}
	if kick {
		m.ring(p, q)
	}
}

// Interrupt implements port.Miniport.
func (m *specimen) Interrupt(p *port.Processor, t port.SyncToken) bool {
	found := false
	for i := range m.queues {
		found = m.MessageInterrupt(p, t, uint16(i)) || found
	}
	return found
}

// MessageInterrupt implements port.MessageInterrupter.
func (m *specimen) MessageInterrupt(p *port.Processor, t port.SyncToken, message uint16) bool {
	q := &m.queues[message]
	for _, h := range m.hooks {
		if h.interrupt != nil {
			h.interrupt(m, p, t, q.index)
		}
	}
	if m.is(interruptDenied) {
		return false
	}
	if m.o.suppress {
		m.dev.suppress(q.index, true)
	}
	found := q.drain(t)
	if m.drained != nil {
		m.drained(p)
	}
	if found {
		m.a.IssueDpc(p, &q.dpc)
	}
	return found
}

// drain takes all answers of a queue.
func (q *driverQueue) drain(t port.SyncToken) bool {
	m, s := q.m, q.shared.Open(t)
	limit := idSlots
	if m.is(oneAnswerPerInterrupt) {
		limit = 1
	}
	answers := m.dev.reap(q.index, limit)
	if s.reset {
		if control := m.dev.reapControl(q.index); len(control) > 0 {
			answers = append(answers, control...)
			s.reset = false
		}
	}
	for _, a := range answers {
		x := &s.slots[a.id%idSlots]
		if x.srb == nil || x.generation != a.id/idSlots && !m.is(noGeneration) {
			continue // the answer to a command that a reset ended
		}
		if m.is(sharedSense) {
			m.sharedKey.Store(uint32(a.sense.Key))
		}
		if m.is(dpcArgument) {
			s.reaped = s.reaped[:0]
		}
		s.reaped = append(s.reaped, reaped{x.srb, a})
		q.giveBack(s, a.id)
	}
	return len(answers) > 0
}

func runDpc(p *port.Processor, d *port.Dpc) {
	q := d.Context.(*driverQueue)
	m := q.m
	for _, h := range m.hooks {
		if h.dpc != nil {
			h.dpc(m, p)
		}
	}
	for {
		port.SynchronizeAccess(m.a, p, completeReaped, q)
		if !m.o.suppress {
			return
		}
		m.dev.suppress(q.index, false)
		// What was answered before this raises nothing.
		if m.is(noRecheck) || !m.dev.answered(q.index) {
			return
		}
		m.dev.suppress(q.index, true)
		port.SynchronizeAccess(m.a, p, drainSynchronized, q)
	}
}

func drainSynchronized(t port.SyncToken, q *driverQueue) bool { return q.drain(t) }

// completeReaped hands back what the handler found. It does so under
// SynchronizeAccess, so that ResetBus finds an SRB either in a slot, here or at
// the port.
func completeReaped(t port.SyncToken, q *driverQueue) bool {
	s := q.shared.Open(t)
	list := s.reaped
	s.reaped = nil
	for i := range list {
		q.m.complete(t, &list[i])
	}
	return true
}

func (m *specimen) complete(t port.SyncToken, x *reaped) {
	p, srb := t.Processor(), x.srb
	switch srb.Function {
	case port.FunctionResetLogicalUnit:
		if !m.is(resetUnitForgets) {
			m.endScope(t, func(s *port.SRB) bool {
				return s.TargetID == srb.TargetID && (s.Lun == srb.Lun || m.is(resetUnitHitsTarget))
			}, srb)
		}
	case port.FunctionResetDevice:
		m.endScope(t, func(s *port.SRB) bool { return s.TargetID == srb.TargetID }, srb)
	default:
	}
	srb.Status, srb.ScsiStatus = x.status, x.scsiStatus
	if x.status == port.StatusSuccess && srb.Function == port.FunctionExecuteScsi {
		srb.DataTransferBytes = x.dataBytes
		if scsi.Opcode(srb.CDB[0]) == scsi.OpInquiry {
			depth := m.a.Config().MaxIOsPerLun
			if m.is(depthTooLarge) {
				depth++
			}
			m.a.SetDeviceQueueDepth(p, srb.PathID, srb.TargetID, srb.Lun, depth)
		}
	}
	if x.scsiStatus == scsi.StatusCheckCondition {
		sense := x.sense
		if m.is(sharedSense) {
			sense.Key = scsi.SenseKey(m.sharedKey.Load())
		}
		var b [scsi.FixedSenseBytes]byte
		srb.SenseBytes = uint8(copy(srb.Sense[:], b[:scsi.PutFixedSense(b[:], &sense)]))
		srb.Status |= port.StatusAutosenseValid
	}
	switch gene(m.gene.Load()) {
	case statusPending:
		srb.Status = port.StatusPending
	case statusFrozen:
		srb.Status |= port.StatusQueueFrozen
	case statusUnknown:
		srb.Status = 0x3c
	default:
	}
	ext, list := srb.Extension, srb.SGL
	m.a.Complete(p, srb)
	switch gene(m.gene.Load()) {
	case completeTwice:
		m.a.Complete(p, srb)
	case extensionAfterComplete:
		ext[8]++ // unlinking the list entry that lives there
	case resultAfterComplete:
		srb.DataTransferBytes = 0
	case listAfterComplete:
		list[0].Bytes = 0
	default:
	}
}

// endScope completes what the device has stopped.
func (m *specimen) endScope(t port.SyncToken, in func(*port.SRB) bool, reset *port.SRB) {
	for i := range m.queues {
		q := &m.queues[i]
		s := q.shared.Open(t)
		for n := range s.slots {
			if srb := s.slots[n].srb; srb != nil && srb != reset && in(srb) {
				q.giveBack(s, uint32(n))
				m.finish(t.Processor(), srb, port.StatusBusReset, scsi.StatusGood)
			}
		}
		list := s.reaped
		if m.is(resetBusInBulk) && reset == nil {
			for j := range list { // the DPC has not let go of them
				m.finish(t.Processor(), list[j].srb, port.StatusBusReset, scsi.StatusGood)
			}
			continue
		}
		s.reaped = nil
		for j := range list {
			if in(list[j].srb) {
				m.complete(t, &list[j])
			} else {
				s.reaped = append(s.reaped, list[j])
			}
		}
	}
}

// ResetBus implements port.Miniport.
func (m *specimen) ResetBus(p *port.Processor, _ uint8) bool {
	return port.SynchronizeAccess(m.a, p, resetAll, m)
}

// resetAll stops the device before it gives anything back.
func resetAll(t port.SyncToken, m *specimen) bool {
	if !m.is(resetBusKeepsDMA) {
		m.dev.stop()
	}
	if !m.is(resetBusForgets) {
		m.endScope(t, func(*port.SRB) bool { return true }, nil)
	}
	return true
}

// AdapterControl implements port.Miniport.
func (m *specimen) AdapterControl(*port.Processor, port.ControlType) port.ControlResult {
	return port.ControlSuccess
}
