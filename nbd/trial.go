package nbd

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A trial finds out whether pauses pay, by what all connections of a server get done with
// and without, in turns, and by the processor time that it takes. It depends on the machine:
// where it is dear to wake somebody up, pauses make half as many requests again, and where
// it is cheap they cost a fifth. All connections do the same at a time: to one alone it
// always pays to go on while others pause.
//
// Concurrency: any goroutine; a connection comes by once for every trialStep requests.
type trial struct {
	// without says that connections whose pauses bring requests do without, unless that
	// takes the turn of one that asks for little.
	without atomic.Bool
	// spared says that one has done without in the present window without, and held that
	// one has paused all the same.
	spared, held atomic.Bool
	// endNs is when the window or the verdict's term ends, since epoch.
	endNs atomic.Int64
	// shallowNs is when a connection whose pauses bring little has last read requests, by
	// and large, since epoch.
	shallowNs atomic.Int64
	_         [32]byte // what is read often, and what is written

	// requests are those of the present window so far.
	requests atomic.Int64

	mu sync.Mutex
	// beganNs is when the window began, since epoch.
	// +checklocks:mu
	beganNs int64
	// spentNs is the processor time that the process had taken by then.
	// +checklocks:mu
	spentNs int64
	// window counts those of the trial that are over. trialWindows of them end it.
	// +checklocks:mu
	window int
	// worths are those of a pair of windows, with pauses and without.
	// +checklocks:mu
	worths [2]float64
	// ratios are those of the pairs that say something, found so many: without to with.
	// +checklocks:mu
	ratios [trialPairs]float64
	// +checklocks:mu
	found int
	// ratio is their median, and half of it that of the trials before; zero before the
	// first.
	// +checklocks:mu
	ratio float64

	// processor is the processor time that the process has taken; nil: ask the kernel.
	processor func() (ns int64) // immutable
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
	// trialGain is what must be won by not pausing, which others wait longer for.
	trialGain = 1.0 / 16
	// trialMost is a ratio that is not believed.
	trialMost = 1.5

	// shallowTerm is how long one that asks for little is minded after it has.
	shallowTerm = 100 * time.Millisecond
	// shallowStep is how exactly the time is known.
	shallowStep = time.Millisecond
)

// askLittle is called by a connection whose pauses bring little, when it has read
// requests, at atNs since epoch.
func (t *trial) askLittle(atNs int64) {
	if atNs-t.shallowNs.Load() > int64(shallowStep) {
		t.shallowNs.Store(atNs)
	}
}

// spares says whether a connection whose pauses bring requests does without one.
func (t *trial) spares(s yielder, atNs int64) bool {
	if !t.without.Load() {
		return false
	}
	said, spares := &t.spared, true
	// While connections have all processors, a pause is others' turn.
	if at := t.shallowNs.Load(); at != 0 && atNs-at < int64(shallowTerm) && s.crowded() {
		said, spares = &t.held, false
	}
	if !said.Load() {
		said.Store(true)
	}
	return spares
}

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
	spentNs := t.processorNs()
	took, spent, requests := atNs-t.beganNs, spentNs-t.spentNs, t.requests.Swap(0)
	switch {
	case t.window == trialWindows: // the term is over
		t.window, t.found = 0, 0
	case took > int64(2*trialWindow) || t.window%2 == 0 && requests < trialLeast:
		// There was hardly anybody: the pair once more, from pauses on. A window without may
		// bring little: that it is worse is an answer, too.
		t.window -= t.window % 2
	default:
		t.worths[t.window%2] = worth(requests, took, spent)
		// If nobody was spared a pause, or somebody had to make it, the pair says nothing.
		if t.window%2 == 1 && t.spared.Load() && !t.held.Load() {
			t.ratios[t.found] = min(max(t.worths[1]/t.worths[0], 1/trialMost), trialMost)
			t.found++
		}
		t.window++
	}
	term, without := trialWindow, t.window%2 == 1
	if t.window == trialWindows {
		t.judgeLocked()
		term, without = trialTerm, t.ratio > 1+trialGain
	}
	if without { // until then, somebody may come late who has found that a window before was
		t.spared.Store(false)
		t.held.Store(false)
	}
	t.without.Store(without)
	t.beganNs, t.spentNs = atNs, spentNs
	t.endNs.Store(atNs + int64(term))
}

// judgeLocked ends a trial. One that has found little leaves things as they were.
//
// +checklocks:t.mu
func (t *trial) judgeLocked() {
	if t.found <= trialPairs/2 {
		return
	}
	ratios := t.ratios[:t.found]
	slices.Sort(ratios)
	median := ratios[(t.found-1)/2]
	if t.ratio != 0 {
		median = (t.ratio + median) / 2
	}
	t.ratio = median
}

// worth is what so many requests in so much time say for how they were served: as many a
// second, and as many for a second of the processors.
func worth(requests, tookNs, spentNs int64) float64 {
	return float64(requests) / float64(tookNs) * float64(requests) / float64(max(spentNs, 1))
}

// processorNs is the processor time that the process has taken.
func (t *trial) processorNs() int64 {
	if t.processor != nil {
		return t.processor()
	}
	var spent unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &spent) // all have this clock
	return spent.Nano()
}
