package nbd

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A gatherer decides when the reader waits a moment before it reads, so that one
// read brings several requests and one write takes several replies.
//
// A server that is as fast as its client meets each request by itself, however
// many the client has in flight: it reads one, answers it, and finds the next
// just arriving. Both then make system calls for each request that ten requests could
// share. A pause as long as a few requests take puts an end to that. It costs nothing to a
// client that has more requests in flight than arrive during a pause. Whether a client
// does is found out by trying: a pause that brings few requests is followed by many reads
// without a pause, twice as many each time. Whether pauses pay on this machine is for a
// trial to say.
//
// Concurrency: the reader's.
type gatherer struct {
	// on says that pauses pay.
	on bool
	// rest is how many reads go by before a pause is tried. When a pause has not paid,
	// penalty doubles and rest becomes penalty.
	rest, penalty int

	paused bool // before the last read

	trial *trial // the server's
	// done counts requests that the trial does not know of yet.
	done int
	// spared counts the pauses skipped on the trial's word since the last one made.
	spared int

	// sole says that the machine has only one processor. There the end of a pause would take
	// it from the client before the client has sent everything, so the reader gives others a
	// turn instead of pausing.
	sole bool // immutable
}

const (
	// gatherPause is how long the reader waits. The kernel adds its timer slack, 50
	// us for most threads; see exactPause.
	gatherPause = 20 * time.Microsecond
	// gatherTooLong is a pause that slack, or something else, has made too long.
	gatherTooLong = 2 * gatherPause
	// gatherSlack is the timer slack that is then asked for.
	gatherSlack = 1 * time.Microsecond
	// gatherLeast is how many requests a pause must bring. A client that has fewer in
	// flight would wait for the pause to end.
	gatherLeast = 6
	// gatherMaxBytes is how long requests may be on average: longer ones are worth
	// a system call each.
	gatherMaxBytes = 16 << 10

	minGatherPenalty = 32
	maxGatherPenalty = 1 << 14
	// shallowPenalty marks a client that certainly has little in flight.
	shallowPenalty = 8 * minGatherPenalty
	// maxSpared is how many pauses may be skipped in a row before one is made, to find
	// out how much the client has in flight by now.
	maxSpared = 1 << 10
)

// newGatherer begins with a rest: many connections are short.
func newGatherer(t *trial) gatherer {
	return gatherer{rest: minGatherPenalty, sole: soleProcessor(), trial: t}
}

// pause is called before a read that is to bring new requests, soon after the last read, which
// was at atNs since epoch. If a wait is likely to pay, pause gives others a turn, or else lets
// the time pass, and returns true.
func (g *gatherer) pause(s yielder, atNs int64) bool {
	switch {
	case !g.on && g.rest > 0:
		return false
	case g.on && !g.sole && g.spared < maxSpared && g.trial.spares(s, atNs):
		g.spared++
		return false
	}
	g.paused, g.spared = true, 0
	began := now()
	if !g.turn(s) && now()-began < int64(gatherPause) {
		exactPause()
	}
	return true
}

// turn gives others a turn, and reports whether that takes the place of the pause.
func (g *gatherer) turn(s yielder) bool {
	// If connections are in want of a processor, clients may be, too: step aside for them. A
	// pause that is only being tried does not, unless there is but one processor: stepping
	// aside may take longer than a pause.
	return s.yield() && (g.on || g.sole) && s.stepAside() && g.sole
}

// soleProcessor reports whether the machine has only one processor, so that clients on it
// have no other. A daemon that is bound to one of several does not count, though NumCPU is
// one then, too.
var soleProcessor = sync.OnceValue(func() bool {
	if runtime.GOMAXPROCS(0) > 1 {
		return false
	}
	online, err := os.ReadFile("/sys/devices/system/cpu/online")
	return err != nil || !severalProcessors(string(online))
})

// severalProcessors reads the kernel's list of processors, such as 0-3,8.
func severalProcessors(list string) bool { return strings.ContainsAny(list, "-,") }

// A yielder gives a turn to other connections that lack a processor.
type yielder interface {
	// crowded says whether some connection may be in want of a turn.
	crowded() bool
	// yield gives other connections a turn. It returns false if none is in want of one.
	yield() bool
	// stepAside gives other processes a turn. It returns false if they had too long a
	// turn not long ago.
	stepAside() bool
}

// exactPause sleeps for gatherPause. If that took much longer, the thread may be new
// here: exactPause makes its timers, of which there are few, exact from now on.
func exactPause() {
	began := now()
	t := unix.Timespec{Nsec: int64(gatherPause)}
	_ = unix.Nanosleep(&t, nil) // a signal ends it early
	if now()-began > int64(gatherTooLong) {
		// Source: PR_SET_TIMERSLACK(2const).
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(gatherSlack), 0, 0, 0)
	}
}

// took is called when everything that the last read, at atNs since epoch, has brought is
// under way or done: that many requests, with dataBytes in all to read or write.
func (g *gatherer) took(requests, dataBytes int, atNs int64) {
	if requests > 0 && g.penalty >= shallowPenalty {
		g.trial.askLittle(atNs)
	}
	if g.done += requests; g.done >= trialStep {
		g.trial.add(g.done, now())
		g.done = 0
	}
	switch {
	case g.paused:
		g.paused = false
		g.on = requests >= gatherLeast && dataBytes <= requests*gatherMaxBytes
		if g.on {
			g.penalty = 0
			break
		}
		g.penalty = min(max(2*g.penalty, minGatherPenalty), maxGatherPenalty)
		g.rest = g.penalty
	case g.rest > 0:
		g.rest--
	}
}
