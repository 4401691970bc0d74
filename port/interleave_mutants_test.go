//go:build interleave

package port

import (
	"testing"

	"github.com/vhbad/vhbad/internal/interleave"
)

// TestInterleaveMutants shows that the scenarios of interleave_test.go bite: each
// mistake below, made in the port itself, is found within their bounds.
func TestInterleaveMutants(t *testing.T) {
	interleave.FindMutants(t, []interleave.Mutant{
		{
			Name: "two raisers both service",
			Test: "TestInterleave_Edges",
			File: "interrupt.go",
			Old: `			if !i.state.CompareAndSwap(interruptIdle, interruptPending) {
				continue
			}`,
			New: `i.state.Store(interruptPending)`,
		},
		{
			Name: "an edge while the handler runs is dropped",
			Test: "TestInterleave_Edges",
			File: "interrupt.go",
			Old: `			if i.state.CompareAndSwap(interruptRunning, interruptAgain) {
				return
			}`,
			New: `return`,
		},
		{
			Name: "idle is stored without another look",
			Test: "TestInterleave_Edges",
			File: "interrupt.go",
			Old: `		if i.state.CompareAndSwap(interruptRunning, interruptIdle) {
			return
		}`,
			New: `i.state.Store(interruptIdle)
			return`,
		},
		{
			Name: "again is cleared after the handler",
			Test: "TestInterleave_Edges",
			File: "interrupt.go",
			Old: `		if i.state.CompareAndSwap(interruptRunning, interruptIdle) {
			return
		}`,
			New: `i.state.Store(interruptRunning)
			if i.state.CompareAndSwap(interruptRunning, interruptIdle) {
				return
			}`,
		},
		{
			Name: "an interrupt at Device is dropped",
			Test: "TestInterleave_RoutineAndHandler",
			File: "interrupt.go",
			Old:  `				p.pend(i)`,
		},
		{
			Name: "the line is not looked at again",
			Test: "TestInterleave_Edges",
			File: "interrupt.go",
			Old: `		if i.a.lineMode && i.a.function.Asserted() && handled {
			continue // level-triggered: the line is still up
		}`,
		},
		{
			Name: "SynchronizeAccess takes no lock",
			Test: "TestInterleave_RoutineAndHandler",
			File: "synchronize.go",
			Old: `		if !a.acquireInterrupts(p) {
			p.lower(s.old)
			return synchronized{}, false
		}
		s.took = true`,
		},
		{
			Name: "SynchronizeAccess goes by the model and not by what is held",
			Test: "TestInterleave_RoutineAndHandler",
			File: "synchronize.go",
			Old: `		if !a.acquireInterrupts(p) {
			p.lower(s.old)
			return synchronized{}, false
		}
		s.took = true`,
			New: `if a.config.SynchronizationModel == FullDuplex {
				a.acquireInterrupts(p)
				s.took = true
			}`,
		},
		{
			Name: "SynchronizeAccess takes one message lock instead of all",
			Test: "TestInterleave_MessageLocks",
			File: "synchronize.go",
			Old: `		if !a.acquireInterrupts(p) {
			p.lower(s.old)
			return synchronized{}, false
		}
		s.took = true`,
			New: `a.interruptLocks[0].acquire(p)
			s.took = true`,
			Also: []interleave.Edit{{
				Old: `		s.a.releaseInterrupts(p)`,
				New: `s.a.interruptLocks[0].release(p)`,
			}},
		},
		{
			Name: "SynchronizeAccess takes the locks downwards",
			Test: "TestInterleave_MessageLocks",
			File: "synchronize.go",
			Old: `		if !a.acquireInterrupts(p) {
			p.lower(s.old)
			return synchronized{}, false
		}
		s.took = true`,
			New: `p.verify = false // which would report it at once
			for i := len(a.interruptLocks) - 1; i >= 0; i-- {
				a.interruptLocks[i].acquire(p)
			}
			s.took = true`,
		},
		{
			Name: "a reset leaves the channels alone",
			Test: "TestInterleave_Reset",
			File: "lock.go",
			Old: `	if allChannels {
		for i := range a.channelLocks {
			a.channelLocks[i].acquire(p)
		}
	}`,
			New: `allChannels = false`,
		},
		{
			Name: "a DPC issued while it runs is forgotten",
			Test: "TestInterleave_DpcIssue",
			File: "dpc.go",
			Old: `			if d.state.CompareAndSwap(dpcRunning, dpcRunningQueued) {
				return true
			}`,
			New: `return false`,
		},
		{
			Name: "a unit's depth is forgotten",
			Test: "TestInterleave_Depth",
			File: "unit.go",
			Old: `	if lu.exclusive || lu.leftLocked() <= 0 {
		return false
	}`,
			New: `if lu.exclusive {
				return false
			}`,
			Says: "V15 port_limits",
		},
		{
			Name: "a DPC ends without another look",
			Test: "TestInterleave_DpcIssue",
			File: "dpc.go",
			Old: `		if d.state.CompareAndSwap(dpcRunning, dpcIdle) {
			return
		}`,
			New: `d.state.Store(dpcIdle)
			return`,
		},
		{
			Name: "a cancelled DPC counts as off the queue",
			Test: "TestInterleave_DpcCancel",
			File: "dpc.go",
			Old: `			if d.state.CompareAndSwap(dpcQueued, dpcCancelled) {
				return true
			}`,
			New: `if d.state.CompareAndSwap(dpcQueued, dpcIdle) {
				return true
			}`,
		},
		{
			Name: "a DPC revived is queued twice",
			Test: "TestInterleave_DpcCancel",
			File: "dpc.go",
			Old: `			if d.state.CompareAndSwap(dpcCancelled, dpcQueued) {
				return true
			}`,
			New: `if d.state.CompareAndSwap(dpcCancelled, dpcQueued) {
				p.queueDpc(d)
				return true
			}`,
		},
		{
			Name: "a DPC revived while it is dropped is lost",
			Test: "TestInterleave_DpcCancel",
			File: "dpc.go",
			Old: `		if d.state.CompareAndSwap(dpcCancelled, dpcIdle) {
			return
		}`,
			New: `d.state.Store(dpcIdle)
			return`,
		},
		{
			Name: "a DPC revived is taken for one that cannot be cancelled again",
			Test: "TestInterleave_DpcCancel",
			File: "dpc.go",
			Old: `		if d.state.CompareAndSwap(dpcCancelled, dpcIdle) {
			return
		}`,
			New: `if d.state.CompareAndSwap(dpcCancelled, dpcIdle) {
				return
			}
			yieldPoint("DPC: running after all")
			if d.state.CompareAndSwap(dpcQueued, dpcRunning) {
				break
			}
			panic("port: a queued DPC is in no queued state")`,
		},
		{
			Name: "CancelDpc overlooks a DPC that runs and is queued",
			Test: "TestInterleave_DpcCancelAgain",
			File: "dpc.go",
			Old: `			if d.state.CompareAndSwap(dpcRunningQueued, dpcRunning) {
				return true
			}`,
			New: `return false`,
		},
		{
			Name: "Busy forgets whom it parked",
			Test: "TestInterleave_Busy",
			File: "flow.go",
			Old: `	if !a.closeBusyGate(n) {
		a.kick(p) // an SRB may have found the gate closed and been parked
	}`,
			New: `a.closeBusyGate(n)`,
		},
		{
			Name: "Busy waits for completions that there were before",
			Test: "TestInterleave_Busy",
			File: "flow.go",
			Old: `	if int(a.outstanding.Load()) == 0 { // all completed meanwhile, without seeing the gate
		a.busyLeft = 0
		a.openGateLocked(gateBusy)
		return false
	}`,
		},
		{
			Name: "an SRB parked while the gate opened stays",
			Test: "TestInterleave_Busy",
			File: "issue.go",
			Old: `	// And others that pass it may have waited for what was parked.
	lu.a.kick(p)`,
		},
		{
			Name: "a unit that found the adapter full does not look again",
			Test: "TestInterleave_AdapterFull",
			File: "issue.go",
			Old: `	if a.outstanding.Load() < int64(a.config.MaxNumberOfIO) && a.starved.CompareAndSwap(true, false) {
		a.kick(p)
	}`,
		},
		{
			Name: "room in the adapter is told to nobody",
			Test: "TestInterleave_AdapterFull",
			File: "issue.go",
			Old: `	if a.starved.Load() && a.starved.CompareAndSwap(true, false) {
		a.kick(p)
	}`,
		},
		{
			Name: "a unit that left is not looked at again",
			Test: "TestInterleave_RemovedWhilePaused",
			File: "issue.go",
			Old: `	for _, lu := range a.units.Load().all {
		lu.dispatch(p)
	}`,
			New: `	for _, lu := range a.units.Load().list {
		lu.dispatch(p)
	}`,
		},
		{
			Name: "an SRB that is built waits for a unit that left",
			Test: "TestInterleave_RemovedWhilePaused",
			File: "unit.go",
			Old:  `		return unit & gateRecovering`,
		},
		{
			Name: "the table is emptied while another replaces it",
			Test: "TestInterleave_LeaverWhileRemoved",
			File: "removal.go",
			Old: `	yieldLock("removeUnits: empty the table", &a.mu)
	a.mu.Lock()
	a.units.Store(&unitTable{})
	a.mu.Unlock()`,
			New: `	yieldPoint("removeUnits: empty the table")
	a.units.Store(&unitTable{})`,
		},
		{
			Name: "a deeper queue is told to nobody",
			Test: "TestInterleave_Depth",
			File: "flow.go",
			Old: `	if grown {
		a.kick(p)
	}`,
		},
		{
			Name: "a unit's Busy does not count",
			Test: "TestInterleave_DeviceBusy",
			File: "complete.go",
			Old:  `		lu.countBusyLocked(t.ended) // what was BUSY itself does not count`,
			New:  `_ = t.ended`,
		},
		{
			Name: "after QUEUE FULL nobody is counted",
			Test: "TestInterleave_QueueFull",
			File: "complete.go",
			Old:  `		lu.countBusyLocked(t.ended) // what was BUSY itself does not count`,
			New:  `_ = t.ended // not counted here either`,
		},
	})
}
