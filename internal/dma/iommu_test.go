package dma_test

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/internal/dma"
)

func newIOMMU(tb testing.TB, sizeBytes int) (*dma.IOMMU, []byte, dma.Window) {
	tb.Helper()
	a := newArena(tb, sizeBytes)
	m := dma.NewIOMMU(a)
	b := a.Alloc(sizeBytes)
	tb.Cleanup(func() { a.Free(b) })
	w, err := m.NewWindow(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return m, b, w
}

func TestTranslate(t *testing.T) {
	m, b, w := newIOMMU(t, 4*dma.MinBlockBytes)
	addr := m.Map(w, b[4096:4096+100], dma.Read)
	b[4096+10] = 42
	got, ok := m.Translate(addr+10, 90, dma.Read)
	if !ok || len(got) != 90 || cap(got) != 90 || &got[0] != &b[4096+10] {
		t.Errorf("Translate: ok %v, len %d, cap %d", ok, len(got), cap(got))
	}
	if got, ok := m.Translate(addr+100, 0, dma.Read); !ok || len(got) != 0 {
		t.Errorf("Translate of nothing at the end: %v, %d bytes", ok, len(got))
	}
	if m.Faults() != 0 {
		t.Errorf("%d faults, want none", m.Faults())
	}
}

func TestTranslate_Faults(t *testing.T) {
	m, b, w := newIOMMU(t, 4*dma.MinBlockBytes)
	other, err := m.NewWindow(nil)
	if err != nil {
		t.Fatal(err)
	}
	stale := m.Map(w, b[:100], dma.Read|dma.Write)
	m.Unmap(w)
	m.Unmap(w) // nothing more to end
	addr := m.Map(w, b[:100], dma.Read)
	writable := m.Map(other, b[200:300], dma.Write)
	tests := []struct {
		name   string
		addr   dma.Addr
		n      int
		access dma.Access
		reason string
	}{
		{"zero", 0, 1, dma.Read, "no live mapping"},
		{"stale generation", stale, 1, dma.Read, "no live mapping"},
		{"next generation", addr + 1<<32, 1, dma.Read, "no live mapping"},
		{"never reserved", dma.Addr(999) << 48, 1, dma.Read, "no live mapping"},
		{"last window", ^dma.Addr(0), 1, dma.Read, "no live mapping"},
		{"write to read-only", addr, 1, dma.Write, "read only"},
		{"read and write", addr, 1, dma.Read | dma.Write, "read only"},
		{"read of write-only", writable, 1, dma.Read, "write only"},
		{"one byte more", addr, 101, dma.Read, "beyond"},
		{"over the end", addr + 50, 51, dma.Read, "beyond"},
		{"behind the end", addr + 101, 0, dma.Read, "beyond"},
		{"far behind", addr + 0xffffffff, 1, dma.Read, "beyond"},
		{"negative", addr, -1, dma.Read, "beyond"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got dma.Fault
			m.OnFault(func(f dma.Fault) { got = f })
			before := m.Faults()
			if p, ok := m.Translate(tt.addr, tt.n, tt.access); ok || p != nil {
				t.Errorf("Translate = %d bytes, %v, want a fault", len(p), ok)
			}
			if m.Faults() != before+1 {
				t.Errorf("%d faults counted, want 1", m.Faults()-before)
			}
			if got.Addr != tt.addr || got.Bytes != tt.n || got.Access != tt.access || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("reported %v, want reason %q", got, tt.reason)
			}
			if !strings.Contains(got.String(), got.Reason) {
				t.Errorf("String() = %q lacks the reason", got)
			}
		})
	}
}

func TestLive(t *testing.T) {
	m, b, w := newIOMMU(t, dma.MinBlockBytes)
	addr := m.Map(w, b, dma.Write)
	if !m.Live(addr, 1, dma.Write) {
		t.Error("Live: false for a live mapping")
	}
	m.Unmap(w)
	if m.Live(addr, 1, dma.Write) {
		t.Error("Live: true after Unmap")
	}
	again := m.Map(w, b, dma.Write)
	if m.Live(addr, 1, dma.Write) {
		t.Error("Live: true for an address of the generation before")
	}
	if !m.Live(again, 1, dma.Write) || m.Faults() != 2 {
		t.Errorf("faults = %d, want 2", m.Faults())
	}
	m.Unmap(w)
}

// A device uses memory; it is unmapped when that is over.
func TestUse(t *testing.T) {
	m, b, w := newIOMMU(t, dma.MinBlockBytes)
	addr := m.Map(w, b, dma.Write)
	var over atomic.Bool
	unmapped := make(chan bool)
	ok := m.Use(addr+8, 16, dma.Write, func(p []byte) {
		if len(p) != 16 || &p[0] != &b[8] {
			t.Errorf("%d bytes, want 16 from byte 8 on", len(p))
		}
		if _, ok := m.Translate(addr, len(b), dma.Write); !ok {
			t.Error("nobody else can use the mapping")
		}
		go func() {
			m.Unmap(w)
			unmapped <- over.Load()
		}()
		for m.Live(addr, 1, dma.Write) {
			runtime.Gosched()
		}
		for range 1000 {
			runtime.Gosched()
		}
		over.Store(true)
	})
	if !ok {
		t.Error("no use")
	}
	if !<-unmapped {
		t.Error("the memory was unmapped while it was in use")
	}
	never := func([]byte) { t.Error("used without a mapping") }
	if m.Use(addr, 1, dma.Write, never) {
		t.Error("the mapping is gone, and was in use")
	}
	later := m.Map(w, b, dma.Read)
	if m.Use(addr, 1, dma.Read, never) || m.Use(later, 1, dma.Write, never) || m.Use(later, len(b)+1, dma.Read, never) {
		t.Error("used another mapping, for another access, or beyond its end")
	}
	if !m.Use(later, len(b), dma.Read, func([]byte) {}) {
		t.Error("no use of the next mapping")
	}
	m.Unmap(w)
	if _, ok := m.Translate(later, 1, dma.Read); ok {
		t.Error("still mapped")
	}
}

func TestMap_Misuse(t *testing.T) {
	m, b, w := newIOMMU(t, 2*dma.MinBlockBytes)
	mustPanic(t, "no memory", func() { m.Map(w, nil, dma.Read) })
	mustPanic(t, "Go memory", func() { m.Map(w, make([]byte, 10), dma.Read) })
	mustPanic(t, "no access", func() { m.Map(w, b, 0) })
	mustPanic(t, "window 0", func() { m.Map(0, b, dma.Read) })
	m.Map(w, b, dma.Read)
	mustPanic(t, "mapped twice", func() { m.Map(w, b, dma.Read) })
	mustPanic(t, "freed while mapped", func() { m.FreeWindow(w) })
	m.Unmap(w)
	m.FreeWindow(w)
	mustPanic(t, "freed twice", func() { m.FreeWindow(w) })
}

func TestNewWindow_All(t *testing.T) {
	m := dma.NewIOMMU(newArena(t, dma.MinBlockBytes))
	seen := make([]bool, dma.Windows)
	for range dma.Windows - 1 {
		w, err := m.NewWindow(nil)
		if err != nil {
			t.Fatal(err)
		}
		if w == 0 || seen[w] {
			t.Fatalf("window %d handed out twice or reserved", w)
		}
		seen[w] = true
	}
	if _, err := m.NewWindow(nil); !errors.Is(err, dma.ErrNoWindow) {
		t.Errorf("NewWindow: %v, want ErrNoWindow", err)
	}
	if got := m.WindowsInUse(); got != dma.Windows-1 {
		t.Errorf("WindowsInUse = %d, want %d", got, dma.Windows-1)
	}
	m.FreeWindow(77)
	if w, err := m.NewWindow(nil); err != nil || w != 77 {
		t.Errorf("NewWindow = %d, %v, want the freed one", w, err)
	}
}

// TestNewWindow_Groups: windows of different groups lie apart while there is room, and
// none is withheld when there is not.
func TestNewWindow_Groups(t *testing.T) {
	const (
		blockWindows = 64 // 1 KiB of the table
		groups       = 10
		each         = 100
	)
	m := dma.NewIOMMU(newArena(t, dma.MinBlockBytes))
	owner := make(map[dma.Window]int) // by block
	all := 0
	take := func(g *dma.WindowGroup, number int) dma.Window {
		w, err := m.NewWindow(g)
		if err != nil {
			t.Fatalf("with %d of %d taken: %v", all, dma.Windows-1, err)
		}
		all++
		if other, ok := owner[w/blockWindows]; ok && other != number {
			t.Fatalf("window %d of group %d is in a block of group %d", w, number, other)
		}
		owner[w/blockWindows] = number
		return w
	}
	var some [groups]dma.WindowGroup
	var last [groups]dma.Window
	for range each {
		take(nil, -1)
		for i := range some {
			last[i] = take(&some[i], i)
		}
	}
	if want := (groups + 1) * ((each + blockWindows - 1) / blockWindows); len(owner) != want {
		t.Errorf("%d blocks for %d windows of %d groups and of none, want %d", len(owner), all, groups, want)
	}
	for i := range last {
		m.FreeWindow(last[i])
		if w := take(&some[i], i); w/blockWindows != last[i]/blockWindows {
			t.Errorf("group %d gets window %d, with window %d free", i, w, last[i])
		}
		all--
	}
	if got := m.WindowsInUse(); got != all {
		t.Errorf("WindowsInUse = %d, want %d", got, all)
	}
	// From some group on there is no block left to have alone.
	for ; all < dma.Windows-1; all++ {
		if _, err := m.NewWindow(new(dma.WindowGroup)); err != nil {
			t.Fatalf("with %d of %d taken: %v", all, dma.Windows-1, err)
		}
	}
	for _, g := range []*dma.WindowGroup{nil, new(dma.WindowGroup), &some[0]} {
		if _, err := m.NewWindow(g); !errors.Is(err, dma.ErrNoWindow) {
			t.Errorf("NewWindow: %v, want ErrNoWindow", err)
		}
	}
	m.FreeWindow(4711)
	if w, err := m.NewWindow(&some[0]); err != nil || w != 4711 {
		t.Errorf("NewWindow = %d, %v, want the freed one", w, err)
	}
}

// TestGeneration_Reuse: the address of an old mapping faults through every
// later one of its window until generations repeat.
func TestGeneration_Reuse(t *testing.T) {
	m, b, w := newIOMMU(t, dma.MinBlockBytes)
	first := m.Map(w, b, dma.Read)
	for i := range 1<<16 - 1 {
		m.Unmap(w)
		if addr := m.Map(w, b, dma.Read); addr == first {
			t.Fatalf("address repeats after %d mappings", i+1)
		}
		if _, ok := m.Translate(first, 1, dma.Read); ok {
			t.Fatalf("stale address passes after %d mappings", i+1)
		}
	}
	m.Unmap(w)
	if addr := m.Map(w, b, dma.Read); addr != first {
		t.Errorf("65536 mappings later: %#x, want %#x: the window holds 16 bits of generation", addr, first)
	}
	m.Unmap(w)
}

// TestTranslate_RacesWithMap: a translation that races with unmapping and
// mapping again is a fault or the memory that the address was made for.
func TestTranslate_RacesWithMap(t *testing.T) {
	m, b, w := newIOMMU(t, 64*dma.MinBlockBytes)
	addrs := make(chan dma.Addr, 64)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for addr := range addrs {
				for range 4 {
					// The generation's parity tells which half was mapped.
					p, ok := m.Translate(addr, 1, dma.Read)
					if half := int(addr>>32) & 1; ok && &p[0] != &b[half*32*dma.MinBlockBytes] {
						t.Errorf("address %#x leads to another mapping's memory", uint64(addr))
					}
				}
			}
		})
	}
	for i := range 20000 {
		half := (i + 1) & 1
		addr := m.Map(w, b[half*32*dma.MinBlockBytes:][:dma.MinBlockBytes], dma.Read)
		if int(addr>>32)&1 != half {
			t.Fatalf("mapping %d has address %#x", i, uint64(addr))
		}
		addrs <- addr
		m.Unmap(w)
	}
	close(addrs)
	wg.Wait()
}

// FuzzTranslate: whatever the address, Translate gives memory inside the one
// live mapping or a fault.
func FuzzTranslate(f *testing.F) {
	a, err := dma.NewArena(16 * dma.MinBlockBytes)
	if err != nil {
		f.Fatal(err)
	}
	b := a.Alloc(16 * dma.MinBlockBytes)
	m := dma.NewIOMMU(a)
	w, err := m.NewWindow(nil)
	if err != nil {
		f.Fatal(err)
	}
	const first, length = 5000, 10000
	base := m.Map(w, b[first:first+length], dma.Write)
	f.Add(uint64(base), 10, uint8(dma.Write))
	f.Add(uint64(base)+length, 0, uint8(dma.Write))
	f.Add(uint64(base)+length-1, 2, uint8(dma.Write))
	f.Add(uint64(0), 0, uint8(0))
	f.Add(^uint64(0), -1, uint8(255))
	f.Fuzz(func(t *testing.T, addr uint64, n int, access uint8) {
		p, ok := m.Translate(dma.Addr(addr), n, dma.Access(access))
		off := addr - uint64(base)
		inside := addr >= uint64(base) && n >= 0 && off <= length && uint64(n) <= length-off
		want := inside && access&^uint8(dma.Write) == 0
		if ok != want {
			t.Fatalf("Translate(%#x, %d, %d) = %v, want %v", addr, n, access, ok, want)
		}
		if ok && (len(p) != n || n > 0 && &p[0] != &b[first+int(off)]) {
			t.Fatalf("Translate(%#x, %d): wrong memory", addr, n)
		}
	})
}

func BenchmarkMapTranslateUnmap(b *testing.B) {
	m, buf, w := newIOMMU(b, dma.MinBlockBytes)
	b.ReportAllocs()
	for b.Loop() {
		addr := m.Map(w, buf, dma.Read)
		if _, ok := m.Translate(addr, len(buf), dma.Read); !ok {
			b.Fatal("fault")
		}
		m.Unmap(w)
	}
}

func BenchmarkTranslate(b *testing.B) {
	m, buf, w := newIOMMU(b, dma.MinBlockBytes)
	addr := m.Map(w, buf, dma.Read)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := m.Translate(addr, len(buf), dma.Read); !ok {
			b.Fatal("fault")
		}
	}
	m.Unmap(w)
}
