package media

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// atOnce decides which writes to a file TryWriteAt makes where the file system
// cannot be asked to write without waiting: ext4 and tmpfs refuse RWF_NOWAIT for
// writes.
//
// A write into the page cache takes 2 µs, less than it takes to wake up a worker
// for it. But it may have to wait: for the file system's lock of the file, for a page
// to be read, for the journal, for dirty pages to be written back. So a write made
// at once
//
//   - is alone: one that meets a call that writes to the file or syncs it waits for that
//     for some turns of others at the most; see turns. One that would wait for a flush or a
//     stuck write is a worker's;
//   - is short and of whole pages, for which nothing is read. It is all of a command:
//     the target tries none whose data lie in several buffers;
//   - is watched. What it takes beyond lateTime and lateByte is late. It has to be paid
//     for by lateShare times as much time without such writes, but for what is lent,
//     lateCredit. After one of 200 ms writes are refused for 1.6 s.
//
// So of the commands that a submitter has behind a write, at most one write in their way
// is late before the others go to the workers, and late writes take no more than
// 1/lateShare of the submitter's time.
type atOnce struct {
	// able is set once, at open: the file system is one of those.
	able bool
	// changes counts calls in progress that write to the file or sync it.
	changes atomic.Int32
	// long counts those of them that may take long: they sync, zero or trim. It is
	// raised before changes, so that none of them is taken for a short write.
	long atomic.Int32
	// turning counts writes that are giving turns to others.
	turning atomic.Int32
	// noTurns is when turns may begin again after turns in vain, as known by now, in ns.
	// It is 0 once the file has been found free.
	noTurns atomic.Int64
	// paid is when all lateness will have been paid for, as known by now, in ns.
	paid atomic.Int64
	// now returns the time since some fixed moment. Set before use.
	now func() time.Duration
	// stepAside lets other processes have a turn: aside.Step, which returns false if
	// anybody's turn was long not long ago. Set before use.
	stepAside func() bool
}

const (
	maxAtOnceBytes = 256 << 10
	// turnsTime is how long new turns may begin before a write that meets a short one is
	// refused: three of 256 KiB are usually over by then; hence maxTurning.
	turnsTime  = 400 * time.Microsecond
	maxTurning = 3
	// blindTurns is how many turns there are if other processes get none.
	blindTurns = 3

	lateTime   = 100 * time.Microsecond
	lateByte   = time.Nanosecond
	lateShare  = 8
	lateCredit = 4 * time.Millisecond
	// lateMost is the most that has to be paid for one write or its turns.
	lateMost = time.Minute
)

// begin reports whether n bytes at off may be written at once, and the time. If so,
// end ends it.
func (a *atOnce) begin(off, n int64) (began time.Duration, ok bool) {
	if !a.able || n > maxAtOnceBytes || (off|n)%pageBytes != 0 {
		return 0, false
	}
	began = a.now()
	if a.inDebt(began) {
		return 0, false
	}
	if a.changes.CompareAndSwap(0, 1) {
		return began, a.stay(began)
	}
	if began < time.Duration(a.noTurns.Load()) || a.long.Load() > 0 {
		return 0, false
	}
	if a.turning.Add(1) <= maxTurning {
		began, ok = a.turns(began)
	}
	a.turning.Add(-1)
	return began, ok
}

// stay reports whether a write that has found the file free may go on. It leaves again
// if the previous write, which has just ended, was late.
func (a *atOnce) stay(began time.Duration) bool {
	if a.noTurns.Load() != 0 {
		a.noTurns.Store(0)
	}
	if !a.inDebt(began) {
		return true
	}
	a.changes.Add(-1)
	return false
}

// turns is begin for a write that has met another. Other goroutines, and then other
// processes, get turns until the other write is over: most writes soon are. A worker
// would wait for the same file, and the scheduler's monitor takes the processors away
// from all writers that wait, one after the other.
//
// But everything behind this write on its queue waits meanwhile, whoever submitted it.
// So there are no more turns once a call that takes long is under way, nor after turns
// in vain until the file has been found free or the turns have been paid for by
// lateShare times their length.
func (a *atOnce) turns(from time.Duration) (began time.Duration, ok bool) {
	began = from
	for blind := 0; blind < blindTurns && began-from < turnsTime; {
		runtime.Gosched()
		if !a.stepAside() {
			blind++
		}
		began = a.now()
		if a.inDebt(began) || a.long.Load() > 0 {
			return 0, false
		}
		if a.changes.CompareAndSwap(0, 1) {
			return began, a.stay(began)
		}
	}
	a.noTurns.Store(int64(began + lateShare*min(began-from, lateMost)))
	return 0, false
}

// inDebt reports whether lateness beyond the credit has to be paid for first.
func (a *atOnce) inDebt(now time.Duration) bool {
	return time.Duration(a.paid.Load())-now > lateShare*lateCredit
}

// end ends a write of n bytes.
func (a *atOnce) end(began time.Duration, n int64) {
	now := a.now()
	if late := now - began - lateTime - time.Duration(n)*lateByte; late > 0 {
		// Nobody else stores: such a write is alone.
		from := max(now, time.Duration(a.paid.Load()))
		a.paid.Store(int64(from + lateShare*min(late, lateMost)))
	}
	a.changes.Add(-1)
}

// writesWaitForDisk reports whether a file system, that of fd, is one whose writes
// wait for nothing but a disk of this machine. Behind a network or another process
// they may wait for ever.
func writesWaitForDisk(fd int) bool {
	magic, err := fileSystemOf(fd)
	return err == nil && (magic == unix.EXT4_SUPER_MAGIC || magic == unix.TMPFS_MAGIC)
}

// fileSystemOf is the magic number of the file system that fd is of.
//
// Source: statfs(2).
func fileSystemOf(fd int) (magic uint32, err error) {
	var st unix.Statfs_t
	err = ignoringEINTR(func() error { return unix.Fstatfs(fd, &st) })
	return uint32(st.Type), err
}
