package media

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Sizes within a Memory, in bytes as powers of two.
const (
	pageShift  = 12 // what is told apart as data or hole
	chunkShift = 16 // what is allocated and locked at once
	leafShift  = 28 // what one leaf of the table covers

	pageBytes  = 1 << pageShift
	chunkBytes = 1 << chunkShift
	leafBytes  = 1 << leafShift

	pagesPerChunk = chunkBytes / pageBytes
	chunksPerLeaf = leafBytes / chunkBytes

	memoryStripes = 256
)

// MaxMemoryBytes is the largest Memory. Its table's root then takes 32 MiB.
const MaxMemoryBytes = 1 << 50

// MemoryConfig describes a Memory.
type MemoryConfig struct {
	// Name is used in errors; "memory" if empty.
	Name string
	// SizeBytes is what the medium offers, from 1 to MaxMemoryBytes.
	SizeBytes int64
	// LimitBytes bounds what it really takes, in whole chunks of 64 KiB; writes beyond
	// that fail with ErrNoSpace. Zero means no limit. Pages that were lent and then
	// discarded come on top, until whoever has them has looked at them.
	LimitBytes int64
}

// A Memory is a sparse medium in memory outside the Go heap. Chunks of 64 KiB are taken
// when first written and given back when they hold no written page any more; bytes that
// were never written take nothing and read as zeros. Its size may exceed the machine's
// memory by far.
//
// Up to 64 MiB of what is given back stay for 5 to 10 s to be taken again before they
// return to the operating system: a page that it must hand out anew costs more than the
// write into it. A chunk that stayed is taken whole, with all the memory that it had; of
// any other chunk, only pages that are written take memory.
//
// It never blocks. A block of up to 4 KiB is never seen half written, except through
// pages that were lent, as each chunk is read and written under its stripe's lock. Calls
// on different chunks run side by side, and so do reads of one chunk.
type Memory struct {
	name string
	pool pool

	resizeMu sync.Mutex // held by Resize and Close
	// lifeMu is shared by calls that return chunks to the pool with no stripe held, so
	// that Close unmaps none of those chunks meanwhile.
	lifeMu sync.RWMutex

	// size is in bytes; negative once closed. It is stored by NewMemory and under
	// resizeMu, and checked again under a stripe's lock before memory is touched.
	size atomic.Int64

	// root has one leaf for each leafBytes, nil until something is written there.
	// It is replaced, under tableMu, by a longer copy when the medium grows.
	root    atomic.Pointer[[]atomic.Pointer[leaf]]
	tableMu sync.Mutex // held to add a leaf or replace the root

	// stripes[i] guards the chunks whose number is i modulo memoryStripes.
	stripes [memoryStripes]stripe
}

// A leaf is a part of the table of chunks.
type leaf struct {
	used  atomic.Int32 // cells with a chunk
	cells [chunksPerLeaf]cell
	// lent has a bit for each cell whose chunk has had pages lent; see ReferAt.
	lent [chunksPerLeaf / 32]atomic.Uint32
}

// A cell is where a chunk of the medium is. It changes under the chunk's stripe
// lock; atomics let scans pass over cells without taking it.
type cell struct {
	chunk atomic.Pointer[chunk] // nil: all zeros
	pages atomic.Uint32         // a bit for each page written or allocated since it was last a hole
	// stale has a bit for each page that reads as zeros whatever the chunk contains
	// there, whether the page is a hole or allocated. Other pages that are holes contain
	// zeros.
	stale uint32
}

var (
	_ Media             = (*Memory)(nil)
	_ NonBlockingReader = (*Memory)(nil)
	_ NonBlockingWriter = (*Memory)(nil)
	_ NeverBlocker      = (*Memory)(nil)
	_ Discarder         = (*Memory)(nil)
	_ Zeroer            = (*Memory)(nil)
	_ FastZeroer        = (*Memory)(nil)
	_ ExtentLister      = (*Memory)(nil)
	_ Resizer           = (*Memory)(nil)
	_ ComparerWriter    = (*Memory)(nil)
	_ Referrer          = (*Memory)(nil)
)

// NewMemory returns a medium of zeros.
func NewMemory(c MemoryConfig) (*Memory, error) {
	if c.SizeBytes < 1 || c.SizeBytes > MaxMemoryBytes {
		return nil, fmt.Errorf("media: memory of %d bytes: want 1 to %d", c.SizeBytes, int64(MaxMemoryBytes))
	}
	if c.LimitBytes < 0 || c.LimitBytes > 0 && c.LimitBytes < chunkBytes {
		return nil, fmt.Errorf("media: memory limit of %d bytes: want 0 for none, or at least %d", c.LimitBytes, chunkBytes)
	}
	m := &Memory{name: c.Name}
	if m.name == "" {
		m.name = "memory"
	}
	m.pool.limit = c.LimitBytes / chunkBytes
	m.size.Store(c.SizeBytes)
	root := make([]atomic.Pointer[leaf], leavesFor(c.SizeBytes))
	m.root.Store(&root)
	return m, nil
}

func leavesFor(sizeBytes int64) int64 { return (sizeBytes + leafBytes - 1) >> leafShift }

// Size is the number of bytes.
func (m *Memory) Size() int64 { return max(m.size.Load(), 0) }

// AllocatedBytes is what the chunks in use take.
func (m *Memory) AllocatedBytes() int64 { return m.pool.used.Load() * chunkBytes }

// NeverBlocks is true.
func (m *Memory) NeverBlocks() bool { return true }

// Flush does nothing: there is nowhere more durable to go.
func (m *Memory) Flush() error {
	if m.size.Load() < 0 {
		return m.refuse("flush", 0, 0)
	}
	return nil
}

// refuse is the error for a range that is not inside.
func (m *Memory) refuse(op string, off, n int64) error {
	kind := ErrRange
	if m.size.Load() < 0 {
		kind = ErrClosed
	}
	return &Error{Op: op, Name: m.name, OffsetBytes: off, LengthBytes: n, Kind: kind}
}

// cellAt is the cell of chunk i, or nil if its leaf does not exist yet.
func (m *Memory) cellAt(i int64) *cell {
	root := *m.root.Load()
	if l := root[i/chunksPerLeaf].Load(); l != nil {
		return &l.cells[i%chunksPerLeaf]
	}
	return nil
}

// leafOf is the leaf of chunk i, which it makes if it must.
func (m *Memory) leafOf(i int64) *leaf {
	root := *m.root.Load()
	if l := root[i/chunksPerLeaf].Load(); l != nil {
		return l
	}
	m.tableMu.Lock()
	defer m.tableMu.Unlock()
	root = *m.root.Load()
	l := root[i/chunksPerLeaf].Load()
	if l == nil {
		l = new(leaf)
		root[i/chunksPerLeaf].Store(l)
	}
	return l
}

// ReadAt implements Media.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if !inside(off, int64(len(p)), m.size.Load()) {
		return 0, m.refuse("read", off, int64(len(p)))
	}
	done := 0
	for done < len(p) {
		i, at := off>>chunkShift, int(off&(chunkBytes-1))
		part := p[done:min(len(p), done+chunkBytes-at)]
		s := &m.stripes[i%memoryStripes]
		s.RLock()
		if !inside(off, int64(len(part)), m.size.Load()) {
			s.RUnlock()
			return done, m.refuse("read", off, int64(len(p)-done))
		}
		m.readChunkLocked(part, i, at)
		s.RUnlock()
		done += len(part)
		off += int64(len(part))
	}
	return done, nil
}

// readChunkLocked fills p from chunk i at offset at. The chunk's stripe is held.
//
// +checklocksignore: one of many stripes, chosen at run time.
func (m *Memory) readChunkLocked(p []byte, i int64, at int) {
	if c := m.cellAt(i); c != nil {
		if ch := c.chunk.Load(); ch != nil {
			copy(p, ch[at:])
			if c.stale != 0 {
				clearPages(p, c.stale, at)
			}
			return
		}
	}
	clear(p)
}

// TryReadAt is ReadAt, which never waits.
func (m *Memory) TryReadAt(p []byte, off int64) (bool, error) {
	_, err := m.ReadAt(p, off)
	return true, err
}

// WriteAt implements Media.
//
// Errors: ErrNoSpace if the limit is reached.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	if !inside(off, int64(len(p)), m.size.Load()) {
		return 0, m.refuse("write", off, int64(len(p)))
	}
	done := 0
	for done < len(p) {
		i, at := off>>chunkShift, int(off&(chunkBytes-1))
		part := p[done:min(len(p), done+chunkBytes-at)]
		s := &m.stripes[i%memoryStripes]
		s.Lock()
		if !inside(off, int64(len(part)), m.size.Load()) {
			s.Unlock()
			return done, m.refuse("write", off, int64(len(p)-done))
		}
		err := m.writeChunkLocked(part, i, at)
		s.Unlock()
		if err != nil {
			return done, &Error{
				Op: "write", Name: m.name, OffsetBytes: off, LengthBytes: int64(len(p) - done),
				Kind: ErrNoSpace, Err: err,
			}
		}
		done += len(part)
		off += int64(len(part))
	}
	return done, nil
}

// writeChunkLocked stores p in chunk i at offset at. The chunk's stripe is held
// for exclusive use.
//
// +checklocksignore: one of many stripes, chosen at run time.
func (m *Memory) writeChunkLocked(p []byte, i int64, at int) error {
	l := m.leafOf(i)
	c := &l.cells[i%chunksPerLeaf]
	ch, err := m.chunkLocked(l, c)
	if ch == nil { // not err != nil: for that the compiler would load the chunk's first byte
		return err
	}
	if c.stale != 0 {
		c.refresh(ch, at, len(p))
	}
	copy(ch[at:], p)
	if written := c.pages.Load(); written|pagesTouched(at, len(p)) != written {
		c.pages.Store(written | pagesTouched(at, len(p)))
	}
	return nil
}

// chunkLocked is the chunk of cell c, taken from the pool if there is none. The
// chunk's stripe is held for exclusive use.
//
// +checklocksignore: one of many stripes, chosen at run time.
func (m *Memory) chunkLocked(l *leaf, c *cell) (*chunk, error) {
	if ch := c.chunk.Load(); ch != nil {
		return ch, nil
	}
	ch, warm, err := m.pool.take()
	if err != nil {
		return nil, err
	}
	c.stale = 0
	if warm {
		c.stale = pagesTouched(0, chunkBytes)
	}
	c.chunk.Store(ch)
	l.used.Add(1)
	return ch, nil
}

// refresh is called before n bytes are written at offset at of ch, the cell's chunk: the
// rest of their pages becomes zeros if the chunk does not contain zeros there yet. The
// stripe is held for exclusive use.
func (c *cell) refresh(ch *chunk, at, n int) {
	end := at + n
	before, after := at&^(pageBytes-1), (end+pageBytes-1)&^(pageBytes-1)
	clearPages(ch[before:at], c.stale, before)
	clearPages(ch[end:after], c.stale, end)
	c.stale &^= pagesTouched(at, n)
}

// clearPages zeroes those bytes of p that lie on pages of the set, p being at offset at
// of a chunk.
func clearPages(p []byte, pages uint32, at int) {
	for len(p) > 0 {
		k := min(len(p), pageBytes-at&(pageBytes-1))
		if pages>>(at>>pageShift)&1 != 0 {
			clear(p[:k])
		}
		p = p[k:]
		at += k
	}
}

// pagesTouched has the bits of the pages of a chunk that n bytes from at touch.
func pagesTouched(at, n int) uint32 {
	first, last := at>>pageShift, (at+n-1)>>pageShift
	return (uint32(2)<<last - 1) &^ (uint32(1)<<first - 1)
}

// TryWriteAt is WriteAt, which never waits.
func (m *Memory) TryWriteAt(p []byte, off int64) (bool, error) {
	_, err := m.WriteAt(p, off)
	return true, err
}

// CompareAndWriteAt implements ComparerWriter: all chunks of the range are held
// meanwhile.
func (m *Memory) CompareAndWriteAt(compare, data []byte, off int64) (int, error) {
	if len(compare) != len(data) {
		panic(fmt.Sprintf("media: compare %d bytes and write %d", len(compare), len(data)))
	}
	if len(data) == 0 {
		return -1, nil
	}
	first, last := off>>chunkShift, (off+int64(len(data))-1)>>chunkShift
	span := min(last-first+1, memoryStripes)
	m.lockChunks(first, span)
	defer m.unlockChunks(first, span)
	if !inside(off, int64(len(data)), m.size.Load()) {
		return -1, m.refuse("compare and write", off, int64(len(data)))
	}
	var page [pageBytes]byte
	for done := 0; done < len(compare); {
		at := off + int64(done)
		part := page[:min(len(compare)-done, pageBytes-int(at&(pageBytes-1)))]
		m.readChunkLocked(part, at>>chunkShift, int(at&(chunkBytes-1)))
		if i := mismatch(part, compare[done:]); i >= 0 {
			return done + i, nil
		}
		done += len(part)
	}
	if err := m.takeChunksLocked(first, last); err != nil {
		return -1, &Error{
			Op: "compare and write", Name: m.name, OffsetBytes: off, LengthBytes: int64(len(data)), Kind: ErrNoSpace, Err: err,
		}
	}
	for done := 0; done < len(data); {
		at := off + int64(done)
		in := int(at & (chunkBytes - 1))
		part := data[done:min(len(data), done+chunkBytes-in)]
		_ = m.writeChunkLocked(part, at>>chunkShift, in) // it fails only without a chunk
		done += len(part)
	}
	return -1, nil
}

// takeChunksLocked makes all chunks from first to last exist, or adds none of them.
// Their stripes are held for exclusive use.
//
// +checklocksignore: which locks is decided at run time.
func (m *Memory) takeChunksLocked(first, last int64) error {
	for i := first; i <= last; i++ {
		l := m.leafOf(i)
		if ch, err := m.chunkLocked(l, &l.cells[i%chunksPerLeaf]); ch == nil { // as in writeChunkLocked
			m.giveUnwrittenLocked(first, i)
			return err
		}
	}
	return nil
}

// giveUnwrittenLocked gives back the chunks from first to before end in which nothing is
// written. Their stripes are held for exclusive use.
//
// +checklocksignore: which locks is decided at run time.
func (m *Memory) giveUnwrittenLocked(first, end int64) {
	var b releaseBatch
	for i := first; i < end; i++ {
		l := m.leafOf(i)
		c := &l.cells[i%chunksPerLeaf]
		if c.pages.Load() != 0 {
			continue
		}
		ch := c.chunk.Swap(nil)
		l.used.Add(-1)
		if b.add(ch) {
			m.pool.release(&b)
		}
	}
	m.pool.release(&b)
}

// mismatch is the index of the first byte of a that differs from b, which is at
// least as long, or -1.
func mismatch(a, b []byte) int {
	if string(a) == string(b[:len(a)]) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// lockChunks takes the stripes of n chunks from first for exclusive use, in
// ascending order of the stripes.
//
// +checklocksignore: which locks is decided at run time.
func (m *Memory) lockChunks(first, n int64) {
	for s := range int64(memoryStripes) {
		if (s-first)&(memoryStripes-1) < n {
			m.stripes[s].Lock()
		}
	}
}

// unlockChunks gives back what lockChunks took.
//
// +checklocksignore: which locks is decided at run time.
func (m *Memory) unlockChunks(first, n int64) {
	for s := range int64(memoryStripes) {
		if (s-first)&(memoryStripes-1) < n {
			m.stripes[s].Unlock()
		}
	}
}

// Resize implements Resizer.
func (m *Memory) Resize(sizeBytes int64) error {
	m.resizeMu.Lock()
	defer m.resizeMu.Unlock()
	old := m.size.Load()
	if old < 0 {
		return m.refuse("resize", 0, sizeBytes)
	}
	if sizeBytes < 1 || sizeBytes > MaxMemoryBytes {
		return fmt.Errorf("media: resize %s to %d bytes: want 1 to %d", m.name, sizeBytes, int64(MaxMemoryBytes))
	}
	if sizeBytes > old {
		m.growTable(sizeBytes)
		m.size.Store(sizeBytes)
		return nil
	}
	// From here on nobody writes beyond the new end: holders of a stripe are waited for,
	// and whoever takes it later sees the new size. hole alone would not do: it skips
	// chunks that do not exist yet.
	m.size.Store(sizeBytes)
	m.lockChunks(0, memoryStripes)
	m.unlockChunks(0, memoryStripes)
	m.hole(sizeBytes, old-sizeBytes)
	return nil
}

func (m *Memory) growTable(sizeBytes int64) {
	m.tableMu.Lock()
	defer m.tableMu.Unlock()
	old := *m.root.Load()
	n := leavesFor(sizeBytes)
	if n <= int64(len(old)) {
		return
	}
	root := make([]atomic.Pointer[leaf], n)
	for i := range old {
		root[i].Store(old[i].Load())
	}
	m.root.Store(&root)
}

// Close implements Media: it gives all memory back.
func (m *Memory) Close() error {
	m.resizeMu.Lock()
	defer m.resizeMu.Unlock()
	m.lifeMu.Lock()
	defer m.lifeMu.Unlock()
	m.lockChunks(0, memoryStripes)
	defer m.unlockChunks(0, memoryStripes)
	if m.size.Load() < 0 {
		return m.refuse("close", 0, 0)
	}
	m.size.Store(-1)
	var root []atomic.Pointer[leaf]
	m.root.Store(&root)
	return m.pool.close()
}
