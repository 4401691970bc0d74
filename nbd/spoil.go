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
	// on meanwhile, and ends the wait; so does the end of the server. Then stop is called.
	// A client whose export goes meanwhile is told so when it has waited. No stop: the
	// client does not wait, and over is not called.
	//
	// Concurrency: any goroutine. It must not wait itself.
	Greet(over func()) (stop func() bool)
}

// detain lets the client wait for as long as the device of e wants. No lock is held,
// and the client has no place among the export's connections yet.
//
// Errors: a refusal, or that its time is up.
func (n *negotiation) detain(e Export) error {
	g, ok := e.Device.(Greeter)
	if !ok {
		return nil
	}
	n.c.rest(g, n.deadline)
	if !time.Now().Before(n.deadline) {
		return because(NegotiationTimeout)
	}
	if n.c.draining() {
		return &refusal{repErrShutdown, NegotiationShutdown, "the server is shutting down"}
	}
	return nil
}

// rest waits for as long as g wants, unless the deadline comes, or the connection is dead
// or to be drained.
//
// Concurrency: the goroutine that reads, in the handshake.
func (c *Conn) rest(g Greeter, deadline time.Time) {
	over := false
	end := func() {
		c.mu.Lock()
		over = true
		c.cond.Signal()
		c.mu.Unlock()
	}
	stop := g.Greet(end)
	if stop == nil {
		return
	}
	defer stop()
	timer := time.AfterFunc(time.Until(deadline), end)
	defer timer.Stop()
	c.mu.Lock()
	for !over && !c.dead.Load() && !c.draining() {
		c.cond.Wait()
	}
	c.mu.Unlock()
}
