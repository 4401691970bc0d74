package hba_test

import (
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// TestLane_Overtakes: writes go through one worker, but one that does not come
// back keeps nobody waiting, and what that worker had done by then is posted.
func TestLane_Overtakes(t *testing.T) {
	const workers, writes = 4, 9
	w := newWorld(t, hba.Config{QueuePairs: 1, Workers: workers}, hbatest.Config{})
	slow := hbatest.Address{Lun: 1}
	m := w.attachSlow(t, slow, hbatest.MediaConfig{})
	b := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	q := w.driver.Queues[0]
	for round := range 3 {
		m.Hold()
		for tag := range uint32(writes) {
			q.Submit(slow.Write(tag, 0, 1, b))
		}
		q.Ring(runner)
		m.WaitHeld(workers) // one is stuck, the others went past it
		m.ReleaseOne()
		if got := w.reap(q, 1)[0].Code; got != hba.CodeExecuted {
			t.Errorf("round %d: code %d", round, got)
		}
		m.WaitHeld(workers)
		m.Release()
		for _, c := range w.reap(q, writes-1) {
			if c.Code != hba.CodeExecuted {
				t.Errorf("round %d: completion %+v", round, c)
			}
		}
		w.wantIdle(t)
	}
}

// TestLane_WorkerIsAway: a worker that does not come back from the interrupt that it
// raises after a run leaves the next one to another, soon.
func TestLane_WorkerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const writes = 40 // more than two runs
		w := newWorld(t, hba.Config{QueuePairs: 1, Workers: 2}, hbatest.Config{})
		slow := hbatest.Address{Lun: 1}
		m := w.attachSlow(t, slow, hbatest.MediaConfig{})
		b := w.driver.MappedBuffer(t, blockBytes, dma.Read)
		q := w.driver.Queues[0]
		synctest.Wait()
		back := make(chan struct{})
		var away atomic.Bool
		raise := func(_ pci.Runner, m pci.Message) {
			if m == 0 && away.CompareAndSwap(false, true) {
				<-back
			}
		}
		if err := w.dev.ConnectInterrupt(pci.MessageSignaled, raise, newRunner); err != nil {
			t.Fatal(err)
		}
		m.Hold()
		for tag := range uint32(writes) {
			q.Submit(slow.Write(tag, 0, 1, b))
		}
		q.Ring(runner)
		m.WaitHeld(1)
		m.Release()
		synctest.Wait()
		if !away.Load() {
			t.Fatal("no worker has raised an interrupt")
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if n := w.dev.Stats().Queues[0].Completions; n != writes {
			t.Errorf("%d of %d writes are done while one worker of two is away", n, writes)
		}
		close(back)
		w.reap(q, writes)
		w.wantIdle(t)
		w.dev.DisconnectInterrupt()
	})
}

// TestLane_Announces: an interrupt counts for all that a worker posts at once, and
// the next one for what has come since.
func TestLane_Announces(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1, Workers: 2}, hbatest.Config{})
	w.dev.StopClock()
	slow := hbatest.Address{Lun: 1}
	m := w.attachSlow(t, slow, hbatest.MediaConfig{})
	b := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	q := w.driver.Queues[0]
	var want [hba.BatchBuckets]uint64
	for i, step := range []struct{ writes, bucket int }{{1, 0}, {9, 4}, {3, 2}, {16, 4}, {2, 1}} {
		m.Hold()
		for tag := range uint32(step.writes) {
			q.Submit(slow.Write(tag, 0, 1, b))
		}
		q.Ring(runner)
		m.WaitHeld(1)
		m.Release()
		w.reap(q, step.writes)
		want[step.bucket]++
		// What is posted may be consumed before its interrupt is raised.
		s := w.dev.Stats().Queues[0]
		for s.Interrupts < uint64(i+1) {
			runtime.Gosched()
			s = w.dev.Stats().Queues[0]
		}
		if s.Batches != want {
			t.Fatalf("after %d writes at once: interrupts by completions %v, want %v", step.writes, s.Batches, want)
		}
	}
	w.wantIdle(t)
}
