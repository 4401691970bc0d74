package aside

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tooLong is the longest turn that need not be paid for.
	tooLong = time.Millisecond
	// price is how many times as long as such a turn nobody steps aside after it.
	price = 4
	// longest is the most of a turn that has to be paid for: the process may have been
	// stopped.
	longest = time.Second
)

// A stepper gives turns, and keeps account of them.
type stepper struct {
	paidNs atomic.Int64 // when all turns so far will have been paid for, since epoch
	now    func() time.Duration
	yield  func()
}

// epoch is what times are counted from.
var epoch = time.Now()

// process is the stepper of this process.
var process = stepper{
	now:   func() time.Duration { return time.Since(epoch) },
	yield: func() { _, _ = unix.RawSyscallNoError(unix.SYS_SCHED_YIELD, 0, 0, 0) },
}

// Step gives the processor to other threads of the machine for a turn. A turn of more than
// a millisecond, whichever goroutine gave it, shows that some thread takes all the time it
// can get. It is paid for by four times as long without turns, in which Step does nothing
// and returns false.
//
// The scheduler of goroutines is not told. It would start another thread for the same
// processor, and nothing would be left for the threads that are to have it.
//
// Concurrency: any goroutine.
func Step() bool { return process.step() }

func (s *stepper) step() bool {
	began := s.now()
	if began < time.Duration(s.paidNs.Load()) {
		return false
	}
	s.yield()
	ended := s.now()
	took := ended - began
	if took <= tooLong {
		return true
	}
	for until := int64(ended + price*min(took, longest)); ; {
		paid := s.paidNs.Load()
		if paid >= until || s.paidNs.CompareAndSwap(paid, until) {
			return true
		}
	}
}
