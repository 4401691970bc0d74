package port

import (
	"math/bits"
	"sync"

	"github.com/vhbad/vhbad/internal/dma"
)

// An extensionPool cuts SRB extensions, which are much smaller than a block of
// the arena, out of arena blocks. SRBs are long-lived, so a block is given back
// only when all its pieces are.
type extensionPool struct {
	arena *dma.Arena

	mu sync.Mutex
	// +checklocks:mu
	free map[int][][]byte // by size class
	// +checklocks:mu
	blocks map[*byte]*extensionBlock // by first byte of each piece
}

type extensionBlock struct {
	memory []byte
	pieces int
	inUse  int
}

// extensionBlockBytes is what the pool takes from the arena at once: large enough that
// little is left over when it is cut.
const extensionBlockBytes = 64 << 10

// extensionAlign keeps extensions on cache lines of their own.
const extensionAlign = 64

func extensionClass(n int) int { return (n + extensionAlign - 1) &^ (extensionAlign - 1) }

// alloc returns n bytes of arena memory, or nil if the arena is exhausted.
func (x *extensionPool) alloc(n int) []byte {
	class := extensionClass(n)
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.free[class]) == 0 && !x.growLocked(class) {
		return nil
	}
	list := x.free[class]
	b := list[len(list)-1]
	x.free[class] = list[:len(list)-1]
	x.blocks[&b[0]].inUse++
	return b[:n]
}

// growLocked adds one arena block to a class.
//
// +checklocks:x.mu
func (x *extensionPool) growLocked(class int) bool {
	memory := x.arena.Alloc(max(extensionBlockBytes, class))
	if memory == nil {
		memory = x.arena.Alloc(class)
	}
	if memory == nil {
		return false
	}
	if x.free == nil {
		x.free, x.blocks = map[int][][]byte{}, map[*byte]*extensionBlock{}
	}
	memory = memory[:cap(memory)]
	block := &extensionBlock{memory: memory, pieces: len(memory) / class}
	// In an order without steps of one length: a processor that sees two or three of those
	// fetches further ones ahead, which are another's.
	width := bits.Len(uint(block.pieces - 1))
	for n := range uint64(1) << width {
		i := int(bits.Reverse64(n) >> (64 - width))
		if i >= block.pieces {
			continue
		}
		piece := memory[i*class : (i+1)*class : (i+1)*class]
		x.free[class] = append(x.free[class], piece)
		x.blocks[&piece[0]] = block
	}
	return true
}

// release takes back what alloc gave.
func (x *extensionPool) release(b []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b = b[:cap(b)]
	class := len(b)
	block := x.blocks[&b[0]]
	x.free[class] = append(x.free[class], b)
	block.inUse--
	if block.inUse > 0 {
		return
	}
	kept := x.free[class][:0]
	for _, piece := range x.free[class] {
		if x.blocks[&piece[0]] == block {
			delete(x.blocks, &piece[0])
		} else {
			kept = append(kept, piece)
		}
	}
	clear(x.free[class][len(kept):])
	x.free[class] = kept
	x.arena.Free(block.memory)
}
