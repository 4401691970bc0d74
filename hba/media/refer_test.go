package media

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/internal/dma"
)

// A borrower has memory for which pipes stand.
type borrower struct {
	arena *dma.Arena
	iommu *dma.IOMMU
	mem   []byte
}

func newBorrower(t *testing.T) *borrower {
	t.Helper()
	arena, err := dma.NewArena(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b := &borrower{arena: arena, iommu: dma.NewIOMMU(arena), mem: arena.Alloc(dma.PipeMostBytes)}
	t.Cleanup(func() {
		arena.Free(b.mem)
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// borrow returns a pipe with n bytes of m from off; nil if they are not lent.
func (b *borrower) borrow(t *testing.T, m Referrer, n int, off int64, mayBlock bool) *dma.Pipe {
	t.Helper()
	p := b.arena.Pipe(b.mem[:n])
	if p == nil {
		t.Fatal("no pipe")
	}
	lent := m.ReferAt(b.iommu.PagesOf(b.mem[:n]), n, off, mayBlock)
	if filled := b.arena.Disarm(p); filled != lent {
		t.Errorf("%d bytes at %d: lent: %t, all in the pipe: %t", n, off, lent, filled)
	}
	if !lent {
		b.arena.ReturnPipe(p)
		return nil
	}
	return p
}

// empty returns what is in a pipe, and the pipe.
func (b *borrower) empty(t *testing.T, p *dma.Pipe) []byte {
	t.Helper()
	got := make([]byte, p.Left())
	if err := p.ReadFull(got); err != nil {
		t.Fatal(err)
	}
	b.arena.ReturnPipe(p)
	return got
}

// wantRefer checks whether n bytes of m from off are lent, and if so that they all are v.
func (b *borrower) wantRefer(t *testing.T, m Referrer, n int, off int64, mayBlock, want bool, v byte, why string) {
	t.Helper()
	p := b.borrow(t, m, n, off, mayBlock)
	if (p != nil) != want {
		t.Errorf("%s: %d bytes at %d: lent: %t, want %t", why, n, off, p != nil, want)
	}
	if p != nil && !bytes.Equal(b.empty(t, p), bytes.Repeat([]byte{v}, n)) {
		t.Errorf("%s: %d bytes at %d: not all %d are lent", why, n, off, v)
	}
}

// newLent makes a file of 1 MiB of ones, which are cached, and opens it once more.
func newLent(t *testing.T) (f *File, image *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := OpenFile(FileConfig{Path: path, SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	image, err = os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := image.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	return f, image
}

// cacheKnown says whether the kernel says what is cached of a file that was just written,
// as Linux does from 6.5 on, and reads without waiting, as most file systems do. If not,
// nothing is lent to who may not wait, and there is no more to test of that.
func (b *borrower) cacheKnown(t *testing.T, f *File) bool {
	t.Helper()
	err := unix.Cachestat(uint(f.fd), &unix.CachestatRange{Len: pageBytes}, &unix.Cachestat_t{}, 0)
	if err == nil && f.readable(0) {
		return true
	}
	t.Logf("nothing is known of what is cached of %s: %v", f.path, err)
	b.wantRefer(t, f, dma.PipeLeastBytes, 0, false, false, 1, "nobody knows what is cached")
	return false
}

// cachedPages is how many pages of n bytes from off the kernel says are cached.
func cachedPages(t *testing.T, image *os.File, off, n uint64) uint64 {
	t.Helper()
	var stat unix.Cachestat_t
	if err := unix.Cachestat(uint(image.Fd()), &unix.CachestatRange{Off: off, Len: n}, &stat, 0); err != nil {
		t.Fatal(err)
	}
	return stat.Cache
}

// dropPages has n bytes from off leave the page cache.
func dropPages(t *testing.T, image *os.File, off, n int64) {
	t.Helper()
	if err := image.Sync(); err != nil {
		t.Fatal(err)
	}
	for range 1000 { // somebody may just look at one
		if err := unix.Fadvise(int(image.Fd()), off, n, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if cachedPages(t, image, uint64(off), uint64(n)) == 0 {
			return
		}
	}
	t.Fatalf("the file system of %s keeps a file in its cache: set TMPDIR to a folder on a disk", image.Name())
}

// TestFile_LendsWhatIsCached: what has to be read first is lent to who may wait.
func TestFile_LendsWhatIsCached(t *testing.T) {
	const least = dma.PipeLeastBytes
	b := newBorrower(t)
	f, image := newLent(t)
	if !b.cacheKnown(t, f) {
		return
	}
	b.wantRefer(t, f, 1<<20, 0, false, true, 1, "just written")

	dropPages(t, image, 0, 1<<20)
	b.wantRefer(t, f, 1<<20, 0, false, false, 1, "not cached")
	if n := cachedPages(t, image, 0, 1<<20); n != 0 {
		t.Errorf("%d pages have been read for who may not wait", n)
	}
	b.wantRefer(t, f, 1<<20, 0, true, true, 1, "not cached, and it may wait")
	b.wantRefer(t, f, 1<<20, 0, false, true, 1, "cached again")

	// Now the cache has some.
	dropPages(t, image, 0, 1<<20)
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 2*least-pageBytes), pageBytes); err != nil {
		t.Fatal(err)
	}
	if n := cachedPages(t, image, 0, 2*least+pageBytes); n != 2*least/pageBytes-1 {
		t.Fatalf("%d pages cached, want what was written", n)
	}
	b.wantRefer(t, f, 2*least-pageBytes, pageBytes, false, true, 1, "as much as is cached")
	b.wantRefer(t, f, 2*least-pageBytes, pageBytes-1, false, false, 1, "one byte before")
	b.wantRefer(t, f, 2*least-pageBytes, pageBytes+1, false, false, 1, "one byte behind")
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, least), 3*least); err != nil {
		t.Fatal(err)
	}
	b.wantRefer(t, f, 3*least, least, false, false, 1, "a hole in the cache")
	b.wantRefer(t, f, 3*least, least, true, true, 1, "a hole in the cache, and it may wait")
}

// TestFile_LendsWithoutHelp: a kernel that does not say what is cached has who may not
// wait go without.
func TestFile_LendsWithoutHelp(t *testing.T) {
	b := newBorrower(t)
	f, _ := newLent(t)
	if !f.Supports(AbilityRefer) {
		t.Error("it says that it cannot lend")
	}
	f.noCacheStat.Store(true)
	b.wantRefer(t, f, 100_000, 5, false, false, 1, "nobody knows what is cached")
	b.wantRefer(t, f, 100_000, 5, true, true, 1, "nobody knows what is cached, and it may wait")
	f.noCacheStat.Store(false)
	if !b.cacheKnown(t, f) {
		return
	}

	s := stripesOf(5, 1)
	f.ranges.lock(s) // as COMPARE AND WRITE does
	b.wantRefer(t, f, 100_000, 5, false, false, 1, "somebody is alone there")
	f.ranges.unlock(s)
	b.wantRefer(t, f, 100_000, 5, false, true, 1, "when he has left")
	f.ranges.lock(allStripes) // nothing is left held
	f.ranges.unlock(allStripes)

	f.device = true
	if f.Supports(AbilityRefer) {
		t.Error("it says that it can lend pages of a device")
	}
	f.device = false
}

// TestFile_LendsNotWhatIsGone: a file that was cut short has less to lend than was asked
// for, and ReadAt tells why.
func TestFile_LendsNotWhatIsGone(t *testing.T) {
	const least = dma.PipeLeastBytes
	b := newBorrower(t)
	f, image := newLent(t)
	known := b.cacheKnown(t, f)
	if err := image.Truncate(100_000); err != nil {
		t.Fatal(err)
	}
	for _, mayBlock := range []bool{false, true} {
		b.wantRefer(t, f, least, 100_000-least, mayBlock, mayBlock || known, 1, "up to the end")
		b.wantRefer(t, f, least, 100_000-least+1, mayBlock, false, 1, "one byte beyond the end")
		b.wantRefer(t, f, 1<<20, 0, mayBlock, false, 1, "all that there was")
		b.wantRefer(t, f, least, 200_000, mayBlock, false, 1, "behind the end")
	}
	if _, err := f.ReadAt(make([]byte, least), 100_000-least+1); err == nil {
		t.Error("what is gone was read")
	}
}
