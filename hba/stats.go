package hba

import (
	"math/bits"
	"sync/atomic"
)

// counters are those of one queue pair. The groups are written by different goroutines
// and lie on different cache lines. Each is updated once per batch.
type counters struct {
	// By those who ring.
	submissionDoorbells, completionDoorbells atomic.Uint64
	interrupts                               [BatchBuckets]atomic.Uint64 // by batchBucket
	_                                        [24]byte
	// By engine and workers.
	commands, completions, handed atomic.Uint64
	bytesIn, bytesOut, dmaFaults  atomic.Uint64
	_                             [16]byte
}

// BatchBuckets is the number of buckets of QueueStats.Batches.
const BatchBuckets = 11

// batchBucket is the bucket of an interrupt that announces so many completions.
func batchBucket(completions int) int {
	return min(bits.Len(uint(max(completions, 1)-1)), BatchBuckets-1)
}

// QueueStats is a snapshot of one queue pair. Counts are since New and outlive
// resets.
type QueueStats struct {
	Commands    uint64 // fetched
	Completions uint64 // posted
	Interrupts  uint64 // raised: at most one for each batch of completions
	// Batches counts the interrupts by the number of completions each announced: bucket
	// i is up to 2^i, the last has no bound. Where several goroutines complete at once,
	// the first interrupt may also announce another goroutine's completions; the other's
	// interrupt then counts as announcing one.
	Batches             [BatchBuckets]uint64
	SubmissionDoorbells uint64
	CompletionDoorbells uint64
	HandedToWorkers     uint64 // commands that would have blocked
	BytesIn             uint64 // written to host memory
	BytesOut            uint64 // read from host memory
	DMAFaults           uint64 // commands ended by CodeDMAFault

	Submitted  uint32 // in the submission ring, not yet fetched
	InFlight   uint32 // fetched, not yet completed
	Unconsumed uint32 // in the completion ring, not yet consumed by the driver
}

// Stats is a snapshot of a device. Each number is exact, but they are not all of the
// same instant.
type Stats struct {
	Resets         uint64
	UnitsChanged   uint64
	Workers        int
	WorkersBusy    int
	WaitForWorkers int // commands in line for a worker
	HeldByFaults   int // commands that neither run nor wait for a worker
	Queues         []QueueStats
}

// Stats returns a snapshot of the device's counters.
func (d *Device) Stats() Stats {
	s := Stats{
		Resets:       d.resets.Load(),
		UnitsChanged: d.unitsChanged.Load(),
		Workers:      d.workers,
		Queues:       make([]QueueStats, len(d.slots)),
	}
	d.mu.Lock()
	for i := range d.lines {
		s.WorkersBusy += d.busy[i]
		s.WaitForWorkers += d.lines[i].length
	}
	s.HeldByFaults = d.parked
	for _, l := range d.lanesMade {
		s.WaitForWorkers += l.waiting.length
	}
	d.mu.Unlock()
	for i := range d.slots {
		c, o := &d.slots[i].count, &s.Queues[i]
		o.Commands = c.commands.Load()
		o.Completions = c.completions.Load()
		for b := range c.interrupts {
			o.Batches[b] = c.interrupts[b].Load()
			o.Interrupts += o.Batches[b]
		}
		o.SubmissionDoorbells = c.submissionDoorbells.Load()
		o.CompletionDoorbells = c.completionDoorbells.Load()
		o.HandedToWorkers = c.handed.Load()
		o.BytesIn = c.bytesIn.Load()
		o.BytesOut = c.bytesOut.Load()
		o.DMAFaults = c.dmaFaults.Load()
		if q := d.slots[i].queue.Load(); q != nil {
			// In this order no difference can turn negative.
			consumed, posted := q.consumed.Load(), q.posted.Load()
			head := q.head.Load()
			o.Unconsumed, o.InFlight, o.Submitted = posted-consumed, head+q.surplus.Load()-posted, q.tail.Load()-head
		}
	}
	return s
}
