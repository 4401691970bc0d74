package miniport

import (
	"github.com/vhbad/vhbad/hba"
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
	if q.guests.Load() != nil {
		d.synchronize(p, q, receiveGuests)
	}
	d.synchronize(p, q, takeReaped)
	for i, srb := range q.spare {
		q.spare[i] = nil
		d.finish(p, q, srb)
	}
	q.spare = q.spare[:0]
	if q.visitors != nil {
		d.sendVisitors(p, q)
	}
	q.completing.Store(false)
}

// synchronize runs routine with the lock of q's message or, without a lock per message,
// with the one interrupt lock.
func (d *Driver) synchronize(p *port.Processor, q *queue, routine func(port.SyncToken, *queue) bool) {
	if d.perMessage {
		m := d.a.AcquireMSISpinLock(p, q.message)
		routine(m.Token, q)
		d.a.ReleaseMSISpinLock(p, m)
	} else {
		port.SynchronizeAccess(d.a, p, routine, q)
	}
}

// receiveGuests drains the ring for the guests, as commands that the device completed
// before them must be on the reaped list, and lets in guests that need not wait.
//
// It is called before takeReaped and separately, since its doorbell may raise an
// interrupt on p. That is serviced as soon as the lock is released, and may have to
// wait for ResetBus, which in half duplex keeps the lock until no DPC has SRBs in hand.
//
// Level: Device, with the lock of q's message.
func receiveGuests(t port.SyncToken, q *queue) bool {
	s := q.shared.Open(t)
	q.d.drain(t.Processor(), q, s)
	q.welcome(s)
	return true
}

// takeReaped hands the reaped list and the visitors to the DPC. It does not touch the
// device: see receiveGuests. The handler has given the tags back, and the processor may
// be about to need as many again: so its magazine is filled while the lock is held.
//
// Level: Device, with the lock of q's message.
func takeReaped(t port.SyncToken, q *queue) bool {
	s := q.shared.Open(t)
	q.completing.Store(true)
	q.spare, s.reaped = s.reaped, q.spare
	q.visitors, s.visitors = s.visitors, nil
	if m := q.d.magazine(t.Processor(), q); m != nil {
		m.fill(&s.pool)
	}
	return true
}

// finish completes an SRB that the device has answered.
//
// Level: Dispatch; with a lock or without.
func (d *Driver) finish(p *port.Processor, q *queue, srb *port.SRB) {
	d.takeAnswer(p, srb)
	if srb.Status == port.StatusSuccess && (srb.Function == port.FunctionResetLogicalUnit || srb.Function == port.FunctionResetDevice) {
		d.sendOn(p, q, srb)
		return
	}
	d.a.Complete(p, srb)
}

// takeAnswer puts what the device has answered into an SRB.
//
// Level: any.
func (d *Driver) takeAnswer(p *port.Processor, srb *port.SRB) {
	x := extensionOf(srb.Extension)
	srb.Status = d.outcome(srb, &x.completion)
	if flags := x.completion.Flags; flags != 0 { // the port has cleared the fields set here
		srb.Injected = flags&hba.CompletionInjected != 0
		srb.BadCookie = flags&hba.CompletionBadCookie != 0
		srb.CutReply = flags&hba.CompletionCutReply != 0
		srb.ReplyBytes = x.completion.ReplyBytes // HalfReply is the same to both
	}
	if srb.Status == port.StatusSuccess && srb.Function == port.FunctionExecuteScsi && scsi.Opcode(srb.CDB[0]) == scsi.OpInquiry {
		d.a.SetDeviceQueueDepth(p, srb.PathID, srb.TargetID, srb.Lun, d.maxIO)
	}
}
