package hba_test

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/pci"
)

// A recorder is an interrupt function that notes who called it with what.
type recorder struct {
	mu    sync.Mutex
	calls []call
}

type call struct {
	runner  string
	message pci.Message
}

func (x *recorder) raise(r pci.Runner, m pci.Message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.calls = append(x.calls, call{r.RunnerName(), m})
}

func (x *recorder) take() []call {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := x.calls
	x.calls = nil
	return c
}

func (x *recorder) want(t *testing.T, what string, want ...call) {
	t.Helper()
	synctest.Wait()
	got := x.take()
	if len(got) != len(want) {
		t.Errorf("%s: interrupts %v, want %v", what, got, want)
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%s: interrupts %v, want %v", what, got, want)
			return
		}
	}
}

func connect(t *testing.T, w *world, mode pci.InterruptMode, x *recorder) {
	t.Helper()
	synctest.Wait() // units have changed: the event goroutine has raised it
	if err := w.dev.ConnectInterrupt(mode, x.raise, newRunner); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.dev.DisconnectInterrupt)
}

// A goroutine without a runner could raise nothing: nothing is connected, and what is
// pending stays so.
func TestConnect_NoRunner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, without := range []string{"hba-events", "hba-worker-1"} {
			w := newWorld(t, hba.Config{QueuePairs: 1, Workers: 2}, hbatest.Config{})
			var x recorder
			synctest.Wait()
			err := w.dev.ConnectInterrupt(pci.MessageSignaled, x.raise, func(name string) pci.Runner {
				if name == without {
					return nil
				}
				return newRunner(name)
			})
			if !errors.Is(err, hba.ErrNoRunner) {
				t.Errorf("without a runner for %s: %v, want ErrNoRunner", without, err)
			}
			x.want(t, "not connected")
			connect(t, w, pci.MessageSignaled, &x)
			x.want(t, "connected", call{"hba-events", 1})
		}
	})
}

func TestMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, hba.Config{QueuePairs: 2, Workers: 1}, hbatest.Config{})
		m := w.attachSlow(t, slow, hbatest.MediaConfig{})
		q0, q1 := w.driver.Queues[0], w.driver.Queues[1]
		var x recorder

		// What happened before is delivered at connect, by the device itself.
		q1.Submit(disk0.TestUnitReady(1))
		q1.Ring(runner)
		connect(t, w, pci.MessageSignaled, &x)
		x.want(t, "connect", call{"hba-events", 1}, call{"hba-events", 2})
		if err := w.dev.ConnectInterrupt(pci.Line, x.raise, newRunner); !errors.Is(err, hba.ErrConnected) {
			t.Errorf("second ConnectInterrupt: %v, want ErrConnected", err)
		}

		// One for a batch, on the runner that rang.
		q0.Submit(disk0.TestUnitReady(1), disk0.TestUnitReady(2), disk0.TestUnitReady(3))
		q0.Ring(runner)
		x.want(t, "batch", call{"test", 0})

		// A worker's are its own.
		m.Hold()
		q0.Submit(slow.Flush(4))
		q0.Ring(runner)
		x.want(t, "handed to a worker")
		m.Release()
		x.want(t, "worker", call{"hba-worker-0", 0})

		// Masked ones are kept as one, and delivered to whoever unmasks.
		w.dev.MaskMessage(0)
		for range 3 {
			q0.Submit(disk0.TestUnitReady(5))
			q0.Ring(runner)
		}
		q1.Submit(disk0.TestUnitReady(6))
		q1.Ring(runner)
		x.want(t, "masked", call{"test", 1})
		w.dev.UnmaskMessage(hbatest.Runner("unmasker"), 0)
		x.want(t, "unmask", call{"unmasker", 0})
		w.dev.UnmaskMessage(runner, 0)
		x.want(t, "unmask again")

		// Changes of units have the last message.
		if err := w.dev.RemoveUnit(t.Context(), 0, 1); err != nil {
			t.Error(err)
		}
		x.want(t, "unit removed", call{"hba-events", 2})
		q0.RingTail(runner, q0.Tail()+1<<20)
		x.want(t, "fatal", call{"hba-events", 2})

		// Line registers are idle in this mode.
		if w.dev.Asserted() || w.driver.Read(hba.RegInterruptCause) != 0 {
			t.Error("the line is asserted in message mode")
		}
		w.dev.DisconnectInterrupt()
		w.dev.DisconnectInterrupt() // harmless
		w.dev.MaskMessage(99)
		w.dev.UnmaskMessage(runner, 99)
	})
}

func TestLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, hba.Config{QueuePairs: 3, Workers: 1}, hbatest.Config{})
		var x recorder
		work := func(q int) {
			w.driver.Queues[q].Submit(disk0.TestUnitReady(1))
			w.driver.Queues[q].Ring(runner)
		}
		state := func(what string, asserted bool, cause uint64) {
			t.Helper()
			if got := w.driver.Read(hba.RegInterruptCause); got != cause || w.dev.Asserted() != asserted {
				t.Errorf("%s: cause %#x asserted %v, want %#x %v", what, got, w.dev.Asserted(), cause, asserted)
			}
		}
		clearCause := func(bits uint64) { w.driver.Write(hba.RegInterruptCause, bits) }

		work(2)
		connect(t, w, pci.Line, &x)
		x.want(t, "connect", call{"hba-events", 0})
		state("connect", true, 1<<2|hba.CauseEvent)
		clearCause(1<<2 | hba.CauseEvent)
		state("cleared", false, 0)

		work(0)
		x.want(t, "line up", call{"test", 0})
		work(1)
		x.want(t, "up already")
		state("two causes", true, 3)
		clearCause(1)
		state("one cause", true, 2)
		clearCause(2)
		state("none", false, 0)
		work(1)
		x.want(t, "up again", call{"test", 0})

		// Masking takes the line down, unmasking up again.
		w.driver.Write(hba.RegInterruptMask, 2)
		state("masked", false, 2)
		work(1)
		x.want(t, "masked")
		w.driver.Write(hba.RegInterruptMask, 0)
		x.want(t, "unmasked", call{"driver", 0})
		clearCause(2)

		// The bus's mask of message 0 stands for the line.
		w.dev.MaskMessage(0)
		work(0)
		x.want(t, "bus mask")
		w.dev.UnmaskMessage(hbatest.Runner("unmasker"), 0)
		x.want(t, "bus unmask", call{"unmasker", 0})
		clearCause(1)
		w.dev.MaskMessage(0)
		work(0)
		clearCause(1)
		w.dev.UnmaskMessage(runner, 0)
		x.want(t, "went down meanwhile")

		// What is left changes form with the mode.
		work(1)
		x.want(t, "line up", call{"test", 0})
		w.dev.DisconnectInterrupt()
		work(2)
		connect(t, w, pci.MessageSignaled, &x)
		x.want(t, "other mode", call{"hba-events", 1}, call{"hba-events", 2})
		state("message mode", false, 0)
	})
}

// TestDisconnect_Waits: DisconnectInterrupt waits for calls under way, and no
// call begins afterwards.
func TestDisconnect_Waits(t *testing.T) {
	for _, mode := range []pci.InterruptMode{pci.MessageSignaled, pci.Line} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, hba.Config{QueuePairs: 1, Workers: 1}, hbatest.Config{})
			gate, entered := make(chan struct{}), make(chan struct{}, 10)
			err := w.dev.ConnectInterrupt(mode, func(pci.Runner, pci.Message) {
				entered <- struct{}{}
				<-gate
			}, newRunner)
			if err != nil {
				t.Fatal(err)
			}
			<-entered // units have changed
			gate <- struct{}{}
			synctest.Wait()
			w.driver.Write(hba.RegInterruptCause, ^uint64(0))
			q := w.driver.Queues[0]
			q.Submit(disk0.TestUnitReady(1))
			go q.Ring(runner)
			<-entered
			var done atomic.Bool
			go func() {
				w.dev.DisconnectInterrupt()
				done.Store(true)
			}()
			synctest.Wait()
			if done.Load() {
				t.Error("DisconnectInterrupt returned during a call")
			}
			q.Submit(disk0.TestUnitReady(2))
			q.Ring(runner)
			close(gate)
			synctest.Wait()
			if !done.Load() || len(entered) != 0 {
				t.Errorf("disconnected %v, %d calls since", done.Load(), len(entered))
			}
		})
	}
}

// TestInterrupts_NoLostEdge has a driver that sleeps until it is interrupted,
// while others mask and unmask, disconnect and connect in either mode. A lost
// edge would leave it asleep with completions in the ring: the commands it
// waits for would never all come back.
func TestInterrupts_NoLostEdge(t *testing.T) {
	const queues, each, seed = 2, 3000, 1
	w := newWorld(t, hba.Config{QueuePairs: queues, RingEntries: 16, Workers: 2}, hbatest.Config{})
	w.attachSlow(t, slow, hbatest.MediaConfig{})
	var wake [queues]chan struct{}
	for i := range wake {
		wake[i] = make(chan struct{}, 1)
	}
	poke := func(i int) {
		select {
		case wake[i] <- struct{}{}:
		default:
		}
	}
	onMessage := func(_ pci.Runner, m pci.Message) {
		if int(m) < queues {
			poke(int(m))
		}
	}
	onLine := func(pci.Runner, pci.Message) {
		for w.dev.Asserted() {
			cause := w.driver.Read(hba.RegInterruptCause)
			w.driver.Write(hba.RegInterruptCause, cause) // first cleared, then drained
			for i := range queues {
				if cause&(1<<i) != 0 {
					poke(i)
				}
			}
		}
	}
	connect := func(mode pci.InterruptMode) {
		raise := onMessage
		if mode == pci.Line {
			raise = onLine
		}
		if err := w.dev.ConnectInterrupt(mode, raise, newRunner); err != nil {
			t.Error(err)
		}
	}
	connect(pci.MessageSignaled)
	var drivers, disturbers sync.WaitGroup
	for i, q := range w.driver.Queues {
		drivers.Go(func() {
			out := make([]hba.Completion, 16)
			for sent, got := 0, 0; got < each; {
				for sent < each && q.Submit([]hbatest.Address{disk0, slow}[sent%2].Flush(uint32(sent))) == 1 {
					sent++
				}
				q.Ring(runner)
				for {
					n := q.Consume(out)
					if n == 0 {
						break
					}
					got += n
					q.Ack(runner)
				}
				if got < sent {
					<-wake[i]
				}
			}
		})
	}
	var stop atomic.Bool
	disturb := func(id uint64, fn func(rng *rand.Rand)) {
		disturbers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, id))
			for !stop.Load() {
				fn(rng)
				runtime.Gosched()
			}
		})
	}
	disturb(1, func(rng *rand.Rand) {
		m := pci.Message(rng.IntN(queues + 1))
		w.dev.MaskMessage(m)
		runtime.Gosched()
		w.dev.UnmaskMessage(runner, m)
	})
	disturb(2, func(*rand.Rand) {
		w.driver.Write(hba.RegInterruptMask, 3)
		runtime.Gosched()
		w.driver.Write(hba.RegInterruptMask, 0)
	})
	disturb(3, func(rng *rand.Rand) {
		for range rng.IntN(50) {
			runtime.Gosched()
		}
		w.dev.DisconnectInterrupt()
		runtime.Gosched()
		connect(pci.InterruptMode(rng.IntN(2)))
	})
	drivers.Wait()
	stop.Store(true)
	disturbers.Wait()
	w.dev.DisconnectInterrupt()
	w.wantIdle(t)
}

// TestInterrupt_ReEnters: the handler consumes, acknowledges and submits more on
// the goroutine that it interrupts.
func TestInterrupt_ReEnters(t *testing.T) {
	const chain = 1000
	w := newWorld(t, hba.Config{QueuePairs: 1, RingEntries: 8}, hbatest.Config{})
	q := w.driver.Queues[0]
	w.dev.MaskMessage(1)
	var (
		next   uint32
		inside bool
		again  bool
		deep   int
		out    [8]hba.Completion
	)
	raise := func(r pci.Runner, _ pci.Message) {
		if inside { // as a port would: pending until the handler returns
			again = true
			deep++
			return
		}
		inside = true
		for again = true; again; {
			again = false
			n := q.Consume(out[:])
			q.Ack(r)
			for _, c := range out[:n] {
				wantCode(t, c, next, hba.CodeExecuted)
				if next++; next < chain {
					q.Submit(disk0.TestUnitReady(next))
				}
			}
			q.Ring(r)
		}
		inside = false
	}
	if err := w.dev.ConnectInterrupt(pci.MessageSignaled, raise, newRunner); err != nil {
		t.Fatal(err)
	}
	defer w.dev.DisconnectInterrupt()
	q.Submit(disk0.TestUnitReady(0))
	q.Ring(runner)
	if next != chain || deep != chain-1 {
		t.Errorf("%d commands, %d interrupts during the handler, want %d and %d", next, deep, chain, chain-1)
	}
	w.wantIdle(t)
}

// TestEngine_RaisesBetween: a long run of commands raises before its end.
func TestEngine_RaisesBetween(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1, RingEntries: 1024}, hbatest.Config{})
	for tag := range uint32(1000) {
		w.driver.Queues[0].Submit(disk0.TestUnitReady(tag))
	}
	w.driver.Queues[0].Ring(runner)
	s := w.dev.Stats().Queues[0]
	if s.Interrupts != 4 {
		t.Errorf("%d interrupts for 1000 commands, want 4", s.Interrupts)
	}
	// Three of 256 completions and one of the rest, 232.
	if s.Batches != [hba.BatchBuckets]uint64{8: 4} {
		t.Errorf("interrupts by completions %v, want 4 of 129 to 256", s.Batches)
	}
	w.reap(w.driver.Queues[0], 1000)
	w.wantIdle(t)
}
