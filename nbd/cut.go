package nbd

import (
	"math"
	"time"
)

// Replies that break off, on demand, as any network may make them.

// HalfReply makes CutReply leave the reply's header and half of what follows it, or half
// of a reply that is only a header.
const HalfReply = math.MaxUint32

// CutReply ends the connection, for CloseInjected, after the first afterBytes of the
// request's reply on the wire, or after the whole reply if that is not longer. Replies
// sent before are whole; what else is in flight is not answered.
//
// Concurrency: before Complete or Fail, by whoever calls that.
func (r *Request) CutReply(afterBytes uint32) { r.cut, r.cutAt = true, afterBytes }

// encodeCut is encode for a reply that is to break off. It is encoded alone, and is the
// last.
func (s *sender) encodeCut() {
	s.makeHeaders()
	r := s.list[s.next]
	r.toMemory()
	header := simpleReplyBytes
	if s.format == formatSimple {
		s.appendReply(r)
	} else {
		header = s.format.chunkBytes()
		s.appendChunks(r)
	}
	s.next++
	s.breaks = true
	r.endsAt = s.encodedBytes // which is not reached, unless all of it is kept
	total := 0
	for _, b := range s.bufs {
		total += len(b)
	}
	n := min(total, int(r.cutAt))
	if r.cutAt == HalfReply {
		n = total / 2
		if total > header {
			n = header + (total-header)/2
		}
	}
	s.keepBytes(n)
	// The client has not got its answer. In statistics it is an error.
	r.errno, r.blame = EIO, BlameInjected
}

// keepBytes leaves the first n bytes of bufs.
func (s *sender) keepBytes(n int) {
	for i, b := range s.bufs {
		if n == 0 {
			clear(s.bufs[i:])
			s.bufs = s.bufs[:i]
			return
		}
		s.bufs[i] = b[:min(n, len(b))]
		n -= len(s.bufs[i])
	}
}

// breakOff makes the connection dead and ends its sending half; the reader does the
// rest. If a TCP socket that holds unread requests were closed here, it would be reset,
// and the client would lose some of what has been sent.
//
// Concurrency: with the right to send; no lock held.
func (c *Conn) breakOff() {
	if !c.die(CloseInjected) {
		return
	}
	if w, ok := c.nc.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
		_ = c.nc.Close() // there is nobody to tell
		return
	}
	_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // as in poke
}

// mourn closes the socket of a dead connection if breakOff has left that to the reader.
// Requests in flight may still have their data in the receive block, so input that
// arrives meanwhile must not go there.
//
// Concurrency: reader only.
func (c *Conn) mourn() {
	if CloseReason(c.reason.Load()) == CloseInjected {
		c.linger()
		_ = c.nc.Close() // there is nobody to tell
	}
}
