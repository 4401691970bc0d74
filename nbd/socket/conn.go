package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vhbad/vhbad/internal/aside"
	"golang.org/x/sys/unix"
)

// blockTime is how long a connection waits in a system call before it turns to
// the poller. The kernel rounds it up to its clock tick.
const blockTime = 4 * time.Millisecond

// blockTooLong is how long a wait in a system call may take. A connection that has waited for
// longer gives up the right to such waits.
const blockTooLong = time.Millisecond

// yields is how often a receiver gives others a turn before it turns to the poller, while
// connections have all processors. Often something has come by then.
const yields = 4

// A Conn is a stream socket.
//
// Concurrency: Receive, ReceiveSoon and TryReceive belong to one goroutine at a time, Send and
// TrySend to another; Read and Write must not be used at the same time as these. Everything
// else may be called by any goroutine.
type Conn struct {
	fd     int // valid between use and release
	local  net.Addr
	remote net.Addr
	in     side
	out    side
	// mayBlock is the right to wait in a system call; see poller. It is the
	// receiver's.
	mayBlock bool

	// For Read and Write, which anyone may call.
	readMu  sync.Mutex
	writeMu sync.Mutex

	// state counts the calls that use fd; Close adds closed. The call that brings
	// it down to closed closes fd.
	state atomic.Int64

	ticket ticket // immutable

	mu sync.Mutex
	// known says that the socket has been added to the epoll descriptor.
	// +checklocks:mu
	known bool
	// armed holds the events that the poller looks for.
	// +checklocks:mu
	armed uint32
	// hangup is the function of WatchHangup.
	// +checklocks:mu
	hangup func()
}

const closed = 1 << 32

// ErrNotSocket is returned by Take for a connection that is not a stream socket of the
// kernel.
var ErrNotSocket = errors.New("socket: not a stream socket")

// Take makes a Conn of nc, which must be a stream socket of the kernel, of any family,
// and closes nc. On an error nc is as it was.
//
// Errors: ErrNotSocket; a lack of descriptors.
func Take(nc net.Conn) (*Conn, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, ErrNotSocket
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, why := -1, error(nil)
	if err := raw.Control(func(old uintptr) { fd, why = adopt(int(old)) }); err != nil {
		return nil, err // it has not been called
	}
	if why != nil {
		return nil, why
	}
	c := &Conn{fd: fd, local: nc.LocalAddr(), remote: nc.RemoteAddr()}
	c.in.ready, c.out.ready = make(chan struct{}, 1), make(chan struct{}, 1)
	if err := polling.enter(c); err != nil {
		_ = unix.SetNonblock(fd, true)
		_ = unix.Close(fd)
		return nil, err
	}
	_ = nc.Close() // the socket stays: fd refers to it
	return c, nil
}

// adopt duplicates a descriptor, and sets up the socket so that calls wait unless they
// say otherwise.
func adopt(old int) (fd int, err error) {
	if typ, err := unix.GetsockoptInt(old, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || typ != unix.SOCK_STREAM {
		return -1, ErrNotSocket
	}
	fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(int64(blockTime))
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// use keeps the descriptor open until release. It returns false if c is closed.
func (c *Conn) use() bool {
	if c.state.Add(1) < closed {
		return true
	}
	c.release()
	return false
}

func (c *Conn) release() {
	if c.state.Add(-1) == closed {
		c.destroy()
	}
}

func (c *Conn) destroy() {
	c.mu.Lock()
	fd, known := c.fd, c.known
	c.fd = -1
	c.mu.Unlock()
	if fd < 0 {
		return // somebody has come and gone meanwhile
	}
	if known {
		// Closing would suffice, unless another process has the socket, too.
		_ = unix.EpollCtl(c.ticket.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	}
	_ = unix.Close(fd)
	if c.mayBlock {
		polling.giveUp()
	}
	polling.leave(c)
}

// Close closes the connection. Calls that wait return net.ErrClosed, and the
// descriptor is closed when they have.
func (c *Conn) Close() error {
	if !c.use() {
		return net.ErrClosed
	}
	defer c.release()
	n := c.state.Load()
	for n < closed && !c.state.CompareAndSwap(n, n+closed) {
		n = c.state.Load()
	}
	if n >= closed {
		return net.ErrClosed
	}
	if n > 1 {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // ends waits in system calls
		c.in.kick()
		c.out.kick()
	}
	c.in.setDeadline(time.Time{})
	c.out.setDeadline(time.Time{})
	return nil
}

// CloseRead shuts down receiving.
func (c *Conn) CloseRead() error { return c.shutdown(unix.SHUT_RD) }

// CloseWrite shuts down sending: the peer reads what was sent, and then the end.
func (c *Conn) CloseWrite() error { return c.shutdown(unix.SHUT_WR) }

func (c *Conn) shutdown(how int) error {
	if !c.use() {
		return net.ErrClosed
	}
	defer c.release()
	return unix.Shutdown(c.fd, how)
}

// SetSendBuffer sets the size of the socket's send buffer, which the kernel bounds
// by net.core.wmem_max.
func (c *Conn) SetSendBuffer(bytes int) error {
	if !c.use() {
		return net.ErrClosed
	}
	defer c.release()
	return unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bytes)
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn. A receive call that waits in the kernel
// notices within some milliseconds.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.in, t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.out, t) }

func (c *Conn) setDeadline(s *side, t time.Time) error {
	if !c.use() {
		return net.ErrClosed
	}
	defer c.release()
	s.setDeadline(t)
	return nil
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	return c.Receive([][]byte{b})
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	n := 0
	for n < len(b) {
		k, err := c.Send([][]byte{b[n:]})
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Receive waits for at least one byte and fills bufs in their order.
//
// Errors: io.EOF; net.ErrClosed; os.ErrDeadlineExceeded; a syscall.Errno, among them
// ENOSPC if the user may not watch any more sockets.
func (c *Conn) Receive(bufs [][]byte) (int, error) {
	return c.receive(bufs, waitsLong)
}

// ReceiveSoon is Receive for input that is on its way, such as the rest of a payload or what
// a pause was for. It first tries without waiting, and does not wait in a system call while
// connections have all processors: the scheduler's monitor would take this connection's
// processor away, and look for more to take every 20 us.
func (c *Conn) ReceiveSoon(bufs [][]byte) (int, error) {
	return c.receive(bufs, waitsSoon)
}

// TryReceive is Receive without waiting: zero bytes without an error mean that none
// have arrived.
func (c *Conn) TryReceive(bufs [][]byte) (int, error) {
	return c.receive(bufs, waitsNot)
}

// A patience says how a receiver waits.
type patience uint8

const (
	waitsNot patience = iota
	waitsSoon
	waitsLong
)

func (c *Conn) receive(bufs [][]byte, p patience) (int, error) {
	if !c.use() {
		return 0, net.ErrClosed
	}
	defer c.release()
	v := &c.in.v
	v.set(bufs)
	if len(v.iov) == 0 {
		return 0, nil
	}
	if err := c.verdict(&c.in); err != nil {
		return 0, err
	}
	defer v.clear()
	n, errno := 0, syscall.EAGAIN
	block := c.blocks(p, false)
	if !block {
		n, errno = v.tryReceive(c.fd)
		block = errno == syscall.EAGAIN && c.blocks(p, true)
	}
	if block {
		n, errno = c.receiveBlocking()
	}
	wait := p != waitsNot
	for i := 0; wait && errno == syscall.EAGAIN && i < yields && c.yield(); i++ {
		if i == yields-1 && polling.oneEach() {
			aside.Step()
		}
		n, errno = v.tryReceive(c.fd)
	}
	for wait && errno == syscall.EAGAIN {
		if err := c.await(&c.in, unix.EPOLLIN|unix.EPOLLRDHUP); err != nil {
			return 0, err
		}
		n, errno = v.tryReceive(c.fd)
	}
	switch {
	case errno == syscall.EAGAIN:
		return 0, nil
	case errno == 0 && n > 0:
		return n, nil
	case c.state.Load() >= closed: // by Close, which has shut it down
		return 0, net.ErrClosed
	case errno == 0:
		return 0, io.EOF
	}
	return 0, errno
}

// blocks says whether the receiver should wait in a system call now; if so it has the right
// to. It is asked first, and again, with looked set, when the receiver has tried in vain.
func (c *Conn) blocks(p patience, looked bool) bool {
	switch p {
	case waitsLong:
		return !looked && c.block()
	case waitsSoon:
		return looked && !polling.crowded() && c.block()
	case waitsNot:
	}
	return false
}

// block says whether the receiver may wait in a system call.
func (c *Conn) block() bool {
	if c.mayBlock && polling.tooMany() {
		c.noBlock()
	}
	if !c.mayBlock {
		c.mayBlock = polling.claim()
	}
	return c.mayBlock
}

// receiveBlocking waits in a system call. If that takes long it gives up the right to do
// so, for which another connection may have more use.
func (c *Conn) receiveBlocking() (n int, errno syscall.Errno) {
	began := time.Since(epoch)
	n, errno = c.in.v.receive(c.fd)
	if time.Since(epoch)-began > blockTooLong {
		c.noBlock()
	}
	return n, errno
}

// noBlock gives up the right to wait in a system call.
func (c *Conn) noBlock() {
	if c.mayBlock {
		c.mayBlock = false
		polling.giveUp()
	}
}

// Crowded says whether connections occupy all processors, at work or in a system call.
func (c *Conn) Crowded() bool { return polling.crowded() }

// Yield gives others a turn, if connections occupy all processors. It is for a
// connection that has gone on for a while without waiting. It returns false if there
// was no need.
func (c *Conn) Yield() bool {
	if !polling.crowded() || !c.use() {
		return false
	}
	defer c.release()
	return c.yield()
}

// StepAside gives the processor to other processes for a turn, for the most part clients on
// this machine: they send more meanwhile, and one read takes it all. It returns false if no
// turns are given at present; see package aside.
func (c *Conn) StepAside() bool { return aside.Step() }

func (c *Conn) yield() bool {
	if !polling.crowded() {
		return false
	}
	if polling.waiting.Load() > 0 {
		polling.look(c.ticket.epoll)
	}
	runtime.Gosched()
	return true
}

// Send waits until it has sent something of bufs.
//
// Errors: net.ErrClosed; os.ErrDeadlineExceeded; a syscall.Errno.
func (c *Conn) Send(bufs [][]byte) (int, error) { return c.send(bufs, true, false) }

// TrySend is Send without waiting: zero bytes without an error mean that there is
// no room.
func (c *Conn) TrySend(bufs [][]byte) (int, error) { return c.send(bufs, false, false) }

// TrySendMore is TrySend for bytes that more will follow at once, by Splice for example.
func (c *Conn) TrySendMore(bufs [][]byte) (int, error) { return c.send(bufs, false, true) }

func (c *Conn) send(bufs [][]byte, wait, more bool) (int, error) {
	if !c.use() {
		return 0, net.ErrClosed
	}
	defer c.release()
	v := &c.out.v
	v.set(bufs)
	if len(v.iov) == 0 {
		return 0, nil
	}
	defer v.clear()
	if err := c.verdict(&c.out); err != nil {
		return 0, err
	}
	for {
		n, errno := v.trySend(c.fd, more)
		switch {
		case errno == 0:
			return n, nil
		case errno != syscall.EAGAIN && c.state.Load() >= closed:
			return 0, net.ErrClosed
		case errno != syscall.EAGAIN:
			return 0, errno
		case !wait:
			return 0, nil
		}
		if err := c.await(&c.out, unix.EPOLLOUT); err != nil {
			return 0, err
		}
	}
}

// verdict returns why the side should not go on, or nil.
func (c *Conn) verdict(s *side) error {
	switch {
	case c.state.Load() >= closed:
		return net.ErrClosed
	case s.late():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// await waits for one of events. It also returns nil if there is another reason to look
// again.
func (c *Conn) await(s *side, events uint32) error {
	if err := c.verdict(s); err != nil {
		return err
	}
	c.mu.Lock()
	c.armed |= events
	err := c.armLocked()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if s == &c.in {
		c.noBlock() // another connection may have more use for the right
		polling.waiting.Add(1)
		defer polling.waiting.Add(-1)
	}
	<-s.ready
	return c.verdict(s)
}

// armLocked makes the poller look for the events c.armed, once.
//
// Errors: the first time, the kernel may be out of memory or watches.
//
// +checklocks:c.mu
func (c *Conn) armLocked() error {
	if c.known {
		if err := c.ticket.control(unix.EPOLL_CTL_MOD, c.fd, c.armed); err != nil {
			panic("socket: " + err.Error()) // only of a wrong call
		}
		return nil
	}
	err := c.ticket.control(unix.EPOLL_CTL_ADD, c.fd, c.armed)
	c.known = err == nil
	return err
}

// fire is called with the events that the poller has seen. The poller looks for no more
// until c is armed again.
func (c *Conn) fire(events uint32) {
	const trouble = unix.EPOLLERR | unix.EPOLLHUP
	c.mu.Lock()
	in := events&(unix.EPOLLIN|unix.EPOLLRDHUP|trouble) != 0
	out := events&(unix.EPOLLOUT|trouble) != 0
	if in {
		c.armed &^= unix.EPOLLIN | unix.EPOLLRDHUP
	}
	if out {
		c.armed &^= unix.EPOLLOUT
	}
	if c.armed != 0 && c.fd >= 0 {
		_ = c.armLocked() // it is known
	}
	var hangup func()
	if events&(unix.EPOLLRDHUP|trouble) != 0 {
		hangup = c.hangup
	}
	c.mu.Unlock()
	if hangup != nil {
		hangup()
	}
	if in {
		c.in.kick()
	}
	if out {
		c.out.kick()
	}
}
