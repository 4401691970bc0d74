package media

import (
	"os"

	"github.com/vhbad/vhbad/internal/dma"
)

// smallPages says that the system's page size is ours: a pipe has one slot for each
// page, not for each 4 KiB.
var smallPages = os.Getpagesize() == pageBytes

// ReferAt implements Referrer. A chunk that was lent is not kept warm when it is
// released: holders of references keep its pages, and the chunk gets others.
//
// Blocks may be seen half written through references, as by any slow reader.
func (m *Memory) ReferAt(to dma.Pages, n int, off int64, _ bool) bool {
	if !slabsLendable || !smallPages || to.Expired() || n < 1 || off&(pageBytes-1)+int64(n) > dma.PipeMostBytes || !m.lendable(off, n) {
		return false
	}
	pipe, ok := to.Begin()
	if !ok {
		return false
	}
	for n > 0 {
		k := min(n, chunkBytes-int(off&(chunkBytes-1)))
		if !m.lendChunk(pipe, off, k) {
			return to.End(false) // somebody has made a hole meanwhile
		}
		off += int64(k)
		n -= k
	}
	return to.End(true)
}

// lendable reports whether all of the n bytes from off are in chunks exactly as they
// read. The answer may be out of date when it arrives.
func (m *Memory) lendable(off int64, n int) bool {
	if !inside(off, int64(n), m.size.Load()) {
		return false
	}
	for n > 0 {
		i, at := off>>chunkShift, int(off&(chunkBytes-1))
		k := min(n, chunkBytes-at)
		s := &m.stripes[i%memoryStripes]
		s.RLock()
		_, _, ok := m.lendableLocked(i, at, k)
		s.RUnlock()
		if !ok {
			return false
		}
		off += int64(k)
		n -= k
	}
	return true
}

// lendableLocked returns chunk i and its leaf, if its n bytes from at are as they read.
//
// +checklocksignore: one of many stripes, chosen at run time.
func (m *Memory) lendableLocked(i int64, at, n int) (l *leaf, ch *chunk, ok bool) {
	if !inside(i<<chunkShift+int64(at), int64(n), m.size.Load()) {
		return nil, nil, false
	}
	root := *m.root.Load()
	if l = root[i/chunksPerLeaf].Load(); l == nil {
		return nil, nil, false
	}
	c := &l.cells[i%chunksPerLeaf]
	ch = c.chunk.Load()
	return l, ch, ch != nil && c.stale&pagesTouched(at, n) == 0
}

// lendChunk has a pipe refer to the n bytes from off, which are of one chunk.
func (m *Memory) lendChunk(pipe int, off int64, n int) bool {
	i, at := off>>chunkShift, int(off&(chunkBytes-1))
	s := &m.stripes[i%memoryStripes]
	s.RLock()
	defer s.RUnlock()
	l, ch, ok := m.lendableLocked(i, at, n)
	if !ok {
		return false
	}
	l.lend(int(i % chunksPerLeaf))
	return vmspliceAll(pipe, ch[at:at+n])
}

// lend notes that pages of a chunk were lent.
//
// Concurrency: with the chunk's stripe held.
func (l *leaf) lend(i int) {
	word, bit := &l.lent[i/32], uint32(1)<<(i%32)
	if word.Load()&bit == 0 {
		word.Or(bit)
	}
}

// takeBack reports whether pages of a chunk were lent; the chunk then counts as new.
//
// Concurrency: with the chunk's stripe held for exclusive use.
func (l *leaf) takeBack(i int) bool {
	word, bit := &l.lent[i/32], uint32(1)<<(i%32)
	if word.Load()&bit == 0 {
		return false
	}
	word.And(^bit)
	return true
}
