package nbd

import (
	"syscall"
	"unsafe"
)

// iovec describes b, which must not be empty.
func iovec(b []byte) syscall.Iovec {
	v := syscall.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

func readv(fd uintptr, iov []syscall.Iovec) (int, syscall.Errno) {
	return vectored(syscall.SYS_READV, fd, iov)
}

func writev(fd uintptr, iov []syscall.Iovec) (int, syscall.Errno) {
	return vectored(syscall.SYS_WRITEV, fd, iov)
}

// vectored makes a system call without telling the scheduler. The socket is
// non-blocking, so the call takes only as long as copying does, some 100 us for a
// megabyte. If it were told, its monitor would take the processor away in the
// middle of a long copy, and waking up another thread for it and back costs more
// than all the rest.
func vectored(trap, fd uintptr, iov []syscall.Iovec) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
			continue
		}
		return 0, errno
	}
}
