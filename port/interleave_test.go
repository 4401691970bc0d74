//go:build interleave

package port

import (
	"fmt"
	"testing"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/interleave"
	"github.com/vhbad/vhbad/internal/pci"
)

// The orders in which interrupts, DPCs, SynchronizeAccess routines and resets can
// take their steps are gone through here, over the port's own state machines
// (acceptance criterion A8). Hardware and miniport are as small as can be: the
// device publishes by counting up, and draining notes how far it got.

// explored is a system for all runs of a test.
type explored struct {
	t   *testing.T
	sys *System
}

func newExplored(t *testing.T) *explored {
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		interleaving = nil
		if t.Failed() {
			return // tasks may have stopped in the middle
		}
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return &explored{t: t, sys: newSystem(t, SystemConfig{IOMMU: dma.NewIOMMU(arena), Verify: true})}
}

// interruptModel is how an adapter has its interrupts and synchronizes them.
type interruptModel struct {
	model    SynchronizationModel
	mode     InterruptSynchronizationMode
	messages int
	limits   func(c *Config) // nil: the double's
}

// explore searches the schedules of a scenario over an adapter.
func explore(t *testing.T, s interleave.Search, d interruptModel, scenario func(m *machine)) {
	t.Helper()
	e := newExplored(t)
	interleave.Explore(t, s, func(r *interleave.Run) {
		interleaving = nil
		m := &machine{Run: r, sys: e.sys, d: &driver{model: d.model, mode: d.mode, messages: d.messages, features: d.limits}, w: &wire{messages: max(1, d.messages)}}
		p := m.processor("boot")
		m.a = &Adapter{sys: e.sys, function: m.w, miniport: m.d, messages: m.d, failed: make(chan struct{}), enumTurn: make(chan struct{}, 1)}
		m.a.enumTurn <- struct{}{}
		m.a.options.setDefaults()
		m.a.units.Store(&unitTable{})
		m.a.startIoLock = spinLock{a: m.a, rank: rankStartIo}
		m.a.kickDpc.routine, m.a.kickDpc.a = m.a.dispatchAll, m.a
		m.a.kickDpc.lock = spinLock{a: m.a, rank: rankDpc}
		m.a.dpcCount = 1
		if err := m.a.find(p); err != nil {
			t.Fatal(err)
		}
		m.a.state.Store(adapterRunning)
		m.published, m.drained = make([]int, len(m.a.interrupts)), make([]int, len(m.a.interrupts))
		m.handling = make([]bool, len(m.a.interrupts))
		m.d.handler = m.handle
		scenario(m)
		r.Check(m.check)
		interleaving = r
	})
}

// A machine is the world of one run. Only the task that runs touches it.
type machine struct {
	*interleave.Run
	sys *System
	a   *Adapter
	d   *driver
	w   *wire

	processors []*Processor
	published  []int // by message
	drained    []int
	handling   []bool // a handler of the message is inside
	inRoutine  bool
	inStartIo  int
	inReset    bool
	// inHandler, if not nil, is called by the handler before it drains.
	inHandler func(p *Processor, message uint16)
	drain     func(message uint16)
}

func (m *machine) processor(name string) *Processor {
	p := &Processor{sys: m.sys, name: name, verify: true, held: make([]*spinLock, 4)}
	m.processors = append(m.processors, p)
	return p
}

// task adds a task with a processor of its own.
func (m *machine) task(name string, body func(p *Processor)) {
	p := m.processor(name)
	m.Go(name, func() { body(p) })
}

// publish is the device: it makes something for the driver to find, and says so.
func (m *machine) publish(p *Processor, message uint16) {
	m.Yield("publish")
	m.published[message]++
	if !m.a.lineMode {
		m.a.raiseInterrupt(p, pci.Message(message))
		return
	}
	m.Yield("assert")
	was := m.w.Asserted()
	m.w.assert(true)
	if !was {
		m.a.raiseInterrupt(p, 0)
	}
}

// handle is the miniport's interrupt handler.
func (m *machine) handle(p *Processor, _ SyncToken, message uint16) bool {
	for other, inside := range m.handling {
		if inside && (other == int(message) || len(m.a.interruptLocks) == 1) {
			m.Failf("handler of message %d entered while that of %d is inside", message, other)
		}
	}
	if m.inRoutine {
		m.Failf("handler of message %d entered while a SynchronizeAccess routine runs", message)
	}
	if m.inStartIo > 0 && m.a.config.SynchronizationModel == HalfDuplex {
		m.Failf("handler of message %d entered while StartIo runs in half duplex", message)
	}
	if p.Level() != Device {
		m.Failf("handler at %s", p.Level())
	}
	m.handling[message] = true
	if m.inHandler != nil {
		m.inHandler(p, message)
	}
	m.Yield("drain")
	switch {
	case m.drain != nil:
		m.drain(message)
	case m.a.lineMode: // one at a time, so that the line may stay up
		m.drained[message] = min(m.drained[message]+1, m.published[message])
		m.w.assert(m.drained[message] < m.published[message])
	default:
		m.drained[message] = m.published[message]
	}
	m.Yield("handled")
	m.handling[message] = false
	return true
}

// synchronize runs body in a SynchronizeAccess routine on p.
func (m *machine) synchronize(p *Processor, body func()) {
	level, held := p.Level(), p.nheld
	ran := SynchronizeAccess(m.a, p, func(SyncToken, int) bool {
		for message, inside := range m.handling {
			if inside {
				m.Failf("routine entered while the handler of message %d is inside", message)
			}
		}
		if m.inRoutine {
			m.Failf("routine entered while another runs")
		}
		m.inRoutine = true
		m.Yield("routine")
		body()
		m.Yield("routine returns")
		m.inRoutine = false
		return true
	}, 0)
	if !ran {
		m.Failf("SynchronizeAccess refused")
	}
	if p.Level() != level || p.nheld != held {
		m.Failf("SynchronizeAccess left %s with %d locks, came at %s with %d", p.Level(), p.nheld, level, held)
	}
}

// check is what must hold at the end of every run.
func (m *machine) check() error {
	for i := range m.a.interrupts {
		x := &m.a.interrupts[i]
		if m.drained[i] != m.published[i] {
			return fmt.Errorf("message %d: drained %d of %d: an interrupt was lost", i, m.drained[i], m.published[i])
		}
		if s := x.state.Load(); s != interruptIdle {
			return fmt.Errorf("message %d: state %d at rest", i, s)
		}
		if !m.a.lineMode && x.runs.Load() > x.edges.Load() {
			return fmt.Errorf("message %d: %d runs of the handler for %d edges", i, x.runs.Load(), x.edges.Load())
		}
	}
	if m.a.lineMode && m.w.Asserted() {
		return fmt.Errorf("the line is up at rest")
	}
	for _, p := range m.processors {
		if p.level != Passive || p.nheld != 0 || p.pendingHead != nil || p.dpcHead != nil || p.callback != inNone {
			return fmt.Errorf("processor %s: at %s with %d locks, in %s", p.name, p.level, p.nheld, p.callback)
		}
	}
	for _, v := range m.sys.Verifier().Violations() {
		if v.Check != CheckHoldTime { // which is about this machine and not about order
			return fmt.Errorf("violation: %s", v)
		}
	}
	return nil
}

// modes are the ways of an adapter to have its interrupts.
var modes = []interruptModel{
	{model: FullDuplex, mode: InterruptSupportNone, messages: 1},
	{model: HalfDuplex, mode: InterruptSynchronizeAll, messages: 1},
	{model: FullDuplex, mode: InterruptSynchronizeAll, messages: 2},
	{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2},
}

func eachMode(t *testing.T, test func(t *testing.T, d interruptModel)) {
	for _, d := range modes {
		t.Run(fmt.Sprintf("model=%s/interrupts=%s", d.model, d.mode), func(t *testing.T) { test(t, d) })
	}
}

// Everything published before an edge is drained, whoever else raises.
func TestInterleave_Edges(t *testing.T) {
	eachMode(t, func(t *testing.T, d interruptModel) {
		explore(t, interleave.Search{Preemptions: 3, Seeds: 500}, d, func(m *machine) {
			last := uint16(len(m.a.interrupts) - 1)
			m.task("first", func(p *Processor) { m.publish(p, 0); m.publish(p, last) })
			m.task("second", func(p *Processor) { m.publish(p, 0) })
		})
	})
}

// The same with three, one of which runs a routine and is interrupted in it on its own
// processor.
func TestInterleave_RoutineAndHandler(t *testing.T) {
	eachMode(t, func(t *testing.T, d interruptModel) {
		explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, d, func(m *machine) {
			m.task("device", func(p *Processor) { m.publish(p, 0) })
			m.task("caller", func(p *Processor) {
				m.synchronize(p, func() { m.publish(p, 0) })
			})
			m.task("other caller", func(p *Processor) { m.synchronize(p, func() {}) })
		})
	})
}

// A handler that takes the lock of a later message, and a routine that takes
// them all, do not deadlock.
func TestInterleave_MessageLocks(t *testing.T) {
	d := interruptModel{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
	explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, d, func(m *machine) {
		m.inHandler = func(p *Processor, message uint16) {
			if message != 0 {
				return
			}
			l := m.a.AcquireMSISpinLock(p, 1)
			if m.handling[1] || m.inRoutine {
				m.Failf("the lock of message 1 was taken while its handler or a routine is inside")
			}
			m.Yield("with the lock of message 1")
			m.a.ReleaseMSISpinLock(p, l)
		}
		m.task("first", func(p *Processor) { m.publish(p, 0) })
		m.task("second", func(p *Processor) { m.publish(p, 1) })
		m.task("caller", func(p *Processor) { m.synchronize(p, func() {}) })
	})
}

// maskable is a device with a mask and a pending bit (MSI-X), under a miniport
// whose handler masks it and leaves the rest to a DPC, which unmasks.
type maskable struct {
	*machine
	masked, pending bool
	dpc             Dpc
	inDpc           bool
}

func (x *maskable) raise(p *Processor) {
	x.Yield("publish")
	x.published[0]++
	x.Yield("raise")
	if x.masked {
		x.pending = true
		return
	}
	x.a.raiseInterrupt(p, 0)
}

func (x *maskable) unmask(p *Processor) {
	x.Yield("unmask")
	x.masked = false
	if x.pending {
		x.pending = false
		x.a.raiseInterrupt(p, 0)
	}
}

func TestInterleave_MaskUntilDpc(t *testing.T) {
	d := interruptModel{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 1}
	explore(t, interleave.Search{Preemptions: 3, Seeds: 500}, d, func(m *machine) {
		x := &maskable{machine: m}
		m.a.InitializeDpc(m.passiveInitializer(), &x.dpc, func(p *Processor, _ *Dpc) {
			if x.inDpc {
				m.Failf("the DPC overlaps itself")
			}
			x.inDpc = true
			m.Yield("DPC drains")
			m.drained[0] = m.published[0]
			x.unmask(p)
			x.inDpc = false
		})
		m.inHandler = func(p *Processor, _ uint16) {
			m.Yield("mask")
			x.masked = true
			m.a.IssueDpc(p, &x.dpc)
		}
		m.drain = func(uint16) {} // the DPC does
		m.task("first", func(p *Processor) { x.raise(p) })
		m.task("second", func(p *Processor) { x.raise(p) })
		m.Check(func() error {
			if x.masked || x.pending {
				return fmt.Errorf("masked %t and pending %t at rest", x.masked, x.pending)
			}
			return nil
		})
	})
}

// passiveInitializer is a processor in the callback that may initialize DPCs.
func (m *machine) passiveInitializer() *Processor {
	p := &Processor{sys: m.sys, name: "initializer", verify: true, held: make([]*spinLock, 4)}
	p.callback = inPassiveInitialize
	return p
}

// counted is a DPC each of whose runs is due to one IssueDpc that returned true and was
// not cancelled.
type counted struct {
	*machine
	dpc                     Dpc
	issued, cancelled, runs int // runs begun
	owed                    int // IssueDpc promised that so many will have begun
	inside                  bool
	// again, if not nil, is called by the DPC.
	again func(p *Processor)
}

func newCounted(m *machine) *counted {
	x := &counted{machine: m}
	m.a.InitializeDpc(m.passiveInitializer(), &x.dpc, func(p *Processor, _ *Dpc) {
		if x.inside {
			m.Failf("the DPC overlaps itself")
		}
		if p.Level() != Dispatch {
			m.Failf("DPC at %s", p.Level())
		}
		x.inside = true
		x.runs++
		m.Yield("DPC runs")
		if x.again != nil {
			x.again(p)
		}
		m.Yield("DPC returns")
		x.inside = false
	})
	m.Check(func() error {
		if x.runs != x.issued-x.cancelled {
			return fmt.Errorf("the DPC ran %d times; issued %d times, %d of them cancelled", x.runs, x.issued, x.cancelled)
		}
		if x.runs < x.owed {
			return fmt.Errorf("the DPC ran %d times, but IssueDpc found it queued and to run for the %dth", x.runs, x.owed)
		}
		if s := x.dpc.state.Load(); s != dpcIdle {
			return fmt.Errorf("the DPC is in state %d at rest", s)
		}
		return nil
	})
	return x
}

func (x *counted) issue(p *Processor) {
	runs := x.runs
	if x.a.IssueDpc(p, &x.dpc) {
		x.issued++
	} else {
		x.owed = max(x.owed, runs+1) // it was queued, so it runs once more
	}
}

func (x *counted) cancel(p *Processor) {
	queued, runs := x.issued-x.cancelled-x.runs > 0, x.runs
	if x.a.CancelDpc(p, &x.dpc) {
		x.cancelled++
		x.owed = 0
	} else if queued && x.runs == runs {
		x.Failf("CancelDpc found nothing to cancel, but the DPC was queued all the while")
	}
}

// Two processors issue a DPC, and it issues itself.
func TestInterleave_DpcIssue(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 4, Seeds: 500}, interruptModel{messages: 1}, func(m *machine) {
		x := newCounted(m)
		x.again = func(p *Processor) {
			x.again = nil
			x.issue(p)
		}
		for _, name := range []string{"first", "second"} {
			m.task(name, func(p *Processor) {
				old := p.raise(Dispatch)
				x.issue(p)
				m.Yield("lower")
				p.lower(old)
			})
		}
	})
}

// One processor issues and runs it, while another takes it back and issues it
// again, as often as needed to be between any two looks at the state.
func TestInterleave_DpcCancel(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 5, Seeds: 2000}, interruptModel{messages: 1}, func(m *machine) {
		x := newCounted(m)
		m.task("owner", func(p *Processor) {
			old := p.raise(Dispatch)
			x.issue(p)
			m.Yield("lower")
			p.lower(old)
		})
		m.task("canceller", func(p *Processor) {
			x.cancel(p)
			x.issue(p)
			x.cancel(p)
		})
	})
}

// A DPC that is issued again while it runs can be taken back all the time from
// then until it runs again.
func TestInterleave_DpcCancelAgain(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 4, Seeds: 500}, interruptModel{messages: 1}, func(m *machine) {
		x := newCounted(m)
		x.again = func(p *Processor) {
			x.again = nil
			x.issue(p)
		}
		m.task("owner", func(p *Processor) {
			old := p.raise(Dispatch)
			x.issue(p)
			p.lower(old)
		})
		m.task("canceller", func(p *Processor) { x.cancel(p); x.cancel(p) })
	})
}

// A processor that cancels successfully drains in the DPC's place, and one that publishes
// issues afterwards. Together they leave nothing behind.
func TestInterleave_DpcCancelDrains(t *testing.T) {
	d := interruptModel{model: FullDuplex, mode: InterruptSynchronizeAll, messages: 1}
	explore(t, interleave.Search{Preemptions: 3, Seeds: 1000}, d, func(m *machine) {
		x := newCounted(m)
		m.drain = func(uint16) {}
		x.again = func(*Processor) { m.drained[0] = m.published[0] }
		m.inHandler = func(p *Processor, _ uint16) { x.issue(p) }
		m.task("device", func(p *Processor) { m.publish(p, 0); m.publish(p, 0) })
		m.task("canceller", func(p *Processor) {
			before := x.cancelled
			if x.cancel(p); x.cancelled != before {
				m.Yield("drain in the DPC's place")
				m.drained[0] = m.published[0]
			}
		})
	})
}

// rehearsal is a miniport in small: StartIo puts requests on the device, the handler
// ends those that are there, and ResetBus those that the device has dropped.
// Every request ends once, whoever wins.
type rehearsal struct {
	*machine
	generation int
	device     []int // generation of each request on the device, by request
	ended      []int // how often each request was completed
}

const notOnDevice = -1

func (s *rehearsal) startIo(p *Processor, channel, request int) {
	old := s.a.acquireStartIo(p, channel)
	if s.inReset {
		s.Failf("StartIo while ResetBus runs")
	}
	if s.inStartIo++; s.inStartIo > 1 && len(s.a.channelLocks) == 0 {
		s.Failf("StartIo overlaps itself")
	}
	s.synchronize(p, func() { s.device[request] = s.generation })
	s.inStartIo--
	s.a.releaseStartIo(p, channel, old)
}

func (s *rehearsal) resetBus(p *Processor) {
	old := s.a.acquireExclusive(p, true)
	if s.inStartIo > 0 {
		s.Failf("ResetBus while StartIo runs")
	}
	s.inReset = true
	s.synchronize(p, func() { s.generation++ }) // the device has stopped: what comes now is late
	s.Yield("collect")
	for request, generation := range s.device {
		if generation != notOnDevice && generation != s.generation {
			s.device[request] = notOnDevice
			s.Yield("complete as reset")
			s.ended[request]++
		}
	}
	s.inReset = false
	s.a.releaseExclusive(p, true, old)
}

func (s *rehearsal) reap(uint16) {
	s.drained[0] = s.published[0]
	for request, generation := range s.device {
		if generation == s.generation {
			s.device[request] = notOnDevice
			s.Yield("complete")
			s.ended[request]++
		}
	}
}

// ResetBus excludes StartIo on every channel, and neither loses nor doubles a
// request that the handler is about to complete.
func TestInterleave_Reset(t *testing.T) {
	for _, tt := range []struct {
		name     string
		model    SynchronizationModel
		channels int
	}{
		{"half duplex", HalfDuplex, 0},
		{"full duplex", FullDuplex, 0},
		{"two channels", FullDuplex, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := interruptModel{model: tt.model, mode: InterruptSynchronizeAll, messages: 1}
			explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, d, func(m *machine) {
				m.a.channelLocks = make([]spinLock, tt.channels)
				for i := range m.a.channelLocks {
					m.a.channelLocks[i] = spinLock{a: m.a, rank: rankChannel, index: i}
				}
				s := &rehearsal{machine: m, device: []int{notOnDevice, notOnDevice}, ended: make([]int, 2)}
				m.drain = s.reap
				for i := range s.device {
					m.task(fmt.Sprintf("submitter %d", i), func(p *Processor) {
						s.startIo(p, i, i)
						m.publish(p, 0) // the device is done with what it has
					})
				}
				m.task("reset", s.resetBus)
				m.Check(func() error {
					for request, n := range s.ended {
						if n != 1 {
							return fmt.Errorf("request %d was completed %d times", request, n)
						}
					}
					return nil
				})
			})
		})
	}
}

// Locks taken by AcquireSpinLock in the documented order, from where the
// documented callers are, do not deadlock, and do exclude.
func TestInterleave_SpinLocks(t *testing.T) {
	d := interruptModel{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}
	explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, d, func(m *machine) {
		x := newCounted(m)
		var owner [InterruptLock + 1]string
		with := func(p *Processor, kind SpinLock, body func()) {
			h := m.a.AcquireSpinLock(p, kind, &x.dpc)
			if owner[kind] != "" {
				m.Failf("%s has lock %d, which %s holds", p.name, kind, owner[kind])
			}
			owner[kind] = p.name
			m.Yield("with the lock")
			body()
			owner[kind] = ""
			m.a.ReleaseSpinLock(p, h)
		}
		x.again = func(p *Processor) {
			with(p, StartIoLock, func() { with(p, DpcLock, func() { with(p, InterruptLock, func() {}) }) })
		}
		m.inHandler = func(p *Processor, _ uint16) {
			if owner[InterruptLock] != "" {
				m.Failf("a handler runs while %s holds the interrupt lock", owner[InterruptLock])
			}
			x.issue(p)
		}
		m.task("device", func(p *Processor) { m.publish(p, 1) })
		m.task("StartIo", func(p *Processor) {
			old := m.a.acquireStartIo(p, 0)
			owner[StartIoLock] = p.name
			with(p, DpcLock, func() { m.synchronize(p, func() {}) })
			owner[StartIoLock] = ""
			m.a.releaseStartIo(p, 0, old)
		})
		m.task("BuildIo", func(p *Processor) { with(p, InterruptLock, func() {}) })
	})
}
