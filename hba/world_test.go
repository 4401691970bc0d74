package hba_test

import (
	"log/slog"
	"runtime"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
)

const (
	blockBytes = 512
	diskBytes  = 64 << 20
	runner     = hbatest.Runner("test")
)

// A world is a device with host memory and one driver.
type world struct {
	dev    *hba.Device
	iommu  *dma.IOMMU
	memory *media.Memory
	driver *hbatest.Driver
}

var disk0 = hbatest.Address{}

// newWorld builds a device with memory behind disk0. At the test's end nothing
// may be left: no window, no memory, no fault that the test did not allow.
func newWorld(tb testing.TB, hc hba.Config, dc hbatest.Config) *world {
	tb.Helper()
	arena, err := dma.NewArena(8 << 20)
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{iommu: dma.NewIOMMU(arena)}
	tb.Cleanup(func() {
		if n := w.iommu.WindowsInUse(); n != 0 {
			tb.Errorf("%d windows left", n)
		}
		if err := arena.Close(); err != nil {
			tb.Error(err)
		}
	})
	hc.IOMMU = w.iommu
	hc.Log = slog.New(slog.DiscardHandler)
	if w.dev, err = hba.New(hc); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(w.dev.Close)
	if w.memory, err = media.NewMemory(media.MemoryConfig{SizeBytes: diskBytes}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := w.memory.Close(); err != nil {
			tb.Error(err)
		}
	})
	w.attach(tb, disk0, w.memory)
	w.driver = hbatest.Start(tb, w.dev, w.iommu, dc)
	return w
}

func newUnit(m media.Media) (*target.Unit, error) {
	return target.NewUnit(m, target.Config{Serial: "test", WriteCache: true})
}

func (w *world) attach(tb testing.TB, a hbatest.Address, m media.Media) {
	tb.Helper()
	u, err := newUnit(m)
	if err != nil {
		tb.Fatal(err)
	}
	if err := w.dev.AddUnit(a.Target, a.Lun, u); err != nil {
		tb.Fatal(err)
	}
}

// attachSlow attaches memory that is reached by workers only.
func (w *world) attachSlow(tb testing.TB, a hbatest.Address, c hbatest.MediaConfig) *hbatest.Media {
	tb.Helper()
	m := hbatest.NewMedia(w.memory, c)
	w.attach(tb, a, m)
	tb.Cleanup(m.Release) // before the device is closed
	return m
}

// reap consumes n completions of q, yielding while there are none.
func (w *world) reap(q *hbatest.Queue, n int) []hba.Completion {
	out := make([]hba.Completion, n)
	for got := 0; got < n; {
		k := q.Consume(out[got:])
		if k == 0 {
			runtime.Gosched()
		} else {
			q.Ack(runner)
		}
		got += k
	}
	return out
}

// do runs commands on queue pair 0 and returns their completions in order of
// arrival.
func (w *world) do(tb testing.TB, commands ...hba.Command) []hba.Completion {
	tb.Helper()
	q := w.driver.Queues[0]
	if n := q.Submit(commands...); n != len(commands) {
		tb.Fatalf("room for %d of %d commands", n, len(commands))
	}
	q.Ring(runner)
	return w.reap(q, len(commands))
}

func wantCode(tb testing.TB, got hba.Completion, tag uint32, code hba.CompletionCode) {
	tb.Helper()
	if got.Tag != tag || got.Code != code {
		tb.Errorf("completion of tag %d with code %d, want tag %d with code %d", got.Tag, got.Code, tag, code)
	}
}

func (w *world) wantStatus(tb testing.TB, want uint64) {
	tb.Helper()
	if got := w.driver.Read(hba.RegStatus); got != want {
		tb.Errorf("status register = %#x, want %#x", got, want)
	}
}

// wantIdle checks that nothing is left of the commands so far.
func (w *world) wantIdle(tb testing.TB) {
	tb.Helper()
	// A worker posts its completion before it has quite finished.
	for range 1000000 {
		if w.dev.Left() == "" {
			break
		}
		runtime.Gosched()
	}
	if left := w.dev.Left(); left != "" {
		tb.Errorf("left behind: %s", left)
	}
	for i, q := range w.dev.Stats().Queues {
		if q.InFlight != 0 || q.Submitted != 0 || q.Unconsumed != 0 {
			tb.Errorf("queue pair %d: %d in flight, %d submitted, %d unconsumed, want none", i, q.InFlight, q.Submitted, q.Unconsumed)
		}
	}
}
