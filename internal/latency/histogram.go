package latency

import (
	"sync/atomic"
	"time"
)

// A Histogram counts durations. The zero Histogram is empty and ready.
//
// Concurrency: any goroutine.
type Histogram struct {
	sum     atomic.Int64 // ns
	buckets [Buckets + 1]atomic.Uint64
}

// Add counts one duration; one below zero counts as zero.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	h.sum.Add(int64(d))
	h.buckets[Bucket(int64(d))].Add(1)
}

// Load adds what h has counted to c.
func (h *Histogram) Load(c *Counts) {
	c.Sum += time.Duration(h.sum.Load())
	for i := range h.buckets {
		c.Buckets[i] += h.buckets[i].Load()
	}
}

// Counts is a snapshot of a histogram, or of several.
type Counts struct {
	Sum     time.Duration
	Buckets [Buckets + 1]uint64 // the last has no bound
}

// Count is the number of durations.
func (c *Counts) Count() uint64 {
	var n uint64
	for _, b := range &c.Buckets {
		n += b
	}
	return n
}
