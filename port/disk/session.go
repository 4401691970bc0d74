package disk

import (
	"fmt"
	"math/bits"
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
	// group is the connection's number on the disk, which its commands carry as
	// their GROUP NUMBER; zero if it has none.
	group uint8

	// Owned by the connection's goroutine.
	commands []*command // by slot; made when the slot is first used
	batch    []*port.SRB
	params   []byte // memory for commands' param, handed out in turn
	blocks   [][]byte

	// fast counts writes of whole blocks, begun and under way, and all that are being
	// answered; see rangeGate.
	_    [64]byte
	fast atomic.Int64
	_    [56]byte

	known knownData
	// told is the latest of Disk.losses that the client knows of.
	told atomic.Uint64

	fence fence

	// mu guards the ownership of the block buffers for parts of blocks, of the spare
	// command and of the large buffer.
	mu sync.Mutex
	// bounces are two so that a read of a part waits for no write. All but mem is
	// guarded by mu.
	bounces [2]bounce
	// large is room for a long answer of GET LBA STATUS, nil until one is wanted.
	// +checklocks:mu
	large []byte
	// +checklocks:mu
	largeBusy bool
	// spare is the command for requests whose slot has none, because there is no
	// memory: it serves one after the other, so that lack of memory makes requests
	// wait but not fail. It is nil only while it is an orphan.
	// +checklocks:mu
	spare *command
	// +checklocks:mu
	spareBusy bool
	// +checklocks:mu
	starved []*nbd.Request // wait for spare
	// orphans counts commands whose SRB was given up and has not come back; idle are
	// those whose SRB came back, but whose slots have been given other commands.
	// +checklocks:mu
	orphans int
	// +checklocks:mu
	idle []*command
	// +checklocks:mu
	closed bool
}

var (
	_ nbd.Session   = (*session)(nil)
	_ nbd.Fencer    = (*session)(nil)
	_ port.Deferred = (*session)(nil)
)

// Open implements nbd.Device.
func (d *Disk) Open(c *nbd.Conn) (nbd.Session, error) {
	p, err := d.adapter.System().NewProcessor("connection")
	if err != nil {
		return nil, err
	}
	s := &session{d: d, conn: c, p: p}
	for i := range s.bounces {
		if s.bounces[i].mem = d.options.Arena.Alloc(dma.MinBlockBytes); s.bounces[i].mem == nil {
			err = fmt.Errorf("no memory for a block buffer of %d bytes", dma.MinBlockBytes)
			break
		}
	}
	var spare *command
	if err == nil {
		spare, err = s.newCommand()
	}
	if err != nil {
		s.freeMemory()
		p.Close()
		return nil, fmt.Errorf("disk: %w", err)
	}
	spare.isSpare = true
	s.mu.Lock()
	s.spare = spare
	s.mu.Unlock()
	s.group = d.groups.take()
	c.SetNumber(s.group)
	d.gate.register(s)
	s.told.Store(d.lossesOfOthers())
	return s, nil
}

// A groupSet is the set of numbers that connections have, one bit each. Number 0 is none.
type groupSet struct{ taken atomic.Uint64 }

// take returns the lowest free number, or 0.
func (g *groupSet) take() uint8 {
	for {
		old := g.taken.Load()
		n := bits.TrailingZeros64(^(old | 1))
		if n > scsi.GroupMax {
			return 0
		}
		if g.taken.CompareAndSwap(old, old|1<<n) {
			return uint8(n)
		}
	}
}

// give gives a number back.
func (g *groupSet) give(n uint8) {
	if n != 0 {
		g.taken.And(^(1 << n))
	}
}

// Close implements nbd.Session. The memory of orphans is freed as they come back.
func (s *session) Close() {
	s.d.gate.unregister(s)
	s.d.groups.give(s.group)
	s.mu.Lock()
	s.closed = true
	idle, spare, last := s.idle, s.spare, s.orphans == 0
	s.idle, s.spare = nil, nil
	s.mu.Unlock()
	if spare != nil {
		s.d.adapter.FreeSRB(spare.srb)
	}
	for _, c := range idle {
		s.d.adapter.FreeSRB(c.srb)
	}
	for _, c := range s.commands {
		if c != nil && !c.orphaned { // orphans are freed above, or when they come back
			s.d.adapter.FreeSRB(c.srb)
		}
	}
	s.commands = nil
	if last {
		s.freeMemory()
	}
	s.p.Close()
}

// freeMemory gives back the session's memory, which nobody uses any more.
func (s *session) freeMemory() {
	arena := s.d.options.Arena
	for _, b := range s.blocks {
		arena.Free(b)
	}
	for i := range s.bounces {
		if b := s.bounces[i].mem; b != nil {
			arena.Free(b)
		}
	}
	s.mu.Lock()
	large := s.large
	s.large = nil
	s.mu.Unlock()
	if large != nil {
		arena.Free(large)
	}
}

// RunPassive implements port.Deferred: it sends the replies of requests that
// completed on a processor that is not the connection's, or while that was asleep.
func (s *session) RunPassive(*port.Processor) { s.conn.Flush() }

// Submit implements nbd.Session.
func (s *session) Submit(requests []*nbd.Request) {
	s.batch = s.batch[:0]
	for _, r := range requests {
		c := s.command(r.Slot)
		if c == nil {
			var waits bool
			if c, waits = s.takeSpare(r); c == nil {
				if !waits {
					r.Complete(nbd.ENOMEM) // this goroutine is the reader's, and flushes
				}
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
	if slot < len(s.commands) {
		if c := s.commands[slot]; c != nil && !c.orphaned {
			return c
		}
	}
	c := s.takeIdle()
	if c == nil {
		var err error
		if c, err = s.newCommand(); err != nil {
			return nil
		}
	}
	for len(s.commands) <= slot {
		s.commands = append(s.commands, nil)
	}
	c.slot = slot
	s.commands[slot] = c
	return c
}

func (s *session) newCommand() (*command, error) {
	srb, err := s.d.adapter.NewSRB(s.p)
	if err != nil {
		return nil, err
	}
	c := &command{s: s, srb: srb}
	if len(s.params) < paramBytes {
		b := s.d.options.Arena.Alloc(dma.MinBlockBytes)
		if b == nil {
			s.d.adapter.FreeSRB(srb)
			return nil, fmt.Errorf("no memory for parameters (%d bytes)", dma.MinBlockBytes)
		}
		s.blocks = append(s.blocks, b)
		s.params = b
	}
	c.param = s.params[:paramBytes:paramBytes]
	s.params = s.params[paramBytes:]
	c.one[0] = srb
	srb.Completer = c
	c.goOn.Routine = c.advance
	return c, nil
}

const (
	// unmapParameterBytes is an UNMAP parameter list of one descriptor.
	unmapParameterBytes = scsi.UnmapHeaderBytes + scsi.UnmapDescriptorBytes
	// paramBytes is a command's share of memory for parameters: 15 descriptors of
	// GET LBA STATUS.
	paramBytes = 256
	// largeBytes is room for 1023 of them.
	largeBytes = 16 << 10
)

// A bounce is a block buffer and the commands waiting for it.
type bounce struct {
	mem     []byte
	busy    bool
	waiters []*command
}

// bounceOf is the buffer that c uses: reads have their own.
func (s *session) bounceOf(c *command) *bounce {
	if c.req.Op == nbd.OpRead {
		return &s.bounces[0]
	}
	return &s.bounces[1]
}

// bounce is the memory of the block buffer that c owns and has used.
func (c *command) bounce() []byte { return c.s.bounceOf(c).mem }

// takeBounce gives c its block buffer, or notes that it waits for it.
func (s *session) takeBounce(c *command) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bounceOf(c)
	if b.busy {
		b.waiters = append(b.waiters, c)
		return false
	}
	b.busy = true
	c.ownsBounce = true
	return true
}

// tryLarge returns the large buffer if it is available now.
func (s *session) tryLarge() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.largeBusy {
		return nil
	}
	if s.large == nil {
		s.large = s.d.options.Arena.Alloc(largeBytes)
	}
	s.largeBusy = s.large != nil
	return s.large
}

func (s *session) releaseLarge() {
	s.mu.Lock()
	s.largeBusy = false
	s.mu.Unlock()
}

// releaseBounce gives the block buffer back and returns the command that has it
// now, if one waited.
func (s *session) releaseBounce(c *command) *command {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.ownsBounce = false
	b := s.bounceOf(c)
	if len(b.waiters) == 0 {
		b.busy = false
		return nil
	}
	next := b.waiters[0]
	copy(b.waiters, b.waiters[1:])
	b.waiters[len(b.waiters)-1] = nil
	b.waiters = b.waiters[:len(b.waiters)-1]
	next.ownsBounce = true
	return next
}

// takeSpare returns the spare command for r, for which there is no memory, or has r
// wait for it. It does neither if the spare is an orphan.
func (s *session) takeSpare(r *nbd.Request) (c *command, waits bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.spare == nil:
		return nil, false
	case s.spareBusy:
		s.starved = append(s.starved, r)
		return nil, true
	}
	s.spareBusy = true
	return s.spare, false
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
