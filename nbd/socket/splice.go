package socket

import (
	"errors"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Splice sends up to n bytes out of a pipe that is not empty: the socket takes over
// references to pages, and copies nothing. It waits until it has sent something.
//
// Errors: net.ErrClosed; os.ErrDeadlineExceeded; io.ErrUnexpectedEOF if nothing is in it; a
// syscall.Errno.
func (c *Conn) Splice(pipe, n int) (int, error) { return c.splice(pipe, n, true) }

// TrySplice is Splice without waiting: zero bytes without an error mean that there is no
// room, or nothing in the pipe.
func (c *Conn) TrySplice(pipe, n int) (int, error) { return c.splice(pipe, n, false) }

func (c *Conn) splice(pipe, n int, wait bool) (int, error) {
	if !c.use() {
		return 0, net.ErrClosed
	}
	defer c.release()
	if err := c.verdict(&c.out); err != nil {
		return 0, err
	}
	for {
		k, err := spliceNow(pipe, c.fd, n)
		switch {
		case err == nil && k == 0:
			return 0, io.ErrUnexpectedEOF // there is nothing in it
		case err == nil:
			return k, nil
		case !errors.Is(err, syscall.EAGAIN) && c.state.Load() >= closed:
			return 0, net.ErrClosed
		case !errors.Is(err, syscall.EAGAIN):
			return 0, err
		case !wait:
			return 0, nil
		case isEmpty(pipe): // waiting for room would be in vain
			return 0, io.ErrUnexpectedEOF
		}
		if err := c.await(&c.out, unix.EPOLLOUT); err != nil {
			return 0, err
		}
	}
}

// isEmpty says whether a pipe is empty.
func isEmpty(pipe int) bool {
	n, err := unix.IoctlGetInt(pipe, unix.TIOCINQ) // FIONREAD by its other name
	return err == nil && n == 0
}

// spliceNow is splice(2) from a pipe to a socket without waiting. Whether the socket waits
// cannot be said in the call: it is a flag of the socket, set for the time of the call. A
// receiver that comes meanwhile does not wait in its system call, and turns to the poller.
func spliceNow(pipe, fd, n int) (int, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK); err != nil {
		return 0, err
	}
	k, err := splice(pipe, fd, n)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil {
		return 0, err
	}
	return k, err
}
