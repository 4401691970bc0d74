package mediatest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/dma"
)

// A lender has pipes that a medium may fill with its pages.
type lender struct {
	arena *dma.Arena
	iommu *dma.IOMMU
	mem   []byte // for which the pipes stand
	refer media.Referrer
}

func newLender(t *testing.T, r media.Referrer) *lender {
	t.Helper()
	arena, err := dma.NewArena(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	l := &lender{arena: arena, iommu: dma.NewIOMMU(arena), mem: arena.Alloc(dma.PipeMostBytes), refer: r}
	t.Cleanup(func() {
		arena.Free(l.mem)
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// pipe asks for n bytes from off, and returns the pipe if it has them. It is to be
// returned.
func (l *lender) pipe(t *testing.T, n int, off int64, mayBlock bool) *dma.Pipe {
	t.Helper()
	mem := l.mem[:max(dma.PipeLeastBytes, min(n, dma.PipeMostBytes))]
	p := l.arena.Pipe(mem)
	if p == nil {
		t.Fatal("no pipe: may this user have none?")
	}
	lent := l.refer.ReferAt(l.iommu.PagesOf(mem), n, off, mayBlock)
	filled := l.arena.Disarm(p)
	if lent != filled {
		t.Errorf("%d bytes at %d: lent: %t, all in the pipe: %t", n, off, lent, filled)
	}
	if !filled {
		l.arena.ReturnPipe(p)
		return nil
	}
	return p
}

// take returns the n bytes that are in p, which it returns.
func (l *lender) take(t *testing.T, p *dma.Pipe, n int) []byte {
	t.Helper()
	b := bytes.Repeat([]byte{0xee}, n)
	if p.Left() != n {
		t.Fatalf("%d bytes in the pipe, want %d", p.Left(), n)
	}
	if err := p.ReadFull(b); err != nil {
		t.Fatal(err)
	}
	if k, err := unix.Read(p.Out(), make([]byte, 1)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%d bytes more in the pipe than %d, %v", k, n, err)
	}
	l.arena.ReturnPipe(p)
	return b
}

// borrow returns n bytes from off as they come out of a pipe, or nil if they are not lent.
func (l *lender) borrow(t *testing.T, n int, off int64, mayBlock bool) []byte {
	t.Helper()
	if p := l.pipe(t, n, off, mayBlock); p != nil {
		return l.take(t, p, n)
	}
	return nil
}

// noise is n bytes that differ wherever one looks.
func noise(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// lends compares what comes out of a pipe with what is read.
func (o Options) lends(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.Refer == nil {
		if o.Lends {
			t.Error("it cannot")
		}
		return
	}
	const seed = 8
	r := rand.New(rand.NewPCG(seed, 0))
	l := newLender(t, a.Refer)
	data := noise(r, MinBytes)
	write(t, m, data, 0)
	type span struct {
		off int64
		n   int
	}
	spans := []span{
		{0, dma.PipeLeastBytes},
		{0, dma.PipeMostBytes},
		{0, dma.PipeMostBytes - 1},
		{1, dma.PipeMostBytes - 1},
		{512, dma.PipeMostBytes - 512},
		{65536, dma.PipeLeastBytes},
		{65535, dma.PipeLeastBytes},
		{4095, dma.PipeLeastBytes + 2},
		{70001, 100_001},
		{131072, 3 * 65536},
		{MinBytes - dma.PipeLeastBytes, dma.PipeLeastBytes},
	}
	for range 40 {
		n := dma.PipeLeastBytes + r.IntN(dma.PipeMostBytes-dma.PipeLeastBytes)
		spans = append(spans, span{r.Int64N(int64(MinBytes - n + 1)), n})
	}
	for _, s := range spans {
		want := read(t, m, s.n, s.off)
		if !bytes.Equal(want, data[s.off:][:s.n]) {
			t.Fatalf("seed %d: %d bytes at %d are not what was written", seed, s.n, s.off)
		}
		for _, mayBlock := range []bool{true, false} {
			got := l.borrow(t, s.n, s.off, mayBlock)
			switch {
			case got != nil && !bytes.Equal(got, want):
				t.Fatalf("seed %d: %d bytes at %d: what is lent is not what is read", seed, s.n, s.off)
			case got == nil && o.Lends && (mayBlock || a.NeverBlocks):
				t.Errorf("seed %d: %d bytes at %d are not lent", seed, s.n, s.off)
			}
		}
	}
	// The last bytes of the medium, wherever that ends in a page.
	write(t, m, data[:dma.PipeLeastBytes+10], m.Size()-dma.PipeLeastBytes-10)
	if got := l.borrow(t, dma.PipeLeastBytes, m.Size()-dma.PipeLeastBytes, true); got != nil && !bytes.Equal(got, data[10:][:len(got)]) ||
		got == nil && o.Lends {
		t.Errorf("the last bytes of the medium: %d are lent, or they are others", len(got))
	}
}

// lendsNothingElse asks for what is not there, or has no room.
func lendsNothingElse(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.Refer == nil {
		return
	}
	const least, most = dma.PipeLeastBytes, dma.PipeMostBytes
	l := newLender(t, a.Refer)
	size := m.Size()
	write(t, m, fill(MinBytes, 1), 0)
	write(t, m, fill(MinBytes, 1), size-MinBytes)
	ask := func(what string, n int, off int64) {
		t.Helper()
		before := l.arena.Pipe(l.mem)
		l.arena.ReturnPipe(before)
		for _, mayBlock := range []bool{false, true} {
			if l.borrow(t, n, off, mayBlock) != nil {
				t.Errorf("%s: %d bytes at %d were lent", what, n, off)
			}
		}
		after := l.arena.Pipe(l.mem)
		l.arena.ReturnPipe(after)
		if before != after {
			t.Errorf("%s: %d bytes at %d: something was put into a pipe", what, n, off)
		}
	}
	ask("beyond the end", least, size-least+1)
	ask("beyond the end", most, size-most+4096)
	ask("behind the end", least, size)
	ask("far behind", least, 1<<62)
	ask("where offsets overflow", least, 1<<63-1)
	ask("before the beginning", least, -1)
	ask("before the beginning", least, -4096)
	ask("as early as can be", least, -1<<63)
	ask("nothing", 0, 0)
	ask("less than nothing", -1, 0)
	ask("less than nothing", -1<<63, 4095)
	ask("more than a pipe holds", most+1, 0)
	ask("more than anything holds", 1<<63-1, 4095)
	if size >= most+8192 { // one page too many
		write(t, m, fill(MinBytes, 1), 8192)
		ask("too long for where it begins", most, 1)
		ask("too long for where it begins", most, 512)
		ask("too long for where it begins", most-4094, 4095)
	}
	late := l.arena.Pipe(l.mem)
	pages := l.iommu.PagesOf(l.mem)
	l.arena.ReturnPipe(late)
	for _, mayBlock := range []bool{false, true} {
		for name, pages := range map[string]dma.Pages{"none": {}, "late ones": pages} {
			if a.Refer.ReferAt(pages, most, 0, mayBlock) {
				t.Errorf("%s were filled", name)
			}
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	ask("closed", least, 0)
}

// lendsWhatIsThere changes a medium in all ways, and looks at what it lends.
func lendsWhatIsThere(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.Refer == nil {
		return
	}
	const seed = 9
	r := rand.New(rand.NewPCG(seed, 0))
	l := newLender(t, a.Refer)
	model := noise(r, MinBytes)
	write(t, m, model, 0)
	look := func(step int) {
		t.Helper()
		n := dma.PipeLeastBytes + r.IntN(dma.PipeMostBytes-dma.PipeLeastBytes)
		if r.IntN(2) == 0 {
			n = dma.PipeLeastBytes + r.IntN(5000)
		}
		off := r.IntN(MinBytes - n + 1)
		for _, mayBlock := range []bool{false, true} {
			if got := l.borrow(t, n, int64(off), mayBlock); got != nil && !bytes.Equal(got, model[off:off+n]) {
				t.Fatalf("seed %d, step %d: %d bytes at %d: what is lent is not what the model says", seed, step, n, off)
			}
		}
	}
	for step := range 300 {
		most := 9000 // bytes: of a page or some
		if r.IntN(4) == 0 {
			most = MinBytes / 2
		}
		off := r.IntN(MinBytes)
		n := min(1+r.IntN(most), MinBytes-off)
		if r.IntN(3) == 0 { // whole chunks
			off, n = off&^(64<<10-1), 64<<10
		}
		part := model[off : off+n]
		var err error
		switch kind := r.IntN(6); {
		case kind == 0 && a.Discard != nil:
			err = a.Discard.Discard(int64(off), int64(n))
			clear(part)
		case kind == 1 && a.Zero != nil:
			err = a.Zero.Zero(int64(off), int64(n), r.IntN(2) == 0)
			clear(part)
		default:
			p := noise(r, n)
			write(t, m, p, int64(off))
			copy(part, p)
		}
		if err != nil {
			t.Fatalf("seed %d, step %d: %d bytes at %d: %v", seed, step, n, off, err)
		}
		look(step)
	}
	if a.Resize == nil {
		return
	}
	const end = 5*64<<10 + 4096 + 512
	old := m.Size()
	if err := a.Resize.Resize(end); err != nil {
		t.Fatal(err)
	}
	for _, mayBlock := range []bool{false, true} {
		if l.borrow(t, dma.PipeLeastBytes, end-dma.PipeLeastBytes+1, mayBlock) != nil {
			t.Error("what was cut off was lent")
		}
	}
	if err := a.Resize.Resize(old); err != nil {
		t.Fatal(err)
	}
	clear(model[end:])
	for step := range 30 {
		look(1000 + step)
	}
}

// lendsForGood: what is in a pipe are the bytes of its place, whatever becomes of the
// medium: those of when they were lent, or written there since.
func lendsForGood(t *testing.T, m media.Media, a media.Abilities) {
	t.Helper()
	if a.Refer == nil || a.Discard == nil {
		return
	}
	const n, off = 3*dma.PipeLeastBytes + 100, 64<<10 - 50
	l := newLender(t, a.Refer)
	closed := false
	for _, what := range []string{"discarded", "and written elsewhere", "cut off", "closed"} {
		write(t, m, fill(MinBytes/2, 1), 0)
		p := l.pipe(t, n, off, true)
		var err error
		switch what {
		case "and written elsewhere":
			if err = a.Discard.Discard(0, MinBytes/2); err == nil {
				write(t, m, fill(MinBytes/2, 2), MinBytes/2)
			}
		case "cut off":
			if a.Resize != nil {
				err = a.Resize.Resize(4096)
			}
		case "closed":
			closed = true
			err = m.Close()
		default:
			err = a.Discard.Discard(0, MinBytes/2)
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if p != nil {
			for i, b := range l.take(t, p, n) {
				if b > 1 {
					t.Fatalf("%s: byte %d was %#x afterwards, which nobody has written there", what, off+i, b)
				}
			}
		}
		if a.Resize != nil && !closed {
			if err := a.Resize.Resize(MinBytes); err != nil {
				t.Fatal(err)
			}
		}
	}
}
