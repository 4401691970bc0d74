package cache

import "slices"

// Cutting reports whether a cut waits for what is in progress.
func (c *Cache) Cutting() bool { return c.cutting.Load() }

// Life counts power cuts.
func (c *Cache) Life() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.life
}

// Off reports whether the power is being cut.
func (c *Cache) Off() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.off
}

// ShrinkLedger bounds the ledger of an unused cache.
func (c *Cache) ShrinkLedger(entries, sectors uint64) {
	c.ledger.room, c.ledger.sumRoom = entries, sectors
}

// WriteFUAAfter is WriteAtFUA of whole sectors that there is room for, with something
// done between its becoming pending and durable.
func (c *Cache) WriteFUAAfter(p []byte, off int64, fn func()) error {
	x := &change{kind: KindWrite, p: p, off: off, n: int64(len(p)), fua: true, losses: c.losses.Load()}
	life, _, err := c.insert(x)
	if err != nil {
		return err
	}
	fn()
	c.outMu.Lock()
	defer c.outMu.Unlock()
	return c.forceOut(x, life)
}

// WriteThroughAfter is WriteAt of whole sectors that there is no room for, with something
// done before they are written to the durable medium.
func (c *Cache) WriteThroughAfter(p []byte, off int64, fn func()) error {
	x := &change{kind: KindWrite, p: p, off: off, n: int64(len(p))}
	life, v, err := c.insert(x)
	if err != nil {
		return err
	}
	if v != verdictThrough {
		panic("cache: there is room")
	}
	fn()
	c.outMu.Lock()
	defer c.outMu.Unlock()
	return c.throughOut(x, life)
}

// WritePartAfter is what a WriteAt of parts does last, the part at off, with something done
// before it.
func (c *Cache) WritePartAfter(p []byte, off int64, fn func()) error {
	x := &change{kind: KindWrite, p: p, off: off, n: int64(len(p))}
	if err := c.beginParts(x); err != nil {
		return err
	}
	fn()
	return c.changeOne(x)
}

// FlushMeeting is Flush, with something done when all has been written to the durable
// medium and that is still to be flushed.
func (c *Cache) FlushMeeting(fn func()) error {
	losses := c.losses.Load()
	f, err := c.beginFlush()
	if err != nil {
		return err
	}
	f.losses = losses
	if err = c.flushOut(&f); err == nil {
		begun := c.syncsBegun.Load()
		fn()
		err = c.syncAll(&f, begun)
	}
	return c.endFlush(&f, err)
}

// WriteOut writes all that is pending to the durable medium, and does not flush that.
func (c *Cache) WriteOut() {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if err := c.emptyOut(); err != nil {
		panic(err)
	}
}

// The rest is what a cache does that is wrong.

// EvictDropping evicts the oldest write, and does not write it out.
func (c *Cache) EvictDropping() {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.picked = c.picked[:0]
	c.pickAllLocked(c.store.first)
	for _, p := range c.picked {
		c.store.retire(p.index)
	}
	c.settleLocked()
}

// FlushSkipping is a flush that takes the sectors from one on for written when they
// are not.
func (c *Cache) FlushSkipping(sector int64) error {
	arrived := c.ledger.flushArrives()
	f, err := c.beginFlush()
	if err != nil {
		return err
	}
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.pickBefore(f.before)
	c.mu.Lock()
	for i := range c.picked {
		if c.picked[i].sector >= sector {
			c.store.retire(c.picked[i].index)
		}
	}
	c.picked = slices.DeleteFunc(c.picked, func(p pick) bool { return p.sector >= sector })
	c.settleLocked()
	c.mu.Unlock()
	if err := c.writeOut(nil); err != nil {
		return err
	}
	if err := c.endFlush(&f, c.syncAll(&f, c.syncsBegun.Load())); err != nil {
		return err
	}
	c.ledger.flushAnswered(arrived, false)
	return nil
}

// FlushBackwards is a flush that writes the older version of a sector after the
// newer one.
func (c *Cache) FlushBackwards(sector int64) error {
	c.mu.Lock()
	i, _ := c.store.newest(sector)
	old := make([]byte, c.config.SectorBytes)
	c.store.content(old, c.store.versions[i].older)
	c.mu.Unlock()
	if err := c.Flush(); err != nil {
		return err
	}
	_, err := c.inner.WriteAt(old, sector<<c.shift)
	return err
}

// LedgerEntries is how many writes have been entered.
func (c *Cache) LedgerEntries() uint64 {
	c.ledger.mu.Lock()
	defer c.ledger.mu.Unlock()
	return c.ledger.next
}

// Leaving is how many writes are remembered as to leave.
func (c *Cache) Leaving() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.leaving)
}

// Leaving is that of the cache that it fills.
func (r *Replay) Leaving() int { return r.c.Leaving() }

// Settle waits until all that was chosen is durable.
func (c *Cache) Settle() { c.group.Wait() }
