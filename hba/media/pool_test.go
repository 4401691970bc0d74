//go:build !race

package media

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// These tests look at which pages are resident. With the race detector slabs are on
// the Go heap.

// written is a medium with all of its memory written.
func written(t *testing.T, sizeBytes int64) *Memory {
	t.Helper()
	m, err := NewMemory(MemoryConfig{SizeBytes: sizeBytes, LimitBytes: sizeBytes})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.WriteAt(bytes.Repeat([]byte{1}, int(sizeBytes)), 0); err != nil {
		t.Fatal(err)
	}
	return m
}

// resident is how many MiB of the medium's memory are.
func resident(t *testing.T, m *Memory) (mib int) {
	t.Helper()
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	for _, s := range m.pool.slabs {
		mib += residentPages(t, s)
	}
	return mib * unix.Getpagesize() >> 20
}

// TestPool_GivesMemoryBack: what is discarded and not written again is the operating
// system's after 10 s, and only so much waits for that long.
func TestPool_GivesMemoryBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		m := written(t, 80*mib)
		if got := resident(t, m); got != 80 {
			t.Errorf("%d MiB resident after writing 80", got)
		}
		if err := m.Discard(0, 70*mib); err != nil {
			t.Fatal(err)
		}
		if got := resident(t, m); got != 74 {
			t.Errorf("%d MiB resident after discarding all but 10: want 64 more", got)
		}
		time.Sleep(coolTime / 2)
		if _, err := m.WriteAt(make([]byte, 4*mib), 0); err != nil {
			t.Fatal(err)
		}
		if got := resident(t, m); got != 74 {
			t.Errorf("%d MiB resident after writing 4 of what was discarded: want no more", got)
		}
		time.Sleep(coolTime) // the first look was meanwhile
		if got := resident(t, m); got != 74 {
			t.Errorf("%d MiB resident when nothing has waited for long enough", got)
		}
		if _, err := m.WriteAt(make([]byte, 4*mib), 4*mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(coolTime)
		if got := resident(t, m); got != 18 {
			t.Errorf("%d MiB resident after all have waited for long enough: want what is written, 18", got)
		}
		time.Sleep(coolTime)
		m.pool.mu.Lock()
		if m.pool.timer != nil {
			t.Error("nothing is warm, and somebody looks after it")
		}
		m.pool.mu.Unlock()
		if err := m.Discard(0, 80*mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * coolTime / 2)
		if got := resident(t, m); got != 0 {
			t.Errorf("%d MiB resident after discarding all", got)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPool_CloseWhileWarm: nobody gives back what close has unmapped.
func TestPool_CloseWhileWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, wait := range []time.Duration{0, coolTime, 3 * coolTime / 2} {
			m := written(t, 1<<20)
			if err := m.Discard(0, 1<<20); err != nil {
				t.Fatal(err)
			}
			time.Sleep(wait)
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			m.pool.cool() // it had begun, and waited for close
			time.Sleep(2 * coolTime)
		}
	})
}

// TestMemory_AllocatingZeros: no memory is touched to allocate zeros where zeros are.
func TestMemory_AllocatingZeros(t *testing.T) {
	const size = 64 << 20
	for name, prepare := range map[string]func(t *testing.T) *Memory{
		"fresh": func(t *testing.T) *Memory {
			t.Helper()
			m, err := NewMemory(MemoryConfig{SizeBytes: size})
			if err != nil {
				t.Fatal(err)
			}
			return m
		},
		"discarded": func(t *testing.T) *Memory {
			t.Helper()
			m := written(t, size)
			if err := m.Discard(0, size); err != nil {
				t.Fatal(err)
			}
			return m
		},
		"discarded in part": func(t *testing.T) *Memory {
			t.Helper()
			m := written(t, size)
			for off := int64(0); off < size; off += chunkBytes {
				if err := m.Discard(off, chunkBytes-pageBytes); err != nil {
					t.Fatal(err)
				}
			}
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := prepare(t)
			m.pool.mu.Lock()
			for _, s := range m.pool.slabs { // so that what is touched from here on shows
				if err := unix.Madvise(s, unix.MADV_DONTNEED); err != nil {
					t.Error(err)
				}
			}
			m.pool.mu.Unlock()
			for off := int64(0); off < size; off += chunkBytes {
				// All but the last page, and not the whole of the one before; then what is
				// allocated already.
				for range 2 {
					if err := m.Zero(off, chunkBytes-pageBytes-100, true); err != nil {
						t.Fatal(err)
					}
				}
				if err := m.Discard(off+10, 3*pageBytes-20); err != nil { // of two pages, a part
					t.Fatal(err)
				}
			}
			if got := m.AllocatedBytes(); got != size {
				t.Errorf("%d bytes allocated, want %d", got, size)
			}
			m.pool.mu.Lock()
			for _, s := range m.pool.slabs {
				if got := residentPages(t, s); got != 0 {
					t.Errorf("%d pages resident, want none", got)
				}
			}
			m.pool.mu.Unlock()
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
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

// BenchmarkMemory_Rewrite discards 32 MiB and writes them again, 64 KiB at a time.
func BenchmarkMemory_Rewrite(b *testing.B) {
	const size = 32 << 20
	m, err := NewMemory(MemoryConfig{SizeBytes: size})
	if err != nil {
		b.Fatal(err)
	}
	p := bytes.Repeat([]byte{1}, chunkBytes)
	b.SetBytes(size)
	for b.Loop() {
		if err := m.Discard(0, size); err != nil {
			b.Fatal(err)
		}
		for off := int64(0); off < size; off += chunkBytes {
			if _, err := m.WriteAt(p, off); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := m.Close(); err != nil {
		b.Error(err)
	}
}
