package miniport

import (
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// runDpc is the DPC of each queue: it completes what the interrupt handler
// reaped.
//
// Level: Dispatch, no lock held.
func runDpc(p *port.Processor, dpc *port.Dpc) {
	q := dpc.Context.(*queue)
	d := q.d
	if d.perMessage {
		m := d.a.AcquireMSISpinLock(p, q.message)
		takeReaped(m.Token, q)
		d.a.ReleaseMSISpinLock(p, m)
	} else {
		port.SynchronizeAccess(d.a, p, takeReaped, q)
	}
	for i, srb := range q.spare {
		q.spare[i] = nil
		d.finish(p, q, srb)
	}
	q.spare = q.spare[:0]
	if q.visitors != nil {
		d.receive(p, q)
	}
	q.completing.Store(false)
}

// takeReaped moves the reaped list and the guests into the DPC's hands. For a
// guest the ring is drained first: what the device completed before it must be
// on the list.
//
// Level: Device, with the lock of q's message.
func takeReaped(t port.SyncToken, q *queue) bool {
	s := q.shared.Open(t)
	q.completing.Store(true)
	if q.guests.Load() != nil {
		q.d.drain(t.Processor(), q, s)
		q.welcome(s)
	}
	q.spare, s.reaped = s.reaped, q.spare
	return true
}

// finish completes an SRB that the device has answered.
//
// Level: Dispatch; with a lock or without.
func (d *Driver) finish(p *port.Processor, q *queue, srb *port.SRB) {
	x := extensionOf(srb.Extension)
	srb.Status = d.outcome(srb, &x.completion)
	if srb.Status == port.StatusSuccess {
		switch srb.Function {
		case port.FunctionExecuteScsi:
			if scsi.Opcode(srb.CDB[0]) == scsi.OpInquiry {
				d.a.SetDeviceQueueDepth(p, srb.PathID, srb.TargetID, srb.Lun, d.maxIO)
			}
		case port.FunctionResetLogicalUnit, port.FunctionResetDevice:
			d.sendOn(p, q, srb)
			return
		default:
		}
	}
	d.a.Complete(p, srb)
}
