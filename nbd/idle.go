package nbd

import "time"

// A rest is when the sweeper last saw that a connection was busy.
type rest struct {
	seen          bool
	receivedBytes uint64
	sinceNs       int64 // since epoch
}

// idleFor returns how long c has had no request, as far as the sweeper's visits show.
// This visit is at atNs since epoch.
//
// Concurrency: the sweeper.
func (c *Conn) idleFor(atNs int64) time.Duration {
	received, last := c.receivedBytes.Load(), &c.visits.rest
	if !last.seen || last.receivedBytes != received || c.hasInFlight() || c.waitsForMemory() {
		*last = rest{seen: true, receivedBytes: received, sinceNs: atNs}
		return 0
	}
	return time.Duration(atNs - last.sinceNs)
}

// waitsForMemory says whether a request that has come, or the next one, has no memory yet: it is
// not the client that makes it wait.
func (c *Conn) waitsForMemory() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wait.end != nil
}

// hasInFlight says whether requests wait for their replies. It goes by the counters, so
// anyone may ask, and for a busy connection either answer is possible.
func (c *Conn) hasInFlight() bool {
	for i := range c.ops {
		o := &c.ops[i]
		if o.started.Load() != o.over() {
			return true
		}
	}
	return false
}
