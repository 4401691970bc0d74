package nbd

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A trial finds out whether pauses pay. Windows of time with pauses and without alternate,
// and the trial compares how many requests all connections of a server get done in them, and
// how much processor time that takes. The answer depends on the machine: where waking up a
// thread is expensive, pauses gain half as many requests again, and where it is cheap they
// cost a fifth. All connections do the same at the same time: for a single one it always
// pays to go on while the others pause.
//
// Concurrency: any goroutine; a connection reports once for every trialStep requests.
type trial struct {
	// without says that connections whose pauses bring requests skip them, unless that
	// takes the turn of a connection that asks for little.
	without atomic.Bool
	// spared says that a connection has skipped a pause in the present window without
	// pauses, held that one has paused all the same.
	spared, held atomic.Bool
	// endNs is when the window, or the term of the verdict, ends, since epoch.
	endNs atomic.Int64
	// shallowNs is about when a connection whose pauses bring little last read requests,
	// since epoch.
	shallowNs atomic.Int64
	_         [32]byte // keeps what is mostly read apart from what is written

	// requests counts those of the present window so far.
	requests atomic.Int64

	mu sync.Mutex
	// beganNs is when the window began, since epoch.
	// +checklocks:mu
	beganNs int64
	// spentNs is the processor time that the process had taken by then.
	// +checklocks:mu
	spentNs int64
	// window counts the windows of the trial that are over; the trial ends after
	// trialWindows of them.
	// +checklocks:mu
	window int
	// worths are those of a pair of windows, the first with pauses, the second without.
	// +checklocks:mu
	worths [2]float64
	// ratios[:found] are those of the conclusive pairs: the worth without pauses over the
	// worth with.
	// +checklocks:mu
	ratios [trialPairs]float64
	// +checklocks:mu
	found int
	// ratio is the mean of their median and the ratio that the trials before left; zero
	// before the first verdict.
	// +checklocks:mu
	ratio float64

	// processor returns the processor time that the process has taken; nil: ask the kernel.
	processor func() (ns int64) // immutable
}

const (
	// trialWindow is long enough for a thousand requests of one client, and for all
	// windows to have equally many of the machine's ticks.
	trialWindow = 24 * time.Millisecond
	// trialPairs of windows, one with and one without, make a trial.
	trialPairs   = 5
	trialWindows = 2 * trialPairs
	// trialTerm is how long a verdict holds.
	trialTerm = 8 * time.Second
	// trialStep is how many requests a connection counts by itself.
	trialStep = 64
	// trialLeast is how many requests a window with pauses needs to be conclusive.
	trialLeast = 8 * trialStep
	// trialGain is the least gain for which pauses are skipped: others wait longer then.
	trialGain = 1.0 / 16
	// trialMost bounds the ratio of a pair, in either direction: more is not credible.
	trialMost = 1.5

	// shallowTerm is how long a connection that asks for little is considered after its
	// last requests.
	shallowTerm = 100 * time.Millisecond
	// shallowStep is how exactly shallowNs is kept.
	shallowStep = time.Millisecond
)

// askLittle is called by a connection whose pauses bring little, when it has read
// requests at atNs since epoch.
func (t *trial) askLittle(atNs int64) {
	if atNs-t.shallowNs.Load() > int64(shallowStep) {
		t.shallowNs.Store(atNs)
	}
}

// spares says whether a connection whose pauses bring requests skips this one.
func (t *trial) spares(s yielder, atNs int64) bool {
	if !t.without.Load() {
		return false
	}
	said, spares := &t.spared, true
	// While connections have all processors, a pause is the turn of others.
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
		// There was hardly any load: repeat the pair, from its window with pauses. A window
		// without pauses may bring few requests: that it is worse is an answer, too.
		t.window -= t.window % 2
	default:
		t.worths[t.window%2] = worth(requests, took, spent)
		// If nobody skipped a pause, or somebody had to make one, the pair says nothing.
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
	if without { // not before: a latecomer of an earlier window without may still set them
		t.spared.Store(false)
		t.held.Store(false)
	}
	t.without.Store(without)
	t.beganNs, t.spentNs = atNs, spentNs
	t.endNs.Store(atNs + int64(term))
}

// judgeLocked ends a trial. A trial with few conclusive pairs leaves the ratio as it was.
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

// worth rates how requests were served, in no particular unit: it is the product of
// requests per time and requests per processor time.
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
