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
// just arriving. Both then make system calls for each request that ten could
// share. A pause of a few requests' time puts an end to that, and costs a client
// nothing that has more in flight than arrive in a pause. Which client is one of
// those is found out by trying: a pause that brings few requests is followed by
// many reads without one, twice as many each time. Whether pauses pay on this machine
// is for a trial to say.
//
// Concurrency: the reader's.
type gatherer struct {
	// on says that pauses pay.
	on bool
	// rest is how many reads go by before a pause is tried. It becomes penalty,
	// which doubles, when one did not pay.
	rest, penalty int

	paused bool // before the last read

	trial *trial // the server's
	// done are requests that the trial does not know of yet.
	done int
	// spared are pauses that the trial has had it do without, since the last.
	spared int

	// sole says that the machine has one processor. The end of a pause would take it from
	// the client before that has sent all it may, so a turn of others takes a pause's place.
	sole bool // immutable
}

const (
	// gatherPause is how long the reader waits. The kernel adds its timer slack, 50
	// us for most threads; see exactPause.
	gatherPause = 20 * time.Microsecond
	// gatherTooLong is a pause that slack, or something else, has made long.
	gatherTooLong = 2 * gatherPause
	// gatherSlack is the slack that is asked for instead.
	gatherSlack = 1 * time.Microsecond
	// gatherLeast is how many requests a pause must bring. A client that has only
	// so many in flight would wait for the pause to end.
	gatherLeast = 6
	// gatherMaxBytes is how long requests may be on average: longer ones are worth
	// a system call each.
	gatherMaxBytes = 16 << 10

	minGatherPenalty = 32
	maxGatherPenalty = 1 << 14
	// shallowPenalty is that of a client that has not much in flight, for sure.
	shallowPenalty = 8 * minGatherPenalty
	// maxSpared is how many pauses go by before one finds out what the client has in
	// flight by now.
	maxSpared = 1 << 10
)

// newGatherer begins with a rest: many connections are short.
func newGatherer(t *trial) gatherer {
	return gatherer{rest: minGatherPenalty, sole: soleProcessor(), trial: t}
}

// pause is called before a read that is to bring new requests, soon after the last one, which
// was at atNs since epoch. It waits if that is likely to pay: for others, or else for the time to
// pass.
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

// turn lets others have one, and reports whether that takes the pause's place.
func (g *gatherer) turn(s yielder) bool {
	// Clients may have no processor, either. Not to try: it may take longer than a pause.
	return s.yield() && (g.on || g.sole) && s.stepAside() && g.sole
}

// soleProcessor reports whether clients of this machine have no other processor. One that
// only the daemon is bound to is no such: NumCPU would say so.
var soleProcessor = sync.OnceValue(func() bool {
	if runtime.GOMAXPROCS(0) > 1 {
		return false
	}
	online, err := os.ReadFile("/sys/devices/system/cpu/online")
	return err != nil || !severalProcessors(string(online))
})

// severalProcessors reads the kernel's list of processors, such as 0-3,8.
func severalProcessors(list string) bool { return strings.ContainsAny(list, "-,") }

// A yielder lets other connections have a turn, if there are some that have none.
type yielder interface {
	// crowded says whether some connection may be in want of a turn.
	crowded() bool
	// yield is false if nobody is in want of a turn.
	yield() bool
	// stepAside lets other processes have one. It is false if they had too long a turn
	// not long ago.
	stepAside() bool
}

// exactPause sleeps for gatherPause. If that took much longer, the thread may not
// have been here before: from now on its timers are exact, the few there are.
func exactPause() {
	began := now()
	t := unix.Timespec{Nsec: int64(gatherPause)}
	_ = unix.Nanosleep(&t, nil) // a signal ends it early
	if now()-began > int64(gatherTooLong) {
		// Source: PR_SET_TIMERSLACK(2const).
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(gatherSlack), 0, 0, 0)
	}
}

// took is called when all that the last read brought, atNs since epoch, is under way or
// done: so many requests, with dataBytes of data to read or write.
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
