package port

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// An adapter goes away in one of two ways: in order, with Stop and Remove, or by
// surprise, when its hardware is gone. In both, SRBs that the miniport holds are handed
// back by the miniport only; those that the port holds, the port completes itself.

// SetFeatureList says which optional control types the miniport takes in
// AdapterControl. ControlQuerySupported, ControlStopAdapter and
// ControlRestartAdapter are not optional and need not be named.
//
// Level: Passive, in FindAdapter. Errors: wrong place, unknown control type.
// Source: storport.h StorPortSetFeatureList.
func (a *Adapter) SetFeatureList(p *Processor, controls ...ControlType) error {
	if !p.check(routineSetFeatureList) {
		return fmt.Errorf("port: SetFeatureList called from %s, want FindAdapter", p.callback)
	}
	for _, c := range controls {
		if c >= controlTypes {
			return fmt.Errorf("port: control type %d: want 0 to %d", c, controlTypes-1)
		}
		a.controls[c] = true
	}
	return nil
}

// takeAwayTime is how long a stop whose time is over may still wait for its turn behind a
// reset, and a removal for what ResetBus left: completions on their way on other processors.
const takeAwayTime = time.Second

// Remove is RemoveContext bounded only by AdapterOptions.StopTimeout; errors are logged.
func (a *Adapter) Remove(p *Processor) {
	if err := a.RemoveContext(context.Background(), p); err != nil {
		a.sys.log.Error("remove adapter", "adapter", a.options.Name, "error", err)
	}
}

// RemoveContext removes the adapter. A running one is stopped first, and if its
// miniport caches data, each unit gets FunctionShutdown as its last SRB. Waiting
// SRBs complete with StatusNoDevice. A failed adapter is not stopped but
// reset, bus by bus, so that its miniport hands back what it holds; so is one that
// is still not idle when ctx ends, see StopContext.
//
// It waits for a Stop or a Restart that is under way; if ctx ends first, the adapter
// is removed nevertheless. For work items and enumerations that do not end it waits until
// ctx ends or StopTimeout is over; with an adapter that has failed, for a second more than
// ResetTimeout.
//
// If the error is ErrOutstanding, the adapter's memory stays mapped until RemoveContext is
// called again and finds that all SRBs are back, and that no work item or enumeration runs.
//
// Level: Passive, not in a work item or in a function called by an enumeration. Errors:
// those of StopContext and SurpriseRemove. Except with ErrWrongPlace, the adapter is gone,
// or going if another call is removing it (ErrAdapterStopped).
func (a *Adapter) RemoveContext(ctx context.Context, p *Processor) error {
	if err := p.mayWait(a, routineRemove); err != nil {
		return err
	}
	select {
	case a.life <- struct{}{}:
		defer a.endLife()
	case <-ctx.Done():
		if !a.tryLife() {
			return a.stopTooLate(ctx.Err(), p, false)
		}
		defer a.endLife()
	}
	ctx, cancel := context.WithTimeout(ctx, a.options.StopTimeout)
	defer cancel()
	var err error
	for {
		state := a.state.Load()
		switch state {
		case adapterRemoving:
			if err == nil {
				err = fmt.Errorf("%s: remove: %w: another takes it away", a.options.Name, ErrAdapterStopped)
			}
			return err
		case adapterRemoved:
			if n := a.outstanding.Load(); err == nil && n != 0 {
				err = fmt.Errorf("%s: remove: %w: %d", a.options.Name, ErrOutstanding, n)
			} else if err == nil {
				err = a.end(ctx, a.waitOwn(0))
			}
			return err
		case adapterFailed:
			return a.takeAway(p, true, false, a.options.ResetTimeout)
		case adapterRunning:
			err = a.stop(ctx, p, FunctionFlush, FunctionShutdown)
		default:
			if !a.state.CompareAndSwap(state, adapterRemoving) {
				continue
			}
			a.removeUnits(p)
			return errors.Join(err, a.end(ctx, nil))
		}
	}
}

// SurpriseRemove removes an adapter whose hardware is already gone: waiting and new
// SRBs complete with StatusNoDevice; the miniport is told (ControlSurpriseRemoval) and
// hands back what it holds. A miniport that does not take that control type gets a
// ResetBus for each bus instead.
//
// After it has returned, SynchronizeAccess returns false without calling its routine. The
// caller may then use the device's memory for something else, unless the error is
// ErrOutstanding: the miniport still holds SRBs after AdapterOptions.ResetTimeout, and
// their memory stays mapped.
//
// Level: Passive, not in a work item or in a function called by an enumeration, once, with
// no SRB of the caller in BuildIo or StartIo.
func (a *Adapter) SurpriseRemove(p *Processor) error {
	if err := p.mayWait(a, routineRemove); err != nil {
		return err
	}
	a.sys.log.Warn("adapter removed by surprise", "adapter", a.options.Name)
	inLife := a.tryLife()
	if inLife {
		defer a.endLife()
	}
	return a.takeAway(p, inLife, a.controls[ControlSurpriseRemoval], a.options.ResetTimeout)
}

// takeAway removes an adapter with SRBs outstanding. tell: the hardware is gone,
// and the miniport takes ControlSurpriseRemoval; it gets ResetBus otherwise. After that it
// waits up to patience for the SRBs that the miniport has not handed back. inLife: the
// caller holds life; otherwise its holder ends soon once the adapter is gone, and is waited
// for before anything that it may use is freed.
func (a *Adapter) takeAway(p *Processor, inLife, tell bool, patience time.Duration) error {
	for {
		state := a.state.Load()
		if state == adapterRemoving || state == adapterRemoved {
			return fmt.Errorf("%s: surprise removal: %w", a.options.Name, ErrAdapterStopped)
		}
		if a.state.CompareAndSwap(state, adapterRemoving) {
			break
		}
	}
	a.mu.Lock()
	// A Stop that waits for the device need not any more.
	a.setGateLocked(gateGone | gateStopped)
	a.mu.Unlock()
	a.failUnits(p)
	a.passStartIo(p)
	close(a.gone)
	if !tell {
		a.inTurn(a.resetAll)
	} else if a.controlInTurn(ControlSurpriseRemoval) != ControlSuccess {
		a.sys.log.Error("the miniport did not take the surprise removal", "adapter", a.options.Name)
	}
	deadline := time.Now().Add(patience)
	err := a.waitIdle(patience)
	if err != nil {
		a.abandonUnits(p, a.units.Load().all...)
	}
	if !inLife {
		a.life <- struct{}{}
		defer a.endLife()
	}
	if err == nil {
		a.inTurn(func(*Processor) { err = a.waitOwn(time.Until(deadline)) })
	}
	if err != nil && p.verify {
		p.violate(CheckStopOutstanding, nil, "surprise removal: "+err.Error())
	}
	a.removeUnits(p)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	return a.end(ctx, err)
}

// resetAll calls ResetBus for every bus of an adapter that the miniport has not
// stopped: that one holds nothing, and a reset would start it.
//
// Level: Passive, on the recovery service.
func (a *Adapter) resetAll(p *Processor) {
	if a.halted {
		return
	}
	for path := range a.config.NumberOfBuses {
		a.callResetBus(p, uint8(path))
	}
}

// callResetBus calls ResetBus at the level and with the locks that it is to have.
func (a *Adapter) callResetBus(p *Processor, path uint8) bool {
	old := a.acquireExclusive(p, true)
	e := p.enter(inResetBus)
	ok := a.miniport.ResetBus(p, path)
	p.leave(e)
	a.releaseExclusive(p, true, old)
	return ok
}

// whenIdle returns a channel that is closed as soon as nothing is outstanding.
func (a *Adapter) whenIdle() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.idle != nil {
		return a.idle
	}
	idle := make(chan struct{})
	if a.outstanding.Load() == 0 {
		close(idle)
	} else {
		a.idle = idle
	}
	return idle
}

// waitIdle waits until nothing is outstanding, but not for longer than limit.
func (a *Adapter) waitIdle(limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-a.whenIdle():
		return nil
	case <-timer.C:
		return fmt.Errorf("%s: %w: %d after %s", a.options.Name, ErrOutstanding, a.outstanding.Load(), limit)
	}
}

// waitOwn waits until the miniport has handed back the port's own SRBs, resets and the
// last of a stop, but not for longer than limit: whenIdle does not count them.
//
// The caller holds life, and is on the recovery service unless that has stopped.
func (a *Adapter) waitOwn(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for _, own := range a.ownSRBs() {
		srb := *own
		if srb == nil { // it is back, and freed
			continue
		}
		done, out := srb.Completer.(ownCompleter)
		if !out {
			continue
		}
		select {
		case <-done:
		case <-ctx.Done():
			select {
			case <-done: // just in time
			default:
				return fmt.Errorf("%s: %w: %s", a.options.Name, ErrOutstanding, srb.Function)
			}
		}
		srb.Completer = nil
	}
	return nil
}

// removeUnits ends all units and the SRBs that wait in their queues.
func (a *Adapter) removeUnits(p *Processor) {
	yieldLock("removeUnits: close the gate", &a.mu)
	a.mu.Lock()
	a.closeGateLocked(gateGone) // no unit comes any more
	a.mu.Unlock()
	a.failUnits(p)
	yieldLock("removeUnits: empty the table", &a.mu)
	a.mu.Lock()
	a.units.Store(&unitTable{})
	a.mu.Unlock()
}

// failUnits fails the SRBs that the units' queues hold, and all later ones.
func (a *Adapter) failUnits(p *Processor) {
	old := p.raise(Dispatch)
	yieldLock("failUnits", &a.mu)
	a.mu.Lock() // a unit whose publisher has not seen that units end is in the table by now
	units := a.units.Load().all
	a.mu.Unlock()
	for _, lu := range units {
		lu.mu.Lock()
		lu.closeGateLocked(gateRemoved)
		lu.failAllLocked(p)
		lu.mu.Unlock()
	}
	p.lower(old)
}

// failAllLocked completes all waiting SRBs with StatusNoDevice, built ones
// included: the miniport's resources that those hold go away with the adapter.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) failAllLocked(p *Processor) {
	for lu.waiting.head != nil {
		s := lu.waiting.pop()
		if s.built {
			s.built = false
			lu.a.unmap(s)
		}
		p.finishByPort(s, StatusNoDevice)
	}
	lu.endQuiesceLocked(p, StatusNoDevice)
}

// end ends the adapter's services, and frees its memory unless that may still be used:
// held, if not nil, says why, or something does not end before ctx does. In that case it
// returns the reason and may be called again. The caller holds life.
func (a *Adapter) end(ctx context.Context, held error) error {
	a.state.Store(adapterRemoved)
	a.worker.end()
	a.enumerator.end()
	if held == nil { // otherwise they may wait for just that
		held = a.waitUsers(ctx) // the other services run: it may be a timer that they wait for
	}
	a.recovery.stop()
	a.service.stop()
	a.disconnect()
	if held == nil {
		held = a.waitOwn(0) // it could not be stopped, and has been reset since
	}
	if held != nil {
		return held
	}
	a.release()
	return nil
}

// waitUsers waits until work items and enumerations, which find no units any more, have
// ended, for at most StopTimeout, or until takeAwayTime after the end of ctx: so they have
// the time to end, if they wait for nothing, even if ctx is over already.
func (a *Adapter) waitUsers(ctx context.Context) error {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.options.StopTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(takeAwayTime, cancel) })()
	for _, user := range [...]struct {
		what string
		over <-chan struct{}
	}{{"a work item", a.worker.done}, {"an enumeration or a work item that waits for I/O", a.enumerator.done}, {"an enumeration", a.enumTurn}} {
		select {
		case <-user.over:
		case <-limit.Done():
			select {
			case <-user.over: // just in time
			default:
				return fmt.Errorf("%s: remove: %s does not end, and may still wait for an SRB: %w: %w", a.options.Name, user.what, ErrOutstanding, cmp.Or(ctx.Err(), limit.Err()))
			}
		}
	}
	a.enumTurn <- struct{}{}
	return nil
}

// release gives back the adapter's memory, once. Nothing is outstanding.
func (a *Adapter) release() {
	for _, own := range a.ownSRBs() {
		if srb := *own; srb != nil && srb.owner.Load() == ownerClass { // otherwise the miniport kept it
			a.FreeSRB(srb)
		}
		*own = nil
	}
	a.releaseMemory()
	if a.uncached.Bytes != nil {
		a.returnDma(&a.uncached)
	}
}

// detach ends one unit of an adapter that stays: waiting SRBs and later ones fail.
// Built SRBs go down to the miniport, whose resources they hold.
func (a *Adapter) detach(p *Processor, lu *LogicalUnit) {
	old := p.raise(Dispatch)
	lu.mu.Lock()
	lu.closeGateLocked(gateRemoved)
	lu.failWaitingLocked(p, StatusNoDevice)
	lu.endQuiesceLocked(p, StatusNoDevice)
	if lu.timeLeft < 0 {
		lu.rearmLocked()
	}
	lu.mu.Unlock()
	lu.dispatch(p)
	p.lower(old)
}

// sendControl sends FunctionFlush or FunctionShutdown to a unit and waits for it, at most
// ResetTimeout and not after ctx or the adapter's failure. If it fails or does not come
// back, that is only logged: nothing better can be done.
func (a *Adapter) sendControl(ctx context.Context, p *Processor, lu *LogicalUnit, f Function) {
	if !a.sendOwn(ctx, p, lu, a.controlSRB, f) {
		a.sys.log.Error("the adapter's cache may not be flushed", "unit", lu.String(), "function", f.String())
	}
}

// fail marks the adapter broken: its units end, and the SRBs that the miniport holds
// stay there until Remove.
func (a *Adapter) fail(why string) {
	for {
		state := a.state.Load()
		if state == adapterFailed || state == adapterRemoving || state == adapterRemoved {
			return
		}
		if a.state.CompareAndSwap(state, adapterFailed) {
			break
		}
	}
	close(a.failed)
	a.sys.log.Error("adapter failed", "adapter", a.options.Name, "reason", why)
	a.service.post(a.failUnits) // a work item may wait for what is to fail here
}

// MarkDeviceFailed takes a unit out of service: it logs why, waiting and later SRBs
// complete with StatusNoDevice, and the next enumeration may find the unit again. With
// path, target and lun all 0xFF the whole adapter has failed, and can only be removed.
// False: there is no such unit.
//
// Level: any; it takes effect soon, on a goroutine of the port.
// Source: storport.h StorPortMarkDeviceFailed, StorPortMarkDeviceFailedEx.
func (a *Adapter) MarkDeviceFailed(_ *Processor, path, target, lun uint8, why string) bool {
	if path == wildcard && target == wildcard && lun == wildcard {
		a.fail(why)
		return true
	}
	lu := a.unit(path, target, lun)
	if lu == nil {
		return false
	}
	a.sys.log.Error("unit failed", "unit", lu.String(), "reason", why)
	// The enumerator may wait for what is to fail here; and forget for that.
	return a.service.post(func(p *Processor) {
		a.detach(p, lu)
		a.enumerator.post(func(p *Processor) { a.forget(p, lu) })
	})
}

// wildcard stands for all paths, targets or units.
const wildcard = 0xFF
