package port

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"
)

// How long callbacks run and locks are held: check V9.
//
// The vendor asks for at most 25 µs under a spin lock, 50 µs in an interrupt handler and
// 100 µs in a DPC. Longer ones are counted, not reported: a goroutine may be off its
// thread at any moment, through nobody's fault. Only a callback that takes as long as
// SystemConfig.HoldLimit is reported.

// DefaultHoldLimit is the hard limit of a callback.
// Source: Driver Verifier, SCSI check 0x1002.
const DefaultHoldLimit = 500 * time.Millisecond

// longHoldFactor is how many times longer Initialize, and callbacks that wait for the
// device to stop its DMA, may take: 5 s with the default limit.
const longHoldFactor = 10

// softLimits are the limits that HoldStats.Over counts.
var softLimits = [...]time.Duration{25 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond}

// HoldStats say how long something was held.
type HoldStats struct {
	Count uint64
	// P50 and P99 are upper bounds: the true value is more than half of them.
	P50, P99 time.Duration
	Max      time.Duration
	// Over counts what took longer than 25, 50 and 100 µs.
	Over [len(softLimits)]uint64
}

// A HoldTime is the statistics of one kind of callback or lock.
type HoldTime struct {
	What string // "StartIo", "interrupt lock", …
	HoldStats
}

// holdTimes is a histogram with a bucket for each power of two nanoseconds.
//
// Concurrency: any goroutine.
type holdTimes struct {
	buckets [holdBuckets]atomic.Uint64 // bucket i: less than 2^i ns
	over    [len(softLimits)]atomic.Uint64
	max     atomic.Int64
}

const holdBuckets = 40 // the last is for 9 minutes and more

func (h *holdTimes) add(d time.Duration) {
	d = max(d, 0)
	h.buckets[min(bits.Len64(uint64(d)), holdBuckets-1)].Add(1)
	for i, limit := range softLimits {
		if d > limit {
			h.over[i].Add(1)
		}
	}
	for {
		old := h.max.Load()
		if int64(d) <= old || h.max.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

func (h *holdTimes) stats() HoldStats {
	var s HoldStats
	var counts [holdBuckets]uint64
	for i := range counts {
		counts[i] = h.buckets[i].Load()
		s.Count += counts[i]
	}
	for i := range s.Over {
		s.Over[i] = h.over[i].Load()
	}
	s.Max = time.Duration(h.max.Load())
	quantile := func(percent uint64) time.Duration {
		want := (s.Count*percent + 99) / 100
		var seen uint64
		for i, n := range counts {
			if seen += n; seen >= want && n > 0 {
				return min(time.Duration(1)<<i-1, s.Max)
			}
		}
		return 0
	}
	s.P50, s.P99 = quantile(50), quantile(99)
	return s
}

// hardLimit is the longest a callback may take; zero: as long as it likes,
// because it runs at Passive or belongs to the class driver.
func (c Callback) hardLimit(limit time.Duration) time.Duration {
	switch c {
	case inBuildIo, inStartIo, inCommitIo, inInterrupt, inSynchronized, inDpc, inTimer, inStateChange:
		return limit
	case inInitialize, inResetBus, inAdapterControl:
		return longHoldFactor * limit
	case inNone, inFindAdapter, inPassiveInitialize, inUnitControl, inWorkItem, inCompleteSRB, inUnitsChanged, callbackCount:
	}
	return 0
}

// A stopwatch measures the time that passes on a processor, less what the device
// spends there: with real hardware that would not be the driver's time.
type stopwatch struct {
	at   time.Time
	lent time.Duration
}

func (p *Processor) startWatch() stopwatch { return stopwatch{p.sys.now(), p.lent} }

func (w stopwatch) elapsed(p *Processor) time.Duration {
	return p.sys.now().Sub(w.at) - (p.lent - w.lent)
}

// lend begins a register access: the processor's goroutine is the device's.
func (p *Processor) lend() stopwatch {
	if !p.verify {
		return stopwatch{}
	}
	return p.startWatch()
}

// takeBack ends what lend began.
func (p *Processor) takeBack(w stopwatch) {
	if p.verify {
		p.lent = w.lent + p.sys.now().Sub(w.at)
	}
}

// checkHold is V9 for a callback that has ended.
func (p *Processor) checkHold(c Callback, w stopwatch) {
	d := w.elapsed(p)
	p.sys.verifier.callbackTimes[c].add(d)
	if limit := c.hardLimit(p.sys.holdLimit); limit > 0 && d >= limit {
		p.violate(CheckHoldTime, nil, fmt.Sprintf("%s took %s, limit %s", c, d, limit))
	}
}

// checkLockHold is V9 for a lock that the miniport took and gives back. Those
// that the port holds around a callback are the callback's time.
func (p *Processor) checkLockHold(l *spinLock) {
	if !p.holds(l) {
		return
	}
	if d := l.watch.elapsed(p); d >= p.sys.holdLimit {
		p.violate(CheckHoldTime, nil, fmt.Sprintf("%s held for %s, limit %s", l, d, p.sys.holdLimit))
	}
}

// HoldTimes returns how long callbacks ran and locks were held, for what
// happened at least once.
func (v *Verifier) HoldTimes() []HoldTime {
	if v == nil {
		return nil
	}
	var out []HoldTime
	for c := range v.callbackTimes {
		if s := v.callbackTimes[c].stats(); s.Count > 0 {
			out = append(out, HoldTime{Callback(c).String(), s})
		}
	}
	for r := range v.lockTimes {
		if s := v.lockTimes[r].stats(); s.Count > 0 {
			out = append(out, HoldTime{rankNames[r] + " lock", s})
		}
	}
	return out
}
