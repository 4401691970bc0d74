package socket

import (
	"sync"
	"sync/atomic"
	"time"
)

// epoch is what times are counted from.
var epoch = time.Now()

// A side is one direction of a connection.
type side struct {
	v     vector
	ready chan struct{} // has a token when there is reason to look again

	deadlineNs atomic.Int64 // since epoch; zero is none
	mu         sync.Mutex
	// timer is for the deadline.
	// +checklocks:mu
	timer *time.Timer
}

// kick makes the side's user look again.
func (s *side) kick() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// late says whether the deadline has passed.
func (s *side) late() bool {
	at := s.deadlineNs.Load()
	return at != 0 && int64(time.Since(epoch)) >= at
}

func (s *side) setDeadline(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if t.IsZero() {
		s.deadlineNs.Store(0)
		return
	}
	d := time.Until(t)
	s.deadlineNs.Store(max(int64(t.Sub(epoch)), 1)) // Sub saturates
	if d <= 0 {
		s.kick()
		return
	}
	s.timer = time.AfterFunc(d, s.kick)
}
