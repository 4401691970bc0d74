package cache

// These methods may be called while the power is being cut, for a command that had been
// executed. What they report then is in the report of that cut, where nothing of the
// command is pending any more, and in a recording before the StepImage of that cut; see
// endCut.

// PromisedAll implements media.Promiser: a flush was answered that never came here.
func (c *Cache) PromisedAll() {
	c.ledger.liedAll()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.record.broke(ActLyingFlush)
	f := flush{before: c.store.nextID, life: c.life, covered: c.coveredLocked(), lie: true}
	c.answeredLocked(&f)
}

// PromisedRange implements media.Promiser: a write that came here without FUA was
// answered as durable. It is identified by its range: of two with the same range, under
// way together, it may be the wrong one. Writes that are not done yet are not
// considered.
func (c *Cache) PromisedRange(off, n int64) {
	c.ledger.liedRange(off>>c.shift, n>>c.shift)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordStep(Step{Kind: StepLie, OffsetBytes: off, LengthBytes: n})
	c.record.broke(ActIgnoredFUA)
	for _, sector := range c.store.between(off>>c.shift, (off+n)>>c.shift) { // a range may be a whole disk
		i, _ := c.store.newest(sector)
		for ; i != none; i = c.store.versions[i].older {
			w := c.store.versions[i].write
			if w.off != off || w.n != n || w.promised == promiseFUA || !w.acknowledged {
				continue
			}
			if w.promised == promiseNone {
				w.promised = promiseFUA
			}
			return
		}
	}
}

// LostWrite implements media.Promiser: a write was answered that never came here.
func (c *Cache) LostWrite(off, n int64, data [][]byte, durable bool) {
	mask := int64(1)<<c.shift - 1
	if size := c.inner.Size(); n <= 0 || off < 0 || off > size || n > size-off || (off|n)&mask != 0 {
		return
	}
	e := entry{kind: entrySums, first: off >> c.shift, count: n >> c.shift, durable: durable}
	var sums []uint32
	switch {
	case data != nil:
		b := gather(data, int(n))
		defer gathered.Put(b)
		sums = appendSums(nil, *b, c.shift)
	case n <= longBytes:
		sums = c.zeroSums[:e.count]
	default:
		e.kind = entryZeros
	}
	c.ledger.lostWrite(&e, sums)
}

// Misdirected implements media.Promiser: a write that came here was meant for elsewhere.
func (c *Cache) Misdirected(off, meant, n int64, ignored bool) {
	c.ledger.misdirected(off>>c.shift, meant>>c.shift, n>>c.shift, ignored)
}

// Broke implements media.Promiser: it counts acts that the cache did not do itself.
func (c *Cache) Broke(act string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordStep(Step{Kind: StepBroke, Text: act})
	c.record.broke(Act(act))
}

func (c *Cache) broke(act Act) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.broke(act)
}

// broke counts what no correct drive does.
func (r *record) broke(act Act) {
	if r.acts == nil {
		r.acts = make(map[Act]uint64)
	}
	if r.stats.Acts == nil {
		r.stats.Acts = make(map[Act]uint64)
	}
	r.acts[act]++
	r.stats.Acts[act]++
}

// BrokenSinceCut reports whether something hostile has happened since the last power
// cut.
//
// Concurrency: any goroutine.
func (c *Cache) BrokenSinceCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.record.acts) > 0
}

// takeActsLocked adds the acts since it was last called to the report of a power cut,
// and determines the report's class.
//
// +checklocks:c.mu
func (c *Cache) takeActsLocked(r *Report) {
	if r.Hostile == nil {
		r.Hostile = c.record.acts
	} else {
		for act, n := range c.record.acts {
			r.Hostile[act] += n
		}
	}
	c.record.acts = nil
	r.settle()
}

// coveredLocked is how many pending writes a flush now would cover. A leaving write is
// done, as far as can be known, and one that stays has been acknowledged.
//
// +checklocks:c.mu
func (c *Cache) coveredLocked() int { return len(c.store.staying) }
