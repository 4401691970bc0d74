package nbd

// An ahead is the payload that is expected after the one being received: that of another
// write of the same length, as clients that copy send them. A read from the socket puts it
// where it will stay, so that it is copied only once. If something else comes, only a copy
// is lost: fold puts the bytes where they would have been. The price is one more block
// while a payload is awaited, taken only while there is plenty of memory.
//
// Concurrency: the reader's.
type ahead struct {
	// block is for the payload, or nil. It holds the first filled bytes of what follows
	// the header at rx.mem[start]; rx.mem goes on behind them.
	//
	// After a read block is kept only if it holds some bytes, so the header is complete,
	// and no other read comes before the header is parsed. While the payload is
	// incomplete, rx.mem holds no more than the header. And rx.mem has room for everything.
	block  *block
	length int
	filled int
}

// maxAheadBytes is the longest payload to have memory ready for. A socket holds only a
// small part of a longer one.
const maxAheadBytes = 1 << 20

// aheadWanted says whether memory should be ready for a payload that follows one of
// length bytes, of which missingBytes are still to come.
func (c *Conn) aheadWanted(length, missingBytes int) bool {
	// A shorter payload is awaited in the receive block, if there is room. If more than a
	// block is missing, the socket will hardly hold anything of the next.
	return length > ownBlockBytes && length <= maxAheadBytes && missingBytes <= maxBlockBytes && c.plenty(length)
}

// lookAhead appends to parts what a read may fill behind the payload being received: room,
// which is the end of the receive block, and a block for the next payload if there should
// be one.
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

// tookAhead is called when a read has brought n bytes, zero or more, behind the payload:
// the next header, the payload ahead, and what follows it. end counts them all as if they
// were in the receive block; tookAhead corrects it.
func (c *Conn) tookAhead(n int) {
	c.ahead.filled = min(max(n-c.format.requestBytes(), 0), c.ahead.length)
	c.end -= c.ahead.filled
	if c.ahead.filled == 0 {
		c.dropAhead()
	}
}

// foreseen says whether h is the header of the payload ahead.
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
