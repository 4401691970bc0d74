package disk

import (
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// A command whose SRB the port has given up becomes an orphan: its request is
// answered, and the command keeps all that the device may still touch: the SRB, the data
// and the buffers. Session and slot go on with replacements. If the SRB ever comes back,
// the command may be used again, or is freed if the session has ended by then.

// An estate is the memory of others that an orphan keeps.
type estate struct {
	loan          nbd.Loan // the request's data
	bounce, large []byte   // the session's buffers
}

// AbandonSRB implements port.Abandoner.
func (c *command) AbandonSRB(p *port.Processor, _ *port.SRB) {
	s := c.s
	starved := s.orphan(c)
	if c.ownsBounce {
		c.passBounce(p)
	}
	c.errno = nbd.ESHUTDOWN // as of what comes from now on
	granted, wrote := c.leaveGate()
	r := c.req
	c.req = nil
	r.Blame(nbd.BlameAborted)
	var owed bool
	c.estate.loan, owed = r.Abandon(c.errno)
	// They wait for a command, which would be of no use.
	for _, r := range starved {
		r.Blame(nbd.BlameAborted)
		owed = r.Complete(nbd.ESHUTDOWN) || owed
	}
	s.answered(wrote)
	if owed {
		p.Defer(s)
	}
	startGranted(p, granted)
}

// orphan separates c from its session, and returns the requests that waited for it.
func (s *session) orphan(c *command) (starved []*nbd.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.orphaned = true
	s.orphans++
	if c.ownsBounce {
		b := s.bounceOf(c)
		c.estate.bounce, b.mem = b.mem, nil
	}
	if c.status.large {
		c.estate.large, s.large, s.largeBusy = s.large, nil, false
	}
	if c != s.spare {
		return nil
	}
	starved = s.starved
	s.spare, s.spareBusy, s.starved = nil, false, nil
	return starved
}

// comeHome takes in an orphan whose SRB has come back.
func (s *session) comeHome(c *command) {
	c.estate.loan.Return()
	for _, b := range [][]byte{c.estate.bounce, c.estate.large} {
		if b != nil {
			s.d.options.Arena.Free(b)
		}
	}
	c.estate = estate{}
	c.srb.DataBuffer = nil
	s.mu.Lock()
	s.orphans--
	closed, last := s.closed, s.closed && s.orphans == 0
	switch {
	case closed:
	case c.isSpare && s.spare == nil:
		c.orphaned, s.spare = false, c
	default:
		s.idle = append(s.idle, c)
	}
	s.mu.Unlock()
	if closed {
		s.d.adapter.FreeSRB(c.srb)
	}
	if last {
		s.freeMemory()
	}
}

// takeIdle returns a command that was an orphan, or nil. It is called by the
// connection's goroutine, which may still have it under its old slot.
func (s *session) takeIdle() *command {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.idle)
	if n == 0 {
		return nil
	}
	c := s.idle[n-1]
	s.idle = s.idle[:n-1]
	if !c.isSpare && s.commands[c.slot] == c {
		s.commands[c.slot] = nil
	}
	c.orphaned, c.isSpare = false, false
	return c
}

// bounceMemory is the memory of the block buffer that c owns, allocated again if an
// orphan has kept it; nil if there is none.
func (c *command) bounceMemory() []byte {
	s := c.s
	b := s.bounceOf(c)
	if b.mem == nil {
		b.mem = s.d.options.Arena.Alloc(dma.MinBlockBytes)
	}
	return b.mem
}
