package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"
)

// duplicate returns a descriptor of conn's socket, the caller's to close.
func duplicate(conn net.Conn) (fd int, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("a %T has no descriptor", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	var inner error
	err = raw.Control(func(of uintptr) { fd, inner = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, inner)
}

// leave ends connections in good order, by NBD_CMD_DISC. They have not been given to the
// kernel, and are in the transmission phase with nothing in flight.
//
// Source: proto.md, "Terminating the transmission phase".
func leave(fds []int) {
	b := binary.BigEndian.AppendUint32(nil, protocol.TRANSMISSION_MAGIC_REQUEST)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, protocol.TRANSMISSION_TYPE_REQUEST_DISC)
	b = append(b, make([]byte, 8+8+4)...) // cookie, offset, length
	for _, fd := range fds {
		_ = unix.Send(fd, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) // the server may be gone
	}
	closeAll(fds)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // sockets have nothing to write back
	}
}

// sockets are our own descriptors of the sockets that the kernel's driver has. They tell
// when a connection ends, on whichever side: the kernel shuts down the sockets that it
// gives up.
type sockets struct {
	fds []int
	// ends is an epoll that the runtime waits for, watching for the end of each connection;
	// nil until watch. Data that arrives for the kernel wakes nobody here.
	ends *os.File
}

// endEvents are the events of a connection's end.
const endEvents = unix.POLLRDHUP | unix.POLLHUP | unix.POLLERR

// watch calls ended whenever a connection has ended, until stop.
func (s *sockets) watch(ended func()) (stop func(), err error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil { // so that the runtime waits for it
		return nil, errors.Join(err, unix.Close(epoll))
	}
	s.ends = os.NewFile(uintptr(epoll), "epoll")
	for _, fd := range s.fds {
		if err := s.watchOne(fd); err != nil {
			return nil, errors.Join(err, s.ends.Close())
		}
	}
	raw, err := s.ends.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, s.ends.Close())
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			err := raw.Read(func(epoll uintptr) bool {
				var events [MaxConnections]unix.EpollEvent
				n, err := unix.EpollWait(int(epoll), events[:], 0)
				return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
			})
			if err != nil { // closed
				return
			}
			ended()
		}
	}()
	return func() {
		_ = s.ends.Close()
		<-done
		s.ends = nil
	}, nil
}

// watchOne adds a socket to the watch, if there is one.
func (s *sockets) watchOne(fd int) error {
	if s.ends == nil {
		return nil
	}
	raw, err := s.ends.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(epoll uintptr) {
		// Edge-triggered: an end that is known but not yet dealt with wakes nobody again.
		inner = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, fd,
			&unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd)})
	})
	return errors.Join(err, inner)
}

// ended lists the sockets whose connection has ended.
func (s *sockets) ended() ([]int, error) {
	polls := make([]unix.PollFd, len(s.fds))
	for i, fd := range s.fds {
		polls[i] = unix.PollFd{Fd: int32(fd), Events: endEvents}
	}
	if len(polls) == 0 {
		return nil, nil
	}
	for {
		_, err := unix.Poll(polls, 0)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, os.NewSyscallError("poll", err)
		}
	}
	var ended []int
	for _, p := range polls {
		if p.Revents&(endEvents|unix.POLLNVAL) != 0 {
			ended = append(ended, int(p.Fd))
		}
	}
	return ended, nil
}

// shutDown ends connections for good. What the peer has sent can still be read.
func shutDown(fds []int) {
	for _, fd := range fds {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // ENOTCONN: it has ended already
	}
}

// replace puts a new socket in the place of an old one, which it closes.
func (s *sockets) replace(old, fresh int) error {
	s.fds[slices.Index(s.fds, old)] = fresh
	closeAll([]int{old})
	return s.watchOne(fresh)
}

// add adds a socket.
func (s *sockets) add(fd int) error {
	s.fds = append(s.fds, fd)
	return s.watchOne(fd)
}

// close closes every socket. The kernel has its own references.
func (s *sockets) close() {
	closeAll(s.fds)
	s.fds = nil
}

// taken reports whether the kernel's driver has accepted fd in a RECONFIGURE, which does
// not report that itself. If the device has a timeout, the driver sets a send timeout on
// each socket that it uses; ours have none.
//
// Source: linux drivers/block/nbd.c, nbd_reconnect_socket.
func taken(fd int) (bool, error) {
	tv, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO)
	if err != nil {
		return false, os.NewSyscallError("getsockopt SO_SNDTIMEO", err)
	}
	return time.Duration(tv.Nano()) > 0, nil
}
