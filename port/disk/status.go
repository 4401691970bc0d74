package disk

import (
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// A statusAnswer is what a command knows from GET LBA STATUS, and how it got it.
type statusAnswer struct {
	wanted bool // a read that has not asked yet
	large  bool // the command has the session's large buffer

	data  []byte // the buffer with the answer
	count int    // descriptors in it
	next  int    // the first that has not been used
}

// ask fills the SRB with GET LBA STATUS from the block of pos, with the answer
// to come into b.
func (c *command) ask(g *geometry, b []byte) {
	n := scsi.LBAStatusHeaderBytes + (len(b)-scsi.LBAStatusHeaderBytes)/scsi.LBAStatusDescriptorBytes*scsi.LBAStatusDescriptorBytes
	c.stepBytes = 0
	c.status.data = b[:n]
	c.reset(stepStatus, scsi.PutGetLBAStatus(&c.srb.CDB, c.pos/g.blockBytes, uint32(n)))
	c.data(port.FlagDataIn, c.status.data)
}

// statusArrived reports whether srb has brought an answer, which may be shorter
// than the room for it.
func statusArrived(srb *port.SRB, want uint32) bool {
	code := srb.Status.Code()
	return srb.DataTransferBytes <= want && (code == port.StatusSuccess || code == port.StatusDataOverrun)
}

// statusDone takes the answer in.
func (c *command) statusDone() {
	a := &c.status
	b := a.data[:c.srb.DataTransferBytes]
	n, _ := scsi.ParseLBAStatusHeader(b)
	a.count, a.next = min(n, (len(b)-scsi.LBAStatusHeaderBytes)/scsi.LBAStatusDescriptorBytes), 0
	if c.req.Op == nbd.OpBlockStatus {
		c.tellStatus()
		return
	}
	a.wanted = false
	c.learnData()
}

// doWithoutStatus goes on without an answer if it can: a read need not know of holes,
// a partial block status is a valid answer, and for a unit without the command
// everything is data.
func (c *command) doWithoutStatus(srb *port.SRB) bool {
	if c.req.Op == nbd.OpRead {
		c.status.wanted, c.status.count = false, 0
		return true
	}
	if c.pos > c.req.OffsetBytes {
		c.pos = c.end
		return true
	}
	if srb.Status.Code() != port.StatusError || srb.Status&port.StatusAutosenseValid == 0 {
		return false
	}
	sense, ok := scsi.ParseSense(srb.Sense[:srb.SenseBytes])
	if !ok || sense.Key != scsi.KeyIllegalRequest || sense.Additional == scsi.LBAOutOfRange {
		return false
	}
	c.allData()
	return true
}

// A run is a part of the unit of one status, in bytes.
type run struct {
	from, to uint64
	state    nbd.ExtentState
}

// nextRun is the next descriptor of the answer that goes on at offset at. False:
// there is none, or none that makes sense.
func (c *command) nextRun(g *geometry, at uint64) (r run, ok bool) {
	a := &c.status
	for ; a.next < a.count; a.next++ {
		b := a.data[scsi.LBAStatusHeaderBytes+a.next*scsi.LBAStatusDescriptorBytes:]
		d, ok := scsi.ParseLBAStatusDescriptor(b)
		if !ok || d.LBA > at/g.blockBytes {
			break
		}
		r = run{from: d.LBA * g.blockBytes, to: (d.LBA + uint64(d.Blocks)) * g.blockBytes, state: g.stateOf(d.Status)}
		if r.to > at {
			return r, true
		}
	}
	a.next = a.count
	return run{}, false
}

// stateOf is the state of blocks that clients are told. Data is always a right answer.
func (g *geometry) stateOf(s scsi.ProvisioningStatus) (state nbd.ExtentState) {
	switch s {
	case scsi.StatusDeallocated:
		state = nbd.StateHole
		fallthrough
	case scsi.StatusAnchored:
		if g.readZeros {
			state |= nbd.StateZero
		}
	case scsi.StatusMapped:
	}
	return state
}

// blockStatus fills the SRB to ask for the status of the rest, or answers at once if
// the unit cannot be asked.
func (c *command) blockStatus(g *geometry) outcome {
	if !g.provisioned {
		c.allData()
		return finished
	}
	b := c.param
	if c.pos > c.req.OffsetBytes { // the short answer was too short
		if !c.status.large {
			large := c.s.tryLarge()
			c.status.large = large != nil
			if c.status.large {
				c.status.data = large
			}
		}
		if c.status.large {
			b = c.status.data[:cap(c.status.data)]
		}
	}
	c.ask(g, b)
	return ready
}

// allData tells the client that the rest is data.
func (c *command) allData() {
	c.req.AddExtent(c.end-c.pos, 0)
	c.pos = c.end
}

// tellStatus tells the client what the answer says. Blocks for which the answer makes no
// sense count as data.
func (c *command) tellStatus() {
	g := c.s.d.geometry.Load()
	began := c.pos
	for c.pos < c.end {
		r, ok := c.nextRun(g, c.pos)
		if !ok {
			break
		}
		if !c.req.AddExtent(r.to-c.pos, r.state) {
			c.pos = c.end
			return
		}
		c.pos = r.to
	}
	if c.pos == began {
		c.allData()
	}
}
