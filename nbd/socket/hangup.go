package socket

import (
	"net"

	"golang.org/x/sys/unix"
)

// AwaitHangup waits until the peer has closed the connection, or at least its half, and
// receives nothing of what the peer has sent before. It is for a receiver that has no use
// for more input now, but wants to know whether the peer is still there.
//
// Concurrency: as for Receive, in its place. Errors: net.ErrClosed; os.ErrDeadlineExceeded,
// of the read deadline; the kernel may be out of memory or watches.
func (c *Conn) AwaitHangup() error {
	if !c.use() {
		return net.ErrClosed
	}
	defer c.release()
	for !c.hungUp() {
		if err := c.await(&c.in, unix.EPOLLRDHUP); err != nil {
			return err
		}
	}
	return nil
}

// WatchHangup has fn called when the peer has closed the connection, or at least its half; soon,
// if it has. It costs a system call only if the poller does not look for that already. The watch
// goes on until the poller has seen input, or the end. Even later, fn is called whenever the
// poller sees the end, so it may be called more than once. Only the fn of the first call counts.
//
// fn must not wait, nor call c; it is called with the poller's lock held.
//
// Concurrency: the receiver's goroutine. Errors: net.ErrClosed; the kernel may be out of memory
// or watches.
func (c *Conn) WatchHangup(fn func()) error {
	if !c.use() {
		return net.ErrClosed
	}
	defer c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hangup == nil {
		c.hangup = fn
	}
	if c.known && c.armed&unix.EPOLLRDHUP != 0 {
		return nil
	}
	c.armed |= unix.EPOLLRDHUP
	return c.armLocked()
}

// hungUp says whether the peer has closed.
func (c *Conn) hungUp() bool {
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0) // await will meet an error, too
	return err == nil && n > 0
}
