package hba_test

import (
	"runtime"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/dma"
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
