package dma

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// MinBlockBytes is the smallest block an Arena hands out, and the alignment of
// every block.
const MinBlockBytes = 4096

// MaxArenaBytes bounds an arena: an IOMMU window stores base and length in one
// 64-bit word.
const MaxArenaBytes = 1 << extentBaseBits

// SmallBlockBytes is the largest block that may come from an arena's reserve, which is
// an eighth of an arena of at least reserveFromBytes. Large blocks never take the whole
// arena, so that users of small blocks get on while others hold, or wait for, large ones.
const SmallBlockBytes = 64 << 10

const (
	reserveShare     = 8
	reserveFromBytes = 1 << 20
)

// ErrTooBig means that a request exceeds the whole arena and can never be met.
var ErrTooBig = errors.New("larger than the arena")

// An Arena is a fixed amount of page-aligned memory outside the Go heap.
//
// Blocks are not zeroed. All methods may be called from any goroutine.
// Lock order: mu, then that of the pipes, which is a leaf.
type Arena struct {
	mem []byte
	// reserveBytes are for small blocks.
	reserveBytes int
	// available is how many bytes are not in use, to be read without mu.
	available atomic.Int64
	pipes     pipePool

	mu sync.Mutex
	// free[o] heads the list of free blocks of MinBlockBytes<<o; links are page
	// numbers plus one, zero ends a list.
	// +checklocks:mu
	free []uint32
	// next and prev link free blocks, indexed by the block's first page.
	// +checklocks:mu
	next []uint32
	// +checklocks:mu
	prev []uint32
	// state holds the order of the block that starts at a page, plus one, with
	// the freeBit if it is free; zero inside a block.
	// +checklocks:mu
	state []uint8
	// +checklocks:mu
	inUseBytes int
	// +checklocks:mu
	peakBytes int
	// smallBytes is the part of inUseBytes that is small blocks.
	// +checklocks:mu
	smallBytes int
	// waiters for large and for small blocks are in order of arrival; only the first of
	// a line can be granted. While somebody waits for a large block, small ones come from
	// the reserve only, so that they do not starve it.
	// +checklocks:mu
	waiters [2][]*waiter
}

// The lines of waiters.
const (
	large = iota
	small
)

// lineOf is the line for blocks of an order.
func lineOf(o int) int {
	if MinBlockBytes<<o <= SmallBlockBytes {
		return small
	}
	return large
}

const freeBit = 0x80

type waiter struct {
	order int
	ready chan []byte // capacity 1
}

// NewArena maps sizeBytes, rounded up to a power of two.
func NewArena(sizeBytes int) (*Arena, error) {
	if sizeBytes <= 0 || sizeBytes > MaxArenaBytes {
		return nil, fmt.Errorf("dma: arena of %d bytes: want 1 to %d", sizeBytes, int64(MaxArenaBytes))
	}
	top := order(sizeBytes)
	size := MinBlockBytes << top
	mem, err := mapMemory(size)
	if err != nil {
		return nil, fmt.Errorf("dma: map %d bytes: %w", size, err)
	}
	pages := size / MinBlockBytes
	a := &Arena{
		mem:   mem,
		free:  make([]uint32, top+1),
		next:  make([]uint32, pages),
		prev:  make([]uint32, pages),
		state: make([]uint8, pages),
	}
	a.pipes.slots = make([]atomic.Pointer[Pipe], (size+PipeLeastBytes-1)/PipeLeastBytes)
	if size >= reserveFromBytes {
		a.reserveBytes = size / reserveShare
	}
	a.available.Store(int64(size))
	a.mu.Lock()
	a.pushLocked(0, top)
	a.mu.Unlock()
	return a, nil
}

// order is the smallest o with MinBlockBytes<<o >= n.
func order(n int) int {
	if n < 0 {
		panic(fmt.Sprintf("dma: block of %d bytes", n))
	}
	if n <= MinBlockBytes {
		return 0
	}
	return bits.Len(uint(n-1) / MinBlockBytes)
}

// BlockBytes is the capacity of the block that Alloc(n) returns, n being 0 to
// MaxArenaBytes.
func BlockBytes(n int) int { return MinBlockBytes << order(n) }

// SizeBytes is the arena's capacity.
func (a *Arena) SizeBytes() int { return len(a.mem) }

// Alloc returns a block with length n and the capacity of its size class, or
// nil if none is free or others wait in line. The caller owns it until Free.
func (a *Arena) Alloc(n int) []byte {
	o := order(n)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiters[lineOf(o)]) > 0 {
		return nil // those in line come first
	}
	b := a.allocLocked(o)
	if b == nil {
		return nil
	}
	return b[:n]
}

// Scarce reports whether less is free than the reserve for small blocks. It is for
// callers that can do with less memory.
func (a *Arena) Scarce() bool { return a.available.Load() < int64(a.reserveBytes) }

// Plenty reports whether more than half is free. It is for callers that take memory they
// may not need.
func (a *Arena) Plenty() bool { return a.available.Load() > int64(len(a.mem)/2) }

// AllocWait is Alloc, but waits in line for memory: first come, first served,
// among those for small blocks and among those for large ones.
//
// Errors: ErrTooBig, or the context's error.
func (a *Arena) AllocWait(ctx context.Context, n int) ([]byte, error) {
	if n > len(a.mem) {
		return nil, fmt.Errorf("dma: %d bytes: %w (%d bytes)", n, ErrTooBig, len(a.mem))
	}
	o := order(n)
	line := lineOf(o)
	a.mu.Lock()
	if len(a.waiters[line]) == 0 {
		if b := a.allocLocked(o); b != nil {
			a.mu.Unlock()
			return b[:n], nil
		}
	}
	w := &waiter{order: o, ready: make(chan []byte, 1)}
	a.waiters[line] = append(a.waiters[line], w)
	a.mu.Unlock()
	select {
	case b := <-w.ready:
		return b[:n], nil
	case <-ctx.Done():
	}
	a.mu.Lock()
	if i := slices.Index(a.waiters[line], w); i >= 0 {
		a.waiters[line] = slices.Delete(a.waiters[line], i, i+1)
	}
	a.grantLocked() // the waiter behind w may fit
	a.mu.Unlock()
	select {
	case b := <-w.ready: // granted before it could leave the line
		a.Free(b)
	default:
	}
	return nil, ctx.Err()
}

// Has reports whether b is memory of the arena.
func (a *Arena) Has(b []byte) bool {
	base := a.offset(b)
	return base >= 0 && base+len(b) <= len(a.mem)
}

// Free returns a block to the arena. b must start where Alloc's result started.
func (a *Arena) Free(b []byte) {
	off := a.offset(b)
	if off < 0 || off%MinBlockBytes != 0 {
		panic(fmt.Sprintf("dma: Free of a slice that is no block of this arena (offset %d)", off))
	}
	page := uint32(off / MinBlockBytes)
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.state[page]
	if st == 0 || st&freeBit != 0 {
		panic(fmt.Sprintf("dma: Free of block at offset %d, which is not allocated", off))
	}
	o := int(st - 1)
	a.countLocked(o, -1)
	for o < len(a.free)-1 {
		buddy := page ^ 1<<o
		if a.state[buddy] != freeBit|uint8(o+1) {
			break
		}
		a.removeLocked(buddy, o)
		a.state[page], a.state[buddy] = 0, 0
		page = min(page, buddy)
		o++
	}
	a.pushLocked(page, o)
	a.grantLocked()
}

// grantLocked serves both lines as far as it goes.
//
// +checklocks:a.mu
func (a *Arena) grantLocked() {
	for line := range a.waiters {
		for len(a.waiters[line]) > 0 {
			b := a.allocLocked(a.waiters[line][0].order)
			if b == nil {
				break
			}
			a.waiters[line][0].ready <- b
			a.waiters[line] = slices.Delete(a.waiters[line], 0, 1)
		}
	}
}

// mayLocked reports whether a block of an order may be taken now if one is free.
//
// +checklocks:a.mu
func (a *Arena) mayLocked(o int) bool {
	n := MinBlockBytes << o
	if lineOf(o) == small {
		return len(a.waiters[large]) == 0 || a.smallBytes+n <= a.reserveBytes
	}
	inUse := a.inUseBytes - a.smallBytes
	return inUse == 0 || inUse+n <= len(a.mem)-a.reserveBytes
}

// countLocked counts a block of an order in or out.
//
// +checklocks:a.mu
func (a *Arena) countLocked(o, sign int) {
	n := sign * (MinBlockBytes << o)
	a.inUseBytes += n
	if lineOf(o) == small {
		a.smallBytes += n
	}
	a.peakBytes = max(a.peakBytes, a.inUseBytes)
	a.available.Store(int64(len(a.mem) - a.inUseBytes))
}

// +checklocks:a.mu
func (a *Arena) allocLocked(want int) []byte {
	if !a.mayLocked(want) {
		return nil
	}
	o := want
	for o < len(a.free) && a.free[o] == 0 {
		o++
	}
	if o >= len(a.free) {
		return nil
	}
	page := a.free[o] - 1
	a.removeLocked(page, o)
	for o > want {
		o--
		a.pushLocked(page|1<<o, o)
	}
	a.state[page] = uint8(want + 1)
	a.countLocked(want, 1)
	n := MinBlockBytes << want
	off := int(page) * MinBlockBytes
	return a.mem[off : off+n : off+n]
}

// +checklocks:a.mu
func (a *Arena) pushLocked(page uint32, o int) {
	head := a.free[o]
	a.next[page], a.prev[page] = head, 0
	if head != 0 {
		a.prev[head-1] = page + 1
	}
	a.free[o] = page + 1
	a.state[page] = freeBit | uint8(o+1)
}

// +checklocks:a.mu
func (a *Arena) removeLocked(page uint32, o int) {
	next, prev := a.next[page], a.prev[page]
	if prev != 0 {
		a.next[prev-1] = next
	} else {
		a.free[o] = next
	}
	if next != 0 {
		a.prev[next-1] = prev
	}
}

// Stats is a snapshot of an arena's use.
type Stats struct {
	SizeBytes, InUseBytes, PeakBytes int
	Waiters                          int
	// PipesInUse counts pipes from Pipe that were not yet given back to ReturnPipe.
	PipesInUse int
}

// Stats returns how much of the arena is in use.
func (a *Arena) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	return Stats{
		SizeBytes: len(a.mem), InUseBytes: a.inUseBytes, PeakBytes: a.peakBytes,
		Waiters: len(a.waiters[large]) + len(a.waiters[small]), PipesInUse: a.pipes.inUse(),
	}
}

// Close unmaps the arena. No block may be in use.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inUseBytes != 0 {
		return fmt.Errorf("dma: close arena with %d bytes in use", a.inUseBytes)
	}
	a.pipes.close()
	mem := a.mem
	a.mem = nil
	return unmapMemory(mem)
}
