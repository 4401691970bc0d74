package disk

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// A session is one connection's way to the disk: a processor for its
// goroutine, and a command with an SRB for each of its request slots.
type session struct {
	d    *Disk
	conn *nbd.Conn
	p    *port.Processor

	// Owned by the connection's goroutine.
	commands []*command // by slot; made when the slot is first used
	batch    []*port.SRB
	params   []byte // UNMAP parameter lists of commands, handed out in turn
	blocks   [][]byte

	// spare is the command of requests whose slot has none, because there is no
	// memory: it serves one after the other, so that want of memory makes
	// requests wait and none fail.
	spare *command

	// fast counts writes of whole blocks under way; see rangeGate.
	_    [64]byte
	fast atomic.Int64
	_    [56]byte

	// mu guards who has the one block buffer for parts of blocks, and who has
	// the spare command.
	mu sync.Mutex
	// +checklocks:mu
	bounceBusy bool
	// +checklocks:mu
	bounceWaiters []*command
	bounce        []byte
	// +checklocks:mu
	spareBusy bool
	// +checklocks:mu
	starved []*nbd.Request // wait for spare
}

var (
	_ nbd.Session   = (*session)(nil)
	_ port.Deferred = (*session)(nil)
)

// Open implements nbd.Device.
func (d *Disk) Open(c *nbd.Conn) (nbd.Session, error) {
	p, err := d.adapter.System().NewProcessor("connection")
	if err != nil {
		return nil, err
	}
	bounce := d.options.Arena.Alloc(dma.MinBlockBytes)
	if bounce == nil {
		p.Close()
		return nil, fmt.Errorf("disk: no memory for a block buffer of %d bytes", dma.MinBlockBytes)
	}
	s := &session{d: d, conn: c, p: p, bounce: bounce}
	if s.spare, err = s.newCommand(); err != nil {
		d.options.Arena.Free(bounce)
		p.Close()
		return nil, fmt.Errorf("disk: %w", err)
	}
	d.gate.register(&s.fast)
	return s, nil
}

// Close implements nbd.Session.
func (s *session) Close() {
	s.d.gate.unregister(&s.fast)
	s.d.adapter.FreeSRB(s.spare.srb)
	for _, c := range s.commands {
		if c != nil {
			s.d.adapter.FreeSRB(c.srb)
		}
	}
	s.commands = nil
	for _, b := range s.blocks {
		s.d.options.Arena.Free(b)
	}
	s.d.options.Arena.Free(s.bounce)
	s.p.Close()
}

// RunPassive implements port.Deferred: it sends the replies of requests that
// completed on p, which is not the connection's processor or found it asleep.
func (s *session) RunPassive(*port.Processor) { s.conn.Flush() }

// Submit implements nbd.Session.
func (s *session) Submit(requests []*nbd.Request) {
	s.batch = s.batch[:0]
	for _, r := range requests {
		c := s.command(r.Slot)
		if c == nil {
			if c = s.takeSpare(r); c == nil {
				continue
			}
		}
		if c.begin(s.p, r) {
			s.batch = append(s.batch, c.srb)
		}
	}
	if len(s.batch) > 0 {
		s.d.lu.Submit(s.p, s.batch)
	}
}

// command returns the command of a request slot, or nil if it has none and
// there is no memory for it.
func (s *session) command(slot int) *command {
	if slot < len(s.commands) && s.commands[slot] != nil {
		return s.commands[slot]
	}
	c, err := s.newCommand()
	if err != nil {
		return nil
	}
	for len(s.commands) <= slot {
		s.commands = append(s.commands, nil)
	}
	s.commands[slot] = c
	return c
}

func (s *session) newCommand() (*command, error) {
	srb, err := s.d.adapter.NewSRB(1)
	if err != nil {
		return nil, err
	}
	c := &command{s: s, srb: srb}
	if len(s.params) < unmapParameterBytes {
		b := s.d.options.Arena.Alloc(dma.MinBlockBytes)
		if b == nil {
			s.d.adapter.FreeSRB(srb)
			return nil, fmt.Errorf("no memory for UNMAP parameters (%d bytes)", dma.MinBlockBytes)
		}
		s.blocks = append(s.blocks, b)
		s.params = b
	}
	c.param = s.params[:unmapParameterBytes:unmapParameterBytes]
	s.params = s.params[unmapParameterBytes:]
	c.one[0] = srb
	srb.Completer = c
	return c, nil
}

// unmapParameterBytes is an UNMAP parameter list of one descriptor.
const unmapParameterBytes = scsi.UnmapHeaderBytes + scsi.UnmapDescriptorBytes

// takeBounce gives c the block buffer, or notes that it waits for it.
func (s *session) takeBounce(c *command) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bounceBusy {
		s.bounceWaiters = append(s.bounceWaiters, c)
		return false
	}
	s.bounceBusy = true
	c.ownsBounce = true
	return true
}

// releaseBounce gives the block buffer back and returns the command that has it
// now, if one waited.
func (s *session) releaseBounce(c *command) *command {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.ownsBounce = false
	if len(s.bounceWaiters) == 0 {
		s.bounceBusy = false
		return nil
	}
	next := s.bounceWaiters[0]
	s.bounceWaiters[0] = nil
	s.bounceWaiters = s.bounceWaiters[1:]
	next.ownsBounce = true
	return next
}

// takeSpare returns the spare command for r, or nil: then r waits for it.
func (s *session) takeSpare(r *nbd.Request) *command {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spareBusy {
		s.starved = append(s.starved, r)
		return nil
	}
	s.spareBusy = true
	return s.spare
}

// passSpare returns the request that has the spare command next, or nil.
func (s *session) passSpare() *nbd.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.starved) == 0 {
		s.spareBusy = false
		return nil
	}
	next := s.starved[0]
	s.starved[0] = nil
	s.starved = s.starved[1:]
	return next
}
