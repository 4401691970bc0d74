package miniport

import (
	"runtime"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// StartIo implements port.Miniport: it puts the command into the submission
// ring. The device learns of it from CommitIo.
func (d *Driver) StartIo(p *port.Processor, srb *port.SRB) bool {
	x := extensionOf(srb.Extension)
	q := d.queues[x.queue]
	if d.stopped.Load() {
		q.refused.Add(1)
		d.returnTag(p, q, x)
		if d.gone.Load() {
			return d.refuse(p, srb, port.StatusNoHBA)
		}
		srb.ScsiStatus = scsi.StatusBusy
		return d.refuse(p, srb, port.StatusBusy)
	}
	tail := q.tail.Load()
	if room := q.entries() - (tail - q.retired.Load()); room <= reservedEntries && (room == 0 || x.command.Opcode == hba.OpExecute) {
		d.returnTag(p, q, x)
		return d.refuseQueueFull(p, q, srb)
	}
	tag := x.command.Tag
	e := &q.table[tag&tagIndexMask]
	e.at, e.srb = tail, srb
	srb.SentToDevice(p)
	e.live.Store(tag)
	q.submissions[tail&q.mask] = x.command
	q.tail.Store(tail + 1)
	if d.o.HalfDuplex {
		// ResetBus holds the interrupt lock here, and could not wait for a
		// CommitIo whose doorbell raises an interrupt; so there is none. The
		// interrupts of this doorbell wait for the lock too, on this processor.
		d.ring(p, q)
	}
	return true
}

// CommitIo implements port.IoCommitter: one doorbell for what StartIo put into
// the channel's ring.
func (d *Driver) CommitIo(p *port.Processor, channel int) {
	switch {
	case d.o.HalfDuplex:
	case d.channels:
		d.commit(p, d.queues[channel])
	default:
		for _, q := range d.queues {
			d.commit(p, q)
		}
	}
}

// commit rings q's doorbell unless somebody else has, or the device is being reset,
// which drops the commands anyway.
func (d *Driver) commit(p *port.Processor, q *queue) {
	if q.rung.Load() == q.tail.Load() {
		return
	}
	q.ringers.Add(1)
	if !d.stopped.Load() {
		d.ring(p, q)
	}
	q.ringers.Add(-1)
}

// ring writes q's submission doorbell if the tail is beyond what was rung.
//
// The write may run the device, on this goroutine, and deliver interrupts
// before it returns. Two callers may update rung in one order and write the doorbell
// in the other; the device takes the higher tail.
func (d *Driver) ring(p *port.Processor, q *queue) {
	for {
		rung, tail := q.rung.Load(), q.tail.Load()
		if int32(tail-rung) <= 0 {
			return
		}
		if q.rung.CompareAndSwap(rung, tail) {
			q.doorbells.Add(1)
			d.a.WriteRegisterUlong(p, d.registers, submissionDoorbell(q.index), tail)
			return
		}
	}
}

// waitForRingers waits until nobody can write a submission doorbell any more.
// stopped is set, so nobody begins.
//
// Level: up to Device, but in full duplex without an interrupt lock, as the
// doorbell's interrupts may need it.
func (d *Driver) waitForRingers() {
	for _, q := range d.queues {
		for q.ringers.Load() != 0 {
			runtime.Gosched()
		}
	}
}

func submissionDoorbell(queue int) uint32 { return hba.RegDoorbells + uint32(queue)*hba.DoorbellStride }

func completionDoorbell(queue int) uint32 { return submissionDoorbell(queue) + 8 }
