package nbd

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A trial finds out whether pauses pay, by what all connections of a server get done with
// and without, in turns. It depends on the machine: where it is dear to wake somebody up,
// pauses make half as many requests again, and where it is cheap they cost a fifth. All
// connections do the same at a time: to one alone it always pays to go on while others
// pause.
//
// Concurrency: any goroutine; a connection comes by once for every trialStep requests.
type trial struct {
	// without says that connections whose pauses bring requests do without, unless
	// connections have all processors.
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
	// window counts those of the trial that are over. trialWindows of them end it.
	// +checklocks:mu
	window int
	// rates are the requests a second of a pair of windows, with pauses and without.
	// +checklocks:mu
	rates [2]float64
	// ratios are those of the pairs: without to with.
	// +checklocks:mu
	ratios [trialPairs]float64
	// ratio is their median, and half of it that of the trials before; zero before the
	// first.
	// +checklocks:mu
	ratio float64
}

const (
	// trialWindow is long enough for a thousand requests of one client, and for the
	// machine's ticks to be the same in all.
	trialWindow = 24 * time.Millisecond
	// trialPairs of windows, one with and one without, make a trial.
	trialPairs   = 5
	trialWindows = 2 * trialPairs
	// trialTerm is how long a verdict holds.
	trialTerm = 8 * time.Second
	// trialStep is how many requests a connection counts by itself.
	trialStep = 64
	// trialLeast is how many a window with pauses needs to say anything.
	trialLeast = 8 * trialStep
	// trialGain is what must be won by not pausing: pauses save processor time.
	trialGain = 1.0 / 16
	// trialMost is a ratio that is not believed.
	trialMost = 1.5
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
	took, requests := atNs-t.beganNs, t.requests.Swap(0)
	switch {
	case t.window == trialWindows: // the term is over
		t.window = 0
	case took > int64(2*trialWindow) || t.window%2 == 0 && requests < trialLeast:
		// There was hardly anybody: the pair once more, from pauses on. A window without may
		// bring little: that it is worse is an answer, too.
		t.window -= t.window % 2
	default:
		t.rates[t.window%2] = float64(requests) / float64(took)
		if t.window%2 == 1 {
			t.ratios[t.window/2] = min(max(t.rates[1]/t.rates[0], 1/trialMost), trialMost)
		}
		t.window++
	}
	term, without := trialWindow, t.window%2 == 1
	if t.window == trialWindows {
		slices.Sort(t.ratios[:])
		median := t.ratios[trialPairs/2]
		if t.ratio != 0 {
			median = (t.ratio + median) / 2
		}
		t.ratio = median
		term, without = trialTerm, t.ratio > 1+trialGain
	}
	t.without.Store(without)
	t.beganNs = atNs
	t.endNs.Store(atNs + int64(term))
}
