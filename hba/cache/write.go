package cache

import (
	"bytes"
	"errors"
	"slices"
	"sync"

	"github.com/vhbad/vhbad/hba/media"
)

// spontaneousMask: EvictRandom makes one in eight writes make another durable.
const spontaneousMask = 7

// A change is a call that changes whole sectors.
type change struct {
	kind Kind
	p    []byte // of KindWrite
	off  int64
	n    int64
	fua  bool
	// lie: FUA is ignored. It is set once, for the whole call.
	lie bool
	// losses is how many losses the medium had reported when the call came: see syncFor.
	losses uint64
	// id is its number, once it has one; with several parts, that of the last part.
	id uint64
	// part: it is one part of several, of a call that began in life.
	part bool
	life uint64
}

func (x *change) op() string { return x.kind.String() }

// durable reports whether x must be durable when it is done.
func (x *change) durable() bool { return x.fua && !x.lie }

// lives reports whether the call that x belongs to began in this life.
func (x *change) lives(life uint64) bool { return !x.part || x.life == life }

// WriteAt implements media.Media.
func (c *Cache) WriteAt(p []byte, off int64) (int, error) {
	_, err := c.enter(&change{kind: KindWrite, p: p, off: off, n: int64(len(p))}, true)
	return written(p, off, err), err
}

// WriteAtFUA implements media.FUAWriter.
func (c *Cache) WriteAtFUA(p []byte, off int64) (int, error) {
	_, err := c.enter(&change{kind: KindWrite, p: p, off: off, n: int64(len(p)), fua: true, lie: c.ignoreFUA.Load()}, true)
	return written(p, off, err), err
}

// maxTryBytes is the longest write where waiting is not allowed: each sector takes time,
// and others wait meanwhile.
const maxTryBytes = 256 << 10

// TryWriteAt implements media.NonBlockingWriter: it writes if p is not long, there
// is room and nothing has to become durable first.
func (c *Cache) TryWriteAt(p []byte, off int64) (bool, error) {
	if len(p) > maxTryBytes {
		return false, nil
	}
	return c.enter(&change{kind: KindWrite, p: p, off: off, n: int64(len(p))}, false)
}

// Discard implements media.Discarder.
func (c *Cache) Discard(off, n int64) error {
	_, err := c.enter(&change{kind: KindTrim, off: off, n: n}, true)
	return err
}

// Zero implements media.Zeroer.
func (c *Cache) Zero(off, n int64, allocate bool) error {
	x := &change{kind: KindZero, off: off, n: n}
	if allocate {
		x.kind = KindAllocate
	}
	_, err := c.enter(x, true)
	return err
}

// written returns how much of p is done if writing it at off returned err.
func written(p []byte, off int64, err error) int {
	if err == nil {
		return len(p)
	}
	var where *media.Error
	if errors.As(err, &where) && where.OffsetBytes >= off && where.OffsetBytes <= off+int64(len(p)) {
		return int(where.OffsetBytes - off)
	}
	return 0
}

// enter is change with entry into the ledger.
func (c *Cache) enter(x *change, mayBlock bool) (done bool, err error) {
	if !mayBlock && c.wouldBlock(x) {
		return false, nil // before computing what the next attempt computes again
	}
	room, ok := c.admit(x.kind, x.n, mayBlock)
	if !ok {
		return false, nil
	}
	x.losses = c.losses.Load()
	off, n := x.off, x.n
	ticket := c.arrives(x.kind, x.p, off, n)
	done, err = c.change(x, mayBlock)
	lied := c.told(room, x, err != nil)
	c.answer(ticket, off, n, answer{write: x.id, nothing: !done, failed: err != nil, durable: x.durable(), lied: lied})
	return done, err
}

// answer enters what the caller is told of a change of n bytes at off. A change that was
// done but has no ticket came before its sectors existed: the disk has grown since.
func (c *Cache) answer(ticket uint64, off, n int64, a answer) {
	if ticket == 0 && a.write != 0 {
		first := off >> c.shift
		ticket = c.ledger.arrive(entryUnknown, first, (off+n-1)>>c.shift+1-first, nil)
	}
	c.ledger.answer(ticket, a)
}

// arrives enters a change into the ledger, if its sectors exist.
func (c *Cache) arrives(kind Kind, p []byte, off, n int64) (ticket uint64) {
	if size := c.inner.Size(); n <= 0 || off < 0 || off > size || n > size-off {
		return 0
	}
	first, count := off>>c.shift, n>>c.shift
	switch mask := int64(1)<<c.shift - 1; {
	case (off|n)&mask != 0: // parts of sectors; the rest of those is not known here
		return c.ledger.arrive(entryUnknown, first, (off+n+mask)>>c.shift-first, nil)
	case kind != KindWrite && n > longBytes:
		return c.ledger.arrive(entryZeros, first, count, nil)
	case kind != KindWrite:
		return c.ledger.arrive(entrySums, first, count, c.zeroSums[:count])
	case n > ledgerBytes/4:
		return c.ledger.arrive(entryUnknown, first, count, nil)
	case count <= shortSums:
		var short [shortSums]uint32
		return c.ledger.arrive(entrySums, first, count, appendSums(short[:0], p, c.shift))
	}
	long := summed.Get().(*[]uint32)
	defer summed.Put(long)
	*long = appendSums((*long)[:0], p, c.shift)
	return c.ledger.arrive(entrySums, first, count, *long)
}

// shortSums is how many hashes are kept on the stack.
const shortSums = 64

// summed holds spare buffers of type *[]uint32.
var summed = sync.Pool{New: func() any { return new([]uint32) }}

// appendSums appends the hashes of the sectors of p.
func appendSums(sums []uint32, p []byte, shift uint8) []uint32 {
	for ; len(p) > 0; p = p[1<<shift:] {
		sums = append(sums, sum(p[:1<<shift]))
	}
	return sums
}

// change splits x at sector bounds: a part that does not cover a sector reads its rest.
func (c *Cache) change(x *change, mayBlock bool) (done bool, err error) {
	mask := int64(1)<<c.shift - 1
	if (x.off|x.n)&mask == 0 {
		return c.changeSectors(x, mayBlock)
	}
	if err := c.beginParts(x); err != nil {
		return true, err
	}
	if !mayBlock {
		return false, nil
	}
	for end := x.off + x.n; x.off < end; {
		rest := end - x.off
		part := *x
		if x.off&mask == 0 && rest > mask {
			part.n = rest &^ mask
		} else {
			part.n = min(rest, mask+1-x.off&mask)
		}
		if x.kind == KindWrite {
			part.p, x.p = x.p[:part.n], x.p[part.n:]
		}
		if err = c.changeOne(&part); err != nil {
			return true, err
		}
		x.id = part.id
		x.off += part.n
	}
	return true, nil
}

// beginParts checks x, which is done in parts. They must be of one life, or fail.
func (c *Cache) beginParts(x *change) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	x.part, x.life = true, c.life
	return c.refuseLocked(x.op(), x.off, x.n)
}

// changeOne changes a part of x: whole sectors, or a part of one.
func (c *Cache) changeOne(part *change) (err error) {
	if mask := int64(1)<<c.shift - 1; (part.off|part.n)&mask != 0 {
		return c.changePart(part)
	}
	_, err = c.changeSectors(part, true)
	return err
}

func (c *Cache) check(op string, off, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refuseLocked(op, off, n)
}

// A verdict is what a change has to do next.
type verdict uint8

const (
	verdictInserted  verdict = iota
	verdictEvict             // make room and try again
	verdictThrough           // write to the durable medium
	verdictUnchanged         // nothing: there is nothing to write
)

// changeSectors is change for whole sectors.
func (c *Cache) changeSectors(x *change, mayBlock bool) (done bool, err error) {
	durable := x.durable()
	if durable && !mayBlock {
		return false, nil
	}
	life, v, err := c.insert(x)
	if err != nil || x.n == 0 || v == verdictInserted && !durable {
		return true, err
	}
	if !mayBlock {
		return false, nil
	}
	c.outMu.Lock()
	defer c.outMu.Unlock()
	for v != verdictInserted {
		if v == verdictThrough {
			return true, c.throughOut(x, life)
		}
		err = c.roomOut(life, int(x.n>>c.shift))
		if x.kind != KindWrite && errors.Is(err, media.ErrNoSpace) { // it may release what all others want
			return true, c.throughOut(x, life)
		}
		if err != nil {
			return true, c.outcome(x.op(), x.off, x.n, err)
		}
		// The life is still the same: roomOut has checked it, and a cut needs outMu.
		if _, v, err = c.insert(x); err != nil {
			return true, err
		}
	}
	if !durable {
		return true, nil
	}
	return true, c.outcome(x.op(), x.off, x.n, c.forceOut(x, life))
}

// outcome turns an error of writing out into that of a call.
func (c *Cache) outcome(op string, off, n int64, err error) error {
	if errors.Is(err, errNoPower) {
		return c.powerLost(op, off, n)
	}
	return err
}

// wouldBlock reports whether x, whose range has not been checked yet, cannot be done now
// without waiting.
func (c *Cache) wouldBlock(x *change) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuseLocked(x.op(), x.off, x.n) != nil {
		return false // it fails at once
	}
	return (x.off|x.n)&(int64(1)<<c.shift-1) != 0 || !c.hasRoomLocked(x)
}

// hasRoomLocked reports whether x may become pending and there is room for it now.
//
// +checklocks:c.mu
func (c *Cache) hasRoomLocked(x *change) bool {
	need := x.n >> c.shift
	return c.fits(x.kind, need) && c.store.used+int(need) <= c.room
}

// insert makes x pending if it can.
func (c *Cache) insert(x *change) (life uint64, v verdict, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err = c.refuseLocked(x.op(), x.off, x.n)
	if err == nil && !x.lives(c.life) {
		err = c.powerLost(x.op(), x.off, x.n)
	}
	if err != nil || x.n == 0 {
		return c.life, verdictInserted, err
	}
	need := x.n >> c.shift
	switch {
	case !c.fits(x.kind, need):
		return c.life, verdictThrough, nil
	case c.hasRoomLocked(x):
		c.insertLocked(x)
		return c.life, verdictInserted, nil
	case c.config.Eviction == EvictNone:
		return c.life, verdictThrough, nil
	}
	return c.life, verdictEvict, nil
}

// fits reports whether need sectors may become pending at all. Zeros hold no data, but
// each version costs time to process, and trims of whole disks are common.
func (c *Cache) fits(kind Kind, need int64) bool {
	if kind == KindWrite {
		return need <= int64(c.room)
	}
	return need <= int64(c.room)/4
}

// insertLocked makes x pending; there is room.
//
// +checklocks:c.mu
func (c *Cache) insertLocked(x *change) *write {
	s := &c.store
	c.chooseLocked(int(x.n >> c.shift))
	w := s.newWrite(x.kind, x.off, x.n)
	x.id = w.id
	w.fua, w.acknowledged = x.fua, true
	w.at, w.epoch = c.config.Now(), c.record.flushes
	if x.fua {
		// It is acknowledged when it is durable; a drive that ignores FUA promises
		// durability right away.
		w.acknowledged = x.lie
		if w.acknowledged {
			w.promised = promiseFUA
		}
	}
	tail := none
	sector := x.off >> c.shift
	for i := range x.n >> c.shift {
		tail = s.add(w, sector+i, x.kind, tail)
		if x.kind == KindWrite {
			copy(s.data(tail), x.p[i<<c.shift:])
		}
	}
	if x.durable() { // it leaves as well: see forceOut
		s.leaveAll(w)
	}
	c.draw = c.random.Uint64()
	c.plain.Store(false)
	c.recordWrite(StepWrite, x, w.id)
	return w
}

// changePart changes a part of one sector.
func (c *Cache) changePart(x *change) error {
	return c.update(x.op(), x, func(part []byte) bool {
		if x.kind == KindWrite {
			copy(part, x.p)
		} else {
			clear(part)
		}
		return true
	})
}

// update reads the bytes of y, lets fn change them, and writes them if fn says
// so, with nothing in between.
func (c *Cache) update(op string, y *change, fn func(part []byte) bool) error {
	mask := int64(1)<<c.shift - 1
	from, to := y.off&^mask, (y.off+y.n+mask)&^mask
	x := &change{kind: KindWrite, p: make([]byte, to-from), off: from, n: to - from, fua: y.fua, lie: y.lie, losses: y.losses}
	c.outMu.Lock()
	defer c.outMu.Unlock()
	life, err := c.makeRoomOut(op, y.off, y.n, int(x.n>>c.shift))
	if err == nil && !y.lives(life) {
		err = c.powerLost(op, y.off, y.n)
	}
	if err != nil {
		return err
	}
	// Only the holder of outMu removes anything from the cache or changes the durable
	// medium, so what is read here can only be covered by newer writes.
	if _, _, err := c.read(x.p, x.off, c.inner.ReadAt); err != nil {
		return err
	}
	id, old, v, err := c.updateFrom(op, y, x, fn)
	y.id = id
	switch {
	case err != nil || v == verdictInserted && !x.durable():
		return err
	case v == verdictThrough:
		return c.storeOrUndo(x, y.off, id, old)
	case v == verdictUnchanged:
		return nil
	}
	return c.outcome(op, y.off, y.n, c.forceOut(x, life))
}

// makeRoomOut evicts until the sectors fit, if anything is left to evict. First it
// chooses what becomes durable for them, whether or not there is room, as room depends
// on how far the durable medium has come. After a comparison, the sectors may then not
// come at all.
//
// +checklocks:c.outMu
func (c *Cache) makeRoomOut(op string, off, n int64, sectors int) (life uint64, err error) {
	for chosen := false; ; chosen = true {
		c.mu.Lock()
		err = c.refuseLocked(op, off, n)
		life = c.life
		if err == nil && !chosen {
			c.chooseLocked(sectors)
		}
		enough := c.store.used+sectors <= c.room || c.config.Eviction == EvictNone || c.store.first == nil
		c.mu.Unlock()
		if err != nil || enough {
			return life, err
		}
		if err := c.roomOut(life, sectors); err != nil {
			return life, c.outcome(op, off, n, err)
		}
	}
}

// updateFrom is the part of update that must not be interrupted. x is the sectors around
// y, as they were a moment ago. If there is no room, their new contents get an id and go
// to the durable medium next, in place of the old ones.
//
// +checklocks:c.outMu
func (c *Cache) updateFrom(op string, y, x *change, fn func(part []byte) bool) (id uint64, old []byte, v verdict, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refuseLocked(op, y.off, y.n); err != nil {
		return 0, nil, verdictUnchanged, err
	}
	for i := range x.n >> c.shift {
		if v, pending := c.store.newest(x.off>>c.shift + i); pending {
			c.store.content(x.p[i<<c.shift:], v)
		}
	}
	room := c.store.used+int(x.n>>c.shift) <= c.room
	if !room {
		old = slices.Clone(x.p)
	}
	switch {
	case !fn(x.p[y.off-x.off : y.off-x.off+y.n]):
		return 0, nil, verdictUnchanged, nil
	case room:
		return c.insertLocked(x).id, nil, verdictInserted, nil
	}
	c.record.stats.Evictions[EvictionThrough]++
	return c.store.takeID(), old, verdictThrough, nil
}

// storeOrUndo writes x, the sectors around what changes from off on, to the durable
// medium as write id. If there is space for a part only, that gets its old contents back.
// Of a sector that is pending these are the newest, which may become durable at any time.
//
// +checklocks:c.outMu
func (c *Cache) storeOrUndo(x *change, off int64, id uint64, old []byte) error {
	half, err := c.storeThrough(x, id)
	var where *media.Error
	if done := written(x.p, x.off, err); done > 0 && errors.Is(err, media.ErrNoSpace) && errors.As(err, &where) {
		if _, undo := c.inner.WriteAt(old[:done], x.off); undo == nil {
			where.OffsetBytes, where.LengthBytes = off, x.off+x.n-off
		}
		return err // what is pending undoes it, too
	}
	c.tookThrough(&half, id)
	return err
}

// CompareAndWriteAt implements media.ComparerWriter.
func (c *Cache) CompareAndWriteAt(compare, data []byte, off int64) (mismatch int, err error) {
	if len(compare) != len(data) {
		panic("cache: compare and write of different lengths")
	}
	mismatch = -1
	if len(data) == 0 {
		return mismatch, nil
	}
	if err := c.check("compare and write", off, int64(len(data))); err != nil {
		return mismatch, err
	}
	y := &change{kind: KindWrite, p: data, off: off, n: int64(len(data))}
	room, _ := c.admit(y.kind, y.n, true)
	ticket := c.arrives(y.kind, data, off, y.n)
	err = c.update("compare and write", y, func(part []byte) bool {
		if !bytes.Equal(part, compare) {
			for i := range part {
				if part[i] != compare[i] {
					mismatch = i
					break
				}
			}
			return false
		}
		copy(part, data)
		return true
	})
	c.told(room, y, err != nil)
	c.answer(ticket, off, y.n, answer{write: y.id, nothing: mismatch >= 0, failed: err != nil})
	return mismatch, err
}
