package cache

import (
	"maps"
	"math/bits"
	"time"
)

// An EvictionReason says why a write became durable early, or went through.
type EvictionReason uint8

// Reasons.
const (
	EvictionRoom    EvictionReason = iota // room was needed
	EvictionChance                        // EvictRandom drew it
	EvictionThrough                       // it did not fit and went through
	evictionReasons
)

// String is room, chance or through.
func (r EvictionReason) String() string { return [...]string{"room", "chance", "through"}[r] }

// EvictionReasons is how many there are.
const EvictionReasons = int(evictionReasons)

// CoveredBuckets is how many buckets Stats.FlushCovered has: flushes that
// covered at most 0, 1, 2, 4 … 2^16 writes, and more.
const CoveredBuckets = 19

// Stats are a cache's counters, since it was made, and what is pending.
type Stats struct {
	PendingBytes, PendingWrites int64
	OldestPending               time.Time // zero if nothing is pending
	UnreadableSectors           int64
	Flushes, FailedFlushes      uint64
	// FlushCovered counts flushes by the number of writes that they had to make
	// durable; CoveredWrites is the sum of those.
	FlushCovered  [CoveredBuckets]uint64
	CoveredWrites uint64
	Evictions     [EvictionReasons]uint64 // writes, counted when chosen
	// FailedWriteOuts counts failed background writes to the durable medium.
	FailedWriteOuts uint64
	Cuts            uint64
	// CutSectors counts the pending sectors of all cuts, by the class in their reports.
	CutSectors [Classes][Outcomes]uint64
	// Acts counts commands by what no correct drive does to them.
	Acts map[Act]uint64
}

// CoveredBound is the upper bound of bucket i of Stats.FlushCovered, except for the
// last, which has none.
func CoveredBound(i int) uint64 {
	if i == 0 {
		return 0
	}
	return 1 << (i - 1)
}

// A FlushRecord is one answered flush.
type FlushRecord struct {
	// Number counts flushes from 1.
	Number uint64 `json:"number"`
	// Before: the flush covers the acknowledged writes with smaller ids.
	Before uint64    `json:"before_write"`
	Writes int       `json:"writes"`
	Time   time.Time `json:"time"`
	Lie    bool      `json:"lie,omitempty"`
}

// recentFlushes is how many answered flushes a report can list.
const recentFlushes = 16

// A record holds the answered flushes, as far as reports list them, and the counters. It
// is guarded by Cache.mu.
type record struct {
	flushes uint64
	recent  [recentFlushes]FlushRecord
	stats   Stats
	// acts is stats.Acts since the last cut.
	acts map[Act]uint64
}

func (r *record) flushed(f *flush, now time.Time) {
	r.flushes++
	r.recent[r.flushes%recentFlushes] = FlushRecord{Number: r.flushes, Before: f.before, Writes: f.covered, Time: now, Lie: f.lie}
	bucket := 0
	if f.covered > 0 {
		bucket = min(bits.Len(uint(f.covered-1))+1, CoveredBuckets-1)
	}
	r.stats.FlushCovered[bucket]++
	r.stats.CoveredWrites += uint64(f.covered)
}

// Stats returns the counters.
//
// Concurrency: any goroutine.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.record.stats
	s.Acts = maps.Clone(s.Acts)
	s.PendingBytes, s.PendingWrites = int64(c.store.used)<<c.shift, int64(c.store.writes)
	s.UnreadableSectors, s.Flushes = int64(len(c.unreadable)), c.record.flushes
	if w := c.store.first; w != nil {
		s.OldestPending = w.at
	}
	return s
}
