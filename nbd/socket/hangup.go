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

// hungUp says whether the peer has closed.
func (c *Conn) hungUp() bool {
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0) // await will meet an error, too
	return err == nil && n > 0
}
