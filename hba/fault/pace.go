package fault

import (
	"math"
	"sync"
	"time"
)

// A pacer remembers until when each cap and lane is taken.
type pacer struct {
	mu sync.Mutex
	// bytes and ios are the times at which the caps have caught up.
	// +checklocks:mu
	bytes, ios time.Duration
	// lanes are until when each lane is busy.
	// +checklocks:mu
	lanes []time.Duration
}

// longAgo is the initial time of caps: their buckets are full, even on a clock that has
// just begun.
const longAgo = time.Duration(math.MinInt64)

// newPacer returns a pacer for a; nil if a needs none.
func newPacer(a *Action) *pacer {
	switch a.Kind {
	case KindRate:
		return &pacer{bytes: longAgo, ios: longAgo}
	case KindQueue:
		return &pacer{lanes: make([]time.Duration, a.Lanes)}
	default:
		return nil
	}
}

// rate returns how long a command of so many bytes has to wait, under the caps of
// a. Each cap is a bucket that starts full and holds the burst.
func (p *pacer) rate(a *Action, bytes int64, now time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(
		bucket(&p.bytes, now, bytes, int64(a.BytesPerSecond), int64(a.Burst)),
		bucket(&p.ios, now, 1, int64(a.IOPS), int64(a.BurstIOs)))
}

// bucket takes n from a bucket that gets perSecond and holds burst, and returns how long
// it takes until the bucket can supply them. level is the time at which the bucket is
// full again, less the time in which burst is filled.
func bucket(level *time.Duration, now time.Duration, n, perSecond, burst int64) time.Duration {
	if perSecond == 0 || n == 0 {
		return 0
	}
	span := func(n int64) time.Duration {
		return time.Duration(min(float64(n)/float64(perSecond)*float64(time.Second), float64(MaxTime)))
	}
	// Anything earlier than that overflows.
	*level = min(max(*level, now-span(burst))+span(n), now+time.Duration(MaxTime))
	return max(0, *level-now)
}

// serve returns how long a command takes that has to wait for a free lane and is then
// served.
func (p *pacer) serve(service, now time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	free := 0
	for i := range p.lanes {
		if p.lanes[i] < p.lanes[free] {
			free = i
		}
	}
	p.lanes[free] = min(max(p.lanes[free], now)+service, now+time.Duration(MaxTime))
	return p.lanes[free] - now
}

// stall returns how long it is until the end of the current stall, or zero if there is
// none. Time counts from when the rule came into force; each period begins with a stall.
func stall(a *Action, since time.Duration) time.Duration {
	return max(0, time.Duration(a.For)-since%time.Duration(a.Period))
}
