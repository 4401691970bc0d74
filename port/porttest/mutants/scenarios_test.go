package mutants

import (
	"runtime"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/port"
)

// A scenario is what a mutant and the good specimen go through.
type scenario struct {
	options options
	hooks   hooks
	bringUp bool // the hooks are there from FindAdapter on
	run     func(r *rig)
}

// one is a read.
var one = scenario{run: func(r *rig) {
	r.submit(r.p, r.read(0, 3))
	r.settle()
}}

// several reads that the device answers together, behind one interrupt.
var several = scenario{run: runSeveral}

func runSeveral(r *rig) {
	r.dev.holdAll()
	r.submit(r.p, r.read(0, 3), r.read(0, 4), r.read(0, 5))
	r.dev.release(r.p)
	r.settle()
}

// messages: several, with a lock for each message.
var messages = scenario{options: perMessage, run: runSeveral}

// halfDuplex and line are several in those models.
var (
	halfDuplex = scenario{options: half, run: runSeveral}
	line       = scenario{options: options{model: port.FullDuplex, interrupts: port.InterruptSupportNone}, run: runSeveral}
)

// refused: BuildIo finds a request that no device need see.
var refused = scenario{run: func(r *rig) {
	r.submit(r.p, r.read(0, unitBlocks).expect(port.StatusInvalidRequest))
	r.settle()
	r.submit(r.p, r.read(0, 3))
	r.settle()
}}

// overfull: more requests than the ring has room for.
var overfull = scenario{run: func(r *rig) {
	r.dev.holdAll()
	// The device fetches when the doorbell rings, so one batch fills the ring.
	var list []*request
	for i := range uint64(12) {
		list = append(list, r.read(0, i))
	}
	r.submit(r.p, list...)
	r.dev.release(r.p)
	r.settle()
}}

// twice is a read and, when that has ended, another one.
var twice = scenario{run: func(r *rig) {
	r.submit(r.p, r.read(0, 3))
	r.settle()
	r.submit(r.p, r.read(0, 4))
	r.settle()
}}

// parked: a unit is paused between BuildIo and StartIo, so that a later request
// of another unit is started first.
var parked = scenario{
	hooks: hooks{buildIo: func(m *specimen, p *port.Processor, srb *port.SRB) {
		if srb.Lun == 0 {
			m.a.PauseDevice(p, 0, 0, 0, 2)
		}
	}},
	run: func(r *rig) {
		r.submit(r.p, r.read(0, 3))
		r.submit(r.p, r.read(1, 4))
		r.settle()
	},
}

// earlyInterrupt: the device raises an interrupt while Initialize runs. It waits
// for the end of that.
func earlyInterrupt() scenario {
	var handled atomic.Bool
	return scenario{
		bringUp: true,
		hooks: hooks{
			initialize: func(m *specimen, p *port.Processor, _ port.SyncToken) {
				handled.Store(false)
				m.dev.interrupt(p, 0)
				if handled.Load() {
					m.r.fail(oracleOverlap, "the interrupt handler ran beside Initialize")
				}
			},
			interrupt: func(*specimen, *port.Processor, port.SyncToken, int) { handled.Store(true) },
			passive: func(m *specimen) {
				if !handled.Load() {
					m.r.fail(oracleLost, "an interrupt raised during Initialize was not handled after it")
				}
			},
		},
		run: one.run,
	}
}

// senses: two errors behind one interrupt.
var senses = scenario{run: func(r *rig) {
	r.dev.holdAll()
	medium := r.read(0, badMediumLBA).expect(port.StatusError)
	hardware := r.read(0, badHardwareLBA).expect(port.StatusError)
	medium.key, hardware.key = 3, 4
	r.submit(r.p, medium, hardware)
	r.dev.release(r.p)
	r.settle()
}}

// resets ends what the device holds by a reset of each kind, and sees whether
// the units work afterwards.
func resets(level port.ResetLevel) scenario {
	return scenario{run: func(r *rig) {
		r.dev.holdAll()
		r.submit(r.p, r.read(0, 3).mayReset(), r.read(0, 4).mayReset())
		other := r.read(1, 5)
		if level != port.ResetUnit {
			other.mayReset()
		}
		r.submit(r.p, other)
		if err := r.a.ResetNow(r.p, r.units[0], level); err != nil {
			r.fail(oracleStatus, "reset: %v", err)
		}
		r.dev.release(r.p)
		r.submit(r.p, r.read(0, 6), r.read(0, 7))
		r.submit(r.p, r.read(1, 8))
		r.settle()
	}}
}

// lateAnswer: the device answers a command that a reset has ended, when another
// request is in its slot.
var lateAnswer = scenario{run: func(r *rig) {
	r.dev.holdAll()
	r.submit(r.p, r.read(0, 3).mayReset())
	late := r.dev.heldEntries(0)[0].id
	if err := r.a.ResetNow(r.p, r.units[0], port.ResetBus); err != nil {
		r.fail(oracleStatus, "reset: %v", err)
	}
	r.submit(r.p, r.read(0, 4))
	r.dev.post(r.p, 0, answer{id: late, status: port.StatusSuccess, dataBytes: blockBytes})
	synctest.Wait()
	r.dev.release(r.p)
	r.settle()
}}

// lateEdge: an answer comes when the driver is about to turn interrupts on.
var lateEdge = scenario{options: options{suppress: true}, run: func(r *rig) {
	r.dev.holdAll()
	var once atomic.Bool
	r.dev.mu.Lock()
	r.dev.beforeEnable = func(queue int) {
		if !once.Swap(true) {
			r.dev.releaseOne(queue)
		}
	}
	r.dev.mu.Unlock()
	r.submit(r.p, r.read(0, 3), r.read(0, 4))
	r.dev.releaseOne(0)
	r.dev.interrupt(r.p, 0)
	r.settle()
}}

// idleDevice: the device stops looking at its ring by itself between BuildIo and
// StartIo, so that it needs a doorbell after all.
var idleDevice = scenario{
	hooks: hooks{startIo: func(m *specimen, p *port.Processor, _ *port.SRB) { m.dev.setPolling(p, false) }},
	run: func(r *rig) {
		r.dev.setPolling(r.p, true)
		r.submit(r.p, r.read(0, 3))
		r.settle()
	},
}

// pairs has two processors submit at the same time, again and again, and meet in
// the windows given.
func pairs(o options, open ...int) scenario {
	return scenario{options: o, run: func(r *rig) {
		for _, w := range open {
			r.windows[w].open.Store(true)
			defer r.windows[w].open.Store(false)
		}
		for i := range uint64(rounds) {
			first, second := r.read(0, i), r.read(1, i)
			var ready atomic.Bool
			wait := r.beside("second", func(p *port.Processor) {
				ready.Store(true)
				r.submit(p, second)
			})
			for !ready.Load() {
				runtime.Gosched()
			}
			r.submit(r.p, first)
			wait()
			r.settle()
			if len(r.failuresSeen()) > 0 {
				return
			}
		}
	}}
}

// A probe is a routine that BuildIo runs under SynchronizeAccess while another
// processor is inside the handler.
type probe struct {
	r      *rig
	inside *occupancy
	met    *atomic.Bool
}

func runProbe(_ port.SyncToken, c *probe) bool {
	if !c.inside.enter() {
		c.r.fail(oracleOverlap, "a SynchronizeAccess routine ran beside the interrupt handler")
	}
	c.met.Store(true)
	c.inside.leave()
	return true
}

// rounds is how often two processors try to meet: once is enough for a mutant,
// and more give the good specimen more occasions to be wrong.
const rounds = 25

// A meeting has the handler of a message, on one processor, wait for what BuildIo
// does on another one. In the good miniport BuildIo waits for the handler, whose
// patience ends.
type meeting struct {
	armed    atomic.Bool
	handling atomic.Bool // the handler waits
	coming   atomic.Bool // BuildIo is about to do it
	met      atomic.Bool // and has done it
}

// handler is called in the handler.
func (g *meeting) handler(r *rig) {
	g.handling.Store(true)
	for !g.coming.Load() {
		runtime.Gosched()
	}
	yieldUntil(r.guilty, g.met.Load)
}

// hold has the interrupt of a message handled on another processor while a read
// is submitted, and again while nothing was noticed.
func (g *meeting) hold(r *rig, message int) {
	for range rounds {
		g.handling.Store(false)
		g.coming.Store(false)
		g.met.Store(false)
		g.armed.Store(true)
		wait := r.beside("interrupted", func(p *port.Processor) { r.dev.interrupt(p, message) })
		for !g.handling.Load() {
			runtime.Gosched()
		}
		r.submit(r.p, r.read(0, 3))
		wait()
		r.settle()
		if len(r.failuresSeen()) > 0 {
			return
		}
	}
}

// exclusion has BuildIo, on one processor, call SynchronizeAccess while the
// handler of a message runs on another one.
func exclusion(o options) scenario {
	var (
		inside occupancy
		g      meeting
	)
	message := max(1, o.queues) - 1
	return scenario{
		options: o,
		hooks: hooks{
			interrupt: func(m *specimen, _ *port.Processor, _ port.SyncToken, queue int) {
				if queue != message || !g.armed.Swap(false) {
					return
				}
				if !inside.enter() {
					m.r.fail(oracleOverlap, "the interrupt handler ran beside a SynchronizeAccess routine")
				}
				g.handler(m.r)
				inside.leave()
			},
			buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
				g.coming.Store(true)
				if !m.synchronize(m.a, p, runProbe, &probe{r: m.r, inside: &inside, met: &g.met}) {
					m.r.fail(oracleOverlap, "SynchronizeAccess did not run its routine")
				}
			},
		},
		run: func(r *rig) { g.hold(r, message) },
	}
}

// capacityChange has BuildIo look at the capacity while the handler, on another
// processor, is half through changing it.
func capacityChange() scenario {
	var g meeting
	return scenario{
		hooks: hooks{
			interrupt: func(m *specimen, _ *port.Processor, _ port.SyncToken, _ int) {
				if g.armed.Swap(false) {
					m.grow(func() { g.handler(m.r) })
				}
			},
			capacity: func(looking bool) {
				if looking {
					g.coming.Store(true)
				} else {
					g.met.Store(true)
				}
			},
		},
		run: func(r *rig) { g.hold(r, 0) },
	}
}

// resetBeforeDpc: a bus reset comes when the handler has taken an answer and the
// DPC has not yet completed it.
func resetBeforeDpc() scenario {
	var armed atomic.Bool
	return scenario{
		hooks: hooks{dpc: func(m *specimen, _ *port.Processor) {
			if !armed.Swap(false) {
				return
			}
			m.r.beside("resets", func(p *port.Processor) {
				if err := m.a.ResetNow(p, m.r.units[0], port.ResetBus); err != nil {
					m.r.fail(oracleStatus, "reset: %v", err)
				}
			})()
		}},
		run: func(r *rig) {
			armed.Store(true)
			r.submit(r.p, r.read(0, 3).expect(port.StatusSuccess, port.StatusBusReset))
			r.settle()
			r.submit(r.p, r.read(0, 4))
			r.settle()
		},
	}
}

// starts has StartIo, on two processors, stay a while.
func starts() scenario {
	s := pairs(all, windowStart)
	s.hooks.startIo = func(m *specimen, _ *port.Processor, _ *port.SRB) { m.r.meet(windowStart) }
	return s
}

// keptReset: a reset that the miniport never answers is outstanding when the
// adapter stops.
var keptReset = scenario{run: func(r *rig) {
	// The good one answers; the mutant runs into ResetTimeout.
	err := r.a.ResetNow(r.p, r.units[0], port.ResetUnit)
	if err := r.a.Stop(r.p); err != nil {
		r.fail(oracleStatus, "stop: %v", err)
	}
	if err := r.a.Restart(r.p); err != nil {
		r.fail(oracleStatus, "restart: %v", err)
	}
	if err != nil {
		r.fail(oracleStatus, "reset: %v", err)
	}
	r.settle()
}}

// stuck: a request that the device keeps is brought back by the unit's timer and
// the first step of the reset road.
var stuck = scenario{run: func(r *rig) {
	r.dev.holdAll()
	q := r.read(0, 3).mayReset()
	r.submit(r.p, q)
	for range 20 {
		time.Sleep(time.Second)
		synctest.Wait()
		if len(r.incomplete()) == 0 {
			break
		}
	}
	r.dev.release(r.p)
	for _, q := range r.incomplete() {
		r.fail(oracleLost, "tag %d", q.srb.Tag)
	}
	if n := r.a.Stats(r.p).Resets[port.ResetTarget]; n > 0 {
		r.fail(oracleLost, "the unit's reset was not answered")
	}
}}
