package dma_test

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/internal/dma"
)

// fill puts b into the pipe that pages are for.
func fill(tb testing.TB, pages dma.Pages, b []byte) (done bool) {
	tb.Helper()
	fd, ok := pages.Begin()
	if !ok {
		return false
	}
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			tb.Errorf("%d bytes have no room: %v", len(b), err)
			break
		}
		b = b[n:]
	}
	return pages.End(len(b) == 0)
}

// pattern is n bytes that only seed has.
func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i>>8)
	}
	return b
}

// TestPipe: what the device has put into it comes out, and it can be used again.
func TestPipe(t *testing.T) {
	a := newArena(t, 4<<20)
	m := dma.NewIOMMU(a)
	for i, n := range []int{dma.PipeLeastBytes, 100_000, dma.PipeMostBytes - 1, dma.PipeMostBytes} {
		mem := a.Alloc(n)
		p := a.Pipe(mem)
		if p == nil {
			t.Fatal("no pipe")
		}
		want := pattern(byte(i), n)
		if !fill(t, m.PagesOf(mem), want) {
			t.Fatalf("%d bytes: not filled", n)
		}
		if !a.Disarm(p) || p.Left() != n {
			t.Fatalf("%d bytes: %d in the pipe", n, p.Left())
		}
		some := make([]byte, 1000)
		if k, err := unix.Read(p.Out(), some); k != len(some) || err != nil {
			t.Fatalf("%d bytes read: %v", k, err)
		}
		p.Sent(len(some))
		got := make([]byte, n)
		copy(got, some)
		if err := p.ReadFull(got); err != nil || !bytes.Equal(got, want) || p.Left() != 0 {
			t.Fatalf("%d bytes: %v, %d left, equal: %t", n, err, p.Left(), bytes.Equal(got, want))
		}
		a.ReturnPipe(p)
		if again := a.Pipe(mem); again != p {
			t.Error("the pipe was not used again")
		}
		a.ReturnPipe(p)
		a.Free(mem)
	}
}

// TestPipe_Memory: a device that does not know of the pipe leaves it as it is.
func TestPipe_Memory(t *testing.T) {
	a := newArena(t, 1<<20)
	mem := a.Alloc(dma.PipeLeastBytes)
	p := a.Pipe(mem)
	if a.Disarm(p) || p.Left() != 0 {
		t.Error("there is something in it")
	}
	a.ReturnPipe(p)
	if a.Pipe(mem) != p {
		t.Error("the pipe was not used again")
	}
	a.ReturnPipe(p)
	a.Free(mem)
}

// TestPagesOf: only the memory that the pipe stands for, from its beginning to its end.
func TestPagesOf(t *testing.T) {
	a := newArena(t, 2<<20)
	m := dma.NewIOMMU(a)
	mem, other := a.Alloc(200_000), a.Alloc(200_000)
	p := a.Pipe(mem)
	for name, b := range map[string][]byte{
		"other memory": other, "less": mem[:len(mem)-1], "its end": mem[1:], "no memory of the arena": make([]byte, 200_000),
		"more": mem[:len(mem)+1], "nothing": nil,
	} {
		if !m.PagesOf(b).Expired() {
			t.Errorf("%s: there are pages", name)
		}
	}
	if m.PagesOf(mem).Expired() {
		t.Error("there are no pages")
	}
	a.ReturnPipe(p)
	if !m.PagesOf(mem).Expired() {
		t.Error("there are pages for memory that no pipe stands for")
	}
	if !(dma.Pages{}).Expired() {
		t.Error("there are pages of nothing")
	}
	a.Free(mem)
	a.Free(other)
	mustPanic(t, "too short", func() { a.Pipe(make([]byte, dma.PipeLeastBytes)) })
}

// TestPages_NotMappedAnyMore: a device that goes on with a command that has ended, and
// whose memory belongs to another command by now, neither gets the other's pipe nor spoils
// it.
func TestPages_NotMappedAnyMore(t *testing.T) {
	a := newArena(t, 1<<20)
	m := dma.NewIOMMU(a)
	mem := a.Alloc(dma.PipeLeastBytes)
	w, err := m.NewWindow(nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := m.Map(w, mem, dma.Write)
	b, ok := m.Translate(ended, len(mem), dma.Write)
	if !ok {
		t.Fatal("not mapped")
	}
	m.Unmap(w)
	p := a.Pipe(mem)
	now := m.Map(w, mem, dma.Write)
	if !m.PagesAt(ended, b).Expired() {
		t.Error("the command that has ended gets the pipe")
	}
	if !fill(t, m.PagesAt(now, b), pattern(1, len(mem))) {
		t.Fatal("the other command does not")
	}
	if !m.PagesAt(ended, b).Expired() || !a.Disarm(p) {
		t.Error("the command that has ended has spoilt what was filled")
	}
	m.Unmap(w)
	m.FreeWindow(w)
	a.ReturnPipe(p)
	a.Free(mem)
	if n := m.Faults(); n != 0 {
		t.Errorf("%d faults", n)
	}
}

// TestPages_Late: a device that comes after the request is over finds nothing to fill, even
// if the pipe stands for something else by then.
func TestPages_Late(t *testing.T) {
	a := newArena(t, 1<<20)
	m := dma.NewIOMMU(a)
	mem, other := a.Alloc(dma.PipeLeastBytes), a.Alloc(dma.PipeLeastBytes)
	p := a.Pipe(mem)
	late := m.PagesOf(mem)
	a.Disarm(p)
	if fill(t, late, mem) {
		t.Error("filled when the request was over")
	}
	a.ReturnPipe(p)
	if a.Pipe(other) != p {
		t.Fatal("another pipe")
	}
	if fill(t, late, mem) {
		t.Error("filled with what belongs elsewhere")
	}
	if !fill(t, m.PagesOf(other), pattern(1, dma.PipeLeastBytes)) || !a.Disarm(p) {
		t.Error("not filled with what belongs there")
	}
	a.ReturnPipe(p)
	if _, ok := late.Begin(); ok {
		t.Error("filled when it is closed")
	}
	a.Free(mem)
	a.Free(other)
}

// TestPages_Spoilt: a pipe that has in it what nobody wants is closed, and another made.
func TestPages_Spoilt(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, m *dma.IOMMU, mem []byte){
		"half filled": func(t *testing.T, m *dma.IOMMU, mem []byte) {
			pages := m.PagesOf(mem)
			fd, _ := pages.Begin()
			if _, err := unix.Write(fd, mem[:1000]); err != nil {
				t.Fatal(err)
			}
			if pages.End(false) {
				t.Error("a device that has done half is done")
			}
		},
		"done once more": func(t *testing.T, m *dma.IOMMU, mem []byte) {
			if !fill(t, m.PagesOf(mem), mem) || !m.PagesOf(mem).Expired() {
				t.Error("it was filled, or is to be filled, twice")
			}
		},
		"done once more meanwhile": func(t *testing.T, m *dma.IOMMU, mem []byte) {
			pages := m.PagesOf(mem)
			fd, _ := pages.Begin()
			if !m.PagesOf(mem).Expired() {
				t.Error("two fill it")
			}
			if _, err := unix.Write(fd, mem); err != nil {
				t.Fatal(err)
			}
			if pages.End(true) {
				t.Error("the first has the say")
			}
		},
		"twice with the same pages": func(t *testing.T, m *dma.IOMMU, mem []byte) {
			pages := m.PagesOf(mem)
			fd, _ := pages.Begin()
			if _, ok := pages.Begin(); ok {
				t.Error("two fill it")
			}
			if _, err := unix.Write(fd, mem[:1]); err != nil {
				t.Fatal(err)
			}
			pages.End(false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newArena(t, 1<<20)
			m := dma.NewIOMMU(a)
			mem := a.Alloc(dma.PipeLeastBytes)
			p := a.Pipe(mem)
			spoil(t, m, mem)
			if a.Disarm(p) {
				t.Error("its data are wanted")
			}
			out := p.Out()
			a.ReturnPipe(p)
			if n := a.Stats().PipesInUse; n != 0 {
				t.Errorf("%d pipes in use, want none", n)
			}
			if _, err := unix.FcntlInt(uintptr(out), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
				t.Errorf("it is not closed: %v", err)
			}
			again := a.Pipe(mem)
			if again == nil || again == p || !fill(t, m.PagesOf(mem), mem) {
				t.Error("there is no other pipe")
			}
			a.ReturnPipe(again)
			a.Free(mem)
		})
	}
}

// TestPages_Stuck: a device that is still at it when the request is given up closes the
// pipe when it is done.
func TestPages_Stuck(t *testing.T) {
	a := newArena(t, 1<<20)
	m := dma.NewIOMMU(a)
	mem := a.Alloc(dma.PipeLeastBytes)
	p := a.Pipe(mem)
	pages := m.PagesOf(mem)
	fd, ok := pages.Begin()
	if !ok || a.Disarm(p) {
		t.Fatal("the test does not test")
	}
	a.ReturnPipe(p)
	if _, err := unix.Write(fd, mem); err != nil {
		t.Errorf("the device's descriptor: %v", err)
	}
	if pages.End(true) {
		t.Error("what it has done counts")
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("it is not closed: %v", err)
	}
	a.Free(mem)
}

// TestPipe_Bounded: there are so many, and then none until one comes back.
func TestPipe_Bounded(t *testing.T) {
	a := newArena(t, 16<<20)
	var mem [][]byte
	var pipes []*dma.Pipe
	for {
		b := a.Alloc(dma.PipeLeastBytes)
		p := a.Pipe(b)
		if p == nil {
			a.Free(b)
			break
		}
		mem, pipes = append(mem, b), append(pipes, p)
	}
	if len(pipes) > dma.MaxPipes || len(pipes) < dma.MaxPipes && !refuses(t) {
		t.Errorf("%d pipes, want %d", len(pipes), dma.MaxPipes)
	}
	if n := a.Stats().PipesInUse; n != len(pipes) {
		t.Errorf("%d pipes in use, want %d", n, len(pipes))
	}
	for i, p := range pipes {
		a.ReturnPipe(p)
		if i == 0 {
			p := a.Pipe(mem[0])
			if p == nil {
				t.Fatal("none though one came back")
			}
			a.ReturnPipe(p)
		}
		a.Free(mem[i])
	}
	if n := a.Stats().PipesInUse; n != 0 {
		t.Errorf("%d pipes in use, want none", n)
	}
}

// refuses says whether the kernel has no more such pipes for us: without privileges, a user
// has so many, for all programs.
func refuses(t *testing.T) bool {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return true
	}
	defer func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) }()
	_, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, dma.PipeMostBytes)
	return err != nil
}

// TestPipe_Refused: the kernel is asked for no pipe shortly after it has refused one; there
// are those that were made before.
func TestPipe_Refused(t *testing.T) {
	a := newArena(t, 1<<20)
	one, two := a.Alloc(dma.PipeLeastBytes), a.Alloc(dma.PipeLeastBytes)
	a.RefusedForTest(false)
	if a.Pipe(one) != nil {
		t.Error("it was asked again at once")
	}
	a.RefusedForTest(true)
	p := a.Pipe(one)
	if p == nil {
		t.Fatal("it is not asked any more")
	}
	a.RefusedForTest(false)
	if a.Pipe(two) != nil {
		t.Error("it was asked again at once")
	}
	a.ReturnPipe(p)
	if a.Pipe(two) != p {
		t.Error("the pipe that is there was not used")
	}
	a.ReturnPipe(p)
	a.Free(one)
	a.Free(two)
}

// TestPipe_Races: whatever devices that are late do, an owner gets the data of its own
// request or none.
func TestPipe_Races(t *testing.T) {
	a := newArena(t, 1<<20)
	m := dma.NewIOMMU(a)
	var pages [8]atomic.Pointer[dma.Pages]
	var stop atomic.Bool
	var devices sync.WaitGroup
	seed := pattern(0, dma.PipeLeastBytes)
	for i := range pages {
		devices.Go(func() {
			for !stop.Load() {
				if g := pages[(i*3)%len(pages)].Load(); g != nil {
					if fd, ok := g.Begin(); ok {
						_, err := unix.Write(fd, seed)
						g.End(err == nil)
					}
				}
				runtime.Gosched()
			}
		})
	}
	mem := a.Alloc(dma.PipeLeastBytes)
	got, filled := make([]byte, dma.PipeLeastBytes), 0
	for i := range 3000 {
		p := a.Pipe(mem)
		if p == nil {
			continue // late devices have them all
		}
		g := m.PagesOf(mem)
		for j := range pages {
			if (i+j)%3 != 0 { // others keep what they had
				pages[j].Store(&g)
			}
		}
		if i%2 == 0 {
			fill(t, g, seed)
		}
		if i%5 == 0 && !m.PagesOf(mem).Expired() {
			runtime.Gosched()
		}
		if a.Disarm(p) {
			filled++
			if err := p.ReadFull(got); err != nil || !bytes.Equal(got, seed) {
				t.Fatalf("round %d: %v, or it is not what was put into it", i, err)
			}
			// Nothing comes after.
			if n, err := unix.Read(p.Out(), got); !errors.Is(err, unix.EAGAIN) {
				t.Fatalf("round %d: %d bytes more, %v", i, n, err)
			}
		}
		a.ReturnPipe(p)
	}
	stop.Store(true)
	devices.Wait()
	if filled == 0 {
		t.Error("none was filled")
	}
	a.Free(mem)
}

func TestPipe_Allocations(t *testing.T) {
	a := newArena(t, 1<<20)
	m := dma.NewIOMMU(a)
	mem := a.Alloc(dma.PipeLeastBytes)
	if n := testing.AllocsPerRun(100, func() {
		p := a.Pipe(mem)
		fill(t, m.PagesOf(mem), mem)
		if !a.Disarm(p) || p.ReadFull(mem) != nil {
			t.Error("not filled")
		}
		a.ReturnPipe(p)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	a.Free(mem)
}
