package cache

import (
	"bytes"
	"errors"

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
}

func (x *change) op() string { return x.kind.String() }

// WriteAt implements media.Media.
func (c *Cache) WriteAt(p []byte, off int64) (int, error) {
	_, err := c.change(&change{kind: KindWrite, p: p, off: off, n: int64(len(p))}, true)
	return written(p, off, err), err
}

// WriteAtFUA implements media.FUAWriter.
func (c *Cache) WriteAtFUA(p []byte, off int64) (int, error) {
	_, err := c.change(&change{kind: KindWrite, p: p, off: off, n: int64(len(p)), fua: true}, true)
	return written(p, off, err), err
}

// TryWriteAt implements media.NonBlockingWriter: it writes if there is room and
// nothing has to become durable first.
func (c *Cache) TryWriteAt(p []byte, off int64) (bool, error) {
	return c.change(&change{kind: KindWrite, p: p, off: off, n: int64(len(p))}, false)
}

// Discard implements media.Discarder.
func (c *Cache) Discard(off, n int64) error {
	_, err := c.change(&change{kind: KindTrim, off: off, n: n}, true)
	return err
}

// Zero implements media.Zeroer.
func (c *Cache) Zero(off, n int64, allocate bool) error {
	x := &change{kind: KindZero, off: off, n: n}
	if allocate {
		x.kind = KindAllocate
	}
	_, err := c.change(x, true)
	return err
}

// written is how much of p is done if writing it at off gave err.
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

// change splits x at sectors: what covers a part of one reads the rest of it.
func (c *Cache) change(x *change, mayBlock bool) (done bool, err error) {
	mask := int64(1)<<c.shift - 1
	if (x.off|x.n)&mask == 0 {
		return c.changeSectors(x, mayBlock)
	}
	if err := c.check(x.op(), x.off, x.n); err != nil {
		return true, err
	}
	if !mayBlock {
		return false, nil
	}
	for end := x.off + x.n; x.off < end; {
		rest := end - x.off
		part := *x
		whole := x.off&mask == 0 && rest > mask
		if whole {
			part.n = rest &^ mask
		} else {
			part.n = min(rest, mask+1-x.off&mask)
		}
		if x.kind == KindWrite {
			part.p, x.p = x.p[:part.n], x.p[part.n:]
		}
		if whole {
			_, err = c.changeSectors(&part, true)
		} else {
			err = c.changePart(&part)
		}
		if err != nil {
			return true, err
		}
		x.off += part.n
	}
	return true, nil
}

func (c *Cache) check(op string, off, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refuseLocked(op, off, n)
}

// verdict is what a change has to do next.
type verdict uint8

const (
	verdictInserted verdict = iota
	verdictEvict            // make room and come again
	verdictChance           // make another write durable, by chance, and come again
	verdictThrough          // write to the durable medium
)

// changeSectors is change for whole sectors.
func (c *Cache) changeSectors(x *change, mayBlock bool) (done bool, err error) {
	durable := x.fua && !c.ignoreFUA.Load()
	if durable && !mayBlock {
		return false, nil
	}
	life, id, v, err := c.insert(x, true)
	if err != nil || x.n == 0 || v == verdictInserted && !durable {
		return true, err
	}
	if !mayBlock {
		return false, nil
	}
	c.outMu.Lock()
	defer c.outMu.Unlock()
	for v != verdictInserted {
		var now uint64
		switch v {
		case verdictThrough:
			return true, c.throughOut(x, life)
		case verdictEvict:
			err = c.evictOut(life, EvictionRoom)
		case verdictChance:
			err = c.evictOut(life, EvictionChance)
		case verdictInserted:
		}
		if err != nil {
			return true, c.outcome(x.op(), x.off, x.n, err)
		}
		if now, id, v, err = c.insert(x, false); err != nil {
			return true, err
		}
		if now != life {
			return true, c.powerLost(x.op(), x.off, x.n)
		}
	}
	if !durable {
		return true, nil
	}
	return true, c.outcome(x.op(), x.off, x.n, c.forceOut(id, life, x.n>>c.shift))
}

// outcome turns the error of writing out into that of a call.
func (c *Cache) outcome(op string, off, n int64, err error) error {
	if errors.Is(err, errNoPower) {
		return c.powerLost(op, off, n)
	}
	return err
}

// insert makes x pending if it can. chance lets it evict by chance first.
func (c *Cache) insert(x *change, chance bool) (life, id uint64, v verdict, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refuseLocked(x.op(), x.off, x.n); err != nil || x.n == 0 {
		return c.life, 0, verdictInserted, err
	}
	need := x.n >> c.shift
	switch {
	case !c.fits(x.kind, need):
		return c.life, 0, verdictThrough, nil
	case chance && c.config.Eviction == EvictRandom && c.draw&spontaneousMask == 0 && c.store.first != nil:
		return c.life, 0, verdictChance, nil
	case c.store.used+int(need) <= c.room:
		return c.life, c.insertLocked(x).id, verdictInserted, nil
	case c.config.Eviction == EvictNone:
		return c.life, 0, verdictThrough, nil
	}
	return c.life, 0, verdictEvict, nil
}

// fits reports whether need sectors may become pending at all. Zeros hold no
// data, but each version costs time to go through, and trims of whole disks are
// common.
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
	w := s.newWrite(x.kind, x.off, x.n)
	w.fua, w.acknowledged = x.fua, true
	w.at, w.epoch = c.config.Now(), c.record.flushes
	if x.fua {
		// It is acknowledged when it is durable; a drive that ignores FUA promises
		// right away.
		w.acknowledged = c.ignoreFUA.Load()
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
	c.draw = c.random.Uint64()
	c.plain.Store(false)
	return w
}

// changePart changes a part of one sector.
func (c *Cache) changePart(x *change) error {
	return c.update(x.op(), x.off, x.n, x.fua, func(part []byte) bool {
		if x.kind == KindWrite {
			copy(part, x.p)
		} else {
			clear(part)
		}
		return true
	})
}

// update reads n bytes from off, lets fn change them, and writes them if fn says
// so, with nothing in between.
func (c *Cache) update(op string, off, n int64, fua bool, fn func(part []byte) bool) error {
	mask := int64(1)<<c.shift - 1
	from, to := off&^mask, (off+n+mask)&^mask
	p := make([]byte, to-from)
	c.outMu.Lock()
	defer c.outMu.Unlock()
	life, err := c.makeRoomOut(op, off, n, int((to-from)>>c.shift))
	if err != nil {
		return err
	}
	x := &change{kind: KindWrite, p: p, off: from, n: to - from, fua: fua}
	id, changed, through, err := c.updateLocking(op, off, n, x, fn)
	switch {
	case err != nil || !changed:
		return err
	case !fua || c.ignoreFUA.Load():
		return nil
	case through:
		return c.inner.Flush()
	}
	return c.outcome(op, off, n, c.forceOut(id, life, x.n>>c.shift))
}

// makeRoomOut evicts until n sectors fit, if anything is left to evict.
//
// +checklocks:c.outMu
func (c *Cache) makeRoomOut(op string, off, n int64, sectors int) (life uint64, err error) {
	for {
		c.mu.Lock()
		err = c.refuseLocked(op, off, n)
		life = c.life
		enough := c.store.used+sectors <= c.room || c.config.Eviction == EvictNone || c.store.first == nil
		c.mu.Unlock()
		if err != nil || enough {
			return life, err
		}
		if err := c.evictOut(life, EvictionRoom); err != nil {
			return life, c.outcome(op, off, n, err)
		}
	}
}

// updateLocking is the part of update that nothing comes between. x is the
// sectors around off.
//
// +checklocks:c.outMu
func (c *Cache) updateLocking(op string, off, n int64, x *change, fn func(part []byte) bool) (id uint64, changed, through bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refuseLocked(op, off, n); err != nil {
		return 0, false, false, err
	}
	if err := c.readLocked(x.p, x.off); err != nil {
		return 0, false, false, err
	}
	if !fn(x.p[off-x.off : off-x.off+n]) {
		return 0, false, false, nil
	}
	if need := int(x.n >> c.shift); c.store.used+need <= c.room {
		return c.insertLocked(x).id, true, false, nil
	}
	if _, err := c.inner.WriteAt(x.p, x.off); err != nil {
		return 0, false, false, err
	}
	c.tookLocked(x, c.store.takeID())
	return 0, true, true, nil
}

// readLocked reads whole sectors with mu held.
//
// +checklocks:c.mu
func (c *Cache) readLocked(p []byte, off int64) error {
	if _, err := c.inner.ReadAt(p, off); err != nil {
		return err
	}
	for i := range int64(len(p)) >> c.shift {
		sector := off>>c.shift + i
		if v, ok := c.store.newest(sector); ok {
			c.store.content(p[i<<c.shift:], v)
		} else if _, bad := c.unreadable[sector]; bad {
			return &media.Error{
				Op: "read", Name: c.config.Name, OffsetBytes: sector << c.shift, LengthBytes: int64(len(p)) - i<<c.shift,
				Kind: media.ErrMedium, Err: errDamaged,
			}
		}
	}
	return nil
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
	err = c.update("compare and write", off, int64(len(data)), false, func(part []byte) bool {
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
	return mismatch, err
}
