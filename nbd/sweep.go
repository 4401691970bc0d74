package nbd

import "time"

// Connections are checked for clients that have stalled, and for memory that idle ones do
// not need: each sweepInterval, and less and less often, down to each restInterval, while no
// client does anything.
const (
	sweepInterval = time.Second
	restInterval  = 8 * time.Second
)

// visits are what the sweeper remembers of a connection. They lie in the connection,
// beside what the sweeper looks at: it meets a thousand idle ones with cold caches.
type visits struct {
	again bool // there was a visit before
	reads uint64
	rest  rest
	crawl crawl
}

// sweep checks the connections now and then until none is left.
func (s *Server) sweep() {
	longest := min(restInterval, s.limits.ReplyTimeout/4)
	if s.limits.IdleTimeout > 0 {
		longest = min(longest, s.limits.IdleTimeout/4)
	}
	longest = max(longest, time.Millisecond)
	shortest := min(sweepInterval, longest)
	interval := shortest
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var conns []*Conn
	for {
		ticked := false
		select {
		case <-tick.C:
			ticked = true
		case <-s.alone:
		}
		s.mu.Lock()
		if len(s.conns) == 0 {
			s.sweeping = false
			s.mu.Unlock()
			return
		}
		if !ticked {
			s.mu.Unlock()
			continue
		}
		for c := range s.conns {
			if c.transmitting {
				conns = append(conns, c)
			}
		}
		s.mu.Unlock()
		at, short, next := now(), s.memoryShort(), min(2*interval, longest)
		for _, c := range conns {
			if !s.visit(c, at, short) {
				next = shortest
			}
		}
		clear(conns) // some are over
		conns = conns[:0]
		if next != interval {
			interval = next
			tick.Reset(interval)
		}
	}
}

// visit closes c if it overstays, and lets it give back memory if it is idle. It returns
// whether there was nothing to do, and nothing has happened since the last visit. This one
// is at atNs since epoch, and short says whether memory is.
//
// Concurrency: the sweeper.
func (s *Server) visit(c *Conn, atNs int64, short bool) bool {
	if reason := s.overstays(c, atNs, short); reason != CloseReasonCount {
		c.kill(reason)
		return false
	}
	v, reads := &c.visits, c.reads.Load()
	if !v.again || v.reads != reads { // else its memory is not written to
		v.again, v.reads = true, reads
		return false
	}
	if c.requestSince.Load() != 0 {
		return false
	}
	if c.heldBytes.Load() > minBlockBytes {
		c.poke(wishTrim)
		return false
	}
	return c.replySince.Load() == 0
}

// overstays returns why c is to be closed, or CloseReasonCount if it is not. This visit is
// at atNs since epoch, and short says whether memory is.
//
// Concurrency: the sweeper.
func (s *Server) overstays(c *Conn, atNs int64, short bool) CloseReason {
	late := func(sinceNs int64) bool { return sinceNs != 0 && atNs-sinceNs > int64(s.limits.ReplyTimeout) }
	switch {
	case late(c.replySince.Load()):
		return CloseReplyTimeout
	case late(c.requestSince.Load()):
		return CloseRequestTimeout
	case c.crawls(atNs) && short:
		return CloseTooSlow
	case s.limits.IdleTimeout > 0 && c.idleFor(atNs) > s.limits.IdleTimeout:
		return CloseIdle
	}
	return CloseReasonCount
}
