package port

import (
	"fmt"
	"time"
)

// Flow control. These routines may be called at any level: they change a gate
// and leave it to a DPC to start the SRBs that the gate held back.

// Busy holds back new SRBs for the whole adapter until n of those outstanding
// have completed, or all of them, if they are fewer. SRBs that complete as BUSY and are
// tried again do not count. With none outstanding the adapter stays ready.
// Source: storport.h StorPortBusy.
func (a *Adapter) Busy(p *Processor, n int) bool {
	if !a.closeBusyGate(n) {
		a.kick(p) // an SRB may have found the gate closed and been parked
	}
	return true
}

// closeBusyGate closes Busy's gate if anything is outstanding. False: all completed
// meanwhile and the gate is open again, but it was closed for a moment.
func (a *Adapter) closeBusyGate(n int) bool {
	yieldLock("Busy", &a.mu)
	a.mu.Lock()
	defer a.mu.Unlock()
	out := int(a.outstanding.Load())
	if n = min(n, out); n <= 0 {
		return true
	}
	a.busyLeft = n
	yieldPoint("Busy: close the gate")
	a.closeGateLocked(gateBusy)
	yieldPoint("Busy: is all complete")
	if int(a.outstanding.Load()) == 0 { // all completed meanwhile, without seeing the gate
		a.busyLeft = 0
		a.openGateLocked(gateBusy)
		return false
	}
	return true
}

// Ready ends Busy.
// Source: storport.h StorPortReady.
func (a *Adapter) Ready(p *Processor) bool {
	yieldLock("Ready", &a.mu)
	a.mu.Lock()
	a.busyLeft = 0
	a.openGateLocked(gateBusy)
	a.mu.Unlock()
	a.kick(p)
	return true
}

// noteCompletions counts completions towards the end of Busy, and tells Stop
// when nothing is outstanding.
func (a *Adapter) noteCompletions(p *Processor, n int) {
	yieldLock("note completions", &a.mu)
	a.mu.Lock()
	opened := false
	if a.busyLeft > 0 {
		a.busyLeft -= n
		if a.busyLeft <= 0 || a.outstanding.Load() == 0 {
			a.busyLeft = 0
			a.openGateLocked(gateBusy)
			opened = true
		}
	}
	if a.idle != nil && a.outstanding.Load() == 0 {
		close(a.idle)
		a.idle = nil
	}
	a.mu.Unlock()
	if opened {
		a.kick(p)
	}
}

// Pause holds back new SRBs for the whole adapter, for the given number of seconds or
// until Resume. A second Pause replaces the first.
// Source: storport.h StorPortPause.
func (a *Adapter) Pause(_ *Processor, seconds int) bool {
	yieldLock("Pause", &a.mu)
	a.mu.Lock()
	a.closeGateLocked(gatePaused)
	a.pauseTurn++
	turn := a.pauseTurn
	a.mu.Unlock()
	a.after(time.Duration(seconds)*time.Second, func(p *Processor) { a.endPause(p, turn) })
	return true
}

// endPause ends a pause whose time is over, unless another has replaced it.
func (a *Adapter) endPause(p *Processor, turn uint64) {
	yieldLock("end of a pause", &a.mu)
	a.mu.Lock()
	current := a.pauseTurn == turn
	if current {
		a.openGateLocked(gatePaused)
	}
	a.mu.Unlock()
	if current {
		a.kick(p)
	}
}

// Resume ends Pause.
// Source: storport.h StorPortResume.
func (a *Adapter) Resume(p *Processor) bool {
	a.mu.Lock()
	a.pauseTurn++
	a.openGateLocked(gatePaused)
	a.mu.Unlock()
	a.kick(p)
	return true
}

// LinkDown holds back new SRBs for the whole adapter and stops the units' timers,
// until LinkUp or for AdapterOptions.LinkDownTimeout. After that SRBs go down
// again, and it is up to the miniport how to answer them. A second LinkDown starts
// the time anew.
//
// Level: any.
// Source: storport.h StorPortNotification(LinkDown).
func (a *Adapter) LinkDown(*Processor) {
	yieldLock("LinkDown", &a.mu)
	a.mu.Lock()
	a.closeGateLocked(gateLinkDown)
	a.linkTurn++
	turn := a.linkTurn
	a.mu.Unlock()
	a.sys.log.Warn("link down", "adapter", a.options.Name)
	a.after(a.options.LinkDownTimeout, func(p *Processor) { a.endLinkDown(p, turn) })
}

// endLinkDown ends a LinkDown whose time is over, unless another has begun since.
func (a *Adapter) endLinkDown(p *Processor, turn uint64) {
	yieldLock("end of a LinkDown", &a.mu)
	a.mu.Lock()
	expired := a.linkTurn == turn && a.gate.Load()&gateLinkDown != 0
	if expired {
		a.openGateLocked(gateLinkDown)
	}
	a.mu.Unlock()
	if expired {
		a.sys.log.Error("link is still down", "adapter", a.options.Name, "after", a.options.LinkDownTimeout)
		a.kick(p)
	}
}

// LinkUp ends LinkDown. False: the link was not down.
//
// Level: any.
// Source: storport.h StorPortNotification(LinkUp).
func (a *Adapter) LinkUp(p *Processor) bool {
	a.mu.Lock()
	down := a.gate.Load()&gateLinkDown != 0
	a.linkTurn++
	a.openGateLocked(gateLinkDown)
	a.mu.Unlock()
	if down {
		a.kick(p)
	}
	return down
}

// ResetDetected tells the port that the hardware saw a bus reset that the port
// did not ask for. The miniport still completes its active requests
// (StatusBusReset); their owners try again. New SRBs are held back for
// Config.BusResetHoldTime.
//
// Level: any.
// Source: storport.h StorPortNotification(ResetDetected).
func (a *Adapter) ResetDetected(*Processor) {
	a.detected.Add(1)
	hold := a.config.BusResetHoldTime
	if hold <= 0 {
		return
	}
	a.mu.Lock()
	a.closeGateLocked(gateHold)
	a.holdTurn++
	turn := a.holdTurn
	a.mu.Unlock()
	a.after(hold, func(p *Processor) { a.endHold(p, turn) })
}

// endHold ends the hold time of one ResetDetected.
func (a *Adapter) endHold(p *Processor, turn uint64) {
	a.mu.Lock()
	current := a.holdTurn == turn
	a.mu.Unlock()
	if !current {
		return // another reset followed, with a hold time of its own
	}
	if p.verify {
		for _, lu := range a.units.Load().all {
			if n := lu.heldByMiniport(); n != 0 {
				p.violate(CheckResetOutstanding, nil, fmt.Sprintf("%s: %d SRBs from before a reset at the end of its hold time", lu, n))
			}
		}
	}
	a.mu.Lock()
	if a.holdTurn == turn {
		a.openGateLocked(gateHold)
	}
	a.mu.Unlock()
	a.kick(p)
}

// DeviceBusy is Busy for one unit. False: there is no such unit.
// Source: storport.h StorPortDeviceBusy.
func (a *Adapter) DeviceBusy(_ *Processor, path, target, lun uint8, n int) bool {
	lu := a.unit(path, target, lun)
	if lu == nil {
		return false
	}
	yieldPoint("DeviceBusy")
	lu.mu.Lock()
	defer lu.mu.Unlock()
	if n = min(n, lu.outstanding); n > 0 {
		lu.busyLeft = n
		lu.closeGateLocked(gateBusy)
	}
	return true
}

// DeviceReady ends DeviceBusy.
// Source: storport.h StorPortDeviceReady.
func (a *Adapter) DeviceReady(p *Processor, path, target, lun uint8) bool {
	lu := a.unit(path, target, lun)
	if lu == nil {
		return false
	}
	yieldPoint("DeviceReady")
	lu.mu.Lock()
	lu.busyLeft = 0
	lu.busyUntil = time.Time{}
	lu.openGateLocked(gateBusy)
	lu.mu.Unlock()
	a.kick(p)
	return true
}

// PauseDevice is Pause for one unit. False: there is no such unit.
// Source: storport.h StorPortPauseDevice.
func (a *Adapter) PauseDevice(_ *Processor, path, target, lun uint8, seconds int) bool {
	lu := a.unit(path, target, lun)
	if lu == nil {
		return false
	}
	yieldPoint("PauseDevice")
	lu.mu.Lock()
	lu.closeGateLocked(gatePaused)
	lu.pauseTurn++
	turn := lu.pauseTurn
	lu.mu.Unlock()
	// By address it might be another by then.
	a.after(time.Duration(seconds)*time.Second, func(p *Processor) { lu.endPause(p, turn) })
	return true
}

// endPause is Adapter.endPause for the unit.
func (lu *LogicalUnit) endPause(p *Processor, turn uint64) {
	yieldPoint("end of a unit's pause")
	lu.mu.Lock()
	current := lu.pauseTurn == turn
	if current {
		lu.openGateLocked(gatePaused)
	}
	lu.mu.Unlock()
	if current {
		lu.a.kick(p)
	}
}

// ResumeDevice ends PauseDevice.
// Source: storport.h StorPortResumeDevice.
func (a *Adapter) ResumeDevice(p *Processor, path, target, lun uint8) bool {
	lu := a.unit(path, target, lun)
	if lu == nil {
		return false
	}
	lu.resume(p)
	return true
}

// resume ends the unit's pause.
func (lu *LogicalUnit) resume(p *Processor) {
	lu.mu.Lock()
	lu.pauseTurn++
	lu.openGateLocked(gatePaused)
	lu.mu.Unlock()
	lu.a.kick(p)
}

// endBusyLaterLocked schedules the unit's gate to open BusyPauseTime after a BUSY
// completion. A unit has one timer for that, however many SRBs complete so.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) endBusyLaterLocked() {
	pause := lu.a.options.BusyPauseTime
	lu.busyUntil = time.Now().Add(pause)
	if lu.busyTimer == nil {
		lu.busyTimer = time.AfterFunc(pause, func() { lu.a.service.post(lu.endBusy) })
	} else {
		lu.busyTimer.Reset(pause)
	}
}

// endBusy is the unit's busyTimer on the timer service.
func (lu *LogicalUnit) endBusy(p *Processor) {
	lu.mu.Lock()
	again := time.Now().Before(lu.busyUntil) // the timer was set anew meanwhile
	if !again && lu.busyLeft == 0 {
		lu.openGateLocked(gateBusy)
	}
	lu.mu.Unlock()
	if !again {
		lu.a.kick(p)
	}
}

// SetDeviceQueueDepth sets how many SRBs of a unit may be outstanding, from 1
// to Config.MaxIOsPerLun. A depth below the number outstanding takes effect as
// those complete. False: no such unit, or the depth is out of range.
//
// Level: any, from the unit's first INQUIRY on.
// Source: storport.h StorPortSetDeviceQueueDepth.
func (a *Adapter) SetDeviceQueueDepth(p *Processor, path, target, lun uint8, depth int) bool {
	lu := a.unit(path, target, lun)
	if lu == nil || depth < 1 || depth > a.config.MaxIOsPerLun {
		return false
	}
	yieldPoint("SetDeviceQueueDepth")
	lu.mu.Lock()
	grown := depth > lu.depth
	lu.depth = depth
	lu.mu.Unlock()
	if grown {
		a.kick(p)
	}
	return true
}
