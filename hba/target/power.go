package target

import "github.com/vhbad/vhbad/internal/scsi"

// PowerOff takes the unit's power away. Until PowerOn every command, INQUIRY too but
// not REPORT LUNS, which the target answers, ends with NOT READY, CAUSE NOT REPORTABLE,
// and so does one that is in progress when the power goes, whatever it has done, or that
// has waited since. What becomes of the medium's cache is the medium's business.
//
// Concurrency: any goroutine; commands may be running.
func (u *Unit) PowerOff() {
	u.conditions.Or(conditionOff)
	u.powerCycles.Add(1)
}

// IsOff reports whether the unit has no power.
//
// Concurrency: any goroutine.
func (u *Unit) IsOff() bool { return u.conditions.Load()&conditionOff != 0 }

// PowerCycle is one more with each PowerOff, and two at the least. Who has a command wait
// remembers it; see Task.PowerCycle.
//
// Concurrency: any goroutine.
func (u *Unit) PowerCycle() uint32 { return u.powerCycles.Load() }

// PowerOn gives power back. The next command reports POWER ON OCCURRED. A unit
// that was stopped runs, WCE has its default value again, and nobody is owed the
// error of a flush that was before.
func (u *Unit) PowerOn() {
	u.cycleMu.Lock()
	defer u.cycleMu.Unlock()
	u.owed = nil
	u.writeThrough.Store(!u.config.WriteCache)
	for {
		old := u.conditions.Load()
		// A change of the list of units or of the size stays news.
		now := old&(attentionLUNs|attentionCapacity) | attentionPowerOn
		if u.conditions.CompareAndSwap(old, now) {
			return
		}
	}
}

// LoseNexus tells the unit that all I_T nexuses have been lost, as when the machine goes
// that the commands come from, and which number those have that follow: not zero. A
// command of another number is not executed any more, whenever it comes, and ends with
// NOT READY. Who takes the power away for that machine as well calls it before PowerOn.
//
// Concurrency: any goroutine.
func (u *Unit) LoseNexus(next uint8) { u.nexus.Store(uint32(next)) }

// HasLost reports whether the unit has lost the nexus of that number; zero is none.
//
// Concurrency: any goroutine.
func (u *Unit) HasLost(nexus uint8) bool {
	n := u.nexus.Load()
	return nexus != 0 && n != 0 && uint32(nexus) != n
}

// checkPower ends t if the power went while it was executed.
func (u *Unit) checkPower(t *Task, cycle uint32) {
	if u.powerCycles.Load() != cycle {
		u.notPowered(t)
	}
}

func (u *Unit) notPowered(t *Task) {
	t.TransferredBytes, t.NoPower = 0, true
	u.failCode(t, scsi.KeyNotReady, scsi.NotReadyCauseNotReportable)
}

// PluggedIn tells the unit that it has been away from the bus: its next command
// reports that. Power is another matter.
//
// Concurrency: any goroutine.
func (u *Unit) PluggedIn() { u.conditions.Or(attentionPowerOn) }
