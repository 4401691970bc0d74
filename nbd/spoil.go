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
	// Greet returns how long a client waits that has asked for the device, before
	// Open is called. Its time for the handshake goes on meanwhile, and ends the wait;
	// so does the end of the server. A client whose export goes meanwhile is told so
	// when it has waited.
	//
	// Concurrency: any goroutine. It must not wait itself.
	Greet() time.Duration
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
	if wait := min(g.Greet(), time.Until(n.deadline)); wait > 0 {
		n.c.rest(wait)
	}
	if !time.Now().Before(n.deadline) {
		return because(NegotiationTimeout)
	}
	if n.c.draining() {
		return &refusal{repErrShutdown, NegotiationShutdown, "the server is shutting down"}
	}
	return nil
}

// rest waits, unless the connection is dead or to be drained.
//
// Concurrency: the goroutine that reads, in the handshake.
func (c *Conn) rest(wait time.Duration) {
	over := false
	timer := time.AfterFunc(wait, func() {
		c.mu.Lock()
		over = true
		c.cond.Signal()
		c.mu.Unlock()
	})
	defer timer.Stop()
	c.mu.Lock()
	for !over && !c.dead.Load() && !c.draining() {
		c.cond.Wait()
	}
	c.mu.Unlock()
}
