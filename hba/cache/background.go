package cache

import (
	"slices"
)

// Background write-out. Which writes become durable early is decided when a write comes
// for which the high-water mark or chance requires it, or a comparison that such a write
// may follow. The decision depends on the calls so far, their order and the seed, and
// never on how far the durable medium has come. A chosen write leaves: in later
// decisions it no longer counts as pending. A goroutine, which exists while it has work,
// writes out what leaves in the background, in order of the sectors. Reads see it until
// it is durable; a flush covers it; a power cut first completes it, as if it had been
// written at once.
//
// A leaving write takes room until it has left. Whoever needs the room helps and waits.

// A leaver is a write that was chosen. write structures are reused, with another id.
type leaver struct {
	w  *write
	id uint64
}

// Marks, as parts of the room.
const (
	// highShift: above 7/8 of the room writes are chosen, until there are at most
	highShift = 3
	// 13/16, so that the durable medium gets a few long writes, in order, instead of a
	// short one for each new one. EvictRandom draws up to a quarter of the room more.
	batchShift  = 4
	randomShift = 2
)

// chooseLocked chooses what becomes durable when need sectors come, by the policy.
// Choosing again for the same sectors changes nothing.
//
// +checklocks:c.mu
func (c *Cache) chooseLocked(need int) {
	s := &c.store
	if c.config.Eviction == EvictNone || len(s.staying) == 0 {
		return
	}
	chosen := len(c.leaving)
	if c.config.Eviction == EvictRandom && c.draw&spontaneousMask == 0 {
		c.draw = ^uint64(0) // until the next write
		c.chooseOneLocked(s.staying[below(c.random.Uint64(), len(s.staying))], EvictionChance)
	}
	if high := c.room - c.room>>highShift; s.stay+need > high && len(s.staying) > 0 {
		low := high - c.room>>batchShift
		if c.config.Eviction == EvictRandom {
			low -= below(c.random.Uint64(), c.room>>randomShift)
		}
		oldest := s.first
		for s.stay+need > low && len(s.staying) > 0 {
			w := oldest
			if c.config.Eviction == EvictRandom {
				w = s.staying[below(c.random.Uint64(), len(s.staying))]
			} else if oldest = oldest.after; s.stays(w) == 0 {
				continue
			}
			c.chooseOneLocked(w, EvictionRoom)
		}
	}
	if len(c.leaving) > chosen && !c.writing {
		c.writing = true
		c.group.Add(1)
		go c.background()
	}
}

// +checklocks:c.mu
func (c *Cache) chooseOneLocked(w *write, reason EvictionReason) {
	c.recordStep(Step{Kind: StepLeave, Write: w.id})
	c.leaving = append(c.leaving, leaver{w, w.id})
	c.store.leaveAll(w)
	c.record.stats.Evictions[reason]++
}

// background writes out what leaves, until nothing does or the durable medium fails.
// What the medium failed to take is retried with what is chosen next, by whoever needs
// the room, and by the next flush, which fails if the retry does: nothing of it is lost.
func (c *Cache) background() {
	defer c.group.Done()
	for c.leaveOnce() {
	}
}

func (c *Cache) leaveOnce() (more bool) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	n := c.pickLeaving(false)
	if n == 0 {
		return false
	}
	if err := c.writeOut(nil); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.writing = false
		if err != errNoPower { //nolint:errorlint // it is never wrapped
			c.record.stats.FailedWriteOuts++
		}
		return false
	}
	c.left(n)
	return true
}

// pickLeaving picks what leaves, and returns how many writes that is. If there are none,
// or there is no power and this is not for a cut, the goroutine ends.
//
// +checklocks:c.outMu
func (c *Cache) pickLeaving(cut bool) (n int) {
	c.mu.Lock()
	c.picked = c.picked[:0]
	c.trimLeavingLocked()
	n = len(c.leaving)
	if !cut && (n == 0 || c.closed || c.off || c.cutting.Load()) {
		c.writing = false
		c.mu.Unlock()
		return 0
	}
	turn := 0
	for i := range n { // more may come meanwhile
		w := c.leaving[i].w
		c.pickAllLocked(w)
		c.turnLocked(&turn, w.versions)
	}
	c.mu.Unlock()
	c.newestOut()
	return n
}

// trimLeavingLocked forgets writes that have left without a call of left: by a flush, or
// when another write picked with them failed. It must not be called between counting the
// leaving writes and passing the count to left.
//
// +checklocks:c.mu
func (c *Cache) trimLeavingLocked() {
	c.leaving = slices.DeleteFunc(c.leaving, func(l leaver) bool { return l.w.id != l.id })
}

// left forgets the first n leaving writes.
func (c *Cache) left(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = c.leaving[:copy(c.leaving, c.leaving[n:])]
}

// roomOut makes room for need sectors to come: it chooses, as inserting them would have,
// and writes out everything that leaves, including what failed flushes left behind.
//
// Errors: of the durable medium. That it fails to take some is none if the others have
// made the room.
//
// +checklocks:c.outMu
func (c *Cache) roomOut(life uint64, need int) error {
	c.mu.Lock()
	if c.life != life || c.cutting.Load() {
		c.mu.Unlock()
		return errNoPower
	}
	c.chooseLocked(need)
	c.trimLeavingLocked()
	n := len(c.leaving)
	c.picked = c.picked[:0]
	s, turn := &c.store, 0
	for w := s.first; w != nil; w = w.after {
		c.turnLocked(&turn, 1)
		if s.stays(w) == w.versions {
			continue
		}
		c.turnLocked(&turn, w.versions)
		for i := w.oldest; i != none; i = s.versions[i].next {
			if s.leaves(i) {
				c.picked = append(c.picked, pick{s.versions[i].sector, w.id, i, w.kind})
			}
		}
	}
	c.mu.Unlock()
	c.newestOut()
	if err := c.writeOut(nil); err != nil {
		if concernsSome(err) && c.hasRoom(need) { // others have left
			return nil
		}
		return err
	}
	c.left(n)
	return nil
}

// hasRoom reports whether there is room for need sectors now.
func (c *Cache) hasRoom(need int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.store.used+need <= c.room
}

// endLeaving writes out what was chosen before the power went. From here on every call
// fails, if it does not already. What the durable medium does not take is pending like
// the rest.
//
// +checklocks:c.outMu
func (c *Cache) endLeaving() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.off = true
	c.plain.Store(false) // everybody has to look
	c.mu.Unlock()
	c.pickLeaving(true)
	c.ending = true
	_ = c.writeOut(nil)
	c.ending = false
	c.mu.Lock()
	c.leaving = c.leaving[:0]
	c.mu.Unlock()
}
