package media

import "fmt"

// extentScanCells bounds how many chunks, or leaves without any, ExtentAt looks
// at in one call: it runs where waiting is not allowed.
const extentScanCells = 1 << 14

// Discard implements Discarder. It is exact: the whole range reads as zeros.
func (m *Memory) Discard(off, n int64) error { return m.Zero(off, n, false) }

// Zero implements Zeroer. Without allocate its time is in proportion to the
// chunks that the range holds, not to its length.
//
// Errors: ErrNoSpace if allocate needs more than the limit leaves.
func (m *Memory) Zero(off, n int64, allocate bool) error {
	m.lifeMu.RLock()
	defer m.lifeMu.RUnlock()
	if !inside(off, n, m.size.Load()) {
		return m.refuse("zero", off, n)
	}
	if !allocate {
		m.hole(off, n)
		return nil
	}
	if missing := m.missingChunks(off, n); !m.pool.room(missing) {
		return &Error{
			Op: "zero", Name: m.name, OffsetBytes: off, LengthBytes: n, Kind: ErrNoSpace,
			Err: fmt.Errorf("%d bytes more than the limit of %d bytes leaves", missing*chunkBytes, m.pool.limit*chunkBytes),
		}
	}
	for end := off + n; off < end; {
		i, at := off>>chunkShift, int(off&(chunkBytes-1))
		k := int(min(end-off, int64(chunkBytes-at)))
		if err := m.zeroChunk(i, at, k, off); err != nil {
			return err
		}
		off += int64(k)
	}
	return nil
}

// ZeroIsFast implements FastZeroer: an existing chunk is cleared only where it was
// written; others are taken as they come, and their pages only marked.
func (m *Memory) ZeroIsFast() bool { return true }

// missingChunks is how many chunks of the range do not exist.
func (m *Memory) missingChunks(off, n int64) int64 {
	if n == 0 {
		return 0
	}
	first, last := off>>chunkShift, (off+n-1)>>chunkShift
	missing := last - first + 1
	root := *m.root.Load()
	for i := first; i <= last; i++ {
		if i/chunksPerLeaf >= int64(len(root)) {
			break
		}
		l := root[i/chunksPerLeaf].Load()
		if l == nil || l.used.Load() == 0 {
			i |= chunksPerLeaf - 1
			continue
		}
		if l.cells[i%chunksPerLeaf].chunk.Load() != nil {
			missing--
		}
	}
	return missing
}

// zeroChunk zeroes n bytes at offset at of chunk i, which then exists.
func (m *Memory) zeroChunk(i int64, at, n int, off int64) error {
	s := &m.stripes[i%memoryStripes]
	s.Lock()
	defer s.Unlock()
	if !inside(off, int64(n), m.size.Load()) {
		return m.refuse("zero", off, int64(n))
	}
	l := m.leafOf(i)
	c := &l.cells[i%chunksPerLeaf]
	ch, err := m.chunkLocked(l, c)
	if ch == nil { // as in writeChunkLocked
		return &Error{Op: "zero", Name: m.name, OffsetBytes: off, LengthBytes: int64(n), Kind: ErrNoSpace, Err: err}
	}
	// Stale pages stay stale, and pages that were not written become so: their memory is
	// untouched.
	written := c.pages.Load()
	clearPages(ch[at:at+n], written&^c.stale, at)
	c.stale |= pagesTouched(at, n) &^ written
	c.pages.Store(written | pagesTouched(at, n))
	return nil
}

// hole zeroes n bytes from off, which the caller has checked, and releases the
// chunks that this empties. The caller keeps Close out, by lifeMu or resizeMu.
func (m *Memory) hole(off, n int64) {
	var emptied emptiedChunks
	root := *m.root.Load()
	for end := off + n; off < end; {
		leafEnd := min(end, off|(leafBytes-1)+1)
		if off>>leafShift >= int64(len(root)) {
			break // closed meanwhile
		}
		l := root[off>>leafShift].Load()
		if l == nil || l.used.Load() == 0 {
			off = leafEnd
			continue
		}
		for off < leafEnd {
			i, at := off>>chunkShift, int(off&(chunkBytes-1))
			k := int(min(leafEnd-off, int64(chunkBytes-at)))
			// A chunk that does not exist now reads as zeros now, which is when this
			// call took effect for it.
			if l.cells[i%chunksPerLeaf].chunk.Load() != nil {
				m.holeChunk(l, i, at, k, &emptied)
			}
			off += int64(k)
		}
	}
	m.pool.release(&emptied.free)
	m.pool.replace(&emptied.lent)
}

// emptiedChunks are what hole has taken out of the medium and not yet given to the pool.
type emptiedChunks struct {
	free releaseBatch // nobody else can reach these
	lent releaseBatch // but these by references to their pages
}

// holeChunk zeroes n bytes at offset at of chunk i, which is in l, if it exists. A chunk
// that this empties is added to emptied.
func (m *Memory) holeChunk(l *leaf, i int64, at, n int, emptied *emptiedChunks) {
	c := &l.cells[i%chunksPerLeaf]
	s := &m.stripes[i%memoryStripes]
	s.Lock()
	ch := c.chunk.Load()
	if ch == nil || m.size.Load() < 0 {
		s.Unlock()
		return
	}
	whole := pagesTouched(at, n)
	if at&(pageBytes-1) != 0 {
		whole &^= 1 << (at >> pageShift)
	}
	if end := at + n; end&(pageBytes-1) != 0 {
		whole &^= 1 << (end >> pageShift)
	}
	written := c.pages.Load()
	left := written &^ whole
	if left != 0 {
		clearPages(ch[at:at+n], left&^c.stale, at)
		c.stale |= written & whole
		c.pages.Store(left)
		s.Unlock()
		return
	}
	c.pages.Store(0)
	c.chunk.Store(nil)
	l.used.Add(-1)
	wasLent := l.takeBack(int(i % chunksPerLeaf))
	s.Unlock()
	if wasLent {
		if emptied.lent.add(ch) {
			m.pool.replace(&emptied.lent)
		}
		return
	}
	if emptied.free.add(ch) {
		m.pool.release(&emptied.free)
	}
}

// ExtentAt implements ExtentLister, exactly to pages of 4 KiB.
func (m *Memory) ExtentAt(off int64) (Extent, error) {
	size := m.size.Load()
	if size < 0 || off < 0 || off >= size {
		return Extent{}, m.refuse("extent", off, 0)
	}
	data := m.pageWritten(off)
	end := off&^(pageBytes-1) + pageBytes
	root := *m.root.Load()
	for scanned := 0; end < size && scanned < extentScanCells; scanned++ {
		if end>>leafShift >= int64(len(root)) {
			break
		}
		l := root[end>>leafShift].Load()
		if l == nil || l.used.Load() == 0 {
			if data {
				break
			}
			end = end&^(leafBytes-1) + leafBytes
			continue
		}
		c := &l.cells[end>>chunkShift%chunksPerLeaf]
		pages := c.pages.Load()
		if !data {
			pages = ^pages
		}
		first := int(end & (chunkBytes - 1) >> pageShift)
		run := 0
		for first+run < pagesPerChunk && pages>>(first+run)&1 != 0 {
			run++
		}
		end += int64(run) << pageShift
		if first+run < pagesPerChunk {
			break
		}
	}
	return Extent{OffsetBytes: off, LengthBytes: min(end, size) - off, Data: data}, nil
}

func (m *Memory) pageWritten(off int64) bool {
	root := *m.root.Load()
	if off>>leafShift >= int64(len(root)) {
		return false
	}
	l := root[off>>leafShift].Load()
	return l != nil && l.cells[off>>chunkShift%chunksPerLeaf].pages.Load()>>(off&(chunkBytes-1)>>pageShift)&1 != 0
}
