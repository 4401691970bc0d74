package media_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/hba/media"
)

const chunk = 64 << 10

func mustWrite(tb testing.TB, m media.Media, n int, b byte, off int64) {
	tb.Helper()
	if _, err := m.WriteAt(bytes.Repeat([]byte{b}, n), off); err != nil {
		tb.Fatal(err)
	}
}

func mustBe(tb testing.TB, m media.Media, n int, b byte, off int64) {
	tb.Helper()
	p := make([]byte, n)
	if _, err := m.ReadAt(p, off); err != nil {
		tb.Fatal(err)
	}
	if !bytes.Equal(p, bytes.Repeat([]byte{b}, n)) {
		tb.Fatalf("%d bytes at %d are not all %#x", n, off, b)
	}
}

func TestNewMemory_Refused(t *testing.T) {
	for _, c := range []media.MemoryConfig{
		{},
		{SizeBytes: -1},
		{SizeBytes: media.MaxMemoryBytes + 1},
		{SizeBytes: 4096, LimitBytes: -1},
		{SizeBytes: 4096, LimitBytes: 4096},
	} {
		if _, err := media.NewMemory(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// TestMemory_Huge: far more than the machine has, at once, and what is not
// written takes nothing.
func TestMemory_Huge(t *testing.T) {
	m := newMemory(t, media.MemoryConfig{SizeBytes: 64 << 40})
	places := []int64{0, 5<<40 + 12345, 64<<40 - 3}
	for i, off := range places {
		mustWrite(t, m, 3, byte(i+1), off)
	}
	for i, off := range places {
		mustBe(t, m, 3, byte(i+1), off)
	}
	mustBe(t, m, 1<<20, 0, 30<<40)
	if got := m.AllocatedBytes(); got != 3*chunk {
		t.Errorf("%d bytes allocated, want %d", got, 3*chunk)
	}
	// By the chunk this would take hours.
	start := time.Now()
	if err := m.Discard(1, 64<<40-1); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("discarding everything took %v", d)
	}
	mustBe(t, m, 1, 1, 0)
	mustBe(t, m, 2, 0, 1)
	mustBe(t, m, 3, 0, places[2])
	if got := m.AllocatedBytes(); got != chunk {
		t.Errorf("%d bytes allocated, want %d", got, chunk)
	}
}

func TestMemory_ReleasesWhatIsEmpty(t *testing.T) {
	m := newMemory(t, media.MemoryConfig{SizeBytes: 16 << 20})
	mustWrite(t, m, 16<<20, 1, 0)
	if got := m.AllocatedBytes(); got != 16<<20 {
		t.Fatalf("%d bytes allocated", got)
	}
	for off := int64(0); off < 8<<20; off += 4096 { // page by page, as a file system trims
		if err := m.Discard(off, 4096); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.AllocatedBytes(); got != 8<<20 {
		t.Errorf("%d bytes allocated, want half", got)
	}
	mustBe(t, m, 8<<20, 0, 0)
	mustBe(t, m, 8<<20, 1, 8<<20)
	// Chunks that come back are zeros.
	mustWrite(t, m, 1, 2, 100)
	mustBe(t, m, 100, 0, 0)
	mustBe(t, m, chunk-101, 0, 101)
	if err := m.Discard(0, 16<<20); err != nil {
		t.Fatal(err)
	}
	if got := m.AllocatedBytes(); got != 0 {
		t.Errorf("%d bytes allocated, want none", got)
	}
}

// TestMemory_AllocatedAgain: pages that were discarded and are allocated read as zeros,
// and what is written to them has zeros around it.
func TestMemory_AllocatedAgain(t *testing.T) {
	const page = 4096
	for _, gone := range []int{chunk, chunk - page} { // the chunk goes, or stays for its last page
		m := newMemory(t, media.MemoryConfig{SizeBytes: chunk})
		mustWrite(t, m, chunk, 1, 0)
		if err := m.Discard(0, int64(gone)); err != nil {
			t.Fatal(err)
		}
		if err := m.Zero(10, int64(gone-20), true); err != nil { // touches the first and the last page of it
			t.Fatal(err)
		}
		mustBe(t, m, gone, 0, 0)
		if e, err := m.ExtentAt(0); err != nil || e != (media.Extent{LengthBytes: chunk, Data: true}) {
			t.Errorf("extent of what is allocated: %+v, %v", e, err)
		}
		around := func(how string, p int64) {
			t.Helper()
			off := p * page
			t.Logf("%d bytes discarded, then %s on page %d", gone, how, p)
			mustBe(t, m, 100, 0, off)
			mustBe(t, m, 50, 2, off+100)
			mustBe(t, m, page-150, 0, off+150)
			mustBe(t, m, page, 0, off+page)
		}

		mustWrite(t, m, 50, 2, 100)
		around("written", 0)

		if i, err := m.CompareAndWriteAt(make([]byte, 50), bytes.Repeat([]byte{2}, 50), 3*page+100); err != nil || i >= 0 {
			t.Fatalf("compare zeros and write: byte %d, %v", i, err)
		}
		around("compared and written", 3)

		mustWrite(t, m, 60, 2, 6*page+100)
		if err := m.Zero(6*page+150, 10, true); err != nil {
			t.Fatal(err)
		}
		around("zeroed after a write", 6)

		if err := m.Discard(9*page+90, 20); err != nil {
			t.Fatal(err)
		}
		mustBe(t, m, page, 0, 9*page)
		mustWrite(t, m, 50, 2, 9*page+100)
		around("discarded in part and written", 9)

		if err := m.Discard(12*page, page); err != nil {
			t.Fatal(err)
		}
		if e, err := m.ExtentAt(12 * page); err != nil || e != (media.Extent{OffsetBytes: 12 * page, LengthBytes: page}) {
			t.Errorf("extent of a page that is a hole again: %+v, %v", e, err)
		}
		mustWrite(t, m, 50, 2, 12*page+100)
		around("discarded again and written", 12)
		mustBe(t, m, chunk-gone, 1, int64(gone))
	}
}

func TestMemory_Limit(t *testing.T) {
	m := newMemory(t, media.MemoryConfig{Name: "disk7", SizeBytes: 1 << 30, LimitBytes: 3*chunk + 5})
	n, err := m.WriteAt(make([]byte, 5*chunk), 10)
	var where *media.Error
	if !errors.Is(err, media.ErrNoSpace) || !errors.As(err, &where) || where.OffsetBytes != 3*chunk || where.Name != "disk7" || n != 3*chunk-10 {
		t.Fatalf("%d bytes written, %v", n, err)
	}
	mustWrite(t, m, 3*chunk, 1, 0) // what is there can be written again
	if err := m.Zero(3*chunk, chunk, true); !errors.Is(err, media.ErrNoSpace) {
		t.Errorf("allocate: %v, want ErrNoSpace", err)
	}
	if err := m.Zero(0, 1<<30, true); !errors.Is(err, media.ErrNoSpace) || m.AllocatedBytes() != 3*chunk {
		t.Errorf("allocate everything: %v, want ErrNoSpace and nothing taken; %d bytes are", err, m.AllocatedBytes())
	}
	if err := m.Zero(0, 1<<30, false); err != nil {
		t.Errorf("zero without allocating: %v", err)
	}
	if err := m.Zero(chunk, 3*chunk, true); err != nil || m.AllocatedBytes() != 3*chunk {
		t.Errorf("allocate: %v, %d bytes allocated", err, m.AllocatedBytes())
	}
	mustWrite(t, m, 3*chunk, 1, chunk)
	if _, err := m.WriteAt([]byte{1}, 0); !errors.Is(err, media.ErrNoSpace) {
		t.Errorf("write: %v, want ErrNoSpace", err)
	}
	if i, err := m.CompareAndWriteAt([]byte{0}, []byte{1}, 0); !errors.Is(err, media.ErrNoSpace) {
		t.Errorf("compare and write: %d, %v, want ErrNoSpace", i, err)
	}
}

// TestMemory_CompareAndWriteAtTheLimit: if there is no room for all of it, nothing is written,
// and no memory taken.
func TestMemory_CompareAndWriteAtTheLimit(t *testing.T) {
	m := newMemory(t, media.MemoryConfig{SizeBytes: 1 << 30, LimitBytes: 3 * chunk})
	mustWrite(t, m, chunk, 1, 0)
	mustWrite(t, m, chunk, 1, 5*chunk)
	compare := append(bytes.Repeat([]byte{1}, 512), make([]byte, chunk+512)...)
	i, err := m.CompareAndWriteAt(compare, bytes.Repeat([]byte{2}, len(compare)), chunk-512)
	if !errors.Is(err, media.ErrNoSpace) {
		t.Fatalf("%d, %v, want ErrNoSpace", i, err)
	}
	mustBe(t, m, chunk, 1, 0)
	mustBe(t, m, chunk+512, 0, chunk)
	if e, err := m.ExtentAt(chunk); err != nil || e.Data || m.AllocatedBytes() != 2*chunk {
		t.Errorf("%+v, %v, %d bytes are taken", e, err, m.AllocatedBytes())
	}
	mustWrite(t, m, chunk, 1, 7*chunk)
	if _, err := m.WriteAt([]byte{1}, 8*chunk); !errors.Is(err, media.ErrNoSpace) {
		t.Errorf("write: %v, want ErrNoSpace", err)
	}
}

func TestMemory_Extents(t *testing.T) {
	const size = 3<<28 + 1000 // ends within a page
	m := newMemory(t, media.MemoryConfig{SizeBytes: size})
	list := func() (all []media.Extent) {
		for off := int64(0); off < size; {
			e, err := m.ExtentAt(off)
			if err != nil || e.OffsetBytes != off {
				t.Fatalf("extent at %d: %+v, %v", off, e, err)
			}
			all = append(all, e)
			off = e.End()
		}
		return all
	}
	check := func(want ...media.Extent) {
		t.Helper()
		if got := list(); !cmp.Equal(got, want) {
			t.Error(cmp.Diff(want, got))
		}
	}
	check(media.Extent{LengthBytes: size})
	mustWrite(t, m, 1, 1, 5000)
	mustWrite(t, m, 2*chunk, 1, 1<<28-chunk) // across two leaves of the table
	mustWrite(t, m, 1, 1, size-1)
	want := []media.Extent{
		{OffsetBytes: 0, LengthBytes: 4096},
		{OffsetBytes: 4096, LengthBytes: 4096, Data: true},
		{OffsetBytes: 8192, LengthBytes: 1<<28 - chunk - 8192},
		{OffsetBytes: 1<<28 - chunk, LengthBytes: 2 * chunk, Data: true},
		{OffsetBytes: 1<<28 + chunk, LengthBytes: 2<<28 - chunk},
		{OffsetBytes: 3 << 28, LengthBytes: 1000, Data: true},
	}
	check(want...)
	if err := m.Zero(0, 4096, true); err != nil { // allocated is not a hole
		t.Fatal(err)
	}
	if err := m.Discard(4096, 100); err != nil { // and neither is a part of a page
		t.Fatal(err)
	}
	want = append([]media.Extent{{LengthBytes: 8192, Data: true}}, want[2:]...)
	check(want...)
	if e, err := m.ExtentAt(1<<28 - 100); err != nil || e != (media.Extent{OffsetBytes: 1<<28 - 100, LengthBytes: chunk + 100, Data: true}) {
		t.Errorf("from the middle: %+v, %v", e, err)
	}
}

// TestMemory_ResizeMeanwhile grows and shrinks under readers and writers.
func TestMemory_ResizeMeanwhile(t *testing.T) {
	m := newMemory(t, media.MemoryConfig{SizeBytes: 1 << 28})
	stop := make(chan struct{})
	var group sync.WaitGroup
	for w := range 3 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 4))
			p := make([]byte, 4096)
			for {
				select {
				case <-stop:
					return
				default:
				}
				off := r.Int64N(1<<29) &^ 4095
				var err error
				if w == 0 {
					_, err = m.ReadAt(p, off)
				} else {
					_, err = m.WriteAt(p, off)
				}
				if err != nil && !errors.Is(err, media.ErrRange) {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 50 {
		if err := m.Resize(int64(1+i%8) << 26); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	group.Wait()
	if err := m.Resize(4096); err != nil {
		t.Fatal(err)
	}
	if got := m.AllocatedBytes(); got > chunk {
		t.Errorf("%d bytes allocated for 4096", got)
	}
	if err := m.Resize(1 << 28); err != nil {
		t.Fatal(err)
	}
	if e, err := m.ExtentAt(4096); err != nil || e.Data || e.End() != 1<<28 {
		t.Errorf("what was cut off has left %+v, %v", e, err)
	}
}

// TestMemory_CloseMeanwhile: calls in progress end well, later ones are refused.
func TestMemory_CloseMeanwhile(t *testing.T) {
	for range 10 {
		m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 24})
		if err != nil {
			t.Fatal(err)
		}
		var group, begun sync.WaitGroup
		begun.Add(3)
		for w := range 3 {
			group.Go(func() {
				p := make([]byte, 500<<10)
				for first := true; ; first = false {
					var err error
					switch w {
					case 0:
						_, err = m.ReadAt(p, 1000)
					case 1:
						_, err = m.WriteAt(p, 1000)
					default:
						err = m.Discard(0, 1<<24)
					}
					if first {
						begun.Done()
					}
					if err != nil {
						if !errors.Is(err, media.ErrClosed) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		begun.Wait() // so that Close comes in the middle of things
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		group.Wait()
		if m.AllocatedBytes() != 0 {
			t.Errorf("%d bytes allocated after Close", m.AllocatedBytes())
		}
	}
}
