package nbd

// An ahead is the payload that is expected after the one that is being received: of a
// write as long as that one, as clients that copy send them. A read has the socket put
// it where it will stay, so that it is copied once. If something else comes, nothing is
// lost but a copy: fold puts the bytes where they would have been. The price is a block
// more while a payload is waited for, as long as there is plenty of memory.
//
// Concurrency: the reader's.
type ahead struct {
	// block is for the payload, or nil. It has the first filled bytes of what follows
	// the header at rx.mem[start], and rx.mem what comes behind them.
	//
	// A read leaves it only with some bytes, so the header is there, and no other read
	// comes before the header is parsed. If the payload is not whole, rx.mem has no more
	// than the header. And rx.mem has room for all.
	block  *block
	length int
	filled int
}

// maxAheadBytes is the longest payload to have memory ready for. Of a longer one what a
// socket holds is little.
const maxAheadBytes = 1 << 20

// aheadWanted says whether there should be memory for a payload behind one of length
// bytes, of which missingBytes are to come.
func (c *Conn) aheadWanted(length, missingBytes int) bool {
	// A shorter one is awaited in the receive block, if it has the room. And a socket does
	// not hold much more than a block.
	return length > ownBlockBytes && length <= maxAheadBytes && missingBytes <= maxBlockBytes && c.plenty(length)
}

// lookAhead appends to parts what a read may fill behind the payload that is being
// received, which is room, at the end of the receive block, and a block for the next
// payload if there should be one.
func (c *Conn) lookAhead(parts [][]byte, room []byte) [][]byte {
	header, length := c.format.requestBytes(), len(c.filling.Data)
	if len(room) >= header+minReadBytes && c.aheadWanted(length, length-c.filled) {
		c.ahead.block = c.allocate(length)
	}
	if c.ahead.block == nil {
		return append(parts, room)
	}
	c.ahead.length = length
	n := min(length, len(room)-header)
	return append(parts, room[:header], c.ahead.block.mem[:n], room[header:len(room)-n])
}

// tookAhead is called when a read has brought n bytes, zero or more, behind the payload: of
// the next header, what is ahead, and what follows it. end counts all of them as in the
// receive block, and is put right.
func (c *Conn) tookAhead(n int) {
	c.ahead.filled = min(max(n-c.format.requestBytes(), 0), c.ahead.length)
	c.end -= c.ahead.filled
	if c.ahead.filled == 0 {
		c.dropAhead()
	}
}

// foreseen says whether h is the header of what is ahead.
func (c *Conn) foreseen(h *requestHeader) bool {
	if h.typ != cmdWrite || h.length != uint64(c.ahead.length) {
		return false
	}
	_, errno, _ := c.rules.check(h)
	return errno == OK
}

// fold puts what was received ahead where it belongs in the receive block.
func (c *Conn) fold() {
	at, n := c.start+c.format.requestBytes(), c.ahead.filled
	copy(c.rx.mem[at+n:], c.rx.mem[at:c.end])
	copy(c.rx.mem[at:], c.ahead.block.mem[:n])
	c.end += n
	c.dropAhead()
}

func (c *Conn) dropAhead() {
	c.drop(c.ahead.block)
	c.ahead = ahead{}
}
