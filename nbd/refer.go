package nbd

import "github.com/vhbad/vhbad/internal/dma"

// Long reads by reference: a read of 64 KiB to 1 MiB has a pipe beside its memory. A device
// that has the data in pages puts references to those into the pipe, and a socket takes them
// from there, so that nobody copies them but the client. Whatever knows nothing of that
// reads and writes memory as ever.

// maxConnPipes is how many pipes a connection may have: a client that has stopped reading
// keeps them from others, and no more.
const maxConnPipes = 8

// refer gives a read a pipe, if its data may go that way and there is one.
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

// hasPages says whether the data of a request that is done are in its pipe and are sent as
// they are, in one piece. What breaks off or has holes is made up in memory: see toMemory.
func (r *Request) hasPages() bool { return r.pipe != nil && !r.cut && r.holeCount == 0 }

// toMemory fetches the data of a request that is done into Data, if they are in its pipe.
// Should that fail it becomes an error, so it comes before the reply is encoded.
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
}

// tryPush sends what it can of the encoded replies without waiting; zero bytes without an
// error as of stream.tryWrite.
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

// push is tryPush, but waits as stream.write does. A header that had no room does not wait for
// its pages once it has.
func (c *Conn) push() (int, error) {
	s := &c.sender
	if s.unsent == len(s.bufs) {
		return c.splicer.splice(s.pages)
	}
	return c.stream.write(s.bufs[s.unsent:])
}

// returnPipe is called when a request needs its pipe no more.
func (c *Conn) returnPipe(r *Request) {
	if r.pipe != nil {
		c.arena.ReturnPipe(r.pipe)
		r.pipe = nil
		c.pipes.Add(-1)
	}
}
