package miniport

import (
	"log/slog"
	"math"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/port"
)

// pollInterval is the time between two reads of a register that must change.
const pollInterval = 100 * time.Microsecond

// Initialize implements port.Miniport.
func (d *Driver) Initialize(p *port.Processor, t port.SyncToken) bool {
	for _, q := range d.queues {
		s := q.shared.Open(t)
		if s.reaped == nil {
			s.pool = newTagPool(len(q.table))
			s.reaped = make([]*port.SRB, 0, cap(q.spare))
		}
		q.rewind(s)
	}
	// The port enumerates next. After a reset or restart it does not: changes are then
	// reported by the event, even if that comes late.
	d.unitsSeen.Store(d.read(p, hba.RegUnitsChanged))
	d.negotiate(p)
	if !d.a.EnablePassiveInitialization(p) {
		return false
	}
	return d.stopDMA(p) && d.start(p)
}

// negotiate asks for a channel of StartIo for each queue pair, where that makes
// sense.
func (d *Driver) negotiate(p *port.Processor) {
	d.channels = false
	if d.o.HalfDuplex || len(d.queues) == 1 {
		return
	}
	var perf port.PerfConfigurationData
	if err := d.a.InitializePerfOpts(p, true, &perf); err != nil || perf.Flags&port.PerfConcurrentChannels == 0 {
		return
	}
	want := port.PerfConcurrentChannels
	if !d.line && !d.o.SingleMessage {
		want |= port.PerfDpcRedirection | port.PerfDpcRedirectionCurrentCPU | port.PerfInterruptMessageRanges
	}
	perf.Flags &= want
	perf.ConcurrentChannels = len(d.queues)
	perf.FirstRedirectionMessageNumber, perf.LastRedirectionMessageNumber = 0, uint16(len(d.queues)-1)
	if err := d.a.InitializePerfOpts(p, false, &perf); err != nil {
		d.log.Warn("no concurrent channels", "error", err)
		return
	}
	d.channels = true
}

// PassiveInitialize implements port.PassiveInitializer.
func (d *Driver) PassiveInitialize(p *port.Processor) bool {
	for _, q := range d.queues {
		q.dpc.Context = q
		d.a.InitializeDpc(p, &q.dpc, runDpc)
	}
	return true
}

// AdapterControl implements port.Miniport.
func (d *Driver) AdapterControl(p *port.Processor, t port.ControlType) port.ControlResult {
	switch t {
	case port.ControlQuerySupported:
		return port.ControlSuccess
	case port.ControlStopAdapter:
		if d.quiesce(p) && d.stopDMA(p) {
			return port.ControlSuccess
		}
	case port.ControlRestartAdapter:
		if port.SynchronizeAccess(d.a, p, rewindAll, d) && d.stopDMA(p) && d.start(p) {
			return port.ControlSuccess
		}
	case port.ControlSurpriseRemoval:
		d.gone.Store(true)
		// The port sends this to an adapter that has failed too, whose device may
		// be there and at work.
		if d.quiesce(p) && d.stopDMA(p) && port.SynchronizeAccess(d.a, p, reclaim, d) {
			d.completeSweep(p)
			return port.ControlSuccess
		}
	default:
	}
	return port.ControlUnsuccessful
}

// rewindAll empties all rings of the stopped device, under SynchronizeAccess.
func rewindAll(t port.SyncToken, d *Driver) bool {
	for _, q := range d.queues {
		q.rewind(q.shared.Open(t))
	}
	return true
}

// quiesce keeps doorbells from being rung, so that none comes between the end of a
// queue and the start of its successor with a count that belongs to the old one. Nobody
// may be in StartIo. A CommitIo that has not announced itself sees stopped, and one that
// has is waited for; an interrupt handler holds a lock that takeDown takes. False: the
// adapter is gone.
func (d *Driver) quiesce(p *port.Processor) bool {
	d.stopped.Store(true)
	d.waitForRingers()
	return port.SynchronizeAccess(d.a, p, takeDown, d)
}

// takeDown runs under SynchronizeAccess.
func takeDown(t port.SyncToken, d *Driver) bool {
	for _, q := range d.queues {
		q.shared.Open(t).down = true
	}
	return true
}

// stopDMA resets the device and waits until it says that it touches no memory.
// False: it still may; stopDMA may be called again, and then asks the device once more.
//
// Level: any.
func (d *Driver) stopDMA(p *port.Processor) bool {
	if d.read(p, hba.RegControl) == math.MaxUint64 {
		return true // nothing is there any more
	}
	d.write(p, hba.RegControl, hba.ControlReset) // which is ignored while a reset goes on
	if d.poll(p, hba.RegControl, hba.ControlReset, 0) {
		return true
	}
	d.a.LogError(p, "the device did not stop its DMA in time", slog.Duration("timeout", d.o.ResetTimeout))
	return false
}

// start creates the queue pairs and enables the device. Their rings are empty.
//
// Level: any.
func (d *Driver) start(p *port.Processor) bool {
	for _, q := range d.queues {
		entries := uint64(q.entries())
		d.write(p, hba.RegQueueSelect, uint64(q.index))
		d.write(p, hba.RegQueueSize, entries|entries<<32)
		d.write(p, hba.RegQueueSubmit, uint64(q.submissionsAddr))
		d.write(p, hba.RegQueueComplete, uint64(q.completionsAddr))
		d.write(p, hba.RegQueueMessage, uint64(q.message))
		d.write(p, hba.RegQueueEnable, 1)
		if d.read(p, hba.RegQueueEnable) != 1 {
			d.a.LogError(p, "the device refused a queue pair", slog.Int("queue", q.index))
			return false
		}
	}
	if d.line {
		d.write(p, hba.RegInterruptMask, 0)
	}
	d.write(p, hba.RegControl, hba.ControlEnable)
	if !d.poll(p, hba.RegStatus, hba.StatusReady|hba.StatusFatal, hba.StatusReady) {
		d.a.LogError(p, "the device did not become ready", slog.Uint64("status", d.read(p, hba.RegStatus)))
		return false
	}
	d.stopped.Store(false)
	return true
}

// poll waits until the bits mask of a register are want.
func (d *Driver) poll(p *port.Processor, register uint32, mask, want uint64) bool {
	for range d.o.ResetTimeout/pollInterval + 1 {
		if d.read(p, register)&mask == want {
			return true
		}
		d.a.StallExecution(p, pollInterval)
	}
	return d.read(p, register)&mask == want
}

func (d *Driver) read(p *port.Processor, register uint32) uint64 {
	return d.a.ReadRegisterUlong64(p, d.registers, register)
}

func (d *Driver) write(p *port.Processor, register uint32, value uint64) {
	d.a.WriteRegisterUlong64(p, d.registers, register, value)
}
