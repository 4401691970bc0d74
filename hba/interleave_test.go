//go:build interleave

package hba

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/interleave"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
)

// The orders in which doorbells, engines, workers, resets and interrupts can take
// their steps are gone through here. The device has no goroutines of its own:
// what they do is done by tasks.

// explore searches the schedules of a scenario.
func explore(t *testing.T, s interleave.Search, scenario func(r *interleave.Run)) {
	t.Helper()
	t.Cleanup(func() { interleaving = nil })
	interleave.Explore(t, s, func(r *interleave.Run) {
		interleaving = nil // while the world is made
		scenario(r)
		interleaving = r
	})
}

type nobody string

func (n nobody) RunnerName() string { return string(n) }

// A lines is the interrupt logic with a device that publishes before it raises,
// and a driver that drains when it is called.
type lines struct {
	*interleave.Run
	intr      interrupts
	published [2]int // by message
	drained   [2]int
	connected bool // from before connect until disconnect has returned
}

func newLines(r *interleave.Run) *lines {
	l := &lines{Run: r}
	l.intr.init(2)
	r.Check(func() error {
		for m := range l.published {
			if l.drained[m] != l.published[m] {
				return fmt.Errorf("message %d: drained %d of %d: an interrupt was lost", m, l.drained[m], l.published[m])
			}
			if s := l.intr.messages[m].state.Load(); s >= messageCall {
				return fmt.Errorf("message %d: state %#x at rest: a call is under way", m, s)
			}
		}
		if l.intr.asserted() {
			return fmt.Errorf("the line is up at rest")
		}
		return nil
	})
	return l
}

func (l *lines) publish(m pci.Message) {
	l.Yield("publish")
	l.published[m]++
	l.intr.raise(source{runner: nobody("device")}, m, 1<<m)
}

// connect connects a driver: one that drains a message, or one that clears all
// causes, drains everything and looks at the line again.
func (l *lines) connect(mode pci.InterruptMode) {
	l.connected = true
	drainOne := func(_ pci.Runner, m pci.Message) {
		if !l.connected {
			l.Failf("message %d delivered after disconnect", m)
		}
		l.Yield("drain")
		l.drained[m] = l.published[m]
	}
	drainAll := func(pci.Runner, pci.Message) {
		if !l.connected {
			l.Failf("the line was delivered after disconnect")
		}
		for up := true; up; up = l.intr.asserted() {
			l.intr.clearCauses(^uint64(0))
			l.Yield("drain")
			l.drained = l.published
		}
	}
	c := &connection{mode: mode, raise: drainOne, runners: []pci.Runner{nil, nobody("events")}}
	if mode == pci.Line {
		c.raise = drainAll
	}
	if err := l.intr.connect(c, func(m pci.Message) uint64 { return 1 << m }); err != nil {
		l.Failf("connect: %v", err)
	}
}

func (l *lines) disconnect() {
	l.intr.disconnect()
	l.connected = false
}

// events is the event goroutine.
func (l *lines) events() {
	for {
		if !l.Serve("wait for a kick", func() bool { return len(l.intr.kick) > 0 }) {
			return
		}
		<-l.intr.kick
		l.intr.deliverAllPending(source{own: ownEvents})
	}
}

// What is raised while its message is masked is delivered when it is unmasked.
func TestInterleave_Mask(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 4, Seeds: 500}, func(r *interleave.Run) {
		l := newLines(r)
		l.connect(pci.MessageSignaled)
		<-l.intr.kick
		r.Go("device", func() { l.publish(0); l.publish(0) })
		r.Go("driver", func() {
			for range 2 {
				l.intr.maskMessage(0)
				l.intr.deliverPending(source{runner: nobody("driver")}, 0, messageMasked)
			}
		})
	})
}

// The same on the line, with the causes' mask and with the message's.
func TestInterleave_LineMask(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 3, Seeds: 500}, func(r *interleave.Run) {
		l := newLines(r)
		l.connect(pci.Line)
		<-l.intr.kick
		driver := source{runner: nobody("driver")}
		r.Go("device", func() { l.publish(0); l.publish(1) })
		r.Go("causes", func() {
			l.intr.maskCauses(driver, 1)
			l.intr.maskCauses(driver, 0)
		})
		r.Go("message", func() {
			l.intr.maskMessage(0)
			l.intr.deliverPending(driver, 0, messageMasked)
		})
	})
}

// What is raised while nobody is connected is kept for who connects next, in
// whatever mode; and once disconnect has returned nothing is delivered.
func TestInterleave_Reconnect(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second pci.InterruptMode
	}{
		{"messages", pci.MessageSignaled, pci.MessageSignaled},
		{"messages to line", pci.MessageSignaled, pci.Line},
		{"line to messages", pci.Line, pci.MessageSignaled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, func(r *interleave.Run) {
				l := newLines(r)
				l.connect(tt.first)
				r.Go("device", func() { l.publish(0); l.publish(1) })
				r.Go("driver", func() {
					l.disconnect()
					l.connect(tt.second)
				})
				r.Go("events", l.events)
			})
		})
	}
}

// still is a medium of which nothing is said but its size: commands that touch
// it go to workers.
type still struct{}

func (still) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
func (still) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (still) Flush() error                           { return nil }
func (still) Size() int64                            { return 1 << 20 }
func (still) Close() error                           { return nil }

const (
	rigSubmission = 8
	rigCompletion = 2 // fewer than commands, so that engines stop for want of room
	rigPairs      = 2
	rigData       = 512  // bytes of a data buffer
	poison        = 0xdd // what a driver that has its memory back stores there
)

// memory is the host memory of all runs: rings of each queue pair, and a buffer.
type memory struct {
	data        []byte
	dataAddr    dma.Addr
	outAddr     dma.Addr // of what writes write
	iommu       *dma.IOMMU
	commands    [rigPairs][]Command
	completions [rigPairs][]Completion
	addr        [rigPairs][2]dma.Addr
}

func newMemory(t *testing.T) *memory {
	t.Helper()
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{iommu: dma.NewIOMMU(arena)}
	ring := func(bytes int, access dma.Access) ([]byte, dma.Addr) {
		w, err := m.iommu.NewWindow(nil)
		if err != nil {
			t.Fatal(err)
		}
		b := arena.Alloc(bytes)
		return b, m.iommu.Map(w, b, access)
	}
	for i := range rigPairs {
		var b []byte
		b, m.addr[i][0] = ring(rigSubmission*CommandBytes, dma.Read)
		m.commands[i] = Commands(b)
		b, m.addr[i][1] = ring(rigCompletion*CompletionBytes, dma.Write)
		m.completions[i] = Completions(b)
	}
	m.data, m.dataAddr = ring(rigData, dma.Write)
	_, m.outAddr = ring(rigData, dma.Read)
	return m // the test's process ends before anybody misses it
}

// A rig is a device with one driver, in one run.
type rig struct {
	*interleave.Run
	*memory
	dev *Device
	// submitted and consumed are the driver's counts; tags number commands by
	// queue pair and position.
	submitted [rigPairs]uint32
	consumed  [rigPairs]uint32
	codes     map[uint32]CompletionCode // by tag
	// seen, if not nil, is told of each completion.
	seen func(c Completion)
	// gone says that the device has promised to leave host memory alone.
	gone bool
}

func newRig(t *testing.T, r *interleave.Run, m *memory) *rig {
	dev, err := newDevice(Config{QueuePairs: rigPairs, RingEntries: rigSubmission, Workers: 1, IOMMU: m.iommu, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	dev.now = func() time.Time { return time.Time{} } // every order is the same again
	unit, err := target.NewUnit(still{}, target.Config{Serial: "still"})
	if err != nil {
		t.Fatal(err)
	}
	task := target.Task{CDBBytes: 6} // TEST UNIT READY, which takes what a new unit has to say
	unit.Execute(&task, true)
	if err := dev.AddUnit(0, 0, unit); err != nil {
		t.Fatal(err)
	}
	<-dev.intr.kick // of the new unit; nobody is there to care
	dev.eventRaised.Store(false)
	x := &rig{Run: r, memory: m, dev: dev, codes: map[uint32]CompletionCode{}}
	c := &connection{mode: pci.MessageSignaled, raise: x.interrupt, runners: []pci.Runner{nil, nobody("events"), nobody("worker")}}
	if err := dev.intr.connect(c, dev.causesOfMessage); err != nil {
		t.Fatal(err)
	}
	<-dev.intr.kick
	for i := range rigPairs {
		x.create(i)
	}
	x.register(RegControl, ControlEnable)
	return x
}

func (x *rig) register(offset uint32, value uint64) {
	x.dev.bar.Write64(nobody("driver"), offset, value)
}

// create makes a queue pair with empty rings.
func (x *rig) create(pair int) {
	clear(x.completions[pair])
	x.register(RegQueueSelect, uint64(pair))
	x.register(RegQueueSize, rigSubmission|rigCompletion<<32)
	x.register(RegQueueSubmit, uint64(x.addr[pair][0]))
	x.register(RegQueueComplete, uint64(x.addr[pair][1]))
	x.register(RegQueueMessage, uint64(pair))
	x.register(RegQueueEnable, 1)
}

func tagOf(pair int, position uint32) uint32 { return uint32(pair)<<8 | position }

// submit puts commands into a ring and rings the doorbell, for which others may
// be quicker.
func (x *rig) submit(pair int, commands ...Command) {
	x.Yield("write commands")
	for _, c := range commands {
		c.Tag = tagOf(pair, x.submitted[pair])
		x.commands[pair][x.submitted[pair]%rigSubmission] = c
		x.submitted[pair]++
	}
	tail := x.submitted[pair]
	x.Yield("ring")
	x.dev.bar.Write32(nobody("driver"), uint32(RegDoorbells+pair*DoorbellStride), tail)
}

// interrupt is the driver's handler: it consumes what is there and says so.
func (x *rig) interrupt(r pci.Runner, m pci.Message) {
	pair := int(m)
	if pair >= rigPairs {
		return // the event message
	}
	x.Yield("handler")
	ring := x.completions[pair]
	for !x.gone {
		c := &ring[x.consumed[pair]%rigCompletion]
		if c.LoadPhase() != PhaseAt(x.consumed[pair], rigCompletion) {
			break
		}
		if _, twice := x.codes[c.Tag]; twice {
			x.Failf("command %#x completed twice", c.Tag)
		}
		x.codes[c.Tag] = c.Code
		x.consumed[pair]++
		if x.seen != nil {
			x.seen(*c)
		}
	}
	x.Yield("acknowledge")
	x.dev.bar.Write32(r, uint32(RegDoorbells+pair*DoorbellStride+8), x.consumed[pair])
}

// events is the event goroutine.
func (x *rig) events() {
	for {
		if !x.Serve("wait for a kick", func() bool { return len(x.dev.intr.kick) > 0 }) {
			return
		}
		<-x.dev.intr.kick
		x.dev.raiseOwed()
	}
}

// worker is a worker goroutine.
func (x *rig) worker() {
	w := crew{own: ownEvents + 1}
	work := func() bool {
		if !x.dev.mu.TryLock() {
			return false
		}
		defer x.dev.mu.Unlock()
		_, ok := x.dev.nextInLineLocked()
		return ok
	}
	for x.Serve("wait for work", work) {
		for rec := x.dev.nextRecord(&w); rec != nil; rec = x.dev.finish(&w) {
			x.Yield("run on a worker")
			x.dev.execute(&w, rec)
		}
	}
}

// checkDone is what must hold when every command was to complete.
func (x *rig) checkDone() error {
	for pair := range rigPairs {
		for position := range x.submitted[pair] {
			if _, ok := x.codes[tagOf(pair, position)]; !ok {
				return fmt.Errorf("command %#x never completed", tagOf(pair, position))
			}
		}
	}
	if left := x.dev.Left(); left != "" {
		return fmt.Errorf("left behind: %s", left)
	}
	if x.dev.fatal {
		return fmt.Errorf("the device says that it is broken")
	}
	return nil
}

// bad is a command that completes at once, as it makes no sense.
var bad = Command{}

// inquiry is executed by engines, and reads into the buffer.
func (m *memory) inquiry() Command {
	c := m.dataIn()
	c.CDBBytes = uint8(scsi.PutInquiry(&c.CDB, rigData))
	return c
}

// read is executed by workers, and reads into the buffer.
func (m *memory) read() Command {
	c := m.dataIn()
	c.CDBBytes = uint8(scsi.PutRead10(&c.CDB, 0, 1, false, false))
	return c
}

// write is executed by workers, in a lane.
func (m *memory) write() Command {
	c := Command{Opcode: OpExecute, Flags: CommandDataOut, DataBytes: rigData, SegmentCount: 1}
	c.Segments[0] = Segment{Addr: uint64(m.outAddr), Bytes: rigData}
	c.CDBBytes = uint8(scsi.PutWrite10(&c.CDB, 0, 1, false, false))
	return c
}

func (m *memory) dataIn() Command {
	c := Command{Opcode: OpExecute, Flags: CommandDataIn, DataBytes: rigData, SegmentCount: 1}
	c.Segments[0] = Segment{Addr: uint64(m.dataAddr), Bytes: rigData}
	return c
}

// flush is executed by workers.
func flush() Command {
	c := Command{Opcode: OpExecute}
	c.CDBBytes = uint8(scsi.PutSynchronizeCache10(&c.CDB, 0, 0, false))
	return c
}

// Whoever rings, and however late: some engine fetches everything, also when it
// stopped because the completion ring was full.
func TestInterleave_Doorbells(t *testing.T) {
	m := newMemory(t)
	explore(t, interleave.Search{Preemptions: 2, Seeds: 2000}, func(r *interleave.Run) {
		x := newRig(t, r, m)
		r.Go("first", func() { x.submit(0, bad, bad) })
		r.Go("second", func() { x.submit(0, bad) })
		r.Check(x.checkDone)
	})
}

// The driver acknowledges on a goroutine of its own, so that the engine stops for
// want of room and must be woken.
func TestInterleave_Acknowledge(t *testing.T) {
	m := newMemory(t)
	explore(t, interleave.Search{Preemptions: 2, Seeds: 2000}, func(r *interleave.Run) {
		x := newRig(t, r, m)
		x.dev.intr.disconnect() // polled
		r.Go("driver", func() { x.submit(0, bad, bad); x.submit(0, bad, bad) })
		r.Go("poller", func() {
			posted := func() bool {
				at := x.consumed[0]
				return x.completions[0][at%rigCompletion].LoadPhase() == PhaseAt(at, rigCompletion)
			}
			for r.Serve("poll", posted) {
				x.interrupt(nobody("poller"), 0)
			}
		})
		r.Check(x.checkDone)
	})
}

// An engine that has had its turns leaves the rest to the event goroutine, whoever
// rang meanwhile and left it to that engine.
func TestInterleave_HandOver(t *testing.T) {
	turn, turns := turnCommands, maxTurns
	t.Cleanup(func() { turnCommands, maxTurns = turn, turns })
	turnCommands, maxTurns = 1, 1
	m := newMemory(t)
	explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, func(r *interleave.Run) {
		x := newRig(t, r, m)
		r.Go("first", func() { x.submit(0, bad) })
		r.Go("second", func() { x.submit(0, bad); x.submit(0, bad) })
		r.Go("events", x.events)
		r.Check(x.checkDone)
	})
}

// Writes complete once each, whoever executes them: the worker that goes from one
// to the next, or others when it is stuck.
func TestInterleave_Lanes(t *testing.T) {
	m := newMemory(t)
	explore(t, interleave.Search{Seeds: 1000}, func(r *interleave.Run) {
		x := newRig(t, r, m)
		r.Go("driver", func() { x.submit(0, x.write(), x.write()); x.submit(0, x.write()) })
		r.Go("other queue", func() { x.submit(1, x.write(), flush()) })
		r.Go("worker", x.worker)
		r.Go("other worker", x.worker)
		r.Go("watch", func() {
			yieldLock("lock to overtake", &x.dev.mu)
			x.dev.mu.Lock()
			defer x.dev.mu.Unlock()
			if n := len(x.dev.lanesMade); n == 1 && x.dev.lanesMade[0].crew != nil {
				x.dev.interruptLater(x.dev.overtakeLocked(x.dev.lanesMade[0]))
			}
		})
		r.Go("events", x.events)
		r.Check(x.checkDone)
	})
}

// A lane whose leader is aborted before it runs has another.
func TestInterleave_LanesAbort(t *testing.T) {
	m := newMemory(t)
	explore(t, interleave.Search{Seeds: 4000}, func(r *interleave.Run) {
		x := newRig(t, r, m)
		r.Go("driver", func() {
			x.submit(0, x.write())
			x.submit(0, Command{Opcode: OpAbort}) // of tag 0
		})
		r.Go("other queue", func() { x.submit(1, x.write()) })
		r.Go("worker", x.worker)
		r.Go("events", x.events)
		r.Check(x.checkDone)
	})
}

// Once a reset reads as done, the device touches host memory no more, whoever
// rang before; and it works again.
func TestInterleave_Reset(t *testing.T) {
	m := newMemory(t)
	explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, func(r *interleave.Run) {
		x := newRig(t, r, m)
		r.Go("driver", func() { x.submit(0, x.inquiry(), x.read()) })
		r.Go("worker", x.worker)
		r.Go("reset", func() {
			x.register(RegControl, ControlReset)
			r.Until("poll for the end of the reset", func() bool { return !x.dev.resetting })
			x.gone = true
			for i := range m.completions[0] {
				m.completions[0][i].Tag = poison
			}
			for i := range m.data {
				m.data[i] = poison
			}
		})
		r.Check(func() error {
			for i := range m.completions[0] {
				if tag := m.completions[0][i].Tag; tag != poison {
					return fmt.Errorf("completion of command %#x written after the reset", tag)
				}
			}
			for i, b := range m.data {
				if b != poison {
					return fmt.Errorf("byte %d of a buffer written after the reset", i)
				}
			}
			for i := range x.dev.slots {
				if x.dev.slots[i].queue.Load() != nil {
					return fmt.Errorf("queue pair %d is still there", i)
				}
			}
			interleaving = nil
			clear(x.codes)
			x.submitted, x.consumed, x.gone = [rigPairs]uint32{}, [rigPairs]uint32{}, false
			for i := range rigPairs {
				x.create(i)
			}
			x.register(RegControl, ControlEnable)
			x.submit(0, bad)
			return x.checkDone()
		})
	})
}

// A reset of a unit completes once, after all that was submitted before it on
// any queue; and everything else completes once as well, executed or aborted.
func TestInterleave_ResetUnit(t *testing.T) {
	m := newMemory(t)
	explore(t, interleave.Search{Preemptions: 1, Seeds: 4000}, func(r *interleave.Run) {
		x := newRig(t, r, m)
		var before uint32 // submitted for certain when the reset was
		const reset = 0   // its tag: the first on queue pair 0
		x.seen = func(c Completion) {
			if c.Tag != reset {
				return
			}
			if got := x.dev.slots[1].queue.Load().posted.Load(); got < before {
				x.Failf("the reset completed with %d of %d earlier commands completed", got, before)
			}
		}
		r.Go("other queue", func() { x.submit(1, bad, flush()) })
		r.Go("reset", func() {
			if q := x.dev.slots[1].queue.Load(); q != nil {
				before = q.tail.Load()
			}
			x.submit(0, Command{Opcode: OpResetLun})
		})
		r.Go("worker", x.worker)
		r.Go("events", x.events)
		r.Check(x.checkDone)
	})
}

// An abort completes once and after its victim, which completes once.
func TestInterleave_Abort(t *testing.T) {
	m := newMemory(t)
	explore(t, interleave.Search{Preemptions: 1, Seeds: 4000}, func(r *interleave.Run) {
		x := newRig(t, r, m)
		victim, abort := tagOf(0, 0), tagOf(0, 1)
		x.seen = func(c Completion) {
			if _, done := x.codes[victim]; c.Tag == abort && !done {
				x.Failf("the abort completed before its victim")
			}
		}
		r.Go("driver", func() {
			x.submit(0, flush())
			x.submit(0, Command{Opcode: OpAbort}) // of tag 0: the CDB is zero
		})
		r.Go("worker", x.worker)
		r.Go("events", x.events)
		r.Check(x.checkDone)
	})
}
