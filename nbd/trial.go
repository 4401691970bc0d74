package nbd

import (
	"sync"
	"sync/atomic"
	"time"
)

// A trial finds out whether pauses pay, by what all connections of a server that are
// deep enough for them get done with and without, in turns. It depends on the machine:
// where it is dear to wake somebody up, pauses make half as many requests again, and
// where it is cheap they cost a fifth. All connections do the same at a time: to one
// alone it always pays to go on while others pause.
//
// Concurrency: any goroutine; a connection comes by once for every trialStep requests.
type trial struct {
	// without says that nobody pauses.
	without atomic.Bool
	// endNs is when the window or the verdict's term ends, since epoch.
	endNs atomic.Int64
	_     [48]byte // what is read often, and what is written

	// requests are those of the present window so far.
	requests atomic.Int64

	mu sync.Mutex
	// beganNs is when the window began, since epoch.
	// +checklocks:mu
	beganNs int64
	// left counts the windows to come; zero between trials.
	// +checklocks:mu
	left int
	// best is the most requests a second of a window with pauses, and without.
	// +checklocks:mu
	best [2]float64
}

const (
	// trialWindow is long enough for a thousand requests of one client, and for the
	// machine's ticks to be the same in all.
	trialWindow  = 32 * time.Millisecond
	trialWindows = 8 // with and without in turns
	// trialTerm is how long a verdict holds.
	trialTerm = 8 * time.Second
	// trialStep is how many requests a connection counts by itself.
	trialStep = 64
	// trialGain is what must be won by not pausing: pauses save processor time.
	trialGain = 1.0 / 16
)

// add counts requests, at atNs since epoch.
//
// +checklocksignore: it does not know TryLock.
func (t *trial) add(requests int, atNs int64) {
	t.requests.Add(int64(requests))
	if atNs < t.endNs.Load() || !t.mu.TryLock() {
		return
	}
	if atNs >= t.endNs.Load() { // still
		t.turnLocked(atNs)
	}
	t.mu.Unlock()
}

// turnLocked ends a window or a term.
//
// +checklocks:t.mu
func (t *trial) turnLocked(atNs int64) {
	term := trialWindow
	switch took := atNs - t.beganNs; {
	case t.left == 0: // the verdict's term, or nothing, is over
		t.left = trialWindows
		t.best = [2]float64{}
	case took <= int64(2*trialWindow): // else there was a time when nobody came: once more
		i := t.left % 2
		t.best[i] = max(t.best[i], float64(t.requests.Load())/float64(took))
		t.left--
	}
	without := t.left%2 == 1
	if t.left == 0 {
		without = t.best[1] > t.best[0]*(1+trialGain)
		term = trialTerm
	}
	t.without.Store(without)
	t.requests.Store(0)
	t.beganNs = atNs
	t.endNs.Store(atNs + int64(term))
}
