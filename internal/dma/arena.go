package dma

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
)

// MinBlockBytes is the smallest block an Arena hands out, and the alignment of
// every block.
const MinBlockBytes = 4096

// MaxArenaBytes bounds an arena: an IOMMU window stores base and length in one
// 64-bit word.
const MaxArenaBytes = 1 << extentBaseBits

// ErrTooBig means that a request exceeds the whole arena and can never be met.
var ErrTooBig = errors.New("larger than the arena")

// An Arena is a fixed amount of page-aligned memory outside the Go heap.
//
// Blocks are not zeroed. All methods may be called from any goroutine.
// Lock order: mu is a leaf.
type Arena struct {
	mem []byte

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
	// waiters are in order of arrival; a grant goes to the first only, so that a
	// large request is not starved by small ones.
	// +checklocks:mu
	waiters []*waiter
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
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiters) > 0 {
		return nil // those in line come first
	}
	b := a.allocLocked(order(n))
	if b == nil {
		return nil
	}
	return b[:n]
}

// AllocWait is Alloc, but waits in line for memory: first come, first served,
// whatever the sizes.
//
// Errors: ErrTooBig, or the context's error.
func (a *Arena) AllocWait(ctx context.Context, n int) ([]byte, error) {
	if n > len(a.mem) {
		return nil, fmt.Errorf("dma: %d bytes: %w (%d bytes)", n, ErrTooBig, len(a.mem))
	}
	a.mu.Lock()
	if len(a.waiters) == 0 {
		if b := a.allocLocked(order(n)); b != nil {
			a.mu.Unlock()
			return b[:n], nil
		}
	}
	w := &waiter{order: order(n), ready: make(chan []byte, 1)}
	a.waiters = append(a.waiters, w)
	a.mu.Unlock()
	select {
	case b := <-w.ready:
		return b[:n], nil
	case <-ctx.Done():
	}
	a.mu.Lock()
	for i := range a.waiters {
		if a.waiters[i] == w {
			a.waiters = slices.Delete(a.waiters, i, i+1)
			break
		}
	}
	a.grantLocked() // whoever stood behind w may fit
	a.mu.Unlock()
	select {
	case b := <-w.ready: // granted before it could leave the line
		a.Free(b)
	default:
	}
	return nil, ctx.Err()
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
	a.inUseBytes -= MinBlockBytes << o
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

// +checklocks:a.mu
func (a *Arena) grantLocked() {
	for len(a.waiters) > 0 {
		b := a.allocLocked(a.waiters[0].order)
		if b == nil {
			return
		}
		a.waiters[0].ready <- b
		a.waiters = slices.Delete(a.waiters, 0, 1)
	}
}

// +checklocks:a.mu
func (a *Arena) allocLocked(want int) []byte {
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
	n := MinBlockBytes << want
	a.inUseBytes += n
	a.peakBytes = max(a.peakBytes, a.inUseBytes)
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
}

// Stats returns how much of the arena is in use.
func (a *Arena) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	return Stats{SizeBytes: len(a.mem), InUseBytes: a.inUseBytes, PeakBytes: a.peakBytes, Waiters: len(a.waiters)}
}

// Close unmaps the arena. No block may be in use.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inUseBytes != 0 {
		return fmt.Errorf("dma: close arena with %d bytes in use", a.inUseBytes)
	}
	mem := a.mem
	a.mem = nil
	return unmapMemory(mem)
}
