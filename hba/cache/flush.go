package cache

import "github.com/vhbad/vhbad/hba/media"

// Flush implements media.Media. It covers all writes that were done before it
// began.
//
// Errors: what cannot be made durable stays pending, and the next flush tries
// again. An error of the durable medium's own flush is told once, and the writes
// may be gone; see media.Media.
func (c *Cache) Flush() error {
	c.pace()
	losses := c.losses.Load() // before it arrives: see syncAll
	arrived := c.ledger.flushArrives()
	f, err := c.beginFlush()
	f.losses = losses
	if err == nil && !f.lie {
		err = c.flush(&f)
	}
	if err == nil {
		c.ledger.flushAnswered(arrived, f.lie)
	}
	return err
}

// flush is an honest Flush that has begun.
func (c *Cache) flush(f *flush) error {
	err := c.flushOut(f)
	if err == nil {
		err = c.syncAll(f, c.syncsBegun.Load())
	}
	return c.outcome("flush", 0, 0, c.endFlush(f, err))
}

// syncAll flushes the durable medium as a part of Flush, and tells what another
// call was told since the last one.
//
// The medium tells once of writes that it has lost, to whoever flushes it just then.
// They may be of any flush that is under way, so each of those fails. One goes to the
// medium at a time, that none is answered while another learns of a loss. Who waits for
// one that has begun after it came needs none of its own.
//
// begun is how many flushes of the medium had begun when all was there.
func (c *Cache) syncAll(f *flush, begun uint64) error {
	c.syncMu.Lock()
	defer c.syncMu.Unlock()
	if c.syncsBegun.Load() == begun {
		c.syncsBegun.Add(1)
		err := c.inner.Flush()
		if owed := c.owed; owed != nil && err == nil {
			err = owed
		}
		c.owed = nil
		if err != nil {
			c.lostLocked(err)
			return err
		}
	}
	if c.losses.Load() != f.losses {
		c.owed = nil
		return c.lastLoss
	}
	if owed := c.owed; owed != nil { // who served it is not Flush, and was told nothing
		c.owed = nil
		c.lostLocked(owed)
		return owed
	}
	return nil
}

// lostLocked notes that the medium has told of writes that it has lost. No flush that
// has begun by now makes them durable; the ledger hears of it first, so that one which
// begins thereafter begins thereafter there, too.
//
// +checklocks:c.syncMu
func (c *Cache) lostLocked(err error) {
	c.ledger.lost()
	c.lastLoss = err
	c.losses.Add(1)
}

// syncFor flushes the durable medium as a part of x, which is not Flush. What it
// tells of need not be of x: the next Flush fails as well.
//
// Nor need x be the one that was told: if another call has been since x came, what is
// lost may be of x, which fails, too. The medium would not tell again.
func (c *Cache) syncFor(x *change) error {
	c.syncMu.Lock()
	defer c.syncMu.Unlock()
	if c.losses.Load() != x.losses {
		return c.lastLoss
	}
	c.syncsBegun.Add(1)
	err := c.inner.Flush()
	if err != nil {
		c.owed = err
		c.lostLocked(err)
	}
	return err
}

// A flush is one that is running.
type flush struct {
	losses  uint64 // how many the medium had told of when it came
	before  uint64 // it covers writes with smaller ids
	life    uint64
	covered int
	lie     bool
}

func (c *Cache) beginFlush() (flush, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return flush{}, &media.Error{Op: "flush", Name: c.config.Name, Kind: media.ErrClosed}
	}
	if c.off {
		return flush{}, c.powerLost("flush", 0, 0)
	}
	f := flush{before: c.store.nextID, life: c.life, covered: c.coveredLocked(), lie: c.lieAboutFlush.Load()}
	c.recordStep(Step{Kind: StepFlush, Write: f.before, Lie: f.lie})
	if !f.lie && c.config.Eviction != EvictNone { // else nothing is chosen anyway
		for w := c.store.first; w != nil; w = w.after {
			c.store.leaveAll(w)
		}
	}
	if f.lie {
		c.record.broke(ActLyingFlush)
		c.answeredLocked(&f)
	}
	return f, nil
}

// flushOut makes durable what the flush covers.
func (c *Cache) flushOut(f *flush) error {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.mu.Lock()
	if c.life != f.life {
		c.mu.Unlock()
		return errNoPower
	}
	c.pickBeforeLocked(f.before)
	c.mu.Unlock()
	return c.writeOut(nil)
}

// pickBeforeLocked picks what write before finds pending.
//
// +checklocks:c.outMu
// +checklocks:c.mu
func (c *Cache) pickBeforeLocked(before uint64) {
	c.picked = c.picked[:0]
	for w := c.store.first; w != nil && w.id < before; w = w.after {
		c.pickLocked(w, before)
	}
}

func (c *Cache) endFlush(f *flush, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.record.stats.FailedFlushes++
		c.recordStep(Step{Kind: StepFlushed, Write: f.before, Covered: f.covered, Failed: true})
		return err
	case c.life != f.life:
		return errNoPower
	}
	c.answeredLocked(f)
	return nil
}

// answeredLocked records the promise that an answered flush is. If the flush was
// honest, nothing that it covers is pending any more; what is nevertheless gets a
// mark that Cut finds.
//
// +checklocks:c.mu
func (c *Cache) answeredLocked(f *flush) {
	for w := c.store.first; w != nil && w.id < f.before; w = w.after {
		if w.acknowledged && w.promised == promiseNone {
			w.promised = promiseFlush
			if f.lie {
				w.promised = promiseLie
			}
		}
	}
	c.record.flushed(f, c.config.Now())
	c.recordStep(Step{Kind: StepFlushed, Write: f.before, Covered: f.covered, Lie: f.lie})
}
