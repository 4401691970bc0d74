package miniport

import (
	"encoding/binary"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// BuildIo implements port.IoBuilder. It does nearly all the work of a request:
// what it leaves for StartIo is one copy of 64 bytes.
func (d *Driver) BuildIo(p *port.Processor, srb *port.SRB) bool {
	x := extensionOf(srb.Extension)
	c := &x.command
	q := d.queueFor(p, srb)
	x.queue, x.visits = uint32(q.index), 0
	c.Flags, c.CDBBytes, c.SegmentCount, c.DataBytes = 0, 0, 0, 0
	c.Target, c.Lun = srb.TargetID, srb.Lun

	if srb.PathID != 0 {
		return d.refuse(p, srb, port.StatusInvalidPathID)
	}
	switch srb.Function {
	case port.FunctionExecuteScsi:
		if status := d.buildExecute(p, srb, x); status != port.StatusPending {
			return d.refuse(p, srb, status)
		}
	case port.FunctionResetLogicalUnit:
		c.Opcode = hba.OpResetLun
	case port.FunctionResetDevice:
		c.Opcode = hba.OpResetTarget
	case port.FunctionAbortCommand:
		c.Opcode = hba.OpAbort
		if srb.VictimSRB == nil || !port.SynchronizeAccess(d.a, p, findVictim, abort{q, srb.VictimSRB, x}) {
			return d.refuse(p, srb, port.StatusAbortFailed)
		}
		q = d.queues[x.queue]
	case port.FunctionFlush, port.FunctionShutdown:
		// The adapter caches nothing; the units' caches are flushed by SCSI.
		return d.refuse(p, srb, port.StatusSuccess)
	default:
		return d.refuse(p, srb, port.StatusInvalidRequest)
	}
	if !d.takeTag(p, q, x) {
		return d.refuseQueueFull(p, q, srb)
	}
	return true
}

// queueFor is the queue pair that srb's command goes to: its channel's, or
// without channels one by processor, so that completions spread.
func (d *Driver) queueFor(p *port.Processor, srb *port.SRB) *queue {
	if d.channels {
		return d.queues[d.a.GetStartIoPerfParams(p, srb).ChannelNumber]
	}
	if len(d.queues) == 1 {
		return d.queues[0]
	}
	return d.queues[p.Number()%len(d.queues)]
}

// buildExecute fills x's command for a SCSI command. It returns StatusPending, or the
// status that says why the SRB cannot be sent: it makes no sense, or there is no IOMMU
// window left for a list that does not fit into the command.
func (d *Driver) buildExecute(p *port.Processor, srb *port.SRB, x *extension) port.Status {
	c := &x.command
	if int(srb.CDBBytes) > len(c.CDB) || len(srb.SGL) > maxSegments {
		return port.StatusInvalidRequest
	}
	c.Opcode = hba.OpExecute
	c.CDB = srb.CDB
	c.CDBBytes = srb.CDBBytes
	c.Nexus = srb.Nexus
	if len(srb.SGL) == 0 {
		if srb.DataTransferBytes != 0 {
			return port.StatusInvalidRequest
		}
		return port.StatusPending
	}
	c.DataBytes = srb.DataTransferBytes
	if srb.Flags&port.FlagDataIn != 0 {
		c.Flags |= hba.CommandDataIn
	}
	if srb.Flags&port.FlagDataOut != 0 {
		c.Flags |= hba.CommandDataOut
	}
	c.SegmentCount = uint16(len(srb.SGL))
	list := c.Segments[:]
	if len(srb.SGL) > hba.InlineSegments {
		listBytes := len(srb.SGL) * hba.SegmentBytes
		addr := d.a.GetPhysicalAddress(p, srb, srb.Extension[extensionHeadBytes:extensionHeadBytes+listBytes])
		if addr == 0 {
			return port.StatusInsufficientResources
		}
		c.Flags |= hba.CommandChained
		c.Segments[0] = hba.Segment{Addr: uint64(addr), Bytes: uint32(listBytes)}
		list = x.segments[:]
	}
	for i, s := range srb.SGL {
		list[i] = hba.Segment{Addr: uint64(s.Addr), Bytes: s.Bytes}
	}
	return port.StatusPending
}

// An abort is the context of findVictim.
type abort struct {
	q      *queue // of the abort's channel
	victim *port.SRB
	x      *extension // of the abort
}

// findVictim puts the victim's tag into the abort's command and the command on
// the victim's queue, where the device looks for it. With concurrent channels
// that is the abort's own queue, as the port gives an abort its victim's
// channel. False: the device does not have the victim.
//
// The victim may complete, and be used again, at any moment; so only the tables
// are asked, never the victim's extension. Under SynchronizeAccess no completion
// is consumed, so what a table says of a live tag holds until the routine ends;
// a victim that completes later leaves a tag that names nothing.
func findVictim(t port.SyncToken, a abort) bool {
	d := a.q.d
	for _, q := range d.queues {
		if d.channels && q != a.q {
			continue
		}
		for i := range q.shared.Open(t).pool.fresh {
			e := &q.table[i]
			if tag := e.live.Load(); tag != 0 && e.srb == a.victim {
				a.x.queue = uint32(q.index)
				binary.LittleEndian.PutUint32(a.x.command.CDB[:], tag)
				return true
			}
		}
	}
	return false
}

// refuse completes an SRB that will not go to the device, and returns what BuildIo or
// StartIo is to return.
func (d *Driver) refuse(p *port.Processor, srb *port.SRB, status port.Status) bool {
	srb.Status = status
	d.a.Complete(p, srb)
	return false
}

// refuseQueueFull has the port try again when some of the unit's SRBs have
// completed. The device has not seen srb.
func (d *Driver) refuseQueueFull(p *port.Processor, q *queue, srb *port.SRB) bool {
	q.queueFull.Add(1)
	srb.ScsiStatus = scsi.StatusTaskSetFull
	return d.refuse(p, srb, port.StatusBusy)
}
