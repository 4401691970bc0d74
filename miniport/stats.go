package miniport

// QueueStats are counters of one queue pair since the driver was made.
type QueueStats struct {
	// Outstanding is how many commands the device has now.
	Outstanding int
	// RingEntries is how many it could have.
	RingEntries int
	// Doorbells counts writes of the submission doorbell.
	Doorbells uint64
	// QueueFull counts SRBs turned away as BUSY with QUEUE FULL.
	QueueFull uint64
	// Refused counts SRBs turned away as BUSY because of a reset or stop.
	Refused uint64
	// StaleCompletions counts completions with a tag that was not on the
	// hardware.
	StaleCompletions uint64
}

// Stats returns the counters of each queue pair.
//
// Concurrency: any goroutine, after FindAdapter.
func (d *Driver) Stats() []QueueStats {
	out := make([]QueueStats, len(d.queues))
	for i, q := range d.queues {
		retired := q.retired.Load() // first, so that Outstanding is not negative
		out[i] = QueueStats{
			Outstanding:      int(q.tail.Load() - retired),
			RingEntries:      int(q.entries()),
			Doorbells:        q.doorbells.Load(),
			QueueFull:        q.queueFull.Load(),
			Refused:          q.refused.Load(),
			StaleCompletions: q.stale.Load(),
		}
	}
	return out
}

// Resets is the number of controller resets by ResetBus that succeeded.
//
// Concurrency: any goroutine.
func (d *Driver) Resets() uint64 { return d.resets.Load() }
