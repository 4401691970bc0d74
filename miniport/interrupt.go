package miniport

import (
	"log/slog"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/port"
)

// Interrupt implements port.Miniport: the interrupt line. The causes are cleared
// before the rings are looked at, so that what comes during the look raises the
// line again.
func (d *Driver) Interrupt(p *port.Processor, t port.SyncToken) bool {
	causes := d.read(p, hba.RegInterruptCause)
	if causes == 0 {
		return false
	}
	d.write(p, hba.RegInterruptCause, causes)
	for _, q := range d.queues {
		if causes&(1<<q.index) != 0 {
			d.service(p, t, q)
		}
	}
	if causes&hba.CauseEvent != 0 {
		d.serviceEvent(p)
	}
	return true
}

// MessageInterrupt implements port.MessageInterrupter.
func (d *Driver) MessageInterrupt(p *port.Processor, t port.SyncToken, message uint16) bool {
	switch {
	case message == d.eventMessage:
		d.serviceEvent(p)
	case d.o.SingleMessage:
		for _, q := range d.queues {
			d.service(p, t, q)
		}
	case int(message) < len(d.queues):
		d.service(p, t, d.queues[message])
	default:
		return false
	}
	return true
}

// service consumes q's completions and leaves the rest to the DPC.
//
// Level: Device, with the lock of q's message.
func (d *Driver) service(p *port.Processor, t port.SyncToken, q *queue) {
	if d.drain(p, q, q.shared.Open(t)) {
		d.a.IssueDpc(p, &q.dpc)
	}
}

// drain moves completions from q's ring to the reaped list, gives the tags
// back, and tells the device how far it came. It reports whether the list has
// grown.
//
// Level: Device, with the lock of q's message, which opened s.
func (d *Driver) drain(p *port.Processor, q *queue, s *queueShared) bool {
	first, reaped := s.head, len(s.reaped)
	for {
		c := &q.completions[s.head&q.mask]
		if c.LoadPhase() != q.phaseAt(s.head) {
			break
		}
		s.head++
		tag := c.Tag
		var e *tagEntry
		if index := int(tag & tagIndexMask); index < len(q.table) {
			e = &q.table[index]
		}
		if tag == 0 || e == nil || e.live.Load() != tag {
			q.stale.Add(1)
			continue
		}
		srb := e.srb
		srb.TakenFromDevice(p)
		e.srb = nil
		e.live.Store(0)
		s.pool.retire(tag)
		extensionOf(srb.Extension).completion = *c
		s.reaped = append(s.reaped, srb)
	}
	if s.head == first {
		return false
	}
	n := len(s.reaped) - reaped
	q.retired.Store(q.retired.Load() + uint32(n))
	if !s.down {
		d.a.WriteRegisterUlong(p, d.registers, completionDoorbell(q.index), s.head)
	}
	return n > 0
}

// serviceEvent looks at what changed in the device apart from completions.
//
// Level: Device.
func (d *Driver) serviceEvent(p *port.Processor) {
	if n := d.read(p, hba.RegUnitsChanged); d.unitsSeen.Swap(n) != n {
		d.a.BusChangeDetected(p)
	}
	if d.read(p, hba.RegStatus)&hba.StatusFatal != 0 && !d.stopped.Load() {
		d.a.LogError(p, "the device has stopped with a fatal error", slog.Int("queues", len(d.queues)))
		d.a.HardwareReset(p)
	}
}
