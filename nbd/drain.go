package nbd

import "time"

// lastOrders are what a draining connection takes: it goes on reading, but withholds its
// replies. A client keeps a limited number of requests in flight, so it soon falls
// silent, and then everything that it has sent has been read. All of it is answered at
// once, and the connection closed: no request is left behind in the socket.
//
// A client cannot tell that a request was left behind, and would send it again only
// after its time-out. Linux is such a client: it looks for answers on each of its
// sockets, and sends what a socket that has gone still owes over another one only when
// the time is up.
//
// Concurrency: the reader's.
type lastOrders struct {
	taken   bool
	endNs   int64 // when they end in any case, since epoch
	quietNs int64 // when the client has been silent for long enough, since epoch
}

const (
	// quietTime is how long a client must be silent to be taken to have sent
	// everything.
	quietTime = 20 * time.Millisecond
	// lastOrdersTime bounds lastOrders for a client that never falls silent. So do its
	// slots.
	lastOrdersTime = time.Second
)

// takeLastOrders is called before each read of a draining connection. It returns
// false if there should be no more reads.
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

// quiet says, when a read has hit its deadline, whether the client has nothing more
// to say. The deadline may also be that of a poke, which is in the past.
func (c *Conn) quiet() bool {
	return c.orders.taken && c.wishes.Load()&wishTrim == 0 && now() >= c.orders.quietNs
}

// handOut lets the withheld replies go. From here on the client of a unix socket can
// send nothing more, as it would wait for answers in vain.
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

// drainLocked asks a connection to finish. One that still negotiates will never transmit: it
// gets a moment to take its refusal, and does not hold up the drain if it takes nothing.
//
// +checklocks:s.mu
func (s *Server) drainLocked(c *Conn) {
	if !c.transmitting {
		c.wishes.Or(wishDrain) // first, for negotiation.run, which may undo the deadline
		// Before the poke: whoever that wakes may set a later deadline.
		_ = c.nc.SetWriteDeadline(time.Now().Add(lingerTime)) // as in poke
	}
	c.poke(wishDrain)
}
