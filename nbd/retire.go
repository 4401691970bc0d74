package nbd

import "context"

// An export is retired in three steps: it is taken out of Exports, so that no new
// client gets it; DrainDevice ends the connections that there are; Forget drops its
// counters.

// Users returns how many connections use d.
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

// Unused calls fn unless connections use d, and returns how many do. No connection
// begins to use d while fn runs, and later connections see what fn has done to
// Exports. fn must not wait or call the server.
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
// and is closed. Connections that are left when ctx ends are closed at once, without
// waiting for what the device still has to complete; call DrainDevice again to wait
// for that.
//
// d must not be in Exports any more. Errors: that of ctx; killed is then how many
// connections had to be closed.
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

// Forget drops the counters of an export that is gone, unless a connection still
// uses it.
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
