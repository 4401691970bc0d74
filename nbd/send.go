package nbd

import (
	"time"

	"github.com/vhbad/vhbad/internal/dma"
)

const (
	// maxSendBytes and maxSendBufs bound one writev. A longer reply goes alone.
	maxSendBytes = 1 << 20
	maxSendBufs  = 1024 // IOV_MAX
	// sendHeadersBytes are for simple replies of one writev that carry no data,
	// sendChunkHeadersBytes for chunks.
	sendHeadersBytes      = 256 * simpleReplyBytes
	sendChunkHeadersBytes = 8 << 10
)

// A sender is the writing half of a Conn.
//
// Concurrency: it belongs to whoever has the right to send, Conn.flushing. The
// right is taken and given up with Conn.mu held.
type sender struct {
	format format // immutable

	// list are the replies being sent: those before first have been sent, those in
	// [first, next) are encoded in bufs.
	list        []*Request
	first, next int

	// bufs[unsent:] is what remains to be written of the encoded replies.
	bufs   [][]byte
	unsent int
	// pages, unless nil, holds what follows bufs.
	pages *dma.Pipe
	// encodedBytes is how long the encoded replies are, wroteBytes how much of them is
	// written.
	encodedBytes, wroteBytes int
	// breaks is set when the connection is to end after bufs; see cut.go.
	breaks bool
	// headers holds reply headers that have no room before their data.
	headers   []byte
	headersAt int
	// tailBlock and tailEnd say where the last of bufs ends, so that what follows it in
	// memory can be joined to it: at offset tailEnd of tailBlock, or of headers if that
	// is nil.
	tailBlock *block
	tailEnd   int

	// freed are blocks whose memory has been freed, freedBytes in all.
	freed      []*block
	freedBytes int

	// wake starts the writer goroutine, done ends with it; nil until needed.
	wake, done chan struct{}
}

// takeRepliesLocked makes the queued replies the sender's.
//
// +checklocks:c.mu
func (c *Conn) takeRepliesLocked() {
	c.sender.list, c.replies = c.replies, c.sender.list[:0]
	c.sender.first, c.sender.next = 0, 0
}

// recycleLocked returns the slots and the budget of replies that were sent.
//
// +checklocks:c.mu
func (c *Conn) recycleLocked() {
	s := &c.sender
	for _, r := range s.list {
		r.state = slotFree
	}
	c.returned = append(c.returned, s.list...)
	c.answered += uint64(len(s.list))
	s.list = s.list[:0]
	if len(s.freed) > 0 {
		c.spare = append(c.spare, s.freed...)
		c.heldBytes.Add(int64(-s.freedBytes))
		s.freed, s.freedBytes = s.freed[:0], 0
	}
	c.ownLocked()
	c.cond.Signal()
}

// pump sends until no reply is queued, then gives up the right to send. Without
// wait it hands over to the writer goroutine when the socket is full.
//
// Concurrency: with the right to send; no lock held.
func (c *Conn) pump(wait bool) {
	for {
		if !c.send(wait) {
			c.wakeWriter() // the right to send is the writer's now
			return
		}
		c.mu.Lock()
		c.recycleLocked()
		if len(c.replies) == 0 || c.withheld {
			c.flushing = false
			c.replySince.Store(0)
			c.mu.Unlock()
			return
		}
		c.takeRepliesLocked()
		c.mu.Unlock()
	}
}

// send writes the replies of sender.list, or drops them if the connection is
// dead. Without wait it returns false when the socket is full.
func (c *Conn) send(wait bool) bool {
	s := &c.sender
	for {
		for s.remains() && !c.dead.Load() {
			n, err := c.tryPush()
			if n == 0 && err == nil {
				if !wait {
					return false
				}
				c.replySince.Store(now())
				n, err = c.push()
			}
			c.sentBytes.Add(uint64(n))
			if s.unsent == len(s.bufs) {
				c.lentBytes.Add(uint64(n))
			}
			s.advance(n)
			if err != nil {
				c.kill(CloseWriteError)
				break
			}
			if wait {
				c.replySince.Store(now()) // there was progress
			}
		}
		if s.breaks {
			s.breaks = false
			c.breakOff()
		}
		told := s.next
		if c.dead.Load() {
			told = s.first + s.whole()
		}
		s.resetBufs()
		c.account(s.list[s.first:told], true)
		c.account(s.list[told:s.next], false)
		c.release(s.list[s.first:s.next])
		s.first = s.next
		if s.first == len(s.list) {
			return true
		}
		if c.dead.Load() {
			s.next = len(s.list)
			continue
		}
		s.encode()
	}
}

// remains says whether something of the encoded replies remains to be sent.
func (s *sender) remains() bool {
	return s.unsent < len(s.bufs) || s.pages != nil && s.pages.Left() > 0
}

// whole is how many of the encoded replies have been written whole.
func (s *sender) whole() int {
	n := 0
	for s.wroteBytes > 0 && s.first+n < s.next && s.list[s.first+n].endsAt <= s.wroteBytes {
		n++
	}
	return n
}

// advance takes n written bytes off the front of bufs, or of the pages after them.
func (s *sender) advance(n int) {
	s.wroteBytes += n
	if s.unsent == len(s.bufs) {
		s.pages.Sent(n)
		return
	}
	for n > 0 {
		b := s.bufs[s.unsent]
		if n < len(b) {
			s.bufs[s.unsent] = b[n:]
			return
		}
		n -= len(b)
		s.unsent++
	}
}

// resetBufs forgets the encoded replies.
func (s *sender) resetBufs() {
	clear(s.bufs)
	s.bufs, s.unsent, s.headersAt, s.pages = s.bufs[:0], 0, 0, nil
	s.tailBlock, s.tailEnd = nil, -1
	s.encodedBytes, s.wroteBytes = 0, 0
}

// encode appends the next replies to bufs, at least one and as many as make a
// good writev.
func (s *sender) encode() {
	if s.list[s.next].cut {
		s.encodeCut()
		return
	}
	s.makeHeaders()
	bytes := 0
	for s.next < len(s.list) {
		r := s.list[s.next]
		size := r.replyBytes()
		headers, bufs := simpleReplyBytes, 2
		if s.format != formatSimple {
			headers, bufs = r.chunkRoom()
		}
		if s.next > s.first && (r.cut || bytes+size > maxSendBytes || len(s.bufs)+bufs > maxSendBufs ||
			s.headersAt+headers > len(s.headers)) {
			return
		}
		s.next++
		if r.hasPages() {
			s.appendPages(r)
			return
		}
		r.toMemory()
		if s.format == formatSimple {
			s.appendReply(r)
		} else {
			s.appendChunks(r)
		}
		r.endsAt = s.encodedBytes
		bytes += size
	}
}

// makeHeaders makes headers when they are first needed.
func (s *sender) makeHeaders() {
	switch {
	case s.headers != nil:
	case s.format == formatSimple:
		s.headers = make([]byte, sendHeadersBytes)
	default:
		s.headers = make([]byte, sendChunkHeadersBytes)
	}
}

// appendReply encodes one simple reply. An error carries no data.
//
// Source: proto.md, "Simple reply message".
func (s *sender) appendReply(r *Request) {
	withData := r.errno == OK && r.Op == OpRead && len(r.Data) > 0
	if withData && r.dataAt >= simpleReplyBytes {
		at := r.dataAt - simpleReplyBytes
		putSimple(r.block.mem[at:], r)
		s.appendBytes(r.block, r.block.mem, at, r.dataAt+len(r.Data))
		return
	}
	putSimple(s.header(simpleReplyBytes), r)
	if withData {
		s.appendBytes(r.block, r.block.mem, 0, len(r.Data))
	}
}

// appendBytes adds mem[from:to] to bufs, joined to the last if it follows it.
func (s *sender) appendBytes(b *block, mem []byte, from, to int) {
	if n := len(s.bufs) - 1; n >= 0 && s.tailBlock == b && s.tailEnd == from {
		last := s.bufs[n]
		s.bufs[n] = mem[from-len(last) : to]
	} else {
		s.bufs = append(s.bufs, mem[from:to])
	}
	s.tailBlock, s.tailEnd = b, to
	s.encodedBytes += to - from
}

// account counts the replies in sent. told says whether the client has got them, or has not
// because the connection is dead. One look at the clock serves all.
func (c *Conn) account(sent []*Request, told bool) {
	if len(sent) == 0 {
		return
	}
	at := now()
	// Requests of one operation and one read are counted together.
	for i := 0; i < len(sent); {
		r := sent[i]
		var bytes, untold uint64
		var errs [blameCount]uint64
		j := i
		for ; j < len(sent) && sent[j].counted == r.counted && sent[j].receivedNs == r.receivedNs; j++ {
			switch {
			case sent[j].errno != OK:
				errs[sent[j].blame]++
				sent[j].blame = BlameNone
			case told:
				bytes += sent[j].LengthBytes
			default:
				untold++
			}
			if sent[j].followedNs != 0 {
				if told {
					c.server.replyTimes[sent[j].Op].Add(time.Duration(at - sent[j].followedNs))
				}
				sent[j].followedNs = 0
			}
		}
		n := uint64(j-i) - untold
		ns := at - r.receivedNs
		ops := &c.ops[r.counted]
		ops.bytes.Add(bytes)
		ops.latencySum.Add(ns * int64(n))
		ops.latency[latencyBucket(ns)].Add(n)
		for blame, errs := range errs {
			if errs > 0 {
				ops.errors[blame].Add(errs)
				n -= errs
			}
		}
		ops.successes.Add(n)
		if untold > 0 {
			ops.untold.Add(untold)
		}
		i = j
	}
}

// release gives up the references that requests hold on blocks.
func (c *Conn) release(sent []*Request) {
	s := &c.sender
	for i := 0; i < len(sent); {
		b := sent[i].block
		j := i
		for ; j < len(sent) && sent[j].block == b; j++ {
			c.returnPipe(sent[j])
			sent[j].block, sent[j].Data = nil, nil
		}
		if b != nil && b.refs.Add(int32(i-j)) == 0 {
			s.freedBytes += len(b.mem)
			c.arena.Free(b.mem)
			b.mem = nil
			s.freed = append(s.freed, b)
		}
		i = j
	}
}

// wakeWriter hands the right to send to the writer goroutine, which is started when
// the connection first needs it.
func (c *Conn) wakeWriter() {
	s := &c.sender
	c.replySince.Store(now())
	if s.wake == nil {
		s.wake, s.done = make(chan struct{}, 1), make(chan struct{})
		go c.writer(s.wake, s.done)
	}
	s.wake <- struct{}{} // never blocks: there is one right to send
}

// writer sends what the socket would not take at once. The server closes the
// connection if the client takes nothing for Limits.ReplyTimeout.
func (c *Conn) writer(wake <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	for range wake {
		c.pump(true)
	}
}

// stopWriter ends the writer goroutine. Nothing is in flight any more.
func (c *Conn) stopWriter() {
	if c.sender.wake != nil {
		close(c.sender.wake)
		<-c.sender.done
	}
}
