package cache

// PromisedAll implements media.Promiser: a flush was answered that never came here.
func (c *Cache) PromisedAll() {
	c.ledger.liedAll()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	f := flush{before: c.store.nextID, life: c.life, covered: c.coveredLocked(), lie: true}
	c.answeredLocked(&f)
}

// PromisedRange implements media.Promiser: a write was answered as durable that
// came here without FUA.
func (c *Cache) PromisedRange(off, n int64) {
	c.ledger.liedRange(off>>c.shift, n>>c.shift)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordStep(Step{Kind: StepLie, OffsetBytes: off, LengthBytes: n})
	for sector, end := off>>c.shift, (off+n)>>c.shift; sector < end; sector++ {
		if i, ok := c.store.newest(sector); ok {
			if w := c.store.versions[i].write; w.promised == promiseNone {
				w.promised = promiseFUA
			}
		}
	}
}

// coveredLocked is how many pending writes a flush now would cover.
//
// +checklocks:c.mu
func (c *Cache) coveredLocked() int {
	n := 0
	for w := c.store.first; w != nil; w = w.after {
		if w.acknowledged {
			n++
		}
	}
	return n
}
