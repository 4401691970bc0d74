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
	// report though their syncs say nothing.
	// +checklocks:mu
	tainted error
	// wanted is the last round that a flush needs.
	// +checklocks:mu
	wanted uint64
	// parts is how many calls of doAsPart there are.
	// +checklocks:mu
	parts int
}

// taint makes the next flush report err, and one that is under way.
func (g *flushGroup) taint(err error) {
	g.mu.Lock()
	g.tainted = err
	g.mu.Unlock()
}

// do returns after a sync that began after the call did, with its error. A write lost
// before the call may have been told to a sync that was under way as it came, and is
// told once: then the call fails with that error.
func (g *flushGroup) do() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted = g.begun + 1
	return g.doLocked()
}

// doAsPart is do as a part of a call that is no flush. What that is told of may be
// anybody's, so the next flush fails as well.
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
	if err == nil {
		err = g.tainted // the kernel has told somebody else meanwhile; the next flush still reports it
	}
	switch {
	case err != nil:
		if g.parts > 0 { // each of them fails with it; now, that no flush comes between
			g.tainted = err
		}
	case serves:
		err = owed
	default: // what was told before is of no concern to parts
		g.tainted = owed
	}
	if err != nil {
		g.failed, g.failure = round, err
	}
	g.running = false
	g.ended = round
	g.cond.Broadcast()
}
