package mutants

import (
	"sync/atomic"

	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// Ports that break their side of the contract, as wrappers around the primitive,
// the miniport or the device.

// plainCall is a SynchronizeAccess that excludes nobody.
func plainCall(_ *port.Adapter, _ *port.Processor, routine func(port.SyncToken, *probe) bool, c *probe) bool {
	return routine(port.SyncToken{}, c)
}

// callByModel looks at the model, not at what the caller holds.
func callByModel(a *port.Adapter, p *port.Processor, routine func(port.SyncToken, *probe) bool, c *probe) bool {
	if a.Config().SynchronizationModel == port.HalfDuplex {
		return plainCall(a, p, routine, c)
	}
	return port.SynchronizeAccess(a, p, routine, c)
}

// callWithOneLock takes one message's lock for all of them.
func callWithOneLock(a *port.Adapter, p *port.Processor, routine func(port.SyncToken, *probe) bool, c *probe) bool {
	l := a.AcquireMSISpinLock(p, 0)
	defer a.ReleaseMSISpinLock(p, l)
	return routine(l.Token, c)
}

// nothing is an empty SynchronizeAccess.
func nothing(m *specimen, p *port.Processor) {
	port.SynchronizeAccess(m.a, p, func(port.SyncToken, *specimen) bool { return true }, m)
}

// startsAtOnce calls StartIo where BuildIo has just returned.
type startsAtOnce struct{ *specimen }

// BuildIo implements port.IoBuilder.
func (w *startsAtOnce) BuildIo(p *port.Processor, srb *port.SRB) bool {
	if w.specimen.BuildIo(p, srb) {
		w.StartIo(p, srb)
		w.CommitIo(p, 0)
	}
	return false
}

// startsRefused takes false for true.
type startsRefused struct{ *specimen }

// BuildIo implements port.IoBuilder.
func (w *startsRefused) BuildIo(p *port.Processor, srb *port.SRB) bool {
	if w.specimen.BuildIo(p, srb) {
		return true
	}
	w.finish(p, srb, port.StatusInvalidRequest, scsi.StatusGood) // as StartIo does
	return false
}

// buildsOnce skips BuildIo for a request that was BUSY.
type buildsOnce struct {
	*specimen
	built [64]atomic.Bool
}

// BuildIo implements port.IoBuilder.
func (w *buildsOnce) BuildIo(p *port.Processor, srb *port.SRB) bool {
	if scsi.Opcode(srb.CDB[0]) == scsi.OpRead16 && w.built[srb.Tag%64].Swap(true) {
		return true
	}
	return w.specimen.BuildIo(p, srb)
}

// dropsEdges loses the interrupts that are raised while the handler runs.
type dropsEdges struct {
	*device
	busy atomic.Bool
}

// ConnectInterrupt implements pci.Function.
func (w *dropsEdges) ConnectInterrupt(mode pci.InterruptMode, raise pci.InterruptFunc, newRunner func(string) pci.Runner) error {
	return w.device.ConnectInterrupt(mode, func(r pci.Runner, m pci.Message) {
		if w.busy.Swap(true) {
			return
		}
		defer w.busy.Store(false)
		raise(r, m)
	}, newRunner)
}

// lateInterrupt: an answer comes, with its interrupt, when the handler has
// drained the ring and has not yet returned.
func lateInterrupt() scenario {
	return scenario{run: func(r *rig) {
		r.dev.holdAll()
		var once atomic.Bool
		r.m.drained = func(p *port.Processor) {
			if !once.Swap(true) {
				r.dev.releaseOne(0)
				r.dev.interrupt(p, 0)
			}
		}
		r.submit(r.p, r.read(0, 3), r.read(0, 4))
		r.dev.releaseOne(0)
		r.dev.interrupt(r.p, 0)
		r.settle()
	}}
}

// completesOnTimeout hands back what a unit's timer found, and tells the device
// nothing.
type completesOnTimeout struct {
	*specimen
	started atomic.Pointer[port.SRB]
}

// StartIo implements port.Miniport.
func (w *completesOnTimeout) StartIo(p *port.Processor, srb *port.SRB) bool {
	if srb.Function == port.FunctionExecuteScsi {
		w.started.Store(srb)
		return w.specimen.StartIo(p, srb)
	}
	if victim := w.started.Swap(nil); victim != nil {
		w.finish(p, victim, port.StatusBusReset, scsi.StatusGood)
	}
	w.finish(p, srb, port.StatusSuccess, scsi.StatusGood)
	return true
}

// startsResets skips BuildIo for resets.
type startsResets struct{ *specimen }

// BuildIo implements port.IoBuilder.
func (w *startsResets) BuildIo(p *port.Processor, srb *port.SRB) bool {
	return srb.Function != port.FunctionExecuteScsi || w.specimen.BuildIo(p, srb)
}

// dropsEarly loses the interrupts that are raised before the first answer is
// there: those of Initialize.
type dropsEarly struct {
	*device
	answered atomic.Bool
}

// ConnectInterrupt implements pci.Function.
func (w *dropsEarly) ConnectInterrupt(mode pci.InterruptMode, raise pci.InterruptFunc, newRunner func(string) pci.Runner) error {
	return w.device.ConnectInterrupt(mode, func(r pci.Runner, m pci.Message) {
		if w.Asserted() {
			w.answered.Store(true)
		}
		if w.answered.Load() {
			raise(r, m)
		}
	}, newRunner)
}
