package hba_test

import (
	"runtime"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/pci"
)

// A goroutine that rings runs what the queue holds for some turns, each of which
// ends with an interrupt; the event goroutine runs the rest.
func TestRing_HandsOver(t *testing.T) {
	const (
		commands   = 4096 // 16 turns
		mostByRing = 4
	)
	w := newWorld(t, hba.Config{QueuePairs: 1, RingEntries: commands, Workers: 1}, hbatest.Config{})
	var mu sync.Mutex
	raised := map[string]int{}
	err := w.dev.ConnectInterrupt(pci.MessageSignaled, func(r pci.Runner, _ pci.Message) {
		mu.Lock()
		raised[r.RunnerName()]++
		mu.Unlock()
	}, func(name string) pci.Runner { return hbatest.Runner(name) })
	if err != nil {
		t.Fatal(err)
	}
	q := w.driver.Queues[0]
	for tag := range uint32(commands) {
		if q.Submit(disk0.TestUnitReady(tag)) != 1 {
			t.Fatalf("no room for command %d", tag)
		}
	}
	q.Ring(runner)
	count := func(r hbatest.Runner) int {
		mu.Lock()
		defer mu.Unlock()
		return raised[r.RunnerName()]
	}
	if n := count(runner); n != mostByRing {
		t.Errorf("%d interrupts by who rang, want %d", n, mostByRing)
	}
	// Without an acknowledgement, which would be another ring.
	out := make([]hba.Completion, commands)
	for got := 0; got < commands; runtime.Gosched() {
		got += q.Consume(out[got:])
	}
	for i, c := range out {
		wantCode(t, c, uint32(i), hba.CodeExecuted)
	}
	for count("hba-events") == 0 {
		runtime.Gosched()
	}
	q.Ack(runner)
	w.wantIdle(t)
	w.dev.DisconnectInterrupt()
}
