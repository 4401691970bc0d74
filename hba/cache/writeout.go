package cache

import (
	"cmp"
	"errors"
	"slices"

	"github.com/vhbad/vhbad/hba/media"
)

// A pick is a version to be made durable.
type pick struct {
	sector int64
	id     uint64 // of its write
	index  int32
	kind   Kind
}

const (
	// bufferBytes is the longest write to the durable medium.
	bufferBytes = 1 << 20
	// pieceBytes: what is left of a longer one that has failed is written in pieces that
	// end at multiples of it.
	pieceBytes = 64 << 10
	// maxBad is how many pieces may meet a bad medium before a write-out gives up: each
	// may take its time. One that is the last, as the power goes or the cache is closed,
	// gives up after as many in a row.
	maxBad = 8
)

// pickLocked adds to picked, for each sector of w, its version if that is the newest one
// older than write before.
//
// +checklocks:c.outMu
// +checklocks:c.mu
func (c *Cache) pickLocked(w *write, before uint64) {
	s := &c.store
	for i := w.oldest; i != none; i = s.versions[i].next {
		v := &s.versions[i]
		if v.newer == none || s.versions[v.newer].write.id >= before {
			c.picked = append(c.picked, pick{v.sector, w.id, i, v.kind})
		}
	}
}

// pickTurn is about how many versions are looked at before others can have mu: there may
// be millions.
const pickTurn = 1 << 12

// turnLocked counts n versions that were looked at, and lets go of mu now and then. As
// outMu is held, nothing is removed meanwhile: writes only come, and are chosen.
//
// +checklocks:c.outMu
// +checklocks:c.mu
func (c *Cache) turnLocked(turn *int, n int) {
	if *turn += n; *turn >= pickTurn {
		*turn = 0
		c.mu.Unlock()
		c.mu.Lock()
	}
}

// writeOut makes the picked versions durable, in order of their sectors, and drops them
// and all older ones of their sectors. If by is nil it begins where the last one gave up,
// and comes round, so that bad sectors do not keep what is behind them pending forever.
// It gives up with errNoPower when the power is about to be cut; what it has done by then
// is done.
//
// by is the change that must be durable when writeOut returns: picked versions then go
// through any caches of the durable medium, too. If by is nil they need not.
//
// If by is nil, those that the medium fails to take are passed over, as they need not
// concern others; and those for which it has no space are tried again once others have
// released some. Any other error ends writeOut at once, and after maxBad bad pieces it only
// tries those again. The error says if some had no space and if others met a bad medium.
//
// While outMu is held, versions are removed only here and in Cut, so picks stay valid.
//
// +checklocks:c.outMu
func (c *Cache) writeOut(by *change) error {
	slices.SortFunc(c.picked, func(a, b pick) int { return cmp.Compare(a.sector, b.sector) })
	if c.buffer == nil {
		c.buffer = make([]byte, bufferBytes)
	}
	if at := c.firstOut(c.from); by == nil && at > 0 {
		slices.Reverse(c.picked[:at])
		slices.Reverse(c.picked[at:])
		slices.Reverse(c.picked)
	}
	left, err := c.writeRuns(c.picked, by)
	if err == nil && left.released {
		bad := left.bad
		if left, err = c.writeRuns(left.picks, by); left.bad == nil {
			left.bad = bad
		}
	}
	if err != nil {
		return err
	}
	return errors.Join(left.noSpace, left.bad)
}

// firstOut is the index of the first of the sorted picks from sector on.
//
// +checklocks:c.outMu
func (c *Cache) firstOut(sector int64) int {
	at, _ := slices.BinarySearchFunc(c.picked, sector, func(p pick, sector int64) int { return cmp.Compare(p.sector, sector) })
	return at
}

// concernsSome reports whether an error of the durable medium may be about some sectors
// only.
func concernsSome(err error) bool {
	return errors.Is(err, media.ErrNoSpace) || errors.Is(err, media.ErrMedium)
}

// A leftover is what was passed over by writeRuns.
type leftover struct {
	picks    []pick // those for which there was no space
	released bool   // there may be space for some of them now
	noSpace  error  // of the last of them
	bad      error  // of the last that met a bad medium
}

// writeRuns writes picks out in the order that they have. left.picks are in picks from its
// beginning.
//
// +checklocks:c.outMu
func (c *Cache) writeRuns(picks []pick, by *change) (left leftover, err error) {
	left.picks = picks[:0]
	bad, pieces := 0, 0 // pieces: how many of rest are written in pieces
	for rest := picks; len(rest) > 0; {
		if c.cutting.Load() && !c.ending {
			return left, errNoPower
		}
		run := c.runOf(rest, pieces)
		done, failed := c.writeRun(rest[:run], by)
		switch {
		case failed == nil:
			left.released = left.released || left.noSpace != nil && rest[0].kind != KindWrite
			if c.ending {
				bad = 0
			}
		case by != nil || !concernsSome(failed): // with by it may be a loss that was told
			return left, failed
		case pieces == 0 && run<<c.shift > pieceBytes:
			rest, pieces = rest[done:], run-done
			continue
		case errors.Is(failed, media.ErrNoSpace):
			left.picks, left.noSpace = append(left.picks, rest[done:run]...), failed
		default:
			left.bad = failed
			if bad++; bad == maxBad {
				c.from = 0
				if run < len(rest) {
					c.from = rest[run].sector
				}
				return left, nil
			}
		}
		rest, pieces = rest[run:], max(pieces-run, 0)
	}
	return left, nil
}

// runOf is how many of the sorted picks go to the durable medium next, in one write: one
// piece, if some are written in pieces.
func (c *Cache) runOf(picks []pick, pieces int) (run int) {
	most := bufferBytes >> c.shift
	if pieces > 0 {
		perPiece := int64(pieceBytes) >> c.shift
		most = min(pieces, int(perPiece-picks[0].sector%perPiece))
	}
	for run = 1; run < min(most, len(picks)); run++ {
		if picks[run].sector != picks[0].sector+int64(run) || picks[run].kind != picks[0].kind {
			break
		}
	}
	return run
}

// writeRun makes picks of one kind durable whose sectors follow each other. If it fails,
// the first ones may be nevertheless; done is how many.
//
// +checklocks:c.outMu
func (c *Cache) writeRun(run []pick, by *change) (done int, err error) {
	off, n := run[0].sector<<c.shift, int64(len(run))<<c.shift
	p := c.buffer[:n]
	if run[0].kind == KindWrite {
		c.mu.Lock()
		for i := range run {
			copy(p[i<<c.shift:], c.store.data(run[i].index))
		}
		c.mu.Unlock()
	}
	c.pace()
	done = len(run)
	if written, err := c.changeMedium(run[0].kind, p, off, n, by); err != nil {
		done = written >> c.shift
		from := int64(done) << c.shift
		c.recordStep(Step{Kind: StepUnsure, OffsetBytes: off + from, LengthBytes: n - from})
		if done == 0 {
			return 0, err
		}
		c.tookRun(run[:done])
		return done, err
	}
	c.tookRun(run)
	return done, nil
}

// tookRun drops picks that are on the durable medium.
//
// +checklocks:c.outMu
func (c *Cache) tookRun(run []pick) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordRun(run)
	for i := range run {
		c.store.retire(run[i].index)
		c.healLocked(run[i].sector)
	}
	c.settleLocked()
}

// changeMedium changes n bytes at off of the durable medium in one call; for KindWrite
// they are in p. by is that of writeOut: if it is not nil, they go through the medium's
// caches, too. If it fails, the first written bytes have been changed, which are not all;
// with by it is not known how many.
//
// +checklocks:c.outMu
func (c *Cache) changeMedium(kind Kind, p []byte, off, n int64, by *change) (written int, err error) {
	c.remember(off, n)
	switch kind {
	case KindWrite:
		if by != nil && c.can.FUA != nil {
			_, err = c.can.FUA.WriteAtFUA(p, off)
			return 0, err
		}
		written, err = c.inner.WriteAt(p, off)
		if written < 0 || int64(written) >= n { // then err does not say what failed: it may be all
			written = 0
		}
	case KindTrim:
		err = c.can.Discard.Discard(off, n)
	case KindZero, KindAllocate:
		err = c.can.Zero.Zero(off, n, kind == KindAllocate)
	}
	if by != nil {
		written = 0
		if err == nil {
			err = c.syncFor(by)
		}
	}
	return written, err
}

// healLocked notes that a sector has been written to the durable medium.
//
// +checklocks:c.mu
func (c *Cache) healLocked(sector int64) {
	if len(c.unreadable) > 0 {
		delete(c.unreadable, sector)
	}
}

// pickAllLocked adds all versions of w to picked.
//
// +checklocks:c.outMu
// +checklocks:c.mu
func (c *Cache) pickAllLocked(w *write) {
	for i := w.oldest; i != none; i = c.store.versions[i].next {
		c.picked = append(c.picked, pick{c.store.versions[i].sector, w.id, i, w.kind})
	}
}

// newestOut keeps only the newest of the picks of each sector; the others go with it.
//
// +checklocks:c.outMu
func (c *Cache) newestOut() {
	slices.SortFunc(c.picked, func(a, b pick) int {
		return cmp.Or(cmp.Compare(a.sector, b.sector), cmp.Compare(b.id, a.id))
	})
	c.picked = slices.CompactFunc(c.picked, func(a, b pick) bool { return a.sector == b.sector })
}

// forceOut makes x, which has become pending, durable, through any caches of the durable
// medium.
//
// +checklocks:c.outMu
func (c *Cache) forceOut(x *change, life uint64) error {
	c.mu.Lock()
	if c.life != life {
		c.mu.Unlock()
		return errNoPower
	}
	c.picked = c.picked[:0]
	// It is one of the newest.
	for w := c.store.last; w != nil && w.id >= x.id; w = w.before {
		if w.id == x.id {
			c.pickAllLocked(w)
		}
	}
	c.mu.Unlock()
	gone := int64(len(c.picked)) < x.n>>c.shift
	if err := c.writeOut(x); err != nil {
		return err
	}
	if gone { // part of it has been written out by another call, not through those caches
		return c.syncFor(x)
	}
	return nil
}

// throughOut writes x to the durable medium. Older pending versions of its sectors are
// dropped.
//
// +checklocks:c.outMu
func (c *Cache) throughOut(x *change, life uint64) error {
	c.mu.Lock()
	err := c.refuseLocked(x.op(), x.off, x.n) // the disk may be smaller by now
	if c.life != life {
		err = c.powerLost(x.op(), x.off, x.n)
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	id := c.store.takeID()
	x.id = id
	c.record.stats.Evictions[EvictionThrough]++
	c.mu.Unlock()
	half, err := c.storeThrough(x, id)
	c.tookThrough(&half, id)
	return err
}

// storeThrough is throughOut of x as write id. If it fails, half is what the medium has
// written of the part that failed. What is pending there is older and has to go, unless
// the caller undoes that write.
//
// +checklocks:c.outMu
func (c *Cache) storeThrough(x *change, id uint64) (half change, err error) {
	var by *change
	if x.durable() {
		by = x
	}
	for done := int64(0); done < x.n; {
		if c.cutting.Load() {
			return change{}, c.powerLost(x.op(), x.off+done, x.n-done)
		}
		part := change{kind: x.kind, off: x.off + done, n: x.n - done, fua: x.fua, lie: x.lie}
		if x.kind == KindWrite {
			part.n = min(part.n, bufferBytes)
			part.p = x.p[done : done+part.n]
		}
		c.pace()
		if written, err := c.changeMedium(part.kind, part.p, part.off, part.n, by); err != nil {
			c.recordStep(Step{Kind: StepUnsure, OffsetBytes: part.off, LengthBytes: part.n})
			part.n = int64(written) >> c.shift << c.shift
			part.p = part.p[:part.n]
			return part, err
		}
		c.tookThrough(&part, id)
		done += part.n
	}
	return change{}, nil
}

// tookThrough notes that x, which may be nothing, is on the durable medium as write id
// and never was pending.
//
// +checklocks:c.outMu
func (c *Cache) tookThrough(x *change, id uint64) {
	if x.n == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordWrite(StepThrough, x, id)
	c.tookLocked(x, id)
}

// tookLocked drops what was pending for the sectors of x, which as write id is on the
// durable medium.
//
// +checklocks:c.mu
func (c *Cache) tookLocked(x *change, id uint64) {
	s := &c.store
	first, end := x.off>>c.shift, (x.off+x.n)>>c.shift
	if x.kind != KindWrite { // which may be all of a large medium
		if s.used > 0 {
			s.retireAllBefore(first, end, id)
		}
		for sector := range c.unreadable {
			if sector >= first && sector < end {
				delete(c.unreadable, sector)
			}
		}
		c.settleLocked()
		return
	}
	for sector := first; sector < end; sector++ {
		s.retireBefore(sector, id)
		c.healLocked(sector)
	}
	c.settleLocked()
}
