package socket

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A vector describes the memory of one call.
type vector struct {
	iov []syscall.Iovec
	hdr syscall.Msghdr
}

// set describes bufs, leaving out empty ones.
func (v *vector) set(bufs [][]byte) {
	v.iov = v.iov[:0]
	for _, b := range bufs {
		v.add(b)
	}
}

// add appends b unless it is empty.
func (v *vector) add(b []byte) {
	if len(b) == 0 {
		return
	}
	e := syscall.Iovec{Base: unsafe.SliceData(b)}
	e.SetLen(len(b))
	v.iov = append(v.iov, e)
}

// clear forgets the memory, so that it is not kept alive.
func (v *vector) clear() { clear(v.iov) }

// receive is recvmsg(2), or the cheaper recvfrom(2), and waits for SO_RCVTIMEO at most.
// The scheduler is told.
func (v *vector) receive(fd int) (int, syscall.Errno) {
	for {
		var n uintptr
		var errno syscall.Errno
		if len(v.iov) == 1 {
			n, _, errno = syscall.Syscall6(unix.SYS_RECVFROM, uintptr(fd),
				uintptr(unsafe.Pointer(v.iov[0].Base)), uintptr(v.iov[0].Len), 0, 0, 0)
		} else {
			n, _, errno = syscall.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(v.header()), 0)
		}
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

// tryReceive is receive without waiting.
func (v *vector) tryReceive(fd int) (int, syscall.Errno) {
	return v.try(fd, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.MSG_DONTWAIT)
}

// trySend sends without waiting. more says that something follows at once.
func (v *vector) trySend(fd int, more bool) (int, syscall.Errno) {
	flags := uintptr(unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL)
	if more {
		flags |= unix.MSG_MORE
	}
	return v.try(fd, unix.SYS_SENDTO, unix.SYS_SENDMSG, flags)
}

// try makes the system call plain or, if there is more than one part, vectored. The
// scheduler is not told: the call takes only as long as copying does, some 100 us
// for a megabyte. If the scheduler were told, its monitor would take the processor away
// in the middle of a long copy, and handing it to another thread and back costs more
// than all the rest.
func (v *vector) try(fd int, plain, vectored, flags uintptr) (int, syscall.Errno) {
	for {
		var n uintptr
		var errno syscall.Errno
		if len(v.iov) == 1 {
			n, _, errno = syscall.RawSyscall6(plain, uintptr(fd),
				uintptr(unsafe.Pointer(v.iov[0].Base)), uintptr(v.iov[0].Len), flags, 0, 0)
		} else {
			n, _, errno = syscall.RawSyscall(vectored, uintptr(fd), uintptr(v.header()), flags)
		}
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

// header returns the address of the message header, which is of v.
func (v *vector) header() unsafe.Pointer {
	v.hdr = syscall.Msghdr{Iov: unsafe.SliceData(v.iov), Iovlen: uint64(len(v.iov))}
	return unsafe.Pointer(&v.hdr)
}

// splice moves up to n bytes from a pipe to a socket that does not wait. The scheduler is
// told: before Linux 6.5, unix sockets wait for a peer that is receiving.
func splice(pipe, fd, n int) (int, error) {
	for {
		k, _, errno := syscall.Syscall6(unix.SYS_SPLICE, uintptr(pipe), 0, uintptr(fd), 0, uintptr(n), unix.SPLICE_F_NONBLOCK)
		switch errno {
		case 0:
			return int(k), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
