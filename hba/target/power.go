package target

import "github.com/vhbad/vhbad/internal/scsi"

// PowerOff takes the unit's power away. Until PowerOn every command ends with NOT READY,
// CAUSE NOT REPORTABLE, including INQUIRY but not REPORT LUNS, which the target answers.
// So does a command that is in progress when the power goes, whatever it has done, or
// that has been waiting since. What becomes of the medium's cache is the medium's
// business.
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

// PowerCycle increases by one with each PowerOff, and is at least two. Whoever makes a
// command wait remembers it; see Task.PowerCycle.
//
// Concurrency: any goroutine.
func (u *Unit) PowerCycle() uint32 { return u.powerCycles.Load() }

// PowerOn gives power back. The next command reports POWER ON OCCURRED. A unit that was
// stopped runs, WCE has its default value again, and no command reports a flush error
// from before.
func (u *Unit) PowerOn() {
	u.cycleMu.Lock()
	defer u.cycleMu.Unlock()
	u.owed = nil
	u.writeThrough.Store(!u.config.WriteCache)
	for {
		old := u.conditions.Load()
		// A change of the list of units or of the size still has to be reported.
		now := old&(attentionLUNs|attentionCapacity) | attentionPowerOn
		if u.conditions.CompareAndSwap(old, now) {
			return
		}
	}
}

// LoseNexus tells the unit that all I_T nexuses have been lost, as when the machine that
// sends the commands goes down, and gives the number of those that follow, which is not
// zero. From then on a command with another number is not executed, whenever it comes,
// and ends with NOT READY. If the power is taken away along with that machine, LoseNexus
// is to be called before PowerOn.
//
// Concurrency: any goroutine.
func (u *Unit) LoseNexus(next uint8) { u.nexus.Store(uint32(next)) }

// HasLost reports whether the unit has lost the nexus with that number; zero is no
// nexus.
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

// PluggedIn tells the unit that it has been away from the bus: its next command reports
// that. It does not affect power.
//
// Concurrency: any goroutine.
func (u *Unit) PluggedIn() { u.conditions.Or(attentionPowerOn) }
