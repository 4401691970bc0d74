package nbd

// Alive reports whether replies can still reach the client. A device that has much to
// do for one request may ask, and give up when the client has gone. After DISC, or on a
// draining server, a connection stays alive until everything is answered.
//
// Concurrency: any goroutine.
func (c *Conn) Alive() bool { return !c.dead.Load() }
