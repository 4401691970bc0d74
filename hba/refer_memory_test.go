//go:build !race

package hba_test

import (
	"bytes"
	"context"
	"runtime"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// With the race detector memory lends nothing, and allocates.

// TestRefer_Memory: a disk in memory lends what was written, and has what was not read.
func TestRefer_Memory(t *testing.T) {
	w := newLendingWorld(t, true)
	if err := w.dev.RemoveUnit(context.Background(), 0, 0); err != nil {
		t.Fatal(err)
	}
	w.attach(t, disk0, w.memory)
	const cut = 1<<20/blockBytes - referBlocks/2 // half of a read from here on is of a hole
	w.data = append(w.data, make([]byte, 1<<20)...)
	for lba, whole := range map[int]bool{0: true, 3: true, cut: false} {
		w.arm(t)
		w.good(t, disk0.Read(1, uint64(lba), referBlocks, w.in))
		w.wantData(t, whole, lba)
	}
	w.wantIdle(t)
}

// TestRefer_NoAllocs: from the doorbell to the pipe.
func TestRefer_NoAllocs(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
	in := w.driver.MappedBuffer(t, referBlocks*blockBytes, dma.Write)
	data := bytes.Repeat([]byte{5}, len(in.Bytes))
	if _, err := w.memory.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	q, got, out := w.driver.Queues[0], make([]byte, len(data)), make([]hba.Completion, 1)
	command := []hba.Command{disk0.Read(1, 0, referBlocks, in)}
	var r pci.Runner = runner
	n := testing.AllocsPerRun(100, func() {
		p := w.iommu.Arena().Pipe(in.Bytes)
		q.Submit(command...)
		q.Ring(r)
		for q.Consume(out) == 0 {
			runtime.Gosched()
		}
		q.Ack(r)
		if !w.iommu.Arena().Disarm(p) || p.ReadFull(got) != nil {
			t.Error("not lent")
		}
		w.iommu.Arena().ReturnPipe(p)
	})
	if n != 0 || !bytes.Equal(got, data) {
		t.Errorf("%v allocations, want 0, or other data", n)
	}
}
