//go:build !race

package hba_test

import (
	"runtime"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// TestDoorbell_NoAllocs: once lists have been met in full length, no command
// allocates, on no road.
func TestDoorbell_NoAllocs(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1, RingEntries: 64, Workers: 1}, hbatest.Config{})
	w.attachSlow(t, slow, hbatest.MediaConfig{})
	if err := w.dev.ConnectInterrupt(pci.MessageSignaled, func(pci.Runner, pci.Message) {}, newRunner); err != nil {
		t.Fatal(err)
	}
	defer w.dev.DisconnectInterrupt()
	in := w.driver.MappedBuffer(t, 8*blockBytes, dma.Write)
	out := w.driver.MappedBuffer(t, 8*blockBytes, dma.Read)
	list := w.driver.MappedBuffer(t, 4096, dma.Read)
	q := w.driver.Queues[0]
	var r pci.Runner = runner
	for _, tt := range []struct {
		name    string
		command hba.Command
	}{
		{"read", disk0.Read(1, 0, 8, in)},
		{"write", disk0.Write(1, 0, 8, out)},
		{"chained", hbatest.Chain(disk0.Read(1, 0, 8, in), list, []hba.Segment{
			in.Segment(0, 512), in.Segment(512, 512), in.Segment(1024, 512), in.Segment(1536, 512),
			in.Segment(2048, 512), in.Segment(2560, 512), in.Segment(3072, 512), in.Segment(3584, 512),
		})},
		{"fault", disk0.Write(1, 0, 8, in)},
		{"worker", slow.Read(1, 0, 8, in)},
	} {
		batch := make([]hba.Command, 32)
		for i := range batch {
			batch[i] = tt.command
		}
		results := make([]hba.Completion, len(batch))
		n := testing.AllocsPerRun(200, func() {
			q.Submit(batch...)
			q.Ring(r)
			for got := 0; got < len(batch); {
				if n := q.Consume(results[got:]); n != 0 {
					got += n
				} else {
					runtime.Gosched()
				}
			}
			q.Ack(r)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for a batch of %d, want 0", tt.name, n, len(batch))
		}
	}
}
