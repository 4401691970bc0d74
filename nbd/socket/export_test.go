package socket

import "golang.org/x/sys/unix"

// NonBlockingForTest says whether calls on the socket do not wait.
func NonBlockingForTest(c *Conn) bool {
	flags, err := unix.FcntlInt(uintptr(c.fd), unix.F_GETFL, 0)
	return err != nil || flags&unix.O_NONBLOCK != 0
}
