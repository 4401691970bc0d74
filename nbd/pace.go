package nbd

import "time"

// A pacer spaces events: a burst of them may come at once, then one each interval.
//
// Source: the generic cell rate algorithm, ITU-T I.371.
type pacer struct {
	intervalNs, burstNs int64
	// dueNs is when the next event would be due if they came without pause, since
	// epoch.
	dueNs int64
}

// newPacer allows perSecond events per second, and burst of them, at least one, at
// once.
func newPacer(perSecond, burst int) pacer {
	interval := int64(time.Second) / int64(perSecond)
	return pacer{intervalNs: interval, burstNs: int64(burst-1) * interval, dueNs: -1 << 62}
}

// take counts an event at atNs since epoch, and returns how long the next one should
// wait.
func (p *pacer) take(atNs int64) time.Duration {
	p.dueNs = max(p.dueNs, atNs-p.burstNs) + p.intervalNs
	return time.Duration(max(p.dueNs-atNs, 0))
}

// allow counts an event like take and returns true, or returns false if the event would
// have to wait.
func (p *pacer) allow(atNs int64) bool {
	if p.dueNs > atNs {
		return false
	}
	p.take(atNs)
	return true
}

const (
	// acceptBurst is how many clients may connect at once, without a pause.
	acceptBurst = 16
	// acceptPause is the shortest pause. Clients that have come during a pause are accepted
	// one right after another, which disturbs other connections less often.
	acceptPause = 10 * time.Millisecond
	// complaintsPerSecond and complaintBurst bound the log lines about connections that
	// came to nothing: a client that connects too often, or talks nonsense, should not
	// fill the log.
	complaintsPerSecond = 1
	complaintBurst      = 10
)

// newAcceptPacer paces connections.
func newAcceptPacer(perSecond int) pacer {
	return newPacer(perSecond, max(acceptBurst, int(acceptPause)*perSecond/int(time.Second)))
}

// awaitAccept waits until the next connection may be accepted. It returns false if the
// server drains.
func (s *Server) awaitAccept() bool {
	s.mu.Lock()
	wait := s.accepts.take(now())
	s.mu.Unlock()
	if wait == 0 {
		return true
	}
	select {
	case <-s.stop:
		return false
	case <-time.After(max(wait, acceptPause)):
		return true
	}
}

// complain says whether to log a line about a connection that came to nothing, and how
// many such connections were not logged since the last one that was.
func (s *Server) complain() (tell bool, untold uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.complaints.allow(now()) {
		s.untold++
		return false, 0
	}
	untold, s.untold = s.untold, 0
	return true, untold
}
