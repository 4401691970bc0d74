package porttest

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/lockorder"
	"github.com/vhbad/vhbad/port"
)

// settleTimeout bounds the wait for goroutines that have been told to end.
const settleTimeout = 10 * time.Second

// holdLimit is far above the port's own: on a loaded machine a goroutine may be
// off its thread for long, and a timing is no test.
const holdLimit = time.Minute

// A Machine is host memory and a port system with the verifier on and strict.
type Machine struct {
	Arena  *dma.Arena
	IOMMU  *dma.IOMMU
	System *port.System
}

// NewMachine makes a machine with arenaBytes of memory. When the test ends, and
// after the clean-ups registered later, it fails the test if the verifier saw a
// violation, or if memory, IOMMU windows, processors or goroutines are left.
func NewMachine(t testing.TB, arenaBytes int) *Machine {
	t.Helper()
	goroutines := runtime.NumGoroutine()
	arena, err := dma.NewArena(arenaBytes)
	if err != nil {
		t.Fatalf("arena: %v", err)
	}
	m := &Machine{Arena: arena, IOMMU: dma.NewIOMMU(arena)}
	m.System = port.NewSystem(port.SystemConfig{IOMMU: m.IOMMU, Verify: true, Strict: true, HoldLimit: holdLimit})
	t.Cleanup(func() {
		for _, v := range m.System.Verifier().Violations() {
			t.Errorf("violation: %s", v)
		}
		lockorder.Record(t, m.System.Verifier().LockOrder())
		if n := m.IOMMU.WindowsInUse(); n != 0 {
			t.Errorf("%d IOMMU windows are left", n)
		}
		if n := m.IOMMU.Faults(); n != 0 {
			t.Errorf("%d DMA faults", n)
		}
		if n := m.System.ProcessorsInUse(); n != 0 {
			t.Errorf("%d processors are left", n)
		}
		if s := arena.Stats(); s.InUseBytes != 0 {
			t.Errorf("%d bytes of the arena are left", s.InUseBytes)
		} else if err := arena.Close(); err != nil {
			t.Errorf("close arena: %v", err)
		}
		if err := settleGoroutines(goroutines); err != nil {
			t.Error(err)
		}
	})
	return m
}

// settleGoroutines waits until at most want goroutines exist: one that has told
// its owner that it ends takes a moment to be gone.
func settleGoroutines(want int) error {
	for end := time.Now().Add(settleTimeout); runtime.NumGoroutine() > want; runtime.Gosched() {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			return fmt.Errorf("%d goroutines, %d before the test:\n%s", runtime.NumGoroutine(), want, stacks)
		}
	}
	return nil
}

// Processor makes a processor that is closed when the test ends.
func (m *Machine) Processor(t testing.TB, name string) *port.Processor {
	t.Helper()
	p, err := m.System.NewProcessor(name)
	if err != nil {
		t.Fatalf("processor %s: %v", name, err)
	}
	t.Cleanup(p.Close)
	return p
}

// Adapter brings an adapter up with its units on p, and removes it when the
// test ends.
func (m *Machine) Adapter(t testing.TB, p *port.Processor, s Subject) *port.Adapter {
	t.Helper()
	a, err := m.System.AddAdapter(p, s.Function, s.Miniport, s.Options)
	if err != nil {
		t.Fatalf("add adapter: %v", err)
	}
	t.Cleanup(func() { a.Remove(p) })
	if err := a.Enumerate(p); err != nil {
		t.Fatalf("enumerate: %v", err)
	}
	return a
}
