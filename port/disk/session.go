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
	params   []byte // UNMAP parameter lists of slots, handed out in turn
	blocks   [][]byte

	// fast counts writes of whole blocks under way; see rangeGate.
	_    [64]byte
	fast atomic.Int64
	_    [56]byte

	// mu guards the one block buffer for parts of blocks.
	mu sync.Mutex
	// +checklocks:mu
	bounceBusy bool
	// +checklocks:mu
	bounceWaiters []*command
	bounce        []byte
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
	d.gate.register(&s.fast)
	return s, nil
}

// Close implements nbd.Session.
func (s *session) Close() {
	s.d.gate.unregister(&s.fast)
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
		c, err := s.command(r.Slot)
		if err != nil {
			s.d.options.Log.Error("request refused", "unit", s.d.lu.String(), "error", err)
			if r.Complete(nbd.ENOMEM) {
				s.p.Defer(s)
			}
			continue
		}
		c.begin(s.p, r)
	}
	if len(s.batch) > 0 {
		s.d.lu.Submit(s.p, s.batch)
	}
}

// command returns the command of a request slot.
func (s *session) command(slot int) (*command, error) {
	if slot < len(s.commands) && s.commands[slot] != nil {
		return s.commands[slot], nil
	}
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
	srb.TimeoutSecs = s.d.options.TimeoutSecs
	for len(s.commands) <= slot {
		s.commands = append(s.commands, nil)
	}
	s.commands[slot] = c
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
