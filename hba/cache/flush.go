package cache

import (
	"slices"

	"github.com/vhbad/vhbad/hba/media"
)

// Flush implements media.Media. It covers all writes that were done before it
// began.
//
// Errors: what cannot be made durable stays pending, and the next flush tries again. An
// error of the durable medium's own flush is reported once, and the writes may be gone;
// see media.Media.
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

// syncAll flushes the durable medium as a part of Flush, and also returns an error that
// was reported to another call since the last one.
//
// The medium reports lost writes once, to whoever is flushing it just then. They may
// concern any flush that is under way, so each of those fails. Only one flush goes to
// the medium at a time, so that none is answered while another learns of a loss. A
// caller that has waited for a flush that began after the caller came needs none of its
// own.
//
// begun is how many flushes of the medium had begun when all writes had reached it.
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
	if owed := c.owed; owed != nil { // reported to a call other than Flush
		c.owed = nil
		c.lostLocked(owed)
		return owed
	}
	return nil
}

// lostLocked notes that the medium has reported lost writes. No flush that has begun by
// now makes them durable. The ledger is told first, so that a flush that begins
// afterwards also begins afterwards there.
//
// +checklocks:c.syncMu
func (c *Cache) lostLocked(err error) {
	c.ledger.lost()
	c.lastLoss = err
	c.losses.Add(1)
}

// syncFor flushes the durable medium as a part of x, which is not Flush. A loss that it
// reports need not concern x, so the next Flush fails as well.
//
// Conversely, a loss reported to another call since x came may concern x, so x fails,
// too. The medium would not report it again.
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

// A flush is a flush in progress.
type flush struct {
	losses  uint64 // how many losses the medium had reported when it came
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
		c.store.leaveEverything()
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
	if !c.lives(f.life) {
		return errNoPower
	}
	c.pickBefore(f.before)
	return c.writeOut(nil)
}

func (c *Cache) lives(life uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.life == life
}

// pickBefore picks the versions that are pending of writes before the given one.
//
// +checklocks:c.outMu
func (c *Cache) pickBefore(before uint64) {
	c.mu.Lock()
	most := c.store.used
	c.mu.Unlock()
	c.picked = slices.Grow(c.picked[:0], most) // not under mu: it takes time, too
	c.mu.Lock()
	defer c.mu.Unlock()
	turn := 0
	for w := c.store.first; w != nil && w.id < before; w = w.after {
		c.pickLocked(w, before)
		c.turnLocked(&turn, w.versions)
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

// answeredLocked records the promise made by answering a flush. If the flush was honest,
// nothing that it covers is pending any more; anything that is nevertheless gets a mark
// that Cut finds.
//
// +checklocks:c.mu
func (c *Cache) answeredLocked(f *flush) {
	s := &c.store
	if f.lie {
		for w := s.last; w != nil && w.id >= s.liedBefore; w = w.before {
			if w.id < f.before {
				w.promise(promiseLie)
			}
		}
		s.liedBefore = max(s.liedBefore, min(f.before, s.nextID))
	} else {
		for w := s.first; w != nil && w.id < f.before; w = w.after {
			w.promise(promiseFlush)
		}
	}
	c.record.flushed(f, c.config.Now())
	c.recordStep(Step{Kind: StepFlushed, Write: f.before, Covered: f.covered, Lie: f.lie})
}
