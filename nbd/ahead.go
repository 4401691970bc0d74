package nbd

// An ahead is the payload that is expected after the one that is being received: of a
// write as long as that one, as clients that copy send them. A read has the socket put
// it where it will stay, so that it is copied once. If something else comes, nothing is
// lost but a copy: fold puts the bytes where they would have been.
//
// Concurrency: the reader's.
type ahead struct {
	// block is for the payload, or nil. It has the first filled bytes of what follows
	// the header at rx.mem[start], and rx.mem what comes behind them.
	//
	// Between steps filled is more than zero, so the header is there. If the payload is
	// not whole, rx.mem has no more than the header. And rx.mem has room for all.
	block  *block
	length int
	filled int
}

// maxAheadBytes is the longest payload to have memory ready for. Of a longer one what a
// socket holds is little.
const maxAheadBytes = 1 << 20

// lookAhead appends to parts what a read may fill behind the payload that is being
// received, which is room, at the end of the receive block, and a block for the next
// payload if there should be one.
func (c *Conn) lookAhead(parts [][]byte, room []byte) [][]byte {
	header, length := c.format.requestBytes(), len(c.filling.Data)
	// A socket does not hold much more than a block.
	near := length-c.filled <= maxBlockBytes
	if near && length <= maxAheadBytes && len(room) >= header+minReadBytes && !c.arena.Scarce() {
		c.ahead.block = c.allocate(length)
	}
	if c.ahead.block == nil {
		return append(parts, room)
	}
	c.ahead.length = length
	n := min(length, len(room)-header)
	return append(parts, room[:header], c.ahead.block.mem[:n], room[header:len(room)-n])
}

// tookAhead is called when a read has brought n bytes behind the payload, and they count
// as received.
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
