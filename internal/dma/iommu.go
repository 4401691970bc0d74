package dma

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// An Addr is an address as a device sees it; see the package comment for its
// layout. Adding n to an Addr moves it n bytes on inside its mapping. The zero
// Addr is never valid.
type Addr uint64

// Access is what a device may do with mapped memory.
type Access uint8

const (
	// Read lets the device read: data going out to the medium.
	Read Access = 1 << iota
	// Write lets the device write: data coming in from the medium.
	Write
)

// A Window is one slot of an IOMMU. It holds one mapping at a time.
type Window uint16

const (
	windowShift     = 48
	generationShift = 32

	extentLenBits  = 27
	extentBaseBits = 64 - extentLenBits
	// MaxMapBytes is the longest mapping.
	MaxMapBytes = 1<<extentLenBits - 1

	// A window's state is generation<<8 | access; no access means unmapped.
	stateGenerationShift = 8
	stateAccessMask      = 1<<stateGenerationShift - 1

	// Windows is the number of windows of an IOMMU. Window 0 is never handed
	// out, so that the zero Addr always faults.
	Windows = 1 << 16
)

// ErrNoWindow means that every window is taken.
var ErrNoWindow = errors.New("dma: no free IOMMU window")

// A Fault is an access outside a live mapping.
type Fault struct {
	Addr   Addr
	Bytes  int
	Access Access
	Reason string // what was wrong with it
}

func (f Fault) String() string {
	return fmt.Sprintf("DMA fault: %s %d bytes at %#x (window %d, generation %d, offset %d): %s",
		f.Access, f.Bytes, uint64(f.Addr), f.Addr.window(), f.Addr.generation(), f.Addr.offset(), f.Reason)
}

func (a Access) String() string {
	switch a {
	case Read:
		return "read"
	case Write:
		return "write"
	case Read | Write:
		return "read+write"
	}
	return "no access"
}

func (a Addr) window() Window     { return Window(a >> windowShift) }
func (a Addr) generation() uint16 { return uint16(a >> generationShift) }
func (a Addr) offset() uint32     { return uint32(a) }

// window is one mapping. Its words are atomics because a device may look up a
// stale Addr at any time; Map stores extent before state, and Translate loads
// state on both sides of extent.
type window struct {
	state  atomic.Uint64
	extent atomic.Uint64 // base<<extentLenBits | length
}

// An IOMMU is the table of mappings through which a device reaches an Arena.
type IOMMU struct {
	arena   *Arena
	windows []window
	// using is set while Use uses memory, with useMu held, which an Unmap then waits for.
	using atomic.Bool

	faults  atomic.Uint64
	onFault atomic.Pointer[func(Fault)]

	useMu sync.Mutex

	mu sync.Mutex
	// reserved has one bit for each window: handed out. A word is a block of
	// windows.
	// +checklocks:mu
	reserved []uint64
	// +checklocks:mu
	inUse int
	// common is for windows of no group.
	// +checklocks:mu
	common WindowGroup
}

// blockWindows is how many windows a group gets at a time: 1 KiB of the table. Few
// groups fill one, so that hardly any two have neighbours.
const blockWindows = 64

// A WindowGroup is the windows that one processor uses. As far as there are enough
// windows, those of a group lie together, and apart from those of other groups:
// processors prefetch memory, and fetching what another one is writing to is slow for
// both. The zero value is a new group.
//
// Concurrency: any goroutine; the IOMMU guards it.
type WindowGroup struct {
	block int // the latest block, counted from 1; 0: none
}

// NewIOMMU returns an IOMMU over a without mappings.
func NewIOMMU(a *Arena) *IOMMU {
	m := &IOMMU{arena: a, windows: make([]window, Windows), reserved: make([]uint64, Windows/blockWindows), common: WindowGroup{1}}
	m.reserved[0] = 1 // window 0
	return m
}

// Arena is the memory behind the IOMMU.
func (m *IOMMU) Arena() *Arena { return m.arena }

// OnFault sets a function that is told of every fault, on the goroutine that
// caused it. It must not call back into the IOMMU.
func (m *IOMMU) OnFault(fn func(Fault)) { m.onFault.Store(&fn) }

// Faults is the number of faults so far.
func (m *IOMMU) Faults() uint64 { return m.faults.Load() }

// NewWindow reserves a window of group g, or of none if g is nil. It is meant for
// set-up, not for each request.
//
// Errors: ErrNoWindow.
func (m *IOMMU) NewWindow(g *WindowGroup) (Window, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g == nil {
		g = &m.common
	}
	if !m.findLocked(g) {
		return 0, ErrNoWindow
	}
	word := &m.reserved[g.block-1]
	bit := bits.TrailingZeros64(^*word)
	*word |= 1 << bit
	m.inUse++
	return Window((g.block-1)*blockWindows + bit), nil
}

// findLocked makes g's block one that has a free window: the present one if possible,
// else an empty one, else any.
//
// +checklocks:m.mu
func (m *IOMMU) findLocked(g *WindowGroup) bool {
	const full = math.MaxUint64
	if g.block != 0 && m.reserved[g.block-1] != full {
		return true
	}
	i := slices.Index(m.reserved, 0)
	if i < 0 {
		i = slices.IndexFunc(m.reserved, func(word uint64) bool { return word != full })
	}
	g.block = i + 1
	return i >= 0
}

// FreeWindow gives back an unmapped window. Its generation lives on, so that addresses
// from the old owner's mappings fault even when the window has a new owner.
func (m *IOMMU) FreeWindow(w Window) {
	if m.windows[w].state.Load()&stateAccessMask != 0 {
		panic(fmt.Sprintf("dma: window %d freed while mapped", w))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reserved[w/blockWindows]&(1<<(w%blockWindows)) == 0 {
		panic(fmt.Sprintf("dma: window %d freed but not reserved", w))
	}
	m.reserved[w/blockWindows] &^= 1 << (w % blockWindows)
	m.inUse--
}

// WindowsInUse is the number of windows reserved.
func (m *IOMMU) WindowsInUse() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inUse
}

// Map makes b, memory of the arena, reachable through w with a new generation,
// and returns the address of its first byte.
//
// Concurrency: w must be unmapped and its owner makes one call at a time.
func (m *IOMMU) Map(w Window, b []byte, access Access) Addr {
	if w == 0 || access == 0 || access&^(Read|Write) != 0 {
		panic(fmt.Sprintf("dma: map of window %d for access %#x", w, uint8(access)))
	}
	base := m.arena.offset(b)
	if base < 0 || base+len(b) > len(m.arena.mem) || len(b) == 0 || len(b) > MaxMapBytes {
		panic(fmt.Sprintf("dma: map of %d bytes at arena offset %d: not 1 to %d bytes of this arena", len(b), base, MaxMapBytes))
	}
	e := &m.windows[w]
	old := e.state.Load()
	if old&stateAccessMask != 0 {
		panic(fmt.Sprintf("dma: window %d mapped twice", w))
	}
	generation := uint16(old>>stateGenerationShift) + 1
	e.extent.Store(uint64(base)<<extentLenBits | uint64(len(b)))
	e.state.Store(uint64(generation)<<stateGenerationShift | uint64(access))
	return Addr(w)<<windowShift | Addr(generation)<<generationShift
}

// Unmap ends w's mapping: its addresses fault from now on. It waits for a Use that is
// under way, which may be of the mapping. Unmapping an unmapped window does nothing.
func (m *IOMMU) Unmap(w Window) {
	e := &m.windows[w]
	if old := e.state.Load(); old&stateAccessMask != 0 {
		e.state.Store(old &^ stateAccessMask)
		if m.using.Load() { // else a Use that begins now finds no mapping
			m.awaitUse()
		}
	}
}

// awaitUse waits until the present Use is over.
func (m *IOMMU) awaitUse() {
	m.useMu.Lock()
	defer m.useMu.Unlock()
}

// Translate returns the n bytes at addr if they lie inside one live mapping
// that allows access. If not it counts a fault and reports false.
//
// The memory may be unmapped while the caller uses it: a device that blocks
// between Translate and its last touch asks Live afterwards.
func (m *IOMMU) Translate(addr Addr, n int, access Access) ([]byte, bool) {
	e := &m.windows[addr.window()]
	state := e.state.Load()
	extent := e.extent.Load()
	if e.state.Load() != state || !addr.isIn(state) {
		m.fault(addr, n, access, "no live mapping")
		return nil, false
	}
	if Access(state)&access != access {
		reason := "mapped for read only"
		if Access(state)&Write != 0 {
			reason = "mapped for write only"
		}
		m.fault(addr, n, access, reason)
		return nil, false
	}
	length := int(extent & MaxMapBytes)
	off := int(addr.offset())
	if n < 0 || off > length || n > length-off {
		m.fault(addr, n, access, "beyond the mapping's end")
		return nil, false
	}
	start := int(extent>>extentLenBits) + off
	return m.arena.mem[start : start+n : start+n], true
}

// Live reports whether addr still lies in a live mapping, and counts a fault if
// not: the device touched memory that was no longer its own.
func (m *IOMMU) Live(addr Addr, n int, access Access) bool {
	if m.isMapped(addr) {
		return true
	}
	m.fault(addr, n, access, "unmapped during the transfer")
	return false
}

// Use calls use with the n bytes at addr, if Translate finds them. Unmap, of any window,
// waits until use returns, which is to be soon: this is for a device whose driver does not
// wait for it.
//
// Concurrency: any goroutine, one use at a time. use must not call Use or Unmap.
func (m *IOMMU) Use(addr Addr, n int, access Access, use func(b []byte)) bool {
	m.useMu.Lock()
	defer m.useMu.Unlock()
	m.using.Store(true) // before the mapping is looked up
	defer m.using.Store(false)
	b, ok := m.Translate(addr, n, access)
	if ok {
		use(b)
	}
	return ok
}

// isMapped is Live without counting a fault.
func (m *IOMMU) isMapped(addr Addr) bool {
	return addr.isIn(m.windows[addr.window()].state.Load())
}

// isIn reports whether a window's state is that of the mapping that a is an address of.
func (a Addr) isIn(state uint64) bool {
	return uint16(state>>stateGenerationShift) == a.generation() && state&stateAccessMask != 0
}

func (m *IOMMU) fault(addr Addr, n int, access Access, reason string) {
	m.faults.Add(1)
	if fn := m.onFault.Load(); fn != nil {
		(*fn)(Fault{Addr: addr, Bytes: n, Access: access, Reason: reason})
	}
}
