package aside

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tooLong is a turn that has to be paid for.
	tooLong = time.Millisecond
	// price is how many times as long nobody steps aside then.
	price = 4
	// longest is the most that has to be paid for: the process may have been stopped.
	longest = time.Second
)

// A stepper gives turns, and keeps account of them.
type stepper struct {
	paidNs atomic.Int64 // when turns will have been paid for, by now
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

// Step lets other threads of the machine have the processor, for a turn. It does nothing
// and is false while a turn of more than a millisecond, whoever gave it, is paid for by
// four times as long without: somebody has the processor then who takes all there is.
//
// The scheduler of goroutines is not told. It would start another thread for the same
// processor, and nothing would be left to those who are to have it.
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
