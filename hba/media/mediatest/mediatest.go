package mediatest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/hba/media"
)

// MinBytes is the least size that Run needs of a medium.
const MinBytes = 1 << 20

// Options say what a medium promises beyond what all do.
type Options struct {
	// WholeBlocks: a read never sees a block of 512 bytes half written.
	WholeBlocks bool
	// Lends: pages that have been written are lent, to who may block at least.
	Lends bool
}

// Run checks the promises of package media on media that open returns: empty
// ones, each used by one test, of at least MinBytes. Abilities are tested if
// they are there.
func Run(t *testing.T, o Options, open func(t *testing.T) media.Media) {
	t.Helper()
	for _, tt := range []struct {
		name string
		test func(t *testing.T, m media.Media, a media.Abilities)
	}{
		{"StartsAsZeros", startsAsZeros},
		{"ReadsWhatWasWritten", readsWhatWasWritten},
		{"RefusesRangesBeyondTheEnd", refusesRanges},
		{"TriesWithoutBlocking", tries},
		{"WritesThrough", writesThrough},
		{"Discards", discards},
		{"Zeroes", zeroes},
		{"ForgetsWhatIsGone", forgets},
		{"ListsExtents", listsExtents},
		{"ComparesAndWrites", comparesAndWrites},
		{"CountsByCompareAndWrite", counts},
		{"Resizes", resizes},
		{"Prefetches", prefetches},
		{"Lends", o.lends},
		{"LendsNothingElse", lendsNothingElse},
		{"LendsWhatIsThere", lendsWhatIsThere},
		{"LendsForGood", lendsForGood},
		{"RunsConcurrently", o.runsConcurrently},
		{"Closes", closes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := open(t)
			if m.Size() < MinBytes {
				t.Fatalf("medium of %d bytes; the suite needs %d", m.Size(), MinBytes)
			}
			tt.test(t, m, media.Probe(m))
			if err := m.Close(); err != nil && !errors.Is(err, media.ErrClosed) {
				t.Errorf("close: %v", err)
			}
		})
	}
}

func write(t *testing.T, m media.Media, p []byte, off int64) {
	t.Helper()
	if n, err := m.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("write %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

func read(t *testing.T, m media.Media, n int, off int64) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{0xee}, n)
	if got, err := m.ReadAt(p, off); got != n || err != nil {
		t.Fatalf("read %d bytes at %d: %d, %v", n, off, got, err)
	}
	return p
}

// want checks that n bytes from off all are b.
func want(t *testing.T, m media.Media, off int64, n int, b byte) {
	t.Helper()
	for i, got := range read(t, m, n, off) {
		if got != b {
			t.Fatalf("byte %d is %#x, want %#x", off+int64(i), got, b)
		}
	}
}

func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

func startsAsZeros(t *testing.T, m media.Media, _ media.Abilities) {
	t.Helper()
	want(t, m, 0, MinBytes, 0)
	want(t, m, m.Size()-4096, 4096, 0)
}

func readsWhatWasWritten(t *testing.T, m media.Media, _ media.Abilities) {
	t.Helper()
	model := make([]byte, MinBytes)
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		off, n := r.IntN(MinBytes), 1+r.IntN(200<<10)
		if r.IntN(2) == 0 {
			n = 1 + r.IntN(5000)
		}
		n = min(n, MinBytes-off)
		if r.IntN(3) == 0 {
			if !bytes.Equal(read(t, m, n, int64(off)), model[off:off+n]) {
				t.Fatalf("%d bytes at %d are not what was written (seed 1, 2)", n, off)
			}
			continue
		}
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		write(t, m, p, int64(off))
		copy(model[off:], p)
	}
	if err := m.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
	if !bytes.Equal(read(t, m, MinBytes, 0), model) {
		t.Error("not what was written (seed 1, 2)")
	}
	write(t, m, []byte("end"), m.Size()-3)
	if got := read(t, m, 3, m.Size()-3); string(got) != "end" {
		t.Errorf("at the end: %q", got)
	}
}

func refusesRanges(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	size := m.Size()
	write(t, m, fill(512, 7), size-512)
	for _, r := range []struct {
		off int64
		n   int
	}{{size - 1, 2}, {size, 1}, {size + 1, 0}, {-1, 1}, {1<<63 - 1, 1}, {-1 << 63, 1}, {1 << 62, 4096}} {
		p := make([]byte, r.n)
		calls := map[string]func() error{
			"read":  func() error { _, err := m.ReadAt(p, r.off); return err },
			"write": func() error { _, err := m.WriteAt(p, r.off); return err },
		}
		if a.TryRead != nil && r.n > 0 {
			calls["try read"] = func() error { return tried(a.TryRead.TryReadAt(p, r.off)) }
		}
		if a.TryWrite != nil && r.n > 0 {
			calls["try write"] = func() error { return tried(a.TryWrite.TryWriteAt(p, r.off)) }
		}
		if a.FUA != nil {
			calls["write through"] = func() error { _, err := a.FUA.WriteAtFUA(p, r.off); return err }
		}
		if a.Discard != nil {
			calls["discard"] = func() error { return a.Discard.Discard(r.off, int64(r.n)) }
		}
		if a.Zero != nil {
			calls["zero"] = func() error { return a.Zero.Zero(r.off, int64(r.n), false) }
			calls["allocate"] = func() error { return a.Zero.Zero(r.off, int64(r.n), true) }
		}
		if a.Prefetch != nil {
			calls["prefetch"] = func() error { return a.Prefetch.Prefetch(r.off, int64(r.n)) }
		}
		if a.Extents != nil && r.off != size-1 {
			calls["extent"] = func() error { _, err := a.Extents.ExtentAt(r.off); return err }
		}
		if a.CompareAndWrite != nil && r.n > 0 {
			calls["compare and write"] = func() error { _, err := a.CompareAndWrite.CompareAndWriteAt(p, p, r.off); return err }
		}
		for name, call := range calls {
			if err := call(); !errors.Is(err, media.ErrRange) {
				t.Errorf("%s of %d bytes at %d: %v, want ErrRange", name, r.n, r.off, err)
			}
		}
	}
	want(t, m, size-512, 512, 7)
	if _, err := m.ReadAt(nil, size); err != nil {
		t.Errorf("nothing at the end: %v", err)
	}
}

// tried turns "would block" into an error.
func tried(done bool, err error) error {
	if !done {
		return errors.New("would block")
	}
	return err
}

func tries(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.NeverBlocks && (a.TryRead == nil || a.TryWrite == nil) {
		t.Error("a medium that never blocks cannot try")
	}
	write(t, m, fill(8192, 3), 4096)
	if a.TryRead != nil {
		p := make([]byte, 8192)
		done, err := a.TryRead.TryReadAt(p, 4096)
		switch {
		case err != nil:
			t.Errorf("try read: %v", err)
		case done && !bytes.Equal(p, fill(8192, 3)):
			t.Error("try read reports done and has read something else")
		case !done && a.NeverBlocks:
			t.Error("a medium that never blocks would block")
		}
	}
	if a.TryWrite != nil {
		p := fill(8192, 4)
		done, err := a.TryWrite.TryWriteAt(p, 4096)
		if err != nil {
			t.Errorf("try write: %v", err)
		}
		if !done {
			write(t, m, p, 4096)
		}
		want(t, m, 4096, 8192, 4)
		want(t, m, 4096+8192, 4096, 0)
	}
}

func writesThrough(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.FUA == nil {
		return
	}
	p := fill(10000, 5)
	if n, err := a.FUA.WriteAtFUA(p, 777); n != len(p) || err != nil {
		t.Fatalf("write through: %d, %v", n, err)
	}
	want(t, m, 777, len(p), 5)
	if n, err := a.FUA.WriteAtFUA(nil, 0); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
}

// holes are ranges that begin and end in the middle of pages and chunks, and
// ones that do not.
var holes = []struct{ off, n int64 }{
	{0, 0}, {100, 1}, {512, 512}, {4096, 4096}, {4000, 9000}, {65536, 65536}, {65535, 65538}, {70000, 400000}, {0, MinBytes},
}

func discards(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.Discard != nil {
		punch(t, m, a.Discard.Discard)
	}
}

func zeroes(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.Zero == nil {
		return
	}
	punch(t, m, func(off, n int64) error { return a.Zero.Zero(off, n, false) })
	punch(t, m, func(off, n int64) error { return a.Zero.Zero(off, n, true) })
}

// punch checks that fn zeroes all of a range and nothing else.
func punch(t *testing.T, m media.Media, fn func(off, n int64) error) {
	t.Helper()
	for _, h := range holes {
		model := fill(MinBytes, 9)
		write(t, m, model, 0)
		for range 2 { // again is harmless
			if err := fn(h.off, h.n); err != nil {
				t.Fatalf("%d bytes at %d: %v", h.n, h.off, err)
			}
		}
		clear(model[h.off : h.off+h.n])
		if !bytes.Equal(read(t, m, MinBytes, 0), model) {
			t.Errorf("%d bytes at %d: not just these are zeros", h.n, h.off)
		}
	}
}

// forgets mixes all ways to change a medium, and compares it with a model: nothing of
// what was discarded or zeroed comes back, by whatever is written beside it.
func forgets(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	const seed = 5
	model := make([]byte, MinBytes)
	r := rand.New(rand.NewPCG(seed, 0))
	for step := range 400 {
		most := 3000 // bytes: within a page or two
		if r.IntN(4) == 0 {
			most = MinBytes / 2
		}
		off := r.IntN(MinBytes)
		n := min(1+r.IntN(most), MinBytes-off)
		part := model[off : off+n]
		var err error
		switch kind := r.IntN(8); {
		case kind == 0 && a.Discard != nil:
			err = a.Discard.Discard(int64(off), int64(n))
			clear(part)
		case kind == 1 && a.Zero != nil:
			err = a.Zero.Zero(int64(off), int64(n), r.IntN(2) == 0)
			clear(part)
		case kind == 2 && a.Discard != nil:
			off, n = off&^(64<<10-1), 64<<10
			err = a.Discard.Discard(int64(off), int64(n))
			clear(model[off : off+n])
		case kind == 3 && a.CompareAndWrite != nil:
			p := fill(n, byte(1+r.IntN(255)))
			if at, e := a.CompareAndWrite.CompareAndWriteAt(part, p, int64(off)); e != nil || at >= 0 {
				t.Fatalf("seed %d, step %d: %d bytes at %d: byte %d is not what the model says, %v", seed, step, n, off, at, e)
			}
			copy(part, p)
		case kind < 6:
			p := fill(n, byte(1+r.IntN(255)))
			write(t, m, p, int64(off))
			copy(part, p)
		default:
			if got := read(t, m, n, int64(off)); !bytes.Equal(got, part) {
				t.Fatalf("seed %d, step %d: %d bytes at %d are not what the model says", seed, step, n, off)
			}
		}
		if err != nil {
			t.Fatalf("seed %d, step %d: %d bytes at %d: %v", seed, step, n, off, err)
		}
	}
	if !bytes.Equal(read(t, m, MinBytes, 0), model) {
		t.Errorf("seed %d: not what the model says", seed)
	}
}

func listsExtents(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.Extents == nil {
		return
	}
	write(t, m, fill(64<<10, 1), 128<<10)
	write(t, m, fill(4096, 1), 512<<10)
	if a.Discard != nil {
		if err := a.Discard.Discard(128<<10, 32<<10); err != nil {
			t.Fatal(err)
		}
	}
	all := read(t, m, MinBytes, 0)
	for off := int64(0); off < MinBytes; {
		e, err := a.Extents.ExtentAt(off)
		if err != nil || e.OffsetBytes != off || e.LengthBytes < 1 || e.End() > m.Size() {
			t.Fatalf("extent at %d: %+v, %v", off, e, err)
		}
		end := min(e.End(), MinBytes)
		if !e.Data && !bytes.Equal(all[off:end], make([]byte, end-off)) {
			t.Errorf("a hole has data: %+v", e)
		}
		off = end
	}
	e, err := a.Extents.ExtentAt(m.Size() - 1)
	if err != nil || e.LengthBytes != 1 {
		t.Errorf("extent of the last byte: %+v, %v", e, err)
	}
}

func comparesAndWrites(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.CompareAndWrite == nil {
		return
	}
	const off = 65536 - 700
	old := fill(1500, 1)
	write(t, m, old, off)
	if i, err := a.CompareAndWrite.CompareAndWriteAt(old, fill(1500, 2), off); i != -1 || err != nil {
		t.Fatalf("equal: %d, %v", i, err)
	}
	want(t, m, off, 1500, 2)
	for _, at := range []int{0, 699, 700, 1499} {
		compare := fill(1500, 2)
		compare[at] = 3
		if i, err := a.CompareAndWrite.CompareAndWriteAt(compare, fill(1500, 4), off); i != at || err != nil {
			t.Errorf("byte %d differs: %d, %v", at, i, err)
		}
	}
	want(t, m, off, 1500, 2)
	if i, err := a.CompareAndWrite.CompareAndWriteAt(nil, nil, 0); i != -1 || err != nil {
		t.Errorf("nothing: %d, %v", i, err)
	}
}

// counts lets many goroutines count up one number, which only works if nobody's
// write comes between another's compare and write.
func counts(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.CompareAndWrite == nil {
		return
	}
	const workers, rounds, off = 4, 50, 3 * 512
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for range rounds {
				for {
					old := make([]byte, 512)
					if _, err := m.ReadAt(old, off); err != nil {
						t.Error(err)
						return
					}
					var n int
					if _, err := fmt.Sscanf(string(bytes.TrimRight(old, "\x00")), "%d", &n); err != nil {
						n = 0 // the block is still zeros
					}
					next := make([]byte, 512)
					copy(next, fmt.Sprintf("%d", n+1))
					i, err := a.CompareAndWrite.CompareAndWriteAt(old, next, off)
					if err != nil {
						t.Errorf("worker %d: %v", w, err)
						return
					}
					if i < 0 {
						break
					}
				}
			}
		})
	}
	group.Wait()
	got := string(bytes.TrimRight(read(t, m, 512, off), "\x00"))
	if want := fmt.Sprintf("%d", workers*rounds); got != want {
		t.Errorf("counted to %q, want %s", got, want)
	}
}

func resizes(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.Resize == nil {
		return
	}
	old := m.Size()
	write(t, m, fill(8192, 6), old-8192)
	if err := a.Resize.Resize(old - 4096 - 512); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ReadAt(make([]byte, 512), old-512); !errors.Is(err, media.ErrRange) {
		t.Errorf("read beyond the new end: %v, want ErrRange", err)
	}
	if err := a.Resize.Resize(old + 1<<20); err != nil {
		t.Fatal(err)
	}
	if m.Size() != old+1<<20 {
		t.Errorf("size %d, want %d", m.Size(), old+1<<20)
	}
	want(t, m, old-8192, 4096-512, 6)
	want(t, m, old-4096-512, 4096+512+1<<20, 0)
	write(t, m, fill(512, 8), m.Size()-512)
	want(t, m, m.Size()-512, 512, 8)
	for _, n := range []int64{0, -1} {
		if err := a.Resize.Resize(n); err == nil {
			t.Errorf("resized to %d bytes", n)
		}
	}
}

func prefetches(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.Prefetch == nil {
		return
	}
	for _, n := range []int64{0, 1, MinBytes} {
		if err := a.Prefetch.Prefetch(0, n); err != nil {
			t.Errorf("prefetch %d bytes: %v", n, err)
		}
	}
	want(t, m, 0, 4096, 0)
}

// runsConcurrently has writers fill blocks with one byte each, side by side with
// readers and discards.
func (o Options) runsConcurrently(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	const blocks, block = 64, 512
	var group sync.WaitGroup
	for w := range 6 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			p := make([]byte, block)
			for range 300 {
				off := int64(r.IntN(blocks)*block + 65536 - blocks*block/2)
				var err error
				switch {
				case w < 3:
					_, err = m.WriteAt(append(p[:0], fill(block, byte(w+1))...), off)
				case w == 3 && a.Discard != nil:
					err = a.Discard.Discard(off, block)
				default:
					_, err = m.ReadAt(p, off)
					if o.WholeBlocks && !bytes.Equal(p, fill(block, p[0])) {
						t.Errorf("block at %d is torn: begins with %d, ends with %d", off, p[0], p[block-1])
					}
					if i := bytes.IndexFunc(p, func(r rune) bool { return r > 3 }); i >= 0 {
						t.Errorf("byte %d was written by nobody: %d", off+int64(i), p[i])
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func closes(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	write(t, m, fill(512, 1), 0)
	if err := m.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	p := make([]byte, 512)
	calls := map[string]func() error{
		"read":  func() error { _, err := m.ReadAt(p, 0); return err },
		"write": func() error { _, err := m.WriteAt(p, 0); return err },
		"flush": m.Flush,
		"close": m.Close,
	}
	if a.Discard != nil {
		calls["discard"] = func() error { return a.Discard.Discard(0, 512) }
	}
	if a.Extents != nil {
		calls["extent"] = func() error { _, err := a.Extents.ExtentAt(0); return err }
	}
	if a.Resize != nil {
		calls["resize"] = func() error { return a.Resize.Resize(MinBytes) }
	}
	if a.CompareAndWrite != nil {
		calls["compare and write"] = func() error { _, err := a.CompareAndWrite.CompareAndWriteAt(p, p, 0); return err }
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, media.ErrClosed) {
			t.Errorf("%s of a closed medium: %v, want ErrClosed", name, err)
		}
	}
	if m.Size() != 0 {
		t.Errorf("size of a closed medium: %d", m.Size())
	}
}
