package hba_test

import (
	"fmt"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// BenchmarkDoorbell measures batches from the doorbell to the consumed
// completions, the driver's side included; one operation is one command.
// op=ready moves no data: it is what the device costs.
func BenchmarkDoorbell(b *testing.B) {
	for _, op := range []string{"ready", "read", "write"} {
		for _, batch := range []int{1, 32} {
			size := 4096
			if op == "ready" {
				size = 0
			}
			b.Run(fmt.Sprintf("op=%s/size=%dKiB/batch=%d", op, size>>10, batch), func(b *testing.B) {
				w := newWorld(b, hba.Config{QueuePairs: 1, RingEntries: 64}, hbatest.Config{})
				if err := w.dev.ConnectInterrupt(pci.MessageSignaled, func(pci.Runner, pci.Message) {}, newRunner); err != nil {
					b.Fatal(err)
				}
				defer w.dev.DisconnectInterrupt()
				commands := make([]hba.Command, batch)
				for i := range commands {
					switch tag := uint32(i); op {
					case "read":
						commands[i] = disk0.Read(tag, uint64(8*i), 8, w.driver.MappedBuffer(b, size, dma.Write))
					case "write":
						commands[i] = disk0.Write(tag, uint64(8*i), 8, w.driver.MappedBuffer(b, size, dma.Read))
					default:
						commands[i] = disk0.TestUnitReady(tag)
					}
				}
				results := make([]hba.Completion, batch)
				q := w.driver.Queues[0]
				var r pci.Runner = runner
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				for done := 0; done < b.N; done += batch {
					q.Submit(commands...)
					q.Ring(r)
					if n := q.Consume(results); n != batch || results[0].Code != hba.CodeExecuted || results[0].ScsiStatus != 0 {
						b.Fatalf("%d completions, the first %+v", n, results[0])
					}
					q.Ack(r)
				}
				b.StopTimer()
			})
		}
	}
}

// BenchmarkMemcpy is the baseline of op=read and op=write: the copy alone.
func BenchmarkMemcpy(b *testing.B) {
	src, dst := make([]byte, 32*4096), make([]byte, 32*4096)
	b.SetBytes(4096)
	for i := 0; b.Loop(); i++ {
		at := i % 32 * 4096
		copy(dst[at:at+4096], src[at:at+4096])
	}
}
