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
func newWorld(t testing.TB, hc hba.Config, dc hbatest.Config) *world {
	t.Helper()
	arena, err := dma.NewArena(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{iommu: dma.NewIOMMU(arena)}
	t.Cleanup(func() {
		if n := w.iommu.WindowsInUse(); n != 0 {
			t.Errorf("%d windows left", n)
		}
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	hc.IOMMU = w.iommu
	hc.Log = slog.New(slog.DiscardHandler)
	if w.dev, err = hba.New(hc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.dev.Close)
	if w.memory, err = media.NewMemory(media.MemoryConfig{SizeBytes: diskBytes}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.memory.Close(); err != nil {
			t.Error(err)
		}
	})
	w.attach(t, disk0, w.memory)
	w.driver = hbatest.Start(t, w.dev, w.iommu, dc)
	return w
}

func newUnit(m media.Media) (*target.Unit, error) {
	return target.NewUnit(m, target.Config{Serial: "test", WriteCache: true})
}

func (w *world) attach(t testing.TB, a hbatest.Address, m media.Media) {
	t.Helper()
	u, err := newUnit(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.dev.AddUnit(a.Target, a.Lun, u); err != nil {
		t.Fatal(err)
	}
}

// attachSlow attaches memory that is reached by workers only.
func (w *world) attachSlow(t testing.TB, a hbatest.Address, c hbatest.MediaConfig) *hbatest.Media {
	t.Helper()
	m := hbatest.NewMedia(w.memory, c)
	w.attach(t, a, m)
	t.Cleanup(m.Release) // before the device is closed
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
func (w *world) do(t testing.TB, commands ...hba.Command) []hba.Completion {
	t.Helper()
	q := w.driver.Queues[0]
	if n := q.Submit(commands...); n != len(commands) {
		t.Fatalf("room for %d of %d commands", n, len(commands))
	}
	q.Ring(runner)
	return w.reap(q, len(commands))
}

func wantCode(t testing.TB, got hba.Completion, tag uint32, code hba.CompletionCode) {
	t.Helper()
	if got.Tag != tag || got.Code != code {
		t.Errorf("completion of tag %d with code %d, want tag %d with code %d", got.Tag, got.Code, tag, code)
	}
}

func (w *world) wantStatus(t testing.TB, want uint64) {
	t.Helper()
	if got := w.driver.Read(hba.RegStatus); got != want {
		t.Errorf("status register = %#x, want %#x", got, want)
	}
}

// wantIdle checks that nothing is left of the commands so far.
func (w *world) wantIdle(t testing.TB) {
	t.Helper()
	// A worker posts its completion before it has quite finished.
	for range 1000000 {
		if w.dev.Left() == "" {
			break
		}
		runtime.Gosched()
	}
	if left := w.dev.Left(); left != "" {
		t.Errorf("left behind: %s", left)
	}
	for i, q := range w.dev.Stats().Queues {
		if q.InFlight != 0 || q.Submitted != 0 || q.Unconsumed != 0 {
			t.Errorf("queue pair %d: %d in flight, %d submitted, %d unconsumed, want none", i, q.InFlight, q.Submitted, q.Unconsumed)
		}
	}
}
