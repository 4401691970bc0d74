package disk

import (
	"slices"

	"github.com/vhbad/vhbad/port"
)

// A fence keeps other clients' writes off what a client that has gone left under way. That
// client, or the one after it, may send a write again on a new connection and go on from
// there; if the first one took effect only then, an acknowledged write would be undone.
//
// A fence goes up before the client can know that the connection has ended, or as soon as it is
// seen that the client has closed its socket itself, or has said that it will; and is lifted when
// the session's last write is over. Fences stand in order of their time: a session that has a
// fence itself respects those before it only, so nobody waits in a circle.
//
// It is guarded by rangeGate.mu.
type fence struct {
	// narrow: the session begins no more writes, and those under way are in spans.
	// Otherwise it may begin one anywhere.
	narrow bool
	spans  []span
	// lost: what the session has under way is not executed any more.
	lost bool
}

// A span is a range of whole blocks, in bytes.
type span struct{ from, to uint64 }

// isInTheWay reports whether c has to wait for the fence.
func (f *fence) isInTheWay(c *command) bool {
	return !f.narrow || slices.ContainsFunc(f.spans, func(x span) bool { return c.lockFrom < x.to && x.from < c.lockTo })
}

// fence puts up the fence of s.
func (g *rangeGate) fence(s *session) {
	g.exclusive.Add(1) // first: whoever did not see it is counted as under way
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.needsFenceLocked(s) {
		g.fenced = append(g.fenced, s)
	} else {
		g.exclusive.Add(-1)
	}
}

// narrowFence makes the fence of s narrow, be it up or not. It returns the commands that
// may run now.
func (g *rangeGate) narrowFence(s *session, spans []span) (granted *command) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.fence.narrow, s.fence.spans = true, spans
	return g.grantLocked()
}

// needsFenceLocked reports whether s has writes under way or may begin more.
//
// +checklocks:g.mu
func (g *rangeGate) needsFenceLocked(s *session) bool {
	isOfS := func(c *command) bool { return c.s == s }
	return !s.fence.lost && (!s.fence.narrow || s.isWriting() || slices.ContainsFunc(g.running, isOfS) || slices.ContainsFunc(g.waiting, isOfS))
}

// liftFencesLocked takes down the fences that are not needed any more.
//
// +checklocks:g.mu
func (g *rangeGate) liftFencesLocked() {
	kept := g.fenced[:0]
	for _, s := range g.fenced {
		if g.needsFenceLocked(s) {
			kept = append(kept, s)
			continue
		}
		g.exclusive.Add(-1)
	}
	clear(g.fenced[len(kept):])
	g.fenced = kept
}

// lose takes down all fences. It returns the commands that may run now.
func (g *rangeGate) lose() (granted *command) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.fenced {
		s.fence.lost = true
	}
	return g.grantLocked()
}

// rankLocked is the place of a session's fence among the fences, or how many there are if
// it has none.
//
// +checklocks:g.mu
func (g *rangeGate) rankLocked(s *session) int {
	if i := slices.Index(g.fenced, s); i >= 0 {
		return i
	}
	return len(g.fenced)
}

// isWriting reports whether s has fast writes under way that are not lost.
func (s *session) isWriting() bool { return !s.fence.lost && s.fast.Load()&fastUnderWay != 0 }

// Fence implements nbd.Fencer.
func (s *session) Fence() { s.d.gate.fence(s) }

// NarrowFence implements nbd.Fencer. The ranges of writes that are over may be among those
// that stay fenced, which does little harm: it is for as long as others are under way.
func (s *session) NarrowFence() {
	var spans []span
	for _, c := range s.commands {
		if c != nil && c.lockFrom < c.lockTo {
			spans = append(spans, span{c.lockFrom, c.lockTo})
		}
	}
	s.mu.Lock()
	if s.spareBusy { // with whose request is for others to say
		spans = []span{{0, ^uint64(0)}}
	}
	s.mu.Unlock()
	startGranted(s.p, s.d.gate.narrowFence(s, spans))
}

// ForgetGone lets writes pass those that connections left under way which have ended: the
// caller knows that the unit executes none of them, and will not. See Options.Nexus.
//
// Concurrency: Passive.
func (d *Disk) ForgetGone(p *port.Processor) { startGranted(p, d.gate.lose()) }
