package nbd

import "time"

// Misbehaviour of a confused server towards its client, on demand. See also cut.go.

// BadCookie makes the reply carry a cookie that is not the request's. The client gets no
// other reply, and may well end the connection. Further calls do nothing.
//
// Concurrency: before Complete or Fail, by whoever calls that.
func (r *Request) BadCookie() {
	if !r.badCookie {
		r.badCookie, r.cookie = true, ^r.cookie
	}
}

// A Greeter is a Device that may let clients wait.
type Greeter interface {
	Device
	// Greet is called before Open when a client has asked for the device. It must not wait
	// itself, and has over called, on a goroutine of its own, when the client has waited
	// for long enough. The wait also ends when the client's time for the handshake is up,
	// when the server drains, or when the client closes its socket. Whatever ends it,
	// stop is called then. If stop is nil the client does not wait, and over must not be
	// called. A client whose export is removed meanwhile is told so after the wait.
	//
	// Concurrency: any goroutine.
	Greet(over func()) (stop func() bool)
}

// detain makes the client wait for as long as the device of e wants. No lock is held,
// and the client does not count among the export's connections yet.
//
// Errors: a refusal; the client's time is up; the client has gone.
func (n *negotiation) detain(e Export) error {
	g, ok := e.Device.(Greeter)
	if !ok {
		return nil
	}
	gone := n.c.rest(g, n.deadline)
	switch {
	case gone:
		return negotiationError{NegotiationBroken, "the client has closed while it had to wait for its export"}
	case !time.Now().Before(n.deadline):
		return because(NegotiationTimeout)
	case n.c.draining():
		return errDraining
	}
	return nil
}

// rest waits for as long as g wants, but not beyond the deadline, and not once the client has
// closed or the connection is dead or draining. It says whether the client has gone.
//
// Concurrency: the goroutine that reads, in the handshake.
func (c *Conn) rest(g Greeter, deadline time.Time) (gone bool) {
	over := false
	end := func() {
		c.mu.Lock()
		over = true
		c.cond.Signal()
		c.mu.Unlock()
	}
	stop := g.Greet(end)
	if stop == nil {
		return false
	}
	defer stop()
	timer := time.AfterFunc(time.Until(deadline), end)
	defer timer.Stop()
	leave := c.watch(end)
	c.mu.Lock()
	for !over && !c.dead.Load() && !c.draining() {
		c.cond.Wait()
	}
	c.mu.Unlock()
	return leave(deadline)
}

// watch calls gone, on a goroutine of its own, when the client closes. leave ends the watch,
// sets the read deadline, and says whether the client has closed. Only a socket can tell:
// over other connections the client seems present until something is read or written.
//
// Concurrency: the goroutine that reads, which does not read meanwhile.
func (c *Conn) watch(gone func()) (leave func(deadline time.Time) bool) {
	s, ok := c.nc.(interface{ AwaitHangup() error })
	if !ok {
		return func(time.Time) bool { return false }
	}
	closed := make(chan bool, 1)
	go func() {
		err := s.AwaitHangup()
		if err == nil {
			gone()
		}
		closed <- err == nil
	}()
	return func(deadline time.Time) bool {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // as in poke
		has := <-closed
		_ = c.nc.SetReadDeadline(deadline)
		if c.draining() {
			_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // this may have undone the poke
		}
		return has
	}
}
