package aside

import (
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tooLong is a turn that has to be paid for.
	tooLong = time.Millisecond
	// price is how many times as long nobody steps aside then.
	price = 4
)

// A debt is what turns of others that were long have to be paid for.
type debt struct {
	untilNs atomic.Int64 // since epoch
}

// epoch is what times are counted from.
var epoch = time.Now()

// owed is the process's debt.
var owed debt

// Step lets other processes have the processor, for a turn. It does nothing and is false
// while a turn of more than a millisecond is paid for by four times as long without:
// somebody has it then who takes all there is.
//
// The scheduler is not told. It would start another thread for the same processor, and
// nothing would be left to those who are to have it.
//
// Concurrency: any goroutine.
func Step() bool {
	began := time.Since(epoch)
	if !owed.paid(began) {
		return false
	}
	_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it never fails: sched_yield(2)
	owed.add(began, time.Since(epoch))
	return true
}

// paid reports whether others may have a turn now.
func (d *debt) paid(now time.Duration) bool { return now >= time.Duration(d.untilNs.Load()) }

// add is told of a turn of others.
func (d *debt) add(from, to time.Duration) {
	if took := to - from; took > tooLong {
		d.untilNs.Store(int64(to + price*took))
	}
}
