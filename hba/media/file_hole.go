package media

import (
	"errors"

	"golang.org/x/sys/unix"
)

// holeSliceBytes is how much one fallocate does, so that none runs for minutes.
const holeSliceBytes = 4 << 30

// zeros is what is written where the file system cannot zero.
var zeros [64 << 10]byte

// Discard implements Discarder by punching holes. Where that fails it writes
// zeros.
func (f *File) Discard(off, n int64) error { return f.Zero(off, n, false) }

// Zero implements Zeroer: it punches holes, or zeroes and allocates the range.
// Where the file system can do neither it writes zeros.
//
// Errors: ErrMedium, also if the file was truncated meanwhile: holes do not make it longer.
func (f *File) Zero(off, n int64, allocate bool) error {
	s := stripesOf(off, n)
	f.atOnce.long.Add(1)
	defer f.atOnce.long.Add(-1)
	if err := f.enterChange("zero", off, n, s); err != nil {
		return err
	}
	defer f.leaveChange(s)
	first, end := off, off+n
	for off < end {
		k := min(end-off, holeSliceBytes)
		if err := f.zeroSlice(off, k, allocate); err != nil {
			return err
		}
		off += k
	}
	if has := max(f.end(end), first); has < end {
		return f.fail("zero", has, end-has, errTruncated)
	}
	return nil
}

// ZeroIsFast implements FastZeroer.
func (f *File) ZeroIsFast() bool { return f.zeroFast }

// zeroSlice is Zero for at most holeSliceBytes. A device zeroes only whole logical
// blocks, which may be longer than the disk's; parts of them are written.
func (f *File) zeroSlice(off, n int64, allocate bool) error {
	end := off + n
	first, last := (off+f.zeroUnit-1)/f.zeroUnit*f.zeroUnit, end/f.zeroUnit*f.zeroUnit
	if first >= last {
		return f.zeroByWriting(off, n)
	}
	if err := f.zeroByWriting(off, first-off); err != nil {
		return err
	}
	if err := f.zeroWhole(first, last-first, allocate); err != nil {
		return err
	}
	return f.zeroByWriting(last, end-last)
}

// zeroWhole zeroes a range without writing zeros, if the kernel can.
func (f *File) zeroWhole(off, n int64, allocate bool) error {
	var err error
	if allocate {
		err = f.zeroAllocated(off, n)
	} else {
		err = unix.EOPNOTSUPP
		if !f.noHoles.Load() {
			err = f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		}
	}
	switch {
	case err == nil:
		return nil
	case !notSupported(err):
		return f.fail("zero", off, n, err)
	}
	return f.zeroByWriting(off, n)
}

// zeroByWriting writes zeros.
func (f *File) zeroByWriting(off, n int64) error {
	for n > 0 {
		k, err := f.writeShared(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off += int64(k)
		n -= int64(k)
	}
	return nil
}

// zeroAllocated zeroes and allocates without writing.
func (f *File) zeroAllocated(off, n int64) error {
	err := f.fallocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if notSupported(err) && !f.noHoles.Load() {
		// tmpfs can do it in two steps.
		if err = f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err == nil {
			err = f.fallocate(unix.FALLOC_FL_KEEP_SIZE, off, n)
		}
	}
	return err
}

func (f *File) fallocate(mode uint32, off, n int64) error {
	return ignoringEINTR(func() error { return f.allocate(f.fd, mode, off, n) })
}

func notSupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// ExtentAt implements ExtentLister by SEEK_DATA and SEEK_HOLE, so it is as exact
// as the file system.
func (f *File) ExtentAt(off int64) (Extent, error) {
	f.lifeMu.RLock()
	defer f.lifeMu.RUnlock()
	size := f.size.Load()
	if !inside(off, 1, size) {
		return Extent{}, f.refuse("extent", off, 1)
	}
	return f.extentShared(off, size)
}

// extentShared is ExtentAt for a disk of the given size. lifeMu is held.
func (f *File) extentShared(off, size int64) (Extent, error) {
	e := Extent{OffsetBytes: off}
	data, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data up to the end
		end := f.end(size)
		e.Data = off >= end // cut off: it reads as an error, not as zeros
		if !e.Data {
			size = end
		}
		e.LengthBytes = size - off
		return e, nil
	case err != nil:
		return Extent{}, f.fail("extent", off, size-off, err)
	case data > off:
		e.LengthBytes = min(data, size) - off
		return e, nil
	}
	hole, err := unix.Seek(f.fd, off, unix.SEEK_HOLE)
	if err != nil {
		return Extent{}, f.fail("extent", off, size-off, err)
	}
	if hole <= off { // punched between the two calls
		hole = off + 1
	}
	e.Data, e.LengthBytes = true, min(hole, size)-off
	return e, nil
}
