package port

import "time"

// lookPeriod is how often the units' queues are looked at. After restAfter looks that
// saw nothing, they are looked at once a second until something has come: an idle
// daemon hardly wakes up. What is done between two such looks is not counted as busy.
const (
	lookPeriod = 100 * time.Millisecond
	restAfter  = 100
)

// looks are what the port learns of a queue by looking at it now and then, so that
// SRBs need not carry a time: whether anything was there, and since when the SRBs at
// the two heads have been. An SRB seen at only one look has no age.
type looks struct {
	last             int64  // when the last look was, by System.nanos
	started          uint64 // LUStats.Started at that time
	pending, waiting sighting
}

// A sighting is an SRB that was at the head of a list. It may be gone, so only the
// pointer is compared.
type sighting struct {
	s     *SRB
	life  uint16 // SRB.life
	since int64
}

func (g sighting) is(s *SRB) bool { return g.s == s && g.life == s.life }

// look looks at all queues. It returns false if there has been nothing to see for some
// time.
//
// Level: Passive, on the timer service.
func (a *Adapter) look(*Processor) (again bool) {
	now := a.sys.nanos()
	a.quietLooks++
	for _, lu := range a.units.Load().list {
		lu.mu.Lock()
		if lu.stats.Started != lu.looks.started || lu.waiting.n > 0 || lu.outstanding > 0 {
			lu.looks.started = lu.stats.Started
			a.quietLooks = 0
		}
		if lu.outstanding > 0 || lu.waiting.n > 0 {
			lu.stats.BusyTime += min(time.Duration(now-lu.looks.last), 2*lookPeriod) // a look may be late
		}
		lu.looks.last = now
		lu.lookLocked(now)
		lu.mu.Unlock()
	}
	return a.quietLooks < restAfter
}

// lookLocked notes which SRBs are at the heads and returns how long the older of them
// has been here, as far as looks can tell.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) lookLocked(now int64) time.Duration {
	before := lu.looks
	lu.looks.pending = before.find(lu.pendingHead, now)
	lu.looks.waiting = before.find(lu.waiting.head, now)
	return max(lu.looks.pending.age(now), lu.looks.waiting.age(now))
}

// find returns the sighting of s, a new one unless s was at either head at the last look:
// an SRB that waited may have started, and one that was turned away waits again.
func (k *looks) find(s *SRB, now int64) sighting {
	switch {
	case s == nil:
		return sighting{}
	case k.pending.is(s):
		return k.pending
	case k.waiting.is(s):
		return k.waiting
	}
	return sighting{s, s.life, now}
}

func (g sighting) age(now int64) time.Duration {
	if g.s == nil {
		return 0
	}
	return time.Duration(now - g.since)
}
