package hba_test

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

var slow = hbatest.Address{Lun: 1}

// slowWorld is a world with a unit that is reached by workers only.
func slowWorld(t *testing.T, queues, workers int) (*world, *hbatest.Media) {
	t.Helper()
	w := newWorld(t, hba.Config{QueuePairs: queues, Workers: workers}, hbatest.Config{})
	return w, w.attachSlow(t, slow, hbatest.MediaConfig{})
}

// TestReset_WaitsForWorkers: a reset is over only when no worker touches host
// memory any more; nothing completes, neither what ran nor what waited.
func TestReset_WaitsForWorkers(t *testing.T) {
	w, m := slowWorld(t, 2, 2)
	m.Hold()
	b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	for _, q := range w.driver.Queues {
		for tag := range uint32(3) {
			q.Submit(slow.Read(tag, 0, 1, b))
		}
		q.Ring(runner)
	}
	m.WaitHeld(2)
	w.driver.Write(hba.RegControl, hba.ControlReset)
	if got := w.driver.Read(hba.RegControl); got != hba.ControlReset {
		t.Fatalf("RegControl = %#x while workers run, want a reset under way", got)
	}
	w.wantStatus(t, 0)
	// Ignored until it is over.
	w.driver.Write(hba.RegControl, hba.ControlEnable)
	w.driver.Write(hba.RegQueueEnable, 1)
	for _, register := range []uint32{hba.RegQueueSize, hba.RegQueueSelect} {
		before := w.driver.Read(register)
		w.driver.Write(register, before+1)
		if got := w.driver.Read(register); got != before {
			t.Errorf("register %#x = %#x after a write during the reset, want %#x as before", register, got, before)
		}
	}
	m.ReleaseOne()
	for w.dev.Stats().WorkersBusy != 1 {
		runtime.Gosched()
	}
	if got := w.driver.Read(hba.RegControl); got != hba.ControlReset {
		t.Fatalf("RegControl = %#x while one worker runs, want a reset under way", got)
	}
	m.Release()
	w.driver.WaitReset()
	clear(b.Bytes) // the race detector would see a device that still writes
	for i, q := range w.driver.Queues {
		if n := q.Consume(make([]hba.Completion, 1)); n != 0 {
			t.Errorf("queue pair %d: %d completions of dropped commands", i, n)
		}
		w.driver.Write(hba.RegQueueSelect, uint64(i))
		if got := w.driver.Read(hba.RegQueueEnable); got != 0 {
			t.Errorf("queue pair %d still exists", i)
		}
	}
	if err := w.driver.Restart(); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.do(t, slow.TestUnitReady(1))[0], 1, hba.CodeExecuted)
	if got := w.dev.Stats().Resets; got != 3 {
		t.Errorf("%d resets counted, want 3", got)
	}
	w.wantIdle(t)
}

// TestReset_WhileRunning resets under load from all sides, again and again:
// after each reset the memory is the driver's alone (the race detector watches),
// and the device works.
func TestReset_WhileRunning(t *testing.T) {
	const queues, rounds, seed = 2, 60, 1
	w, _ := slowWorld(t, queues, 4)
	rng := rand.New(rand.NewPCG(seed, 0))
	var bufs [queues]*hbatest.Buffer
	for i := range bufs {
		bufs[i] = w.driver.MappedBuffer(t, 8*blockBytes, dma.Write)
	}
	for round := range rounds {
		var (
			wg   sync.WaitGroup
			stop atomic.Bool
			seen atomic.Int64
		)
		for i, q := range w.driver.Queues {
			wg.Go(func() {
				out := make([]hba.Completion, 8)
				for tag := uint32(0); !stop.Load(); tag++ {
					unit := disk0
					if tag%4 == 0 {
						unit = slow
					}
					switch c := unit.Read(tag, 0, 8, bufs[i]); {
					case tag%50 == 49:
						q.Submit(unit.Reset(tag, tag%100 == 99))
					case tag%20 == 19:
						q.Submit(unit.Abort(tag, tag-3))
					default:
						q.Submit(c)
					}
					q.Ring(runner)
					seen.Add(int64(q.Consume(out)))
					q.Ack(runner)
				}
			})
		}
		for target := int64(1 + rng.IntN(200)); seen.Load() < target; {
			runtime.Gosched()
		}
		w.driver.Write(hba.RegControl, hba.ControlReset)
		stop.Store(true)
		wg.Wait()
		w.driver.WaitReset()
		for _, b := range bufs {
			clear(b.Bytes)
		}
		if err := w.driver.Restart(); err != nil {
			t.Fatalf("seed %d round %d: %v", seed, round, err)
		}
		c := w.do(t, slow.Read(7, 0, 8, bufs[0]))
		wantCode(t, c[0], 7, hba.CodeExecuted)
		w.wantIdle(t)
	}
}

// TestQueueDelete drops the commands of one queue pair and leaves the other.
func TestQueueDelete(t *testing.T) {
	w, m := slowWorld(t, 2, 4)
	m.Hold()
	for _, q := range w.driver.Queues {
		q.Submit(slow.Flush(1))
		q.Ring(runner)
	}
	m.WaitHeld(2)
	w.driver.Write(hba.RegQueueSelect, 1)
	w.driver.Write(hba.RegQueueEnable, 0)
	if got := w.driver.Read(hba.RegQueueEnable); got != 1 {
		t.Errorf("RegQueueEnable = %d while a worker runs its command, want 1", got)
	}
	m.Release()
	wantCode(t, w.reap(w.driver.Queues[0], 1)[0], 1, hba.CodeExecuted)
	for w.driver.Read(hba.RegQueueEnable) != 0 {
		runtime.Gosched()
	}
	if n := w.driver.Queues[1].Consume(make([]hba.Completion, 1)); n != 0 {
		t.Error("a deleted queue pair completed its command")
	}
	w.wantStatus(t, hba.StatusReady)
	wantCode(t, w.do(t, disk0.TestUnitReady(2))[0], 2, hba.CodeExecuted)
	w.wantIdle(t)
}

func TestAbort(t *testing.T) {
	w, m := slowWorld(t, 1, 1)
	m.Hold()
	q := w.driver.Queues[0]
	b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	// 1 runs, 2 and 3 wait for the only worker.
	q.Submit(slow.Read(1, 0, 1, b), slow.Read(2, 0, 1, b), slow.Read(3, 0, 1, b))
	q.Ring(runner)
	m.WaitHeld(1)

	// An unknown one is answered at once.
	q.Submit(slow.Abort(10, 99))
	q.Ring(runner)
	wantCode(t, w.reap(q, 1)[0], 10, hba.CodeAbortUnknown)

	// So is one that only waits: first the victim, then the abort.
	q.Submit(slow.Abort(11, 2))
	q.Ring(runner)
	c := w.reap(q, 2)
	wantCode(t, c[0], 2, hba.CodeAborted)
	wantCode(t, c[1], 11, hba.CodeExecuted)

	// One that runs is waited for.
	q.Submit(slow.Abort(12, 1), slow.Abort(13, 1), disk0.TestUnitReady(14))
	q.Ring(runner)
	wantCode(t, w.reap(q, 1)[0], 14, hba.CodeExecuted)
	if n := q.Consume(make([]hba.Completion, 1)); n != 0 {
		t.Fatal("an abort completed before its victim")
	}
	m.ReleaseOne()
	c = w.reap(q, 3)
	wantCode(t, c[0], 1, hba.CodeAborted)
	wantCode(t, c[1], 12, hba.CodeExecuted)
	wantCode(t, c[2], 13, hba.CodeExecuted)

	m.Release()
	wantCode(t, w.reap(q, 1)[0], 3, hba.CodeExecuted)
	w.wantIdle(t)
}

// TestResetLun: every command of the unit that was submitted before the reset,
// on any queue pair, ends with CodeAborted before the reset completes, wherever
// it is: on a worker, in line for one, or still in a ring. Others are left alone.
func TestResetLun(t *testing.T) {
	for _, wholeTarget := range []bool{false, true} {
		w := newWorld(t, hba.Config{QueuePairs: 3, Workers: 5}, hbatest.Config{SubmissionEntries: 16, CompletionEntries: 4})
		m := w.attachSlow(t, slow, hbatest.MediaConfig{})
		third := hbatest.Address{Lun: 2}
		other := w.attachSlow(t, third, hbatest.MediaConfig{})
		m.Hold()
		other.Hold()
		q0, q1, q2 := w.driver.Queues[0], w.driver.Queues[1], w.driver.Queues[2]
		q0.Submit(slow.Flush(1), third.Flush(2))
		q0.Ring(runner)
		other.WaitHeld(1)
		m.WaitHeld(1)
		q1.Submit(slow.Flush(3)) // runs
		q1.Ring(runner)
		m.WaitHeld(2)
		q1.Submit(slow.Flush(4))                         // waits
		q1.Submit(slow.Flush(5), slow.Flush(6))          // wait; the completion ring is full now
		q1.Submit(slow.Flush(7), disk0.TestUnitReady(8)) // stay in the ring
		q1.Ring(runner)

		q0.Submit(slow.Reset(50, wholeTarget), slow.TestUnitReady(51))
		q0.Ring(runner)
		var got [60]hba.CompletionCode
		for i := range got {
			got[i] = 255
		}
		collect := func(q *hbatest.Queue, n int) {
			for _, c := range w.reap(q, n) {
				got[c.Tag] = c.Code
			}
		}
		collect(q1, 3) // 4, 5, 6 at once, which makes room for 7 and 8
		collect(q1, 2)
		if got[50] != 255 {
			t.Error("the reset completed before its victims")
		}
		q2.Submit(disk0.TestUnitReady(20))
		q2.Ring(runner)
		collect(q2, 1) // others are not held up
		m.ReleaseOne()
		m.ReleaseOne()
		collect(q1, 1)
		collect(q0, 2) // 51, which came after the reset, and 1
		if wholeTarget {
			if n := q0.Consume(make([]hba.Completion, 1)); n != 0 {
				t.Fatal("the target reset completed before unit 2's command")
			}
		} else {
			collect(q0, 1)
			if got[50] != hba.CodeExecuted || got[2] != 255 {
				t.Errorf("reset ended with code %d, another unit's command with %d (255: not yet)", got[50], got[2])
			}
		}
		m.Release()
		other.Release()
		for q0.Head() != 4 {
			collect(q0, 1)
		}
		for tag, want := range map[int]hba.CompletionCode{
			1: hba.CodeAborted, 3: hba.CodeAborted, 4: hba.CodeAborted, 5: hba.CodeAborted, 6: hba.CodeAborted,
			7: hba.CodeAborted, 8: hba.CodeExecuted, 20: hba.CodeExecuted, 50: hba.CodeExecuted, 51: hba.CodeExecuted,
		} {
			if wholeTarget && tag == 8 {
				want = hba.CodeAborted
			}
			if got[tag] != want {
				t.Errorf("whole target %v: tag %d ended with code %d, want %d", wholeTarget, tag, got[tag], want)
			}
		}
		w.wantIdle(t)
	}
}

// TestResetLun_WaitsForEngine: a command that another queue pair's engine is
// executing is waited for, by a reset as well as by RemoveUnit. That engine then
// completes the reset and raises the interrupt of both queue pairs.
func TestResetLun_WaitsForEngine(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 2}, hbatest.Config{})
	inline := hbatest.Address{Lun: 3}
	m := w.attachSlow(t, inline, hbatest.MediaConfig{Inline: true})
	w.dev.MaskMessage(2) // units have changed
	var x recorder
	if err := w.dev.ConnectInterrupt(pci.MessageSignaled, x.raise, newRunner); err != nil {
		t.Fatal(err)
	}
	defer w.dev.DisconnectInterrupt()
	q0, q1 := w.driver.Queues[0], w.driver.Queues[1]
	b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	m.Hold()
	defer m.Release()
	q1.Submit(inline.Read(1, 0, 1, b))
	rung, removed := make(chan bool), make(chan error, 1)
	go func() {
		q1.Ring(hbatest.Runner("engine"))
		close(rung)
	}()
	m.WaitHeld(1)
	q0.Submit(inline.Reset(2, false), inline.TestUnitReady(3))
	q0.Ring(runner)
	wantCode(t, w.reap(q0, 1)[0], 3, hba.CodeExecuted)
	go func() { removed <- w.dev.RemoveUnit(t.Context(), inline.Target, inline.Lun) }()
	// Both wait before the engine may go on: who comes later completes what he finds.
	for deadline := time.Now().Add(time.Minute); w.dev.Controls() != 2; runtime.Gosched() {
		select {
		case err := <-removed:
			t.Fatalf("RemoveUnit returned %v while an engine executes", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d controls wait, want the reset and RemoveUnit", w.dev.Controls())
		}
	}
	if n := q0.Consume(make([]hba.Completion, 1)); n != 0 {
		t.Error("the reset completed while an engine executes")
	}
	m.Release()
	<-rung
	if err := <-removed; err != nil {
		t.Error(err)
	}
	wantCode(t, w.reap(q1, 1)[0], 1, hba.CodeExecuted)
	wantCode(t, w.reap(q0, 1)[0], 2, hba.CodeExecuted)
	got := x.take()
	if len(got) != 3 || got[0] != (call{"test", 0}) || got[1] != (call{"engine", 0}) || got[2] != (call{"engine", 1}) {
		t.Errorf("interrupts %v, want test's of 0, then engine's of 0 and 1", got)
	}
	w.wantIdle(t)
}

// TestReset_WaitsForEngine: so does a reset of the device, which drops it.
func TestReset_WaitsForEngine(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
	inline := hbatest.Address{Lun: 3}
	m := w.attachSlow(t, inline, hbatest.MediaConfig{Inline: true})
	q := w.driver.Queues[0]
	b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	m.Hold()
	q.Submit(inline.Read(1, 0, 1, b), inline.Read(2, 0, 1, b))
	rung := make(chan bool)
	go func() {
		q.Ring(hbatest.Runner("engine"))
		close(rung)
	}()
	m.WaitHeld(1)
	w.driver.Write(hba.RegControl, hba.ControlReset)
	if got := w.driver.Read(hba.RegControl); got != hba.ControlReset {
		t.Errorf("RegControl = %#x while an engine executes, want a reset under way", got)
	}
	m.Release()
	w.driver.WaitReset()
	clear(b.Bytes)
	<-rung
	if n := q.Consume(make([]hba.Completion, 1)); n != 0 {
		t.Error("a dropped command completed")
	}
}

// TestResetLun_NothingThere completes at once, also for an address without a unit.
func TestResetLun_NothingThere(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 2}, hbatest.Config{})
	for tag, a := range []hbatest.Address{disk0, {Lun: 200}, {Target: 9}, {Target: 255, Lun: 255}} {
		for _, whole := range []bool{false, true} {
			wantCode(t, w.do(t, a.Reset(uint32(tag), whole))[0], uint32(tag), hba.CodeExecuted)
		}
	}
	// The unit reports it once.
	if c := w.do(t, disk0.TestUnitReady(1), disk0.TestUnitReady(2)); c[0].ScsiStatus != 2 || c[1].ScsiStatus != 0 {
		t.Errorf("status %d, then %d, want one CHECK CONDITION for the reset", c[0].ScsiStatus, c[1].ScsiStatus)
	}
	w.wantIdle(t)
}

// TestResetLun_Stress: resets and aborts from several queue pairs at once,
// against commands on all roads: each command and each reset completes once,
// and a reset never before the commands that its queue pair sent ahead of it.
func TestResetLun_Stress(t *testing.T) {
	const queues, rounds, seed = 3, 400, 1
	w, _ := slowWorld(t, queues, 3)
	var wg sync.WaitGroup
	for i, q := range w.driver.Queues {
		b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for round := range rounds {
				const n = 12
				for tag := range uint32(n - 1) {
					unit := []hbatest.Address{disk0, slow}[rng.IntN(2)]
					if rng.IntN(4) == 0 {
						q.Submit(unit.Abort(tag, uint32(rng.IntN(n))))
					} else {
						q.Submit(unit.Read(tag, 0, 1, b))
					}
				}
				q.Submit(slow.Reset(n-1, rng.IntN(2) == 0))
				q.Ring(runner)
				var times [n]int
				for at, c := range w.reap(q, n) {
					if c.Tag >= n {
						t.Errorf("seed %d: tag %d", seed, c.Tag)
						return
					}
					times[c.Tag]++
					if c.Tag == n-1 && c.Code != hba.CodeExecuted {
						t.Errorf("seed %d round %d: reset ended with code %d after %d others", seed, round, c.Code, at)
					}
				}
				for tag, k := range times {
					if k != 1 {
						t.Errorf("seed %d round %d: tag %d completed %d times", seed, round, tag, k)
					}
				}
			}
		})
	}
	wg.Wait()
	w.wantStatus(t, hba.StatusReady)
	w.wantIdle(t)
}

// TestReset_FromInterrupt: a driver may reset from its interrupt handler, which
// runs on a goroutine that has just been an engine.
func TestReset_FromInterrupt(t *testing.T) {
	w, m := slowWorld(t, 1, 1)
	calls := 0
	w.dev.MaskMessage(1) // units have changed
	err := w.dev.ConnectInterrupt(pci.MessageSignaled, func(pci.Runner, pci.Message) {
		calls++
		w.driver.Write(hba.RegControl, hba.ControlReset)
	}, newRunner)
	if err != nil {
		t.Fatal(err)
	}
	defer w.dev.DisconnectInterrupt()
	m.Hold()
	q := w.driver.Queues[0]
	q.Submit(slow.Flush(1), disk0.TestUnitReady(2))
	q.Ring(runner)
	if calls != 1 {
		t.Errorf("%d interrupts, want 1", calls)
	}
	m.Release()
	w.driver.WaitReset()
	wantCode(t, func() hba.Completion {
		var out [2]hba.Completion
		if n := q.Consume(out[:]); n != 1 {
			t.Errorf("%d completions, want 1", n)
		}
		return out[0]
	}(), 2, hba.CodeExecuted)
}
