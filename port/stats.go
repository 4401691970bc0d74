package port

import (
	"time"

	"github.com/vhbad/vhbad/internal/latency"
)

// InterruptStats are the counters of one interrupt message, or of the line.
type InterruptStats struct {
	Message   uint16
	Edges     uint64 // raised by the device
	Runs      uint64 // calls of the handler: fewer where edges coalesced
	Unhandled uint64 // the handler said that it was not for it
}

// AdapterStats is a snapshot of an adapter's counters.
type AdapterStats struct {
	Interrupts        []InterruptStats
	SynchronizeAccess uint64
	// SyncHold and SyncTimes say how long SynchronizeAccess routines kept
	// interrupts waiting: of one call in 64, or of all with the verifier on.
	SyncHold    HoldStats
	SyncTimes   latency.Counts
	Outstanding int64 // SRBs charged against MaxNumberOfIO
	Timeouts    uint64
	Aborts      uint64 // FunctionAbortCommand SRBs
	// Held is how long the SRBs of all units had to wait for each reason, the
	// current wait included.
	Held           [GateReasons]time.Duration
	Resets         [ResetLevels]uint64
	ResetsDetected uint64
	PoolBytes      int    // that the miniport has from AllocatePool
	PoolInStartIo  uint64 // calls of AllocatePool in StartIo
}

// Stats returns the adapter's counters. It takes the first interrupt lock for
// a moment.
//
// Level: Passive; p is the caller's.
func (a *Adapter) Stats(p *Processor) AdapterStats {
	s := AdapterStats{
		Outstanding: a.outstanding.Load(), Timeouts: a.timeouts.Load(), ResetsDetected: a.detected.Load(),
		Aborts: a.aborts.Load(),
	}
	a.syncTimes.Load(&s.SyncTimes)
	a.mu.Lock()
	s.Held = a.held.until(a.gate.Load(), a.sys.nanos())
	a.mu.Unlock()
	for i := range a.interrupts {
		n := &a.interrupts[i]
		s.Interrupts = append(s.Interrupts, InterruptStats{
			Message: n.message, Edges: n.edges.Load(), Runs: n.runs.Load(), Unhandled: n.unhandled.Load(),
		})
	}
	a.memory.mu.Lock()
	s.PoolBytes, s.PoolInStartIo = a.memory.poolBytes, a.memory.poolInStartIo
	a.memory.mu.Unlock()
	for i := range a.resets {
		s.Resets[i] = a.resets[i].Load()
	}
	old := p.raise(Device)
	a.interruptLocks[0].acquire(p)
	s.SynchronizeAccess = a.syncCount
	s.SyncHold = a.syncHold.stats()
	a.interruptLocks[0].release(p)
	p.lower(old)
	return s
}
