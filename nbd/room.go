package nbd

import "errors"

// Room is the memory that the reader receives into, and that it gives to requests for their
// replies. It consists of blocks, see block.go. Blocks grow under load, and an idle
// connection gives them back. When memory is scarce the reader waits, or makes do with what
// there is.
//
// Concurrency: reader only.

// rxAlone says whether no request refers to the receive block. Once it is true, only parse
// can make it false.
func (c *Conn) rxAlone() bool { return c.rx.alone() }

// makeRoom makes sure that the receive block has room for what parse needs. It may move
// unparsed input to the block's front, or replace the block. It returns false if the
// connection is dead, or draining and has to end for want of memory.
func (c *Conn) makeRoom() bool {
	alone, grow := c.rxAlone(), len(c.rx.mem) < c.rxBytes
	if alone && c.start == c.end {
		c.start, c.end = 0, 0
	}
	if c.filling != nil { // any room will do, even none
		if alone && grow && !c.arena.Scarce() { // and empty: the payload has taken all
			if b := c.allocate(c.rxBytes); b != nil {
				c.receiveInto(b)
			}
		}
		return true
	}
	tail := c.end - c.start
	need := max(c.needBytes, tail+1)
	if alone && !grow {
		if len(c.rx.mem)-c.start < max(need, tail+minReadBytes) {
			c.moveToFront()
		}
		return true
	}
	if !grow && len(c.rx.mem)-c.end >= minReadBytes && len(c.rx.mem)-c.start >= need {
		return true
	}
	if b := c.allocate(c.rxBytes); b != nil {
		c.receiveInto(b)
		return true
	}
	return c.awaitRoom(need)
}

// awaitRoom is makeRoom when there is no memory for a fresh block of the size wanted. It waits
// until the old block is alone and can be used again, or until there is memory for the
// smallest that will do for need bytes. It returns false as makeRoom does.
func (c *Conn) awaitRoom(need int) bool {
	for !c.rxAlone() {
		if c.orders.taken {
			return false // it would wait for replies that are withheld
		}
		c.rxBytes = minBlockBytes
		if need > c.rxBytes {
			c.rxBytes = len(c.rx.mem) // parse never wants more than it has
		}
		c.wantBytes, c.wantOwn = c.rxBytes, c.rx
		if !c.awaitBlock() {
			return false
		}
		c.denied = false // only requests are denied; this one insists
		if b := c.allocate(c.rxBytes); b != nil {
			c.receiveInto(b)
			return true
		}
	}
	c.rxBytes = max(c.rxBytes, len(c.rx.mem))
	c.moveToFront()
	return true
}

// moveToFront makes room in a receive block that is alone, by moving unparsed input to its
// front.
func (c *Conn) moveToFront() {
	c.end = copy(c.rx.mem, c.rx.mem[c.start:c.end])
	c.start = 0
}

// receiveInto makes b the receive block, with the unparsed input at its front.
func (c *Conn) receiveInto(b *block) {
	c.end = copy(b.mem, c.rx.mem[c.start:c.end])
	c.start = 0
	c.drop(c.rx)
	c.rx = b
}

// trim gives back memory that an idle connection does not need.
func (c *Conn) trim() {
	c.dropGranted()
	if c.tx.alone() {
		c.drop(c.tx)
		c.tx, c.txAt, c.txBytes = nil, 0, minReplyBlockBytes
	}
	if c.start < c.end || c.filling != nil || len(c.rx.mem) <= minBlockBytes {
		return
	}
	// Only with a smaller block at hand may rxBytes shrink: the next block must
	// hold all that this one can.
	if b := c.allocate(minBlockBytes); b != nil {
		c.drop(c.rx)
		c.rx, c.start, c.end = b, 0, 0
		c.rxBytes = minBlockBytes
	}
}

// abandon returns all memory of a connection that has nothing in flight.
func (c *Conn) abandon() {
	for _, r := range []*Request{c.filling, c.skipFor} {
		if r != nil {
			c.drop(r.block)
			c.putBack(r)
		}
	}
	c.filling, c.skipFor = nil, nil
	c.dropAhead()
	c.drop(c.rx)
	c.drop(c.tx)
	c.rx, c.tx = nil, nil
	c.dropGranted()
}

// dropGranted gives back memory that awaitMemory got and nobody needed.
func (c *Conn) dropGranted() {
	if c.granted != nil {
		c.arena.Free(c.granted)
		c.granted = nil
	}
}

// carve gives a read its destination: a short read shares a block with others, a long one
// gets its own. If there is no memory it returns false, and wantBytes says how much is
// wanted.
func (c *Conn) carve(r *Request, length int) bool {
	if c.format.dataBytes()+length > minReplyBlockBytes {
		return c.carveOwn(r, length)
	}
	return c.carveShared(r, length)
}

// carveOwn gives a read a block of its own. The header of its reply is sent from elsewhere.
func (c *Conn) carveOwn(r *Request, length int) bool {
	b := c.allocate(length)
	if b == nil {
		c.wantBytes, c.wantOwn = length, nil
		return false
	}
	r.block = b // the request's own reference
	r.Data = b.mem[:length:length]
	return true
}

// carveShared gives a read a part of the reply block, behind room for the header of its
// reply.
func (c *Conn) carveShared(r *Request, length int) bool {
	header := c.format.dataBytes()
	size := header + length
	if c.txAt > 0 && c.tx.alone() {
		c.txAt = 0 // everything carved from it has left
	}
	if c.tx == nil || c.txAt+size > len(c.tx.mem) {
		if !c.nextReplyBlock() {
			return false
		}
	}
	at := c.txAt + header
	r.dataAt = at
	r.block = c.tx
	r.Data = c.tx.mem[at : at+length : at+length]
	c.tx.refs.Add(1)
	c.txAt += size
	return true
}

// nextReplyBlock begins a reply block, twice as large as the last, which was too small for
// what is in flight. If there is no memory it returns false, and wantBytes says how much is
// wanted.
func (c *Conn) nextReplyBlock() bool {
	// A block that was waited for is taken at its size, txBytes: others queue for memory.
	if c.tx != nil && c.txBytes < maxBlockBytes && c.granted == nil {
		c.txBytes *= 2
	} else if c.tx != nil && c.batchLen > 0 {
		c.wantBytes, c.wantOwn = c.txBytes, c.tx
		return false // if the batch completes at once the old one will do again
	}
	b := c.allocate(c.txBytes)
	if b == nil && c.txBytes > minReplyBlockBytes {
		c.txBytes = minReplyBlockBytes
		b = c.allocate(c.txBytes)
	}
	if b == nil {
		c.wantBytes, c.wantOwn = c.txBytes, c.tx
		return false
	}
	c.drop(c.tx)
	c.tx, c.txAt = b, 0
	return true
}

// awaitBlock waits for memory for what parse wanted. False means that the
// connection is dead, or draining and out of time.
func (c *Conn) awaitBlock() bool {
	c.park()
	err := c.awaitMemory(c.wantBytes, c.wantOwn)
	c.unpark()
	if errors.Is(err, errMemory) {
		c.denied = true // parse meets the same request again
		err = nil
	}
	return err == nil
}
