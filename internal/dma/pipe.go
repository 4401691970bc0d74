package dma

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// PipeLeastBytes is the shortest transfer that a Pipe is for: below that, copying
	// costs less than the system calls.
	PipeLeastBytes = 64 << 10
	// PipeMostBytes is what a Pipe holds: as much as the kernel allows any user.
	PipeMostBytes = 1 << 20
)

// A Pipe is a pipe(7) that a device may fill instead of memory: it holds references to the
// pages that the data are on, and the data are not copied. The sender of the data moves the
// references to a socket.
//
// Its owner arms it: it then stands for a piece of an arena, and a device that is about to
// fill that may fill the pipe instead. The owner disarms it when the device is done, and
// learns which of the two has the data. A device that is late, or repeats the command,
// finds that its Pages have expired.
//
// Later writes to the pages are visible to anyone who reads the references after that.
//
// Concurrency: its methods are the owner's, one call at a time. Pages may be used by
// anybody at any time.
type Pipe struct {
	in, out int // descriptors: in is written

	// state is a generation and a pipeState; Pages are of one generation.
	state atomic.Uint64
	// extent is what it stands for, in the arena: base and length as in a window.
	extent atomic.Uint64
	// users counts the owner and those filling it. The last one closes it.
	users atomic.Int32

	armed bool // the owner's
	left  int  // bytes that are in it, once disarmed; the owner's
}

// A pipeState is what is in a Pipe.
type pipeState uint64

const (
	pipeEmpty   pipeState = iota // and not armed
	pipeArmed                    // empty
	pipeFilling                  // Pages are being filled
	pipeFilled
	pipeSpoilt // it has data that nobody wants

	pipeStateBits = 3
)

func (s pipeState) in(word uint64) bool { return pipeState(word&(1<<pipeStateBits-1)) == s }

// of is the word for s in word's generation.
func (s pipeState) of(word uint64) uint64 { return word&^(1<<pipeStateBits-1) | uint64(s) }

// next is the word for s in the generation behind word's.
func (s pipeState) next(word uint64) uint64 { return s.of(word) + 1<<pipeStateBits }

// newPipe makes an empty pipe.
func newPipe() (*Pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("dma: pipe: %w", err)
	}
	p := &Pipe{in: fds[1], out: fds[0]}
	p.users.Store(1)
	if _, err := unix.FcntlInt(uintptr(p.in), unix.F_SETPIPE_SZ, PipeMostBytes); err != nil {
		p.leave()
		return nil, fmt.Errorf("dma: pipe of %d bytes: %w", PipeMostBytes, err)
	}
	return p, nil
}

// enter counts a user in. It is false if the pipe is closed.
func (p *Pipe) enter() bool {
	for n := p.users.Load(); n > 0; n = p.users.Load() {
		if p.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// leave counts a user out.
func (p *Pipe) leave() {
	if p.users.Add(-1) == 0 {
		_ = unix.Close(p.in)
		_ = unix.Close(p.out)
	}
}

// Pipe returns a pipe that stands for b, which is PipeLeastBytes to PipeMostBytes of a block
// that the caller has from Alloc and keeps until Disarm. It returns nil if all pipes are in
// use, or there can be none. The caller owns it until ReturnPipe.
func (a *Arena) Pipe(b []byte) *Pipe {
	off := a.offset(b)
	if off < 0 || len(b) < PipeLeastBytes || len(b) > PipeMostBytes {
		panic(fmt.Sprintf("dma: a pipe for %d bytes at offset %d of the arena", len(b), off))
	}
	p := a.pipes.get()
	if p == nil {
		return nil
	}
	p.armed = true
	p.extent.Store(uint64(off)<<extentLenBits | uint64(len(b)))
	p.state.Store(pipeArmed.next(p.state.Load()))
	a.pipes.slots[off/PipeLeastBytes].Store(p)
	return p
}

// ReturnPipe disarms p, if need be, and takes it back.
func (a *Arena) ReturnPipe(p *Pipe) {
	a.Disarm(p)
	a.pipes.put(p)
}

// Disarm ends p's standing for memory. It reports whether the pipe has the data, all of
// them; if not, whatever the device has transferred is in memory.
//
// Concurrency: p's owner, when the device has said that it is done.
func (a *Arena) Disarm(p *Pipe) (filled bool) {
	if !p.armed {
		return p.left > 0
	}
	p.armed = false
	extent := p.extent.Load()
	a.pipes.slots[extent>>extentLenBits/PipeLeastBytes].Store(nil)
	for {
		was := p.state.Load()
		switch {
		case pipeFilled.in(was):
			if p.state.CompareAndSwap(was, pipeEmpty.next(was)) {
				p.left = int(extent & MaxMapBytes)
				return true
			}
		case pipeArmed.in(was):
			if p.state.CompareAndSwap(was, pipeEmpty.next(was)) {
				return false
			}
		default:
			if p.state.CompareAndSwap(was, pipeSpoilt.next(was)) {
				return false
			}
		}
	}
}

// Left is how many bytes there are to send.
func (p *Pipe) Left() int { return p.left }

// Out is the descriptor to splice them from.
func (p *Pipe) Out() int { return p.out }

// Sent notes that n of them have been sent.
func (p *Pipe) Sent(n int) { p.left -= n }

// ReadFull reads all that is left into b, which must be as long.
func (p *Pipe) ReadFull(b []byte) error {
	for p.left > 0 {
		n, err := unix.Read(p.out, b[len(b)-p.left:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("dma: read %d bytes of a pipe: %w", p.left, err)
		case n == 0:
			return fmt.Errorf("dma: read %d bytes of a pipe: there are none", p.left)
		}
		p.left -= n
	}
	return nil
}

// Pages are the right to fill a Pipe, once. The zero Pages have expired.
type Pages struct {
	pipe *Pipe
	word uint64 // pipeArmed and the generation
}

// PagesOf returns the right to fill the pipe that stands for b, all of it, or expired Pages
// if there is none. If the pipe has been filled before, that no longer counts and the Pages
// are expired: the device is executing the command again.
//
// Concurrency: any goroutine.
func (m *IOMMU) PagesOf(b []byte) Pages {
	p, word := m.arena.pipes.find(m.arena.offset(b), len(b))
	return p.pages(word)
}

// PagesAt is PagesOf for a b that the caller got from Translate of addr. If addr is not
// mapped any more, the pipe may be the next owner's, and is left alone.
//
// Concurrency: any goroutine.
func (m *IOMMU) PagesAt(addr Addr, b []byte) Pages {
	p, word := m.arena.pipes.find(m.arena.offset(b), len(b))
	if p == nil || !m.isMapped(addr) { // in this order: if addr is mapped now, it was when word was loaded
		return Pages{}
	}
	return p.pages(word)
}

// find is the pipe that stands for n bytes at off, with its state; nil if there is none.
func (s *pipePool) find(off, n int) (p *Pipe, word uint64) {
	if off < 0 {
		return nil, 0
	}
	slot := &s.slots[off/PipeLeastBytes]
	if p = slot.Load(); p == nil {
		return nil, 0
	}
	word, extent := p.state.Load(), p.extent.Load()
	if slot.Load() != p || extent != uint64(off)<<extentLenBits|uint64(n) {
		return nil, 0
	}
	return p, word
}

// pages is the right to fill p, in state word.
func (p *Pipe) pages(word uint64) Pages {
	if p == nil {
		return Pages{}
	}
	switch {
	case pipeArmed.in(word):
		return Pages{p, word}
	case pipeFilling.in(word), pipeFilled.in(word):
		// It would be more trouble to empty it than that is worth.
		p.state.CompareAndSwap(word, pipeSpoilt.next(word))
	}
	return Pages{}
}

// Expired reports whether there is no pipe to fill. If there is one, Begin may still find
// that the right to fill it is gone.
func (g Pages) Expired() bool { return g.pipe == nil }

// Begin returns the descriptor to splice data to. If ok, End follows.
//
// Concurrency: any goroutine, once.
func (g Pages) Begin() (fd int, ok bool) {
	p := g.pipe
	if p == nil || !p.enter() {
		return 0, false
	}
	if !p.state.CompareAndSwap(g.word, pipeFilling.of(g.word)) {
		p.leave()
		return 0, false
	}
	return p.in, true
}

// End ends what Begin began; all says whether all of the data are in the pipe. It reports
// whether the device is done with them: if not, it has to move them to memory.
func (g Pages) End(all bool) bool {
	p := g.pipe
	after := pipeSpoilt
	if all {
		after = pipeFilled
	}
	counts := p.state.CompareAndSwap(pipeFilling.of(g.word), after.of(g.word))
	p.leave()
	return counts && all
}

// maxPipes is how many pipes an arena may have: together half of the pages that the kernel
// by default allows an unprivileged user in pipes, fs.pipe-user-pages-soft.
const maxPipes = 32

// refusedTerm is how long the kernel is not asked for pipes after it has refused one: the
// user has too many pipes, or the process too many descriptors.
const refusedTerm = 10 * time.Second

// A pipePool is an arena's pipes, made when they are needed.
//
// Concurrency: any goroutine. Lock order: mu is a leaf.
type pipePool struct {
	// slots[i] is the pipe that stands for memory which begins in the i-th PipeLeastBytes
	// of the arena.
	slots []atomic.Pointer[Pipe]

	mu sync.Mutex
	// +checklocks:mu
	free []*Pipe
	// made counts pipes that are free, in use or being made.
	// +checklocks:mu
	made int
	// refused is when the kernel last refused a pipe; zero if it never has.
	// +checklocks:mu
	refused time.Time
}

// get returns an empty pipe, or nil.
func (s *pipePool) get() *Pipe {
	p, more := s.take()
	if !more {
		return p
	}
	p, err := newPipe()
	if err != nil {
		s.mu.Lock()
		s.made--
		s.refused = time.Now()
		s.mu.Unlock()
		return nil
	}
	return p
}

// take returns a free pipe or, if there is none, reports whether one more may be made, and
// counts it as made: making one takes too long to do under the lock.
func (s *pipePool) take() (p *Pipe, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free) - 1; n >= 0 {
		p = s.free[n]
		s.free = s.free[:n]
		return p, false
	}
	if s.made == maxPipes || !s.refused.IsZero() && time.Since(s.refused) < refusedTerm {
		return nil, false
	}
	s.made++
	return nil, true
}

// put takes back a pipe that stands for nothing.
func (s *pipePool) put(p *Pipe) {
	again := p.left == 0 && pipeEmpty.in(p.state.Load())
	s.mu.Lock()
	if again {
		s.free = append(s.free, p)
	} else {
		s.made--
	}
	s.mu.Unlock()
	if !again {
		p.leave() // which may let go of many pages
	}
}

// inUse is how many pipes were taken with get and not given back with put.
func (s *pipePool) inUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made - len(s.free)
}

// close closes the free pipes.
func (s *pipePool) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.free {
		p.leave()
	}
	s.made -= len(s.free)
	s.free = nil
}
