package nbd

// Alive reports whether anybody can still be answered. A device that has much to
// do for one request may ask, and give up when the client has gone; DISC and a
// draining server leave a connection alive until all is answered.
//
// Concurrency: any goroutine.
func (c *Conn) Alive() bool { return !c.dead.Load() }
