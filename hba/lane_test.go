package hba_test

import (
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
