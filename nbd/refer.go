package nbd

import "github.com/vhbad/vhbad/internal/dma"

// Long reads go by reference: a read of 64 KiB to 1 MiB has a pipe besides its memory. A
// device that has the data in pages puts references to the pages into the pipe, and a socket
// takes them from there, so that only the client copies the data. A device or stream that
// knows nothing of pipes uses the memory as usual.

// maxConnPipes is how many pipes a connection may have: a client that has stopped reading
// withholds only that many from others.
const maxConnPipes = 8

// refer gives a read a pipe, if its data may go through one and one is free.
//
// Concurrency: reader only.
func (c *Conn) refer(r *Request) {
	if c.splicer == nil || len(r.Data) < dma.PipeLeastBytes || len(r.Data) > dma.PipeMostBytes {
		return
	}
	if c.pipes.Load() >= maxConnPipes {
		return
	}
	if r.pipe = c.arena.Pipe(r.Data); r.pipe != nil {
		c.pipes.Add(1)
	}
}

// hasPages says whether the data of a completed request are in its pipe and can be sent from
// there in one piece. A reply that breaks off or has holes is sent from memory instead: see
// toMemory.
func (r *Request) hasPages() bool { return r.pipe != nil && !r.cut && r.holeCount == 0 }

// toMemory fetches the data of a completed request into Data, if they are in its pipe. If
// that fails the reply becomes an error, so toMemory comes before the reply is encoded.
func (r *Request) toMemory() {
	if r.pipe == nil {
		return
	}
	if err := r.pipe.ReadFull(r.Data); err != nil {
		r.errno = EIO
	}
}

// appendPages encodes a reply whose data are in its pipe: its header, with which the bufs
// end, and then the pages.
func (s *sender) appendPages(r *Request) {
	if s.format == formatSimple {
		putSimple(s.header(simpleReplyBytes), r)
	} else {
		s.putData(s.header(s.format.dataBytes()), r, 0, len(r.Data))
	}
	s.pages = r.pipe
	s.encodedBytes += len(r.Data)
	r.endsAt = s.encodedBytes
}

// tryPush sends what it can of the encoded replies without waiting. Zero bytes without an
// error mean the same as from stream.tryWrite.
func (c *Conn) tryPush() (int, error) {
	s := &c.sender
	switch {
	case s.unsent == len(s.bufs):
		return c.splicer.trySplice(s.pages)
	case s.pages != nil:
		return c.splicer.tryWriteMore(s.bufs[s.unsent:])
	}
	return c.stream.tryWrite(s.bufs[s.unsent:])
}

// push is tryPush, but waits as stream.write does. A header that found no room is sent as soon
// as there is some, and is not held back until its pages follow.
func (c *Conn) push() (int, error) {
	s := &c.sender
	if s.unsent == len(s.bufs) {
		return c.splicer.splice(s.pages)
	}
	return c.stream.write(s.bufs[s.unsent:])
}

// returnPipe is called when a request no longer needs its pipe.
func (c *Conn) returnPipe(r *Request) {
	if r.pipe != nil {
		c.arena.ReturnPipe(r.pipe)
		r.pipe = nil
		c.pipes.Add(-1)
	}
}
