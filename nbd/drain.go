package nbd

import "time"

// A draining connection takes last orders: it goes on to read, but keeps its
// replies back. A client has only so much in flight, so it soon falls silent, and
// then all that it has sent is known. It is answered at once, and the connection
// closed: no request is left behind in the socket.
//
// A client that could not tell would have to wait for its time-out to send such
// a request again. Linux is one: it looks for answers on each of its sockets,
// and what is owed by one that has gone is sent elsewhere only when its time is
// up.
//
// Concurrency: the reader's.
type lastOrders struct {
	taken   bool
	endNs   int64 // when they end in any case, since epoch
	quietNs int64 // when the client has been silent for long enough, since epoch
}

const (
	// quietTime is how long a client says nothing that will say no more.
	quietTime = 20 * time.Millisecond
	// lastOrdersTime bounds them for a client that never falls silent. So do its
	// slots.
	lastOrdersTime = time.Second
)

// takeLastOrders is called before each read of a draining connection. It returns
// false if there should be none.
func (c *Conn) takeLastOrders() bool {
	at := now()
	if !c.orders.taken {
		c.orders = lastOrders{taken: true, endNs: at + int64(lastOrdersTime)}
		c.mu.Lock()
		c.withheld = true
		c.mu.Unlock()
	}
	c.orders.quietNs = at + int64(quietTime)
	return at < c.orders.endNs && c.nc.SetReadDeadline(time.Now().Add(quietTime)) == nil
}

// quiet says, when a read has met its deadline, whether the client has nothing more
// to say. It was something else if a poke came meanwhile, whose deadline is in the
// past.
func (c *Conn) quiet() bool {
	return c.orders.taken && c.wishes.Load()&wishTrim == 0 && now() >= c.orders.quietNs
}

// handOut lets replies go again. The client of a unix socket cannot send any more
// from here on: it would hope for answers.
func (c *Conn) handOut() {
	c.mu.Lock()
	withheld := c.withheld
	c.withheld = false
	c.mu.Unlock()
	if !withheld {
		return
	}
	if s, ok := c.nc.(interface{ CloseRead() error }); ok && c.nc.LocalAddr().Network() == "unix" {
		_ = s.CloseRead() // else it is as with TCP
	}
	c.Flush()
}

// drainLocked asks a connection to finish. One that still negotiates will not transmit any
// more: it gets a moment to take what it is told, and does not hold up the drain if it takes
// nothing.
//
// +checklocks:s.mu
func (s *Server) drainLocked(c *Conn) {
	if !c.transmitting {
		c.wishes.Or(wishDrain) // first, for negotiation.run, which may undo the deadline
		// Before the poke: who is woken up by that may set a later one.
		_ = c.nc.SetWriteDeadline(time.Now().Add(lingerTime)) // as in poke
	}
	c.poke(wishDrain)
}
