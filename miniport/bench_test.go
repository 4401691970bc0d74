package miniport_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/port"
)

// A looper submits the same batch of reads or writes again and again. The medium
// never waits, so a batch has completed when Submit returns.
type looper struct {
	p         *port.Processor
	lu        *port.LogicalUnit
	srbs      []*port.SRB
	completed int
	failed    int
}

// CompleteSRB implements port.Completer.
func (l *looper) CompleteSRB(_ *port.Processor, srb *port.SRB) {
	l.completed++
	if srb.Status != port.StatusSuccess {
		l.failed++
	}
}

func (l *looper) submit() { l.lu.Submit(l.p, l.srbs) }

// newLoopers makes a stack without a verifier and one looper for each of n
// processors.
func newLoopers(tb testing.TB, n, batch, sizeBytes int, write bool) []*looper {
	tb.Helper()
	arena, err := dma.NewArena(64 << 20)
	if err != nil {
		tb.Fatal(err)
	}
	iommu := dma.NewIOMMU(arena)
	sys := port.NewSystem(port.SystemConfig{IOMMU: iommu})
	r := newRig(tb, iommu, miniport.Options{}, hba.Config{})
	p, err := sys.NewProcessor("bench")
	if err != nil {
		tb.Fatal(err)
	}
	a, err := sys.AddAdapter(p, r.device, r.driver, port.AdapterOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { a.Remove(p) })
	if err := a.Enumerate(p); err != nil {
		tb.Fatal(err)
	}
	var loopers []*looper
	for i := range n {
		l := &looper{lu: a.LogicalUnits()[i%2]}
		if l.p, err = sys.NewProcessor(fmt.Sprintf("looper %d", i)); err != nil {
			tb.Fatal(err)
		}
		for j := range batch {
			srb, err := a.NewSRB(l.p)
			if err != nil {
				tb.Fatal(err)
			}
			lba, blocks := uint64(j*sizeBytes/512), uint32(sizeBytes/512)
			srb.Flags = port.FlagQueueActionEnable | port.FlagNoQueueFreeze
			if write {
				srb.Flags |= port.FlagDataOut
				srb.CDBBytes = uint8(scsi.PutWrite16(&srb.CDB, lba, blocks, false, false))
			} else {
				srb.Flags |= port.FlagDataIn
				srb.CDBBytes = uint8(scsi.PutRead16(&srb.CDB, lba, blocks, false, false))
			}
			srb.QueueAction = port.SimpleTag
			srb.DataBuffer = arena.Alloc(sizeBytes)
			srb.DataTransferBytes = uint32(sizeBytes)
			srb.Completer = l
			l.srbs = append(l.srbs, srb)
		}
		loopers = append(loopers, l)
	}
	return loopers
}

// TestRoundTrip_NoAllocs: from Submit to completion, through driver and device,
// nothing is allocated.
func TestRoundTrip_NoAllocs(t *testing.T) {
	const batch, runs = 32, 200
	l := newLoopers(t, 1, batch, 4096, false)[0]
	allocs := testing.AllocsPerRun(runs, l.submit)
	if allocs != 0 && !raceEnabled {
		t.Errorf("%v allocations per batch of %d, want 0", allocs, batch)
	}
	if want := batch * (runs + 1); l.completed != want || l.failed != 0 {
		t.Errorf("%d completed, %d failed; want %d and 0", l.completed, l.failed, want)
	}
}

// TestRoundTrip_TagsComeBack: a processor whose commands complete before the next ones
// come has their tags again without asking for them, and so takes all interrupt locks
// only before the first batch.
func TestRoundTrip_TagsComeBack(t *testing.T) {
	l := newLoopers(t, 1, 32, 4096, false)[0]
	before := l.lu.Adapter().Stats(l.p).SynchronizeAccess
	const runs = 200
	for range runs {
		l.submit()
	}
	if n := l.lu.Adapter().Stats(l.p).SynchronizeAccess - before; n > 1 {
		t.Errorf("%d calls of SynchronizeAccess for %d batches, want 1", n, runs)
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	for _, op := range []string{"read", "write"} {
		for _, size := range []int{4 << 10, 64 << 10} {
			for _, batch := range []int{1, 32} {
				for _, n := range []int{1, 2} {
					b.Run(fmt.Sprintf("op=%s/size=%dKiB/batch=%d/processors=%d", op, size>>10, batch, n), func(b *testing.B) {
						roundTrips(b, newLoopers(b, n, batch, size, op == "write"), size)
					})
				}
			}
		}
	}
}

// roundTrips counts requests, not batches, over all processors.
func roundTrips(b *testing.B, loopers []*looper, size int) {
	batch := len(loopers[0].srbs)
	for _, l := range loopers {
		l.submit() // touch the memory
	}
	rounds := (b.N + batch*len(loopers) - 1) / (batch * len(loopers))
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, l := range loopers {
		wg.Go(func() {
			for range rounds {
				l.submit()
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	for _, l := range loopers {
		if want := batch * (rounds + 1); l.completed != want || l.failed != 0 {
			b.Fatalf("%d completed, %d failed; want %d and 0", l.completed, l.failed, want)
		}
	}
}

// BenchmarkMemcpy is what no stack can beat: the copy alone, on one processor and
// on two, which may be two threads of one core and then do no more than one.
func BenchmarkMemcpy(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, n := range []int{1, 2} {
			b.Run(fmt.Sprintf("size=%dKiB/processors=%d", size>>10, n), func(b *testing.B) { copies(b, n, size) })
		}
	}
}

// copies counts copies over all processors.
func copies(b *testing.B, processors, size int) {
	const buffers = 32
	rounds := (b.N + buffers*processors - 1) / (buffers * processors)
	from, to := make([][]byte, processors), make([][]byte, processors)
	for i := range processors {
		from[i], to[i] = make([]byte, buffers*size), make([]byte, buffers*size)
		copy(to[i], from[i]) // touch the memory
	}
	b.SetBytes(int64(size))
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range processors {
		wg.Go(func() {
			for range rounds {
				for j := range buffers {
					copy(to[i][j*size:(j+1)*size], from[i][j*size:])
				}
			}
		})
	}
	wg.Wait()
}
