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
	// tainted is an error that the round under way and the next one report though their
	// syncs say nothing.
	// +checklocks:mu
	tainted error
}

// taint makes the next flush report err, and one that is under way.
func (g *flushGroup) taint(err error) {
	g.mu.Lock()
	g.tainted = err
	g.mu.Unlock()
}

// do returns after a sync that began after the call did, with its error.
func (g *flushGroup) do() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cond == nil {
		g.cond = sync.NewCond(&g.mu)
	}
	need := g.begun + 1
	for g.running && g.ended < need {
		g.cond.Wait()
	}
	if g.ended >= need {
		// Rounds from need on have all begun after us, and a write lost in one of
		// them may be ours.
		if g.failed >= need {
			return g.failure
		}
		return nil
	}
	g.running = true
	g.begun++
	round := g.begun
	tainted := g.tainted
	g.tainted = nil
	g.mu.Unlock()
	err := g.sync()
	g.mu.Lock()
	if err == nil {
		err = tainted
	}
	if err == nil {
		err = g.tainted // the kernel has told somebody else meanwhile; the next round still reports it
	}
	if err != nil {
		g.failed, g.failure = round, err
	}
	g.running = false
	g.ended = round
	g.cond.Broadcast()
	return err
}
