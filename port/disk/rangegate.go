package disk

import (
	"slices"
	"sync"
	"sync/atomic"
)

// A rangeGate keeps writes apart where they must be: one that changes part of a
// block reads it first, and a write that came between would be undone.
//
// Writes of whole blocks take the fast way: they count themselves in their own
// session's counter and look whether any exclusive write is about. An exclusive
// write first announces itself and then waits until the fast ones it may have
// missed are gone. Both sides store before they load, so one sees the other.
// While exclusive writes are about, all writes take the slow way: a list of
// ranges, granted in order of arrival where they overlap. Long trims and zeroings,
// which may take a while, always do, so that an exclusive write waits only for those
// that it overlaps.
//
// What a client that has gone left under way is kept apart from the writes of others, too;
// see fence.
type rangeGate struct {
	// exclusive counts exclusive writes waiting or running, and fences.
	exclusive atomic.Int32
	_         [60]byte

	mu sync.Mutex
	// +checklocks:mu
	sessions []*session
	// begun counts the writes of the slow way, and the fast ones of sessions that
	// have gone.
	// +checklocks:mu
	begun int64
	// running and waiting hold the ranges of the slow way, in order of arrival.
	// +checklocks:mu
	running, waiting []*command
	// fenced are the sessions whose fences are up, in order of their time.
	// +checklocks:mu
	fenced []*session
}

// How a command holds the gate.
type hold uint8

const (
	holdNone hold = iota
	holdFast
	holdShared
	holdExclusive
)

// A session's counter has three fields: how many fast writes are under way, in the low
// bits; how many writes, fast or slow, are being answered, from writeAnswered on; and how
// many fast writes have begun, from fastBegun on. A session has too few requests for
// either of the lower two to overflow.
const (
	writeAnswered = 1 << 16
	fastBegun     = 1 << 32

	fastUnderWay = writeAnswered - 1
	answering    = fastBegun - writeAnswered
)

// A writesSeen is what a gate has let in up to some time. If two are equal, and quiet, no
// write was under way or being answered at any time between them.
type writesSeen struct {
	begun     int64
	answering bool // a write had left and was not answered
	quiet     bool // nor was one under way
}

// writes is what the gate has let in by now.
func (g *rangeGate) writes() writesSeen {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := writesSeen{begun: g.begun, quiet: len(g.running)+len(g.waiting) == 0}
	for _, s := range g.sessions {
		n := s.fast.Load()
		w.begun += n / fastBegun
		w.answering = w.answering || n&answering != 0
		w.quiet = w.quiet && n&(fastUnderWay|answering) == 0
	}
	return w
}

// register adds a session.
func (g *rangeGate) register(s *session) {
	g.mu.Lock()
	g.sessions = append(g.sessions, s)
	g.mu.Unlock()
}

func (g *rangeGate) unregister(s *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.sessions, s); i >= 0 {
		g.begun += s.fast.Load() / fastBegun
		g.sessions = slices.Delete(g.sessions, i, i+1)
	}
}

// enterFast lets a write of whole blocks in if no exclusive write and no fence is about.
func (g *rangeGate) enterFast(fast *atomic.Int64) bool {
	fast.Add(fastBegun + 1)
	if g.exclusive.Load() == 0 {
		return true
	}
	fast.Add(-1)
	return false
}

// enterSlow queues c by its range and returns the commands, c perhaps among
// them, that may run now, linked by nextGranted.
func (g *rangeGate) enterSlow(c *command, h hold) *command {
	if h == holdExclusive {
		g.exclusive.Add(1)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	c.hold = h
	g.begun++
	g.waiting = append(g.waiting, c)
	return g.grantLocked()
}

// leave ends c's hold and returns the commands that may run now. From now on c counts
// as being answered, until writeAnswered is subtracted from its session's counter.
func (g *rangeGate) leave(c *command) *command {
	h := c.hold
	switch h {
	case holdNone:
		return nil
	case holdFast:
		c.hold = holdNone
		c.s.fast.Add(writeAnswered - 1)
		if g.exclusive.Load() == 0 {
			return nil
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.grantLocked()
	case holdShared, holdExclusive:
	}
	c.s.fast.Add(writeAnswered)
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.running {
		if g.running[i] == c {
			g.running = append(g.running[:i], g.running[i+1:]...)
			break
		}
	}
	c.hold = holdNone // others looked at it while c was among the running
	if h == holdExclusive {
		g.exclusive.Add(-1)
	}
	return g.grantLocked()
}

// grantLocked moves from waiting to running the commands that conflict with none that
// runs, nor with any that came earlier and still waits, and that no fence holds back;
// exclusive ones only if no fast write is under way.
//
// +checklocks:g.mu
func (g *rangeGate) grantLocked() (granted *command) {
	g.liftFencesLocked()
	if len(g.waiting) == 0 {
		return nil
	}
	last := &granted
	drained := !slices.ContainsFunc(g.sessions, (*session).isWriting)
	kept := g.waiting[:0]
	for _, c := range g.waiting {
		if c.hold == holdExclusive && !drained || conflicts(c, g.running) || g.heldBackLocked(c, kept) {
			kept = append(kept, c)
			continue
		}
		g.running = append(g.running, c)
		*last = c
		last = &c.nextGranted
	}
	clear(g.waiting[len(kept):])
	g.waiting = kept
	return granted
}

// heldBackLocked reports whether a fence holds c back, or one of earlier, which wait. Who
// is behind a fence that c's own session has is not waited for.
//
// +checklocks:g.mu
func (g *rangeGate) heldBackLocked(c *command, earlier []*command) bool {
	if len(g.fenced) == 0 {
		return conflicts(c, earlier)
	}
	rank := g.rankLocked(c.s)
	for _, s := range g.fenced[:rank] {
		if s.fence.isInTheWay(c) {
			return true
		}
	}
	for _, o := range earlier {
		if g.rankLocked(o.s) <= rank && c.conflicts(o) {
			return true
		}
	}
	return false
}

// conflicts reports whether c must not run beside one of others.
func conflicts(c *command, others []*command) bool {
	return slices.ContainsFunc(others, c.conflicts)
}

// conflicts reports whether c must not run beside o: they share a block, one of the two
// is exclusive, and o is not lost.
func (c *command) conflicts(o *command) bool {
	return (c.hold == holdExclusive || o.hold == holdExclusive) && c.lockFrom < o.lockTo && o.lockFrom < c.lockTo && !o.s.fence.lost
}
