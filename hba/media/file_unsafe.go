package media

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// quickBytes is how much is copied from the page cache without telling the scheduler:
// some 100 us. If it were told, its monitor would take the processor away after 20 us,
// and two threads would be woken up for a copy that waits for nothing.
const quickBytes = 512 << 10

// preadNoWait is preadv2 with RWF_NOWAIT and one buffer. p must not be empty.
func preadNoWait(fd int, p []byte, off int64) (int, unix.Errno) {
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	var (
		n     uintptr
		errno unix.Errno
	)
	if len(p) <= quickBytes {
		n, _, errno = unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
			uintptr(off), uintptr(uint64(off)>>32), unix.RWF_NOWAIT)
	} else {
		n, _, errno = unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
			uintptr(off), uintptr(uint64(off)>>32), unix.RWF_NOWAIT)
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// pwriteFlags is pwritev2 with one buffer. p must not be empty.
//
// The kernel puts the offset together from two registers, the second shifted out
// where one holds it all.
func pwriteFlags(fd int, p []byte, off int64, flags uintptr) (int, unix.Errno) {
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	n, _, errno := unix.Syscall6(unix.SYS_PWRITEV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(off), uintptr(uint64(off)>>32), flags)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// pwrite is pwrite64, which is a little cheaper than pwritev2. p must not be empty.
func pwrite(fd int, p []byte, off int64) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_PWRITE64, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(off), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// splice moves references to up to n bytes of a file from off to a pipe. The scheduler is
// told: some file systems wait for a lock first, and pages may have to be read.
func splice(fd int, off int64, pipe, n int) (int, unix.Errno) {
	k, _, errno := unix.Syscall6(unix.SYS_SPLICE, uintptr(fd), uintptr(unsafe.Pointer(&off)), uintptr(pipe), 0, uintptr(n), unix.SPLICE_F_NONBLOCK)
	if errno != 0 {
		return 0, errno
	}
	return int(k), 0
}

// vmspliceAll has a pipe that has room for them refer to the pages of p.
func vmspliceAll(pipe int, p []byte) bool {
	for len(p) > 0 {
		iov := unix.Iovec{Base: &p[0]}
		iov.SetLen(len(p))
		n, _, errno := unix.RawSyscall6(unix.SYS_VMSPLICE, uintptr(pipe), uintptr(unsafe.Pointer(&iov)), 1, unix.SPLICE_F_NONBLOCK, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0 || n == 0:
			return false
		}
		p = p[n:]
	}
	return true
}
