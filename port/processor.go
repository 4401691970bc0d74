package port

import (
	"fmt"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// A Processor is a virtual CPU: what a goroutine needs to be inside the port.
//
// It carries the level, the locks held, the interrupts that arrived while the
// level was too high, and the DPCs to run when it drops. Raising and lowering
// do the work: an interrupt that arrives below Device is serviced there and
// then; DPCs run when the level drops below Dispatch. So one goroutine can
// carry a batch of requests from the socket to the device and back without a
// hand-over, and where another goroutine takes over, the same code runs on its
// processor.
//
// Concurrency: one goroutine at a time runs on a Processor and only that one
// uses it.
type Processor struct {
	sys    *System
	name   string
	number int
	verify bool

	level    Level
	callback Callback
	inSync   bool // inside a SynchronizeAccess routine

	held  []*spinLock // the first nheld are held; see heldAtFirst
	nheld int

	pendingHead, pendingTail *interrupt
	dpcHead, dpcTail         *Dpc
	completed                srbQueue

	passive, passiveSpare []Deferred
	inPassive             bool

	samples sampler // for the SRBs that it submits

	srbs    []SRB // the rest of a page; see takeSRB
	windows dma.WindowGroup

	// What the verifier keeps; see frame.
	frames  []frame
	current *SRB          // the SRB whose BuildIo or StartIo runs
	wrote   bool          // a register was written since that began
	lent    time.Duration // spent in the device
	trail   trail
}

// heldAtFirst is the initial room for the locks that a processor holds. It fills a cache
// line, so that two processors do not share one.
const heldAtFirst = 8

// A frame is what the verifier records of a running callback. Callbacks nest: an
// interrupt may arrive in any other.
type frame struct {
	watch   stopwatch
	current *SRB
	wrote   bool
}

var _ pci.Runner = (*Processor)(nil)

// Deferred is work that waits for a processor to come back to Passive.
type Deferred interface {
	// RunPassive is called once for each Defer.
	//
	// Level: Passive, no lock held. It should not block for long: the
	// processor's goroutine has other work.
	RunPassive(p *Processor)
}

// Number is the processor's number, from 0 and below SystemConfig.MaxProcessors.
// A number is used again once its processor is closed.
func (p *Processor) Number() int { return p.number }

// Name is the name that was given to NewProcessor.
func (p *Processor) Name() string { return p.name }

// RunnerName implements pci.Runner.
func (p *Processor) RunnerName() string { return p.name }

// Level is the current level (StorPortGetCurrentIrql).
func (p *Processor) Level() Level { return p.level }

// System is the system that the processor belongs to.
func (p *Processor) System() *System { return p.sys }

// Defer runs d once on this processor at Passive, after the queued DPCs. Called at
// Passive, it runs d at once.
func (p *Processor) Defer(d Deferred) {
	p.passive = append(p.passive, d)
	if p.level == Passive && !p.inPassive {
		p.drain()
	}
}

// Close gives the processor back. It must be at Passive with nothing queued.
func (p *Processor) Close() {
	if p.level != Passive || p.nheld != 0 || p.dpcHead != nil || p.pendingHead != nil || p.completed.head != nil {
		panic(fmt.Sprintf("port: processor %s closed at %s with work queued or locks held", p.name, p.level))
	}
	p.sys.releaseProcessor(p)
}

// raise goes to level to if that is higher, and returns the level before.
func (p *Processor) raise(to Level) Level {
	old := p.level
	if to > old {
		p.level = to
	}
	return old
}

// lower goes to level to and does the work that was waiting for it.
func (p *Processor) lower(to Level) {
	p.level = to
	if to < Device && p.pendingHead != nil {
		p.deliverPending()
	}
	if to == Passive && (p.dpcHead != nil || p.completed.head != nil || len(p.passive) != 0) {
		p.drain()
	}
}

// deliverPending services the interrupts that arrived at Device level.
func (p *Processor) deliverPending() {
	for p.pendingHead != nil {
		i := p.pendingHead
		p.pendingHead = i.nextPending
		if p.pendingHead == nil {
			p.pendingTail = nil
		}
		i.nextPending = nil
		level := p.level
		i.service(p)
		p.level = level
	}
}

// drain runs DPCs, completions and deferred work until there is none.
func (p *Processor) drain() {
	for {
		for p.dpcHead != nil || p.completed.head != nil || p.pendingHead != nil {
			p.level = Dispatch
			switch {
			case p.pendingHead != nil:
				p.deliverPending()
			case p.dpcHead != nil:
				p.runDpc()
			default:
				p.finishCompleted()
			}
		}
		p.level = Passive
		if p.inPassive || len(p.passive) == 0 {
			return
		}
		p.inPassive = true
		list := p.passive
		p.passive = p.passiveSpare[:0]
		for i := range list {
			d := list[i]
			list[i] = nil
			d.RunPassive(p)
		}
		p.passiveSpare = list[:0]
		p.inPassive = false
	}
}

// enter notes that a callback begins and returns what leave needs.
func (p *Processor) enter(c Callback) entered {
	e := entered{callback: p.callback, level: p.level, nheld: p.nheld}
	p.callback = c
	if p.verify {
		e.frame = len(p.frames)
		p.frames = append(p.frames, frame{p.startWatch(), p.current, p.wrote})
		if c != inSynchronized { // which is part of its caller
			p.current, p.wrote = nil, false
		}
	}
	return e
}

// enterWith is enter for BuildIo and StartIo of s.
func (p *Processor) enterWith(c Callback, s *SRB) entered {
	e := p.enter(c)
	if p.verify {
		p.current = s
	}
	return e
}

// entered is the state of a processor before a callback.
type entered struct {
	callback Callback
	level    Level
	nheld    int
	frame    int
}

// leave ends the callback that enter began. A callback returns at the level and
// with the locks it was entered with; if not, the port goes on from the state
// before, and where the verifier is on, it says so (V6).
func (p *Processor) leave(e entered) {
	if p.verify {
		f := p.frames[e.frame]
		p.frames = p.frames[:e.frame]
		p.checkHold(p.callback, f.watch)
		p.current = f.current
		if p.callback != inSynchronized {
			p.wrote = f.wrote
		}
	}
	if p.level != e.level || p.nheld != e.nheld {
		p.restore(e)
	}
	p.callback = e.callback
}

// restore puts right what a callback left wrong: leaked locks would stop the adapter,
// and a leaked level would stop the processor. A lock of the port's that the callback
// released is reported when the port releases it.
func (p *Processor) restore(e entered) {
	if p.verify {
		p.violate(CheckLockRules, nil, fmt.Sprintf("%s returned at %s with %d locks, was entered at %s with %d",
			p.callback, p.level, p.nheld, e.level, e.nheld))
	}
	for p.nheld > e.nheld {
		p.held[p.nheld-1].release(p)
	}
	p.level = e.level // interrupts and DPCs are delivered when the port lowers it
}
