//go:build !race

package media

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestPool_GivesMemoryBack looks at which pages are resident. With the race
// detector slabs are on the Go heap.
func TestPool_GivesMemoryBack(t *testing.T) {
	m, err := NewMemory(MemoryConfig{SizeBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 8<<20)
	for i := range p {
		p[i] = 1
	}
	if _, err := m.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	m.pool.mu.Lock()
	slab := m.pool.slabs[0][:8<<20]
	m.pool.mu.Unlock()
	if got := residentPages(t, slab); got != 2048 {
		t.Errorf("%d pages resident after writing 2048", got)
	}
	if err := m.Discard(1<<20, 6<<20); err != nil {
		t.Fatal(err)
	}
	if got := residentPages(t, slab); got != 512 {
		t.Errorf("%d pages resident after discarding all but 512", got)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

func residentPages(t *testing.T, b []byte) (n int) {
	t.Helper()
	state := make([]byte, len(b)/unix.Getpagesize())
	if err := mincore(b, state); err != nil {
		t.Fatal(err)
	}
	for _, s := range state {
		n += int(s & 1)
	}
	return n
}

func TestMemory_NoAllocs(t *testing.T) {
	m, err := NewMemory(MemoryConfig{SizeBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	call := func() {
		if _, err := m.WriteAt(p, 100000); err != nil {
			t.Error(err)
		}
		if _, err := m.ReadAt(p, 100000); err != nil {
			t.Error(err)
		}
	}
	if n := testing.AllocsPerRun(200, call); n != 0 {
		t.Errorf("%v allocations per write and read, want 0", n)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
