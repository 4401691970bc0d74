//go:build !race

package media

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/internal/dma"
)

// With the race detector memory lends nothing.

// closeMemory closes m at the test's end.
func closeMemory(t *testing.T, m *Memory) {
	t.Helper()
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

// warmChunks is how many chunks wait to be taken again.
func warmChunks(m *Memory) int {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	return len(m.pool.warm)
}

// TestMemory_LentIsNotWarm: who writes elsewhere has no chunk that was lent; one that was
// not comes back as it was.
func TestMemory_LentIsNotWarm(t *testing.T) {
	const mib, chunks = 1 << 20, 1 << 20 / chunkBytes
	b := newBorrower(t)
	for name, release := range map[string]func(m *Memory) error{
		"discarded": func(m *Memory) error { return m.Discard(0, 4*mib) },
		"zeroed":    func(m *Memory) error { return m.Zero(0, 4*mib, false) },
		"page by page": func(m *Memory) error {
			for off := int64(0); off < 4*mib; off += pageBytes {
				if err := m.Discard(off, pageBytes); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := written(t, 4*mib)
			closeMemory(t, m)
			const off, n = 3*mib/2 + 3*pageBytes, mib - 5*pageBytes // of all chunks of a MiB
			p := b.borrow(t, m, n, off, false)
			if p == nil {
				t.Fatal("what is written is not lent")
			}
			if err := release(m); err != nil {
				t.Fatal(err)
			}
			if got := warmChunks(m); got != 3*chunks {
				t.Errorf("%d chunks are warm, want those that were not lent, %d", got, 3*chunks)
			}
			if got := resident(t, m); got != 3 {
				t.Errorf("%d MiB resident, want what is warm, 3", got)
			}
			if n := m.AllocatedBytes(); n != 0 {
				t.Errorf("%d bytes allocated", n)
			}
			// All that there is, by the limit, and first what was released last.
			if _, err := m.WriteAt(bytes.Repeat([]byte{2}, 4*mib), 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.empty(t, p), bytes.Repeat([]byte{1}, n)) {
				t.Error("what was lent has become something else")
			}
			b.wantRefer(t, m, mib, 2*mib, false, true, 2, "written again")

			// What was lent in its life before, and is not in this one, comes back warm.
			if err := m.Discard(0, 4*mib); err != nil {
				t.Fatal(err)
			}
			if got := warmChunks(m); got != 3*chunks {
				t.Errorf("%d chunks are warm afterwards, want those that were not lent since, %d", got, 3*chunks)
			}
			if _, err := m.WriteAt(bytes.Repeat([]byte{3}, 4*mib), 0); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 4*mib)
			if _, err := m.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{3}, 4*mib)) {
				t.Errorf("not what was written, or %v", err)
			}
		})
	}
}

// TestMemory_LentAndMany: more chunks that were lent than go back at a time.
func TestMemory_LentAndMany(t *testing.T) {
	const mib, most = 1 << 20, 9
	b := newBorrower(t)
	m := written(t, most*mib)
	closeMemory(t, m)
	for i := range int64(most) {
		b.wantRefer(t, m, mib, i*mib, false, true, 1, "written")
	}
	if err := m.Discard(0, most*mib); err != nil {
		t.Fatal(err)
	}
	if got, warm := m.AllocatedBytes(), warmChunks(m); got != 0 || warm != 0 {
		t.Errorf("%d bytes allocated, %d chunks warm, want none", got, warm)
	}
	if _, err := m.WriteAt(bytes.Repeat([]byte{2}, most*mib), 0); err != nil {
		t.Fatal(err)
	}
	b.wantRefer(t, m, mib, (most-1)*mib, false, true, 2, "written again")
}

// TestMemory_LentThenGone: whoever has references keeps the pages when the medium gets
// smaller, or closes.
func TestMemory_LentThenGone(t *testing.T) {
	const n, off = 5 * chunkBytes, chunkBytes / 2
	b := newBorrower(t)
	for name, gone := range map[string]func(t *testing.T, m *Memory) error{
		"cut off": func(t *testing.T, m *Memory) error {
			t.Helper()
			closeMemory(t, m)
			if err := m.Resize(pageBytes); err != nil {
				return err
			}
			if err := m.Resize(1 << 20); err != nil {
				return err
			}
			_, err := m.WriteAt(bytes.Repeat([]byte{2}, 1<<20-chunkBytes), chunkBytes)
			return err
		},
		"closed": func(_ *testing.T, m *Memory) error { return m.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			m := written(t, 1<<20)
			p := b.borrow(t, m, n, off, false)
			if p == nil {
				t.Fatal("what is written is not lent")
			}
			if err := gone(t, m); err != nil {
				t.Fatal(err)
			}
			got := b.empty(t, p)
			// The first chunk stays, for its first page; what is cut off of it, too.
			if !bytes.Equal(got, bytes.Repeat([]byte{1}, n)) {
				t.Error("what was lent has become something else")
			}
		})
	}
}

// TestMemory_LendsNoHoles: a page that reads as zeros whatever its chunk has there is not
// lent, and the pipe stays as it is.
func TestMemory_LendsNoHoles(t *testing.T) {
	const n, page = 3 * chunkBytes, 5 * pageBytes // within the first chunk
	b := newBorrower(t)
	m := written(t, 1<<20)
	closeMemory(t, m)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(n int, v byte, off int64) {
		t.Helper()
		_, err := m.WriteAt(bytes.Repeat([]byte{v}, n), off)
		must(err)
	}
	declined := func(why string, n int, off int64) {
		t.Helper()
		p := b.arena.Pipe(b.mem[:n])
		if m.ReferAt(b.iommu.PagesOf(b.mem[:n]), n, off, true) {
			t.Errorf("%s: lent", why)
		}
		b.arena.ReturnPipe(p)
		if again := b.arena.Pipe(b.mem); again != p {
			t.Errorf("%s: the pipe was spoilt", why)
		} else {
			b.arena.ReturnPipe(again)
		}
	}
	b.wantRefer(t, m, n, 0, false, true, 1, "all written")
	must(m.Discard(page, pageBytes))
	declined("a page discarded", n, 0)
	declined("from the middle of it", chunkBytes, page+pageBytes/2)
	b.wantRefer(t, m, chunkBytes, page+pageBytes, false, true, 1, "behind it")
	must(m.Zero(page, pageBytes, true))
	declined("allocated since", n, 0)
	write(10, 1, page+100)
	p := b.borrow(t, m, n, 0, false)
	if p == nil {
		t.Fatal("a page that was written since is not lent")
	}
	if got := b.empty(t, p); !bytes.Equal(got[page:page+100], make([]byte, 100)) || got[page+100] != 1 || got[page+110] != 0 {
		t.Error("a page with zeros around what was written since: others are lent")
	}
	write(pageBytes, 1, page)
	b.wantRefer(t, m, n, 0, false, true, 1, "written again")

	must(m.Discard(2*chunkBytes, chunkBytes))
	declined("the last chunk discarded", n, 0)
	write(1, 1, 2*chunkBytes)
	must(m.Discard(chunkBytes, chunkBytes))
	declined("the second one discarded", 2*chunkBytes, 0)
	write(chunkBytes, 1, chunkBytes)
	b.wantRefer(t, m, 2*chunkBytes, 0, false, true, 1, "the second one written again")

	// A chunk that comes back warm has what others wrote, but where it is written.
	must(m.Discard(8*chunkBytes, chunkBytes))
	if warmChunks(m) == 0 {
		t.Fatal("the test does not test")
	}
	write(pageBytes, 1, 8*chunkBytes)
	declined("a warm chunk, written in part", chunkBytes, 8*chunkBytes)

	// One that is new has zeros where it was not written.
	m2, err := NewMemory(MemoryConfig{SizeBytes: 1 << 30})
	must(err)
	closeMemory(t, m2)
	b.wantRefer(t, m2, n, 1<<29, true, false, 0, "nothing there")
	_, err = m2.WriteAt([]byte{0}, 1<<29)
	must(err)
	b.wantRefer(t, m2, chunkBytes, 1<<29, false, true, 0, "a fresh chunk, written in part")
	b.wantRefer(t, m2, chunkBytes, 1<<29+1, true, false, 0, "to where nothing is")
}

// TestMemory_LendsMeanwhile: chunks come and go under who borrows them, and go from one
// place to another. What is lent is what was written at its place, or zeros, also if it is
// looked at late.
func TestMemory_LendsMeanwhile(t *testing.T) {
	const seed, chunks, rounds = 11, 24, 50_000 // rounds: at most
	m, err := NewMemory(MemoryConfig{SizeBytes: chunks * chunkBytes})
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(chunks) {
		if _, err := m.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, chunkBytes), i*chunkBytes); err != nil {
			t.Fatal(err)
		}
	}
	closeMemory(t, m)
	b := newBorrower(t)
	var stop atomic.Bool
	var writers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for !stop.Load() {
				i := r.Int64N(chunks)
				if _, err := m.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, chunkBytes), i*chunkBytes); err != nil {
					t.Error(err)
				}
				if r.IntN(3) == 0 {
					if err := m.Discard(r.Int64N(chunks)*chunkBytes, chunkBytes); err != nil {
						t.Error(err)
					}
				}
				if r.IntN(3) == 0 { // it may be alone in a chunk that has what others wrote
					i, at := r.Int64N(chunks), r.Int64N(pagesPerChunk)*pageBytes
					if _, err := m.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, pageBytes), i*chunkBytes+at); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	type loan struct {
		p      *dma.Pipe
		off, n int
	}
	var loans []loan
	mem := make([][]byte, 4)
	for i := range mem {
		mem[i] = b.arena.Alloc(3 * chunkBytes)
	}
	check := func(l loan) {
		t.Helper()
		got := b.empty(t, l.p)
		for i, v := range got {
			if at := l.off + i; v != 0 && v != byte(at>>chunkShift+1) {
				t.Errorf("seed %d: byte %d is %d, want %d or zero", seed, at, v, at>>chunkShift+1)
				return
			}
		}
	}
	r := rand.New(rand.NewPCG(seed, 99))
	lent, declined := 0, 0
	for i := 0; i < rounds && (lent < 100 || declined < 100); i++ {
		if len(loans) == len(mem) {
			check(loans[0])
			loans = loans[1:]
		}
		n := chunkBytes + r.IntN(2*chunkBytes)
		off := r.IntN(chunks*chunkBytes - n)
		part := mem[i%len(mem)][:n]
		p := b.arena.Pipe(part)
		if p == nil {
			t.Fatal("no pipe")
		}
		ok := m.ReferAt(b.iommu.PagesOf(part), n, int64(off), false)
		if filled := b.arena.Disarm(p); filled != ok {
			t.Errorf("seed %d, round %d: lent: %t, all in the pipe: %t", seed, i, ok, filled)
		}
		if !ok {
			b.arena.ReturnPipe(p)
			declined++
			runtime.Gosched()
			continue
		}
		lent++
		loans = append(loans, loan{p, off, n})
	}
	for _, l := range loans {
		check(l)
	}
	stop.Store(true)
	writers.Wait()
	if lent == 0 || declined == 0 {
		t.Errorf("seed %d: %d ranges were lent and %d were not: want some of both", seed, lent, declined)
	}
	for _, p := range mem {
		b.arena.Free(p)
	}
}

// TestMemory_LendWaitsForWriters: who makes a hole has its chunk alone, and it is not lent
// when that is done.
func TestMemory_LendWaitsForWriters(t *testing.T) {
	b := newBorrower(t)
	m := written(t, 1<<20)
	closeMemory(t, m)
	mem := b.mem[:chunkBytes]
	p := b.arena.Pipe(mem)
	pages := b.iommu.PagesOf(mem)
	fd, ok := pages.Begin()
	if !ok {
		t.Fatal("no pipe")
	}
	s := &m.stripes[3]
	s.Lock() // as holeChunk does, and what is lent has been looked at
	done := make(chan bool)
	go func() { done <- m.lendChunk(fd, 3*chunkBytes, chunkBytes) }()
	for range 1000 { // it has time to pass
		runtime.Gosched()
	}
	c := m.cellAt(3)
	c.stale = 1
	c.pages.Store(c.pages.Load() &^ 1)
	s.Unlock()
	lent := <-done
	if lent {
		t.Error("lent, in the middle of a write")
	}
	if pages.End(lent) || b.arena.Disarm(p) {
		t.Error("the pipe has the data")
	}
	b.arena.ReturnPipe(p)
	b.wantRefer(t, m, chunkBytes, 4*chunkBytes, false, true, 1, "the next chunk")
}

// TestReferAt_NoAllocs: neither by who may wait nor by who may not.
func TestReferAt_NoAllocs(t *testing.T) {
	b := newBorrower(t)
	m := written(t, 1<<20)
	closeMemory(t, m)
	f, _ := newLent(t)
	got := make([]byte, 1<<20)
	known := b.cacheKnown(t, f)
	for name, r := range map[string]Referrer{"memory": m, "file": f} {
		for _, mayBlock := range []bool{false, true} {
			if !mayBlock && !known && name == "file" {
				continue
			}
			n := testing.AllocsPerRun(100, func() {
				p := b.arena.Pipe(b.mem)
				if !r.ReferAt(b.iommu.PagesOf(b.mem), len(b.mem), 0, mayBlock) || !b.arena.Disarm(p) || p.ReadFull(got) != nil {
					t.Error("not lent")
				}
				b.arena.ReturnPipe(p)
			})
			if n != 0 {
				t.Errorf("%s, may block: %t: %v allocations, want 0", name, mayBlock, n)
			}
		}
	}
}
