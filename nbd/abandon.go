package nbd

// A Loan is the memory of a request that was answered while somebody may still use
// the memory. The zero Loan holds none.
type Loan struct {
	c *Conn
	b *block
}

// Abandon is Complete with an error, errno, for a request whose Data a device may
// still touch. The client gets its answer and the request is over, but the memory
// stays allocated, and counts as in flight on the connection, until the Loan is
// returned. The connection may have ended long before that.
//
// Concurrency: as for Complete.
func (r *Request) Abandon(errno Errno) (loan Loan, flush bool) {
	if errno == OK {
		panic("nbd: abandoned without an error")
	}
	loan = Loan{c: r.conn, b: r.block}
	r.Data, r.block, r.dataAt = nil, nil, 0
	return loan, r.Complete(errno)
}

// Return gives the memory back, once.
//
// Concurrency: any goroutine; takes a lock for a few instructions.
func (l Loan) Return() {
	if l.b == nil {
		return
	}
	l.c.drop(l.b)
	l.c.mu.Lock()
	l.c.ownLocked()
	l.c.cond.Signal() // the reader may wait for memory
	l.c.mu.Unlock()
}
