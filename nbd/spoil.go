package nbd

import "time"

// What a server that has lost its way may do to a client, on demand. See also cut.go.

// BadCookie has the reply carry a cookie that is not the request's. The client gets
// no other, and it may well end the connection. It does no more to call it again.
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
	// Greet has over called, on a goroutine of its own, when a client has waited that
	// has asked for the device, before Open is called. Its time for the handshake goes
	// on meanwhile, and ends the wait; so does the end of the server, or the client that
	// closes its socket. Then stop is called.
	// A client whose export goes meanwhile is told so when it has waited. No stop: the
	// client does not wait, and over is not called.
	//
	// Concurrency: any goroutine. It must not wait itself.
	Greet(over func()) (stop func() bool)
}

// detain lets the client wait for as long as the device of e wants. No lock is held,
// and the client has no place among the export's connections yet.
//
// Errors: a refusal, or that its time is up, or that it has gone.
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
		return &refusal{repErrShutdown, NegotiationShutdown, "the server is shutting down"}
	}
	return nil
}

// rest waits for as long as g wants, unless the deadline comes, the client closes, or the
// connection is dead or to be drained. It says whether the client has gone.
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

// watch has gone called, on a goroutine of its own, when the client closes. leave ends the
// watch, sets the deadline for reading, and says whether the client has closed. Only a socket
// can tell: elsewhere the client is there until something is read or written.
//
// Concurrency: the goroutine that reads, which does not meanwhile.
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
