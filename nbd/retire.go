package nbd

import "context"

// An export goes in three steps: it is taken out of Exports, so that nobody new
// comes; DrainDevice ends the connections that there are; Forget drops its
// counters.

// Users is how many connections use d.
//
// Concurrency: any goroutine.
func (s *Server) Users(d Device) int {
	if s.setup() != nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.users[d]
}

// Unused calls fn, which must not wait or call the server, unless connections use
// d, and returns how many do. No connection begins to while fn runs, and what fn
// does to Exports is in force for those that come after.
//
// Concurrency: any goroutine.
func (s *Server) Unused(d Device, fn func()) (connections int) {
	if s.setup() != nil { // it can serve nobody
		fn()
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.users[d]; n > 0 {
		return n
	}
	fn()
	return 0
}

// DrainDevice ends the connections that use d: each answers what it has in flight
// and is closed. Those that are left when ctx ends are closed at once. It does not
// wait for what their devices still have to complete then; call it again for that.
//
// d must not be in Exports any more. Errors: that of ctx, and then killed is how
// many had to be closed.
//
// Concurrency: any goroutine.
func (s *Server) DrainDevice(ctx context.Context, d Device) (killed int, err error) {
	if s.setup() != nil {
		return 0, nil //nolint:nilerr // a server that was never able to serve has no connections
	}
	s.mu.Lock()
	if s.users[d] == 0 {
		s.mu.Unlock()
		return 0, nil
	}
	left := s.leaving[d]
	if left == nil {
		left = make(chan struct{})
		s.leaving[d] = left
	}
	for c := range s.conns {
		if c.reserved && c.reservedDevice == d {
			s.drainLocked(c)
		}
	}
	s.mu.Unlock()
	select {
	case <-left:
		return 0, nil
	case <-ctx.Done():
	}
	var conns []*Conn
	s.mu.Lock()
	for c := range s.conns {
		if c.reserved && c.reservedDevice == d {
			conns = append(conns, c)
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.kill(CloseKilled)
	}
	return len(conns), ctx.Err()
}

// Forget drops the counters of an export that is gone, unless a connection has it
// still.
//
// Concurrency: any goroutine.
func (s *Server) Forget(name string) {
	if s.setup() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse[name] == 0 {
		delete(s.folded, name)
	}
}
