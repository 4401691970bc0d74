package media

import "sync"

// A flushGroup lets flushes that arrive during a sync share the next one.
//
// Rounds are numbered. A flush is served by any round that begins after it
// arrived; whoever finds no round running runs the next.
type flushGroup struct {
	// sync makes durable what was written before it began. Set before use.
	sync func() error

	mu sync.Mutex
	// cond is signalled, under mu, when a round ends. It is made by the first
	// flush.
	// +checklocks:mu
	cond *sync.Cond
	// +checklocks:mu
	running bool
	// begun and ended count rounds.
	// +checklocks:mu
	begun, ended uint64
	// failed is the latest round that failed, with failure as its error; 0 if none.
	// +checklocks:mu
	failed uint64
	// +checklocks:mu
	failure error
	// tainted is an error that the round under way and the next one that serves a flush
	// report even if their syncs succeed.
	// +checklocks:mu
	tainted error
	// losses counts the losses that the kernel has reported, to whomever; loss is the
	// latest.
	// +checklocks:mu
	losses uint64
	// +checklocks:mu
	loss error
	// alone counts, by generation, the writes under way that the kernel makes durable
	// without a round. Each round whose sync succeeds begins a generation, and ends only
	// after the writes of the previous one. There are none of earlier ones.
	// +checklocks:mu
	alone [2]int
	// +checklocks:mu
	generation uint8
	// wanted is the last round that a flush needs.
	// +checklocks:mu
	wanted uint64
	// parts is how many calls of doAsPart there are.
	// +checklocks:mu
	parts int
}

// An alone is a write that the kernel makes durable without a round.
type alone struct {
	generation uint8
	losses     uint64 // of its group as it began
}

// begin begins a write that the kernel makes durable without a round; endAlone ends the
// write.
func (g *flushGroup) begin() alone {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone[g.generation]++
	return alone{g.generation, g.losses}
}

// endAlone ends w, which returned err, and returns its outcome. The kernel reports a
// lost write once, so a loss that it has meanwhile reported to somebody else may be of
// this one. It does not wait for a round whose sync is just receiving such a report: any
// other round would take long, and that one is about to end.
//
// If the loss was reported to w, it may be of an older write as well, so a flush under
// way and the next flush have to report it, too. That goes for want of space as well: it
// cannot be told whether w itself had none, or writes that the kernel has taken before
// found none when they were to go to a thin volume or a server.
func (g *flushGroup) endAlone(w alone, err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.tainted = err
		g.toldLocked(err)
	} else if g.losses != w.losses {
		err = g.loss
	}
	if g.alone[w.generation]--; g.alone[w.generation] == 0 && w.generation != g.generation {
		g.cond.Broadcast() // to the round that waits for it
	}
	return err
}

// toldLocked notes that the kernel has reported a lost write to somebody.
//
// +checklocks:g.mu
func (g *flushGroup) toldLocked(err error) {
	g.losses++
	g.loss = err
}

// do returns after a sync that began after the call did, with its error. A write lost
// before the call may have been reported to a sync that was under way when the call
// came, and is reported only once: then the call fails with that error.
func (g *flushGroup) do() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted = g.begun + 1
	return g.doLocked()
}

// doAsPart is do as a part of a call that is not a flush. A loss reported to it may
// concern anybody's writes, so the next flush fails as well.
func (g *flushGroup) doAsPart() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parts++
	err := g.doLocked()
	g.parts--
	return err
}

// +checklocks:g.mu
func (g *flushGroup) doLocked() error {
	if g.cond == nil {
		g.cond = sync.NewCond(&g.mu)
	}
	need := g.begun + 1
	since := need
	if g.running {
		since = g.begun
	}
	for g.running && g.ended < need {
		g.cond.Wait()
	}
	if g.ended < need {
		g.runLocked()
	}
	// A write lost in any of the rounds since we came may be ours.
	if g.failed >= since {
		return g.failure
	}
	return nil
}

// runLocked runs a round.
//
// +checklocks:g.mu
func (g *flushGroup) runLocked() {
	g.running = true
	g.begun++
	round := g.begun
	serves := g.wanted == round // a flush that comes from now on needs the next one
	owed := g.tainted
	g.tainted = nil
	g.mu.Unlock()
	err := g.sync()
	g.mu.Lock()
	if err != nil {
		g.toldLocked(err)
	} else {
		g.awaitAloneLocked()
		err = g.tainted // reported to another call meanwhile; the next flush still reports it
	}
	switch {
	case err != nil:
		if g.parts > 0 { // each of them fails with it; now, that no flush comes between
			g.tainted = err
		}
	case serves:
		err = owed
	default: // earlier reports do not concern parts
		g.tainted = owed
	}
	if err != nil {
		g.failed, g.failure = round, err
	}
	g.running = false
	g.ended = round
	g.cond.Broadcast()
}

// awaitAloneLocked waits for the writes without a round that are under way: any of them
// may have received a report that the sync that has just ended did not.
//
// +checklocks:g.mu
func (g *flushGroup) awaitAloneLocked() {
	before := g.generation
	g.generation ^= 1
	for g.alone[before] > 0 {
		g.cond.Wait()
	}
}
