package media

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A File is a medium in a sparse file or on a block device. While it is open, it is
// locked against other processes and other Files of this one.
//
// Reads and writes go through the page cache; Flush is fdatasync, FUA is
// RWF_DSYNC.
type File struct {
	path     string
	fd       int
	readOnly bool
	device   bool // a block device, whose size is not ours to set
	linked   bool // had a name when it was opened
	zeroFast bool // Zero writes no zeros
	// zeroUnit is the unit in whole multiples of which zeroing works: a device's logical
	// block.
	zeroUnit int64
	// allocate is unix.Fallocate. Set before use.
	allocate func(fd int, mode uint32, off, n int64) error
	// writeFlags is pwriteFlags. Set before use.
	writeFlags func(fd int, p []byte, off int64, flags uintptr) (int, unix.Errno)
	// advise is unix.Fadvise. Set before use.
	advise func(fd int, off, n int64, advice int) error

	size atomic.Int64 // bytes; negative once closed

	// What the file system turned out not to support. They are set at open or when the
	// kernel first says so, and never cleared.
	noTryRead, noTryWrite, noDSync atomic.Bool
	noHoles, noExtents             atomic.Bool
	noCacheStat, noSplice          atomic.Bool

	// ranges keeps COMPARE AND WRITE alone on its range: writes share their stripes.
	// Reads share their first stripe, and calls that may take long but write nothing
	// share lifeMu, so that Close closes no descriptor in use.
	ranges  rangeLock
	lifeMu  sync.RWMutex
	flushes flushGroup
	atOnce  atOnce
}

var (
	_ Media             = (*File)(nil)
	_ NonBlockingReader = (*File)(nil)
	_ NonBlockingWriter = (*File)(nil)
	_ FUAWriter         = (*File)(nil)
	_ Discarder         = (*File)(nil)
	_ Zeroer            = (*File)(nil)
	_ FastZeroer        = (*File)(nil)
	_ ExtentLister      = (*File)(nil)
	_ Resizer           = (*File)(nil)
	_ Prefetcher        = (*File)(nil)
	_ ComparerWriter    = (*File)(nil)
	_ Referrer          = (*File)(nil)
	_ Supporter         = (*File)(nil)
)

// Size is the number of bytes.
func (f *File) Size() int64 { return max(f.size.Load(), 0) }

// ReadOnly reports whether the file was opened for reading only.
func (f *File) ReadOnly() bool { return f.readOnly }

// Supports implements Supporter.
func (f *File) Supports(a Ability) bool {
	switch a {
	case AbilityTryRead:
		return !f.noTryRead.Load()
	case AbilityTryWrite:
		return !f.readOnly && (f.atOnce.able || !f.noTryWrite.Load())
	case AbilityFUA, AbilityZero, AbilityCompareAndWrite:
		return !f.readOnly
	case AbilityDiscard:
		return !f.readOnly && !f.noHoles.Load()
	case AbilityExtents:
		return !f.noExtents.Load()
	case AbilityResize:
		return !f.readOnly && !f.device
	case AbilityPrefetch:
		return true
	case AbilityRefer:
		return !f.device
	case AbilityVector:
	}
	return false
}

// enter checks a range and takes its stripes for shared use. If it returns nil, the
// caller leaves with f.ranges.unshare(s).
func (f *File) enter(op string, off, n int64, s stripeSet) error {
	f.ranges.share(s)
	if !inside(off, n, f.size.Load()) {
		f.ranges.unshare(s)
		return f.refuse(op, off, n)
	}
	return nil
}

// enterChange is enter for calls that write, and keeps others from writing at once. If
// it returns nil, the caller leaves with leaveChange.
func (f *File) enterChange(op string, off, n int64, s stripeSet) error {
	if err := f.enter(op, off, n, s); err != nil {
		return err
	}
	f.atOnce.changes.Add(1)
	return nil
}

func (f *File) leaveChange(s stripeSet) {
	f.atOnce.changes.Add(-1)
	f.ranges.unshare(s)
}

// refuse is the error for a range that is not inside.
func (f *File) refuse(op string, off, n int64) error {
	kind := ErrRange
	if f.size.Load() < 0 {
		kind = ErrClosed
	}
	return &Error{Op: op, Name: f.path, OffsetBytes: off, LengthBytes: n, Kind: kind}
}

// fail is the error for a system call that failed.
func (f *File) fail(op string, off, n int64, err error) error {
	return &Error{Op: op, Name: f.path, OffsetBytes: off, LengthBytes: n, Kind: kindOfErrno(err), Err: err}
}

// kindOfErrno is the kind of failure that an errno stands for.
func kindOfErrno(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return ErrNoSpace
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EPERM), errors.Is(err, unix.EBADF):
		return ErrReadOnly
	}
	return ErrMedium
}

// errTruncated: the file is shorter than it was when it was opened.
var errTruncated = fmt.Errorf("the file ends here, it was cut short by somebody else: %w", io.ErrUnexpectedEOF)

// ReadAt implements Media.
//
// Errors: ErrMedium, also if the file was truncated meanwhile.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	s := stripesOf(off, 1)
	if err := f.enter("read", off, int64(len(p)), s); err != nil {
		return 0, err
	}
	defer f.ranges.unshare(s)
	return f.readShared(p, off)
}

// readShared is ReadAt with a stripe held.
func (f *File) readShared(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			err = errTruncated
		}
		if err != nil {
			return done, f.fail("read", off+int64(done), int64(len(p)-done), err)
		}
		done += n
	}
	return done, nil
}

// TryReadAt implements NonBlockingReader: it reads what is in the page cache.
func (f *File) TryReadAt(p []byte, off int64) (bool, error) {
	s := stripesOf(off, 1)
	if f.noTryRead.Load() || len(p) == 0 || !f.ranges.tryShare(s) {
		return false, nil
	}
	defer f.ranges.unshare(s)
	if !inside(off, int64(len(p)), f.size.Load()) {
		return true, f.refuse("read", off, int64(len(p)))
	}
	n, errno := preadNoWait(f.fd, p, off)
	if errno == 0 {
		// A short count means that the rest is not cached, or the end of a file
		// that was truncated; ReadAt finds out which.
		return n == len(p), nil
	}
	if noSuchFlag(errno) {
		f.noTryRead.Store(true)
	}
	return false, nil
}

// WriteAt implements Media.
//
// Errors: ErrNoSpace if the file system is full, ErrReadOnly, ErrMedium.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	s := stripesOf(off, int64(len(p)))
	if err := f.enterChange("write", off, int64(len(p)), s); err != nil {
		return 0, err
	}
	defer f.leaveChange(s)
	return f.writeShared(p, off)
}

// writeShared is WriteAt with the stripes held.
func (f *File) writeShared(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			err = io.ErrShortWrite
		}
		if err != nil {
			return done, f.fail("write", off+int64(done), int64(len(p)-done), err)
		}
		done += n
	}
	return done, nil
}

// TryWriteAt implements NonBlockingWriter, where the file system does; elsewhere it
// makes an ordinary write if writes have been quick so far; see atOnce.
func (f *File) TryWriteAt(p []byte, off int64) (bool, error) {
	s := stripesOf(off, int64(len(p)))
	if len(p) == 0 || !f.ranges.tryShare(s) {
		return false, nil
	}
	defer f.ranges.unshare(s)
	if !inside(off, int64(len(p)), f.size.Load()) {
		return true, f.refuse("write", off, int64(len(p)))
	}
	if !f.noTryWrite.Load() {
		n, errno := pwriteFlags(f.fd, p, off, unix.RWF_NOWAIT)
		if noSuchFlag(errno) {
			f.noTryWrite.Store(true)
		}
		// WriteAt reports any other error, should it happen again.
		return errno == 0 && n == len(p), nil
	}
	began, ok := f.atOnce.begin(off, int64(len(p)))
	if !ok {
		return false, nil
	}
	n, errno := pwrite(f.fd, p, off)
	f.atOnce.end(began, int64(len(p)))
	return errno == 0 && n == len(p), nil
}

// noSuchFlag reports whether the kernel or the file system does not know a flag.
func noSuchFlag(errno unix.Errno) bool {
	return errno == unix.EOPNOTSUPP || errno == unix.ENOSYS || errno == unix.EINVAL
}

// WriteAtFUA implements FUAWriter by RWF_DSYNC, or by fdatasync where RWF_DSYNC is not
// available.
func (f *File) WriteAtFUA(p []byte, off int64) (int, error) {
	s := stripesOf(off, int64(len(p)))
	f.atOnce.long.Add(1)
	defer f.atOnce.long.Add(-1)
	if err := f.enterChange("write", off, int64(len(p)), s); err != nil {
		return 0, err
	}
	defer f.leaveChange(s)
	done, err := 0, error(nil)
	if !f.noDSync.Load() {
		done, err = f.writeDSync(p, off)
	}
	switch {
	case err != nil && done < len(p):
		return done, f.fail("write", off+int64(done), int64(len(p)-done), err)
	case err == nil && done < len(p):
		if n, err := f.writeShared(p[done:], off+int64(done)); err != nil {
			return done + n, err
		}
		err = f.flushes.doAsPart()
	}
	if err != nil {
		return len(p), f.fail("flush", 0, f.size.Load(), err)
	}
	return len(p), nil
}

// writeDSync is WriteAtFUA by RWF_DSYNC. If it returns less than len(p) and no error,
// the kernel does not know that flag.
func (f *File) writeDSync(p []byte, off int64) (done int, err error) {
	write := f.flushes.begin()
	for done < len(p) {
		n, errno := f.writeFlags(f.fd, p[done:], off+int64(done), unix.RWF_DSYNC)
		if errno == unix.EINTR {
			continue
		}
		if noSuchFlag(errno) {
			f.noDSync.Store(true)
			break
		}
		if errno != 0 {
			err = errno
			break
		}
		if n == 0 { // which is no report of a loss
			return done, cmp.Or(f.flushes.endAlone(write, nil), io.ErrShortWrite)
		}
		done += n
	}
	return done, f.flushes.endAlone(write, err)
}

// Flush implements Media. Calls at the same time share one fdatasync, if it
// begins after all of them.
//
// Errors: ErrMedium or ErrNoSpace, as the kernel reports them: once, and to every Flush
// that shared the fdatasync or came while it ran.
func (f *File) Flush() error {
	f.lifeMu.RLock()
	defer f.lifeMu.RUnlock()
	if f.size.Load() < 0 {
		return f.refuse("flush", 0, 0)
	}
	return f.flushShared()
}

func (f *File) flushShared() error {
	if f.readOnly {
		return nil
	}
	f.atOnce.long.Add(1)
	defer f.atOnce.long.Add(-1)
	f.atOnce.changes.Add(1)
	defer f.atOnce.changes.Add(-1)
	if err := f.flushes.do(); err != nil {
		return f.fail("flush", 0, f.size.Load(), err)
	}
	return nil
}

// maxPrefetchExtents is how many runs of data one Prefetch reads ahead, so that it does
// not go through a long file of short runs.
const maxPrefetchExtents = 256

// Prefetch implements Prefetcher. Holes are skipped: the kernel would fill the page
// cache with their zeros, which takes as long as reading them.
func (f *File) Prefetch(off, n int64) error {
	f.lifeMu.RLock()
	defer f.lifeMu.RUnlock()
	size := f.size.Load()
	if !inside(off, n, size) {
		return f.refuse("prefetch", off, n)
	}
	if f.noExtents.Load() {
		return f.prefetchData(off, n)
	}
	end := off + n
	for runs := 0; off < end && runs < maxPrefetchExtents; {
		e, err := f.extentShared(off, size)
		if err != nil {
			return err
		}
		if e.Data {
			if err := f.prefetchData(off, min(e.End(), end)-off); err != nil {
				return err
			}
			runs++
		}
		off = e.End()
	}
	return nil
}

func (f *File) prefetchData(off, n int64) error {
	if n == 0 {
		return nil // fadvise would take zero to mean everything
	}
	if err := f.advise(f.fd, off, n, unix.FADV_WILLNEED); err != nil {
		return f.fail("prefetch", off, n, err)
	}
	return nil
}

// CompareAndWriteAt implements ComparerWriter.
func (f *File) CompareAndWriteAt(compare, data []byte, off int64) (int, error) {
	s := stripesOf(off, int64(len(data)))
	f.ranges.lock(s)
	defer f.ranges.unlock(s)
	f.atOnce.changes.Add(1)
	defer f.atOnce.changes.Add(-1)
	if !inside(off, int64(len(data)), f.size.Load()) {
		return -1, f.refuse("compare and write", off, int64(len(data)))
	}
	return compareAndWrite(compare, data, off, f.readShared, f.writeShared)
}

// compareAndWrite implements CompareAndWriteAt by read and write; the caller excludes
// others. What a write that fails has done, for want of space as a rule, is undone: what
// was there is known, and has its place.
func compareAndWrite(compare, data []byte, off int64, read, write func([]byte, int64) (int, error)) (int, error) {
	if len(compare) != len(data) {
		panic(fmt.Sprintf("media: compare %d bytes and write %d", len(compare), len(data)))
	}
	var page [pageBytes]byte
	for done := 0; done < len(compare); {
		part := page[:min(len(compare)-done, len(page))]
		if _, err := read(part, off+int64(done)); err != nil {
			return -1, err
		}
		if i := mismatch(part, compare[done:]); i >= 0 {
			return done + i, nil
		}
		done += len(part)
	}
	n, err := write(data, off)
	if err == nil || n == 0 {
		return -1, err
	}
	var where *Error
	if _, undo := write(compare[:min(n, len(compare))], off); undo == nil && errors.As(err, &where) {
		where.OffsetBytes, where.LengthBytes = off, int64(len(data))
	}
	return -1, err
}

// end returns where the file ends: at size, unless somebody has cut it short.
func (f *File) end(size int64) int64 {
	var st unix.Stat_t
	if f.device || unix.Fstat(f.fd, &st) != nil {
		return size
	}
	return min(size, st.Size)
}

// whole reports that somebody else has changed the file, which had the given size: such
// a file should not be taken for one that can grow.
func (f *File) whole(size int64) error {
	var st unix.Stat_t
	switch err := unix.Fstat(f.fd, &st); {
	case err != nil:
		return err
	case st.Nlink == 0 && f.linked:
		return errors.New("the file has been deleted, and its content is lost when it is closed: copy the disk while it is served")
	case st.Size < size:
		return fmt.Errorf("the file was cut short by somebody else, from %d bytes to %d: what it held there is lost", size, st.Size)
	}
	return nil
}

// Resize implements Resizer, for files.
//
// Errors: ErrMedium also if the file was deleted or truncated meanwhile.
func (f *File) Resize(sizeBytes int64) error {
	f.ranges.lock(allStripes)
	defer f.ranges.unlock(allStripes)
	old := f.size.Load()
	switch {
	case old < 0:
		return f.refuse("resize", 0, sizeBytes)
	case f.readOnly || f.device:
		return &Error{Op: "resize", Name: f.path, LengthBytes: sizeBytes, Kind: ErrReadOnly}
	case sizeBytes < 1:
		return fmt.Errorf("media: resize %s to %d bytes: want at least 1", f.path, sizeBytes)
	}
	if err := f.whole(old); err != nil {
		return f.fail("resize", 0, sizeBytes, err)
	}
	if err := ignoringEINTR(func() error { return unix.Ftruncate(f.fd, sizeBytes) }); err != nil {
		return f.fail("resize", 0, sizeBytes, err)
	}
	f.size.Store(sizeBytes)
	if err := f.flushes.doAsPart(); err != nil {
		return f.fail("flush", 0, sizeBytes, err)
	}
	return nil
}

// Close implements Media.
func (f *File) Close() error {
	f.lifeMu.Lock()
	defer f.lifeMu.Unlock()
	f.ranges.lock(allStripes)
	defer f.ranges.unlock(allStripes)
	if f.size.Load() < 0 {
		return f.refuse("close", 0, 0)
	}
	f.size.Store(-1)
	if err := unix.Close(f.fd); err != nil {
		return f.fail("close", 0, 0, err)
	}
	return nil
}

// ignoringEINTR calls fn until no signal interrupts it.
func ignoringEINTR(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
