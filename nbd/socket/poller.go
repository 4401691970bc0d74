package socket

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A poller waits for events of many sockets, and says which connections may wait without
// it.
type poller struct {
	// processors is what GOMAXPROCS was when the last connection came; asking takes a lock.
	processors atomic.Int32
	// open counts the connections, waiting those that wait for the poller to receive.
	open    atomic.Int32
	waiting atomic.Int32
	// blocking counts the connections that have the right to wait in a system call. They
	// keep it until they turn to the poller or have waited for long, so that receiving a
	// request that is already there does not touch the counter.
	blocking atomic.Int32

	// lookMu is held while connections are told of events. It is taken before mu, any
	// Conn.mu, and what functions of WatchHangup take.
	lookMu sync.Mutex
	// +checklocks:lookMu
	events [64]unix.EpollEvent

	mu sync.Mutex
	// epoll is the descriptor that all connections are registered with. The runtime waits
	// for it on behalf of the poller's goroutine. Both exist while there are connections.
	// +checklocks:mu
	epoll *os.File
	// fd is the file descriptor of epoll.
	// +checklocks:mu
	fd int
	// +checklocks:mu
	conns map[uint64]*Conn
	// +checklocks:mu
	lastID uint64
}

// polling is the process's poller.
var polling = poller{conns: make(map[uint64]*Conn)}

// claim says whether one more connection may wait in a system call, and counts it if it
// may.
func (p *poller) claim() bool {
	for {
		n := p.blocking.Load()
		if n >= p.limit() {
			return false // most callers get this answer, without writing anything
		}
		if p.blocking.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// tooMany says whether more connections have the right to wait in a system call than should.
func (p *poller) tooMany() bool { return p.blocking.Load() > p.limit() }

// limit is how many connections may wait in a system call. One processor must be left for
// everything else. If there is only one, a connection may take it if it is the only one: other
// work gets the processor when the scheduler's monitor notices, after 10 ms at most.
func (p *poller) limit() int32 {
	if n := p.processors.Load(); n > 1 {
		return n - 1
	}
	if p.open.Load() == 1 {
		return 1
	}
	return 0
}

// giveUp undoes claim.
func (p *poller) giveUp() { p.blocking.Add(-1) }

// crowded says whether connections occupy all processors, at work or in a system
// call. Then only the connections themselves look for events and give others a turn,
// until the scheduler's monitor notices after 10 ms.
func (p *poller) crowded() bool { return p.open.Load()-p.waiting.Load() >= p.processors.Load() }

// oneEach says whether no connection waits for the processor of another.
func (p *poller) oneEach() bool { return p.open.Load() <= p.processors.Load() }

// enter registers c and gives it its ticket. The first connection starts the goroutine.
func (p *poller) enter(c *Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) == 0 {
		if err := p.startLocked(); err != nil {
			return err
		}
	}
	p.lastID++
	c.ticket = ticket{epoll: p.fd, id: p.lastID}
	p.conns[c.ticket.id] = c
	p.processors.Store(int32(runtime.GOMAXPROCS(0)))
	p.open.Store(int32(len(p.conns)))
	return nil
}

// leave forgets c. The goroutine ends with the last connection; the next one starts
// another.
func (p *poller) leave(c *Conn) {
	p.mu.Lock()
	delete(p.conns, c.ticket.id)
	p.open.Store(int32(len(p.conns)))
	var last *os.File
	if len(p.conns) == 0 {
		last = p.epoll
	}
	p.mu.Unlock()
	if last != nil {
		_ = last.Close() // waits until the goroutine has told of the events it has seen
	}
}

// +checklocks:p.mu
func (p *poller) startLocked() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // makes the runtime wait for it
		return errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fd))
	}
	epoll := os.NewFile(uintptr(fd), "epoll")
	if err := epoll.SetDeadline(time.Time{}); err != nil { // the runtime cannot wait for it
		return errors.Join(err, epoll.Close())
	}
	raw, err := epoll.SyscallConn()
	if err != nil {
		return errors.Join(err, epoll.Close())
	}
	p.epoll, p.fd = epoll, fd
	go func() {
		// It ends with an error, when epoll is closed.
		_ = raw.Read(func(fd uintptr) bool {
			p.lookMu.Lock()
			p.tellLocked(int(fd))
			p.lookMu.Unlock()
			return false // edge-triggered: all events so far have been seen
		})
	}()
	return nil
}

// look tells connections of the events that there are now, unless that is being done
// already. Events that come meanwhile are left to the goroutine.
//
// Concurrency: any goroutine that keeps epoll open.
//
// +checklocksignore: it does not know TryLock.
func (p *poller) look(epoll int) {
	if p.lookMu.TryLock() {
		p.tellLocked(epoll)
		p.lookMu.Unlock()
	}
}

// tellLocked tells connections of all events that there are.
//
// +checklocks:p.lookMu
func (p *poller) tellLocked(epoll int) {
	for {
		n, err := unix.EpollWait(epoll, p.events[:], 0)
		if err != nil && err != unix.EINTR {
			panic("socket: epoll_wait: " + err.Error()) // only of a wrong call
		}
		for i := range max(n, 0) {
			p.mu.Lock()
			c := p.conns[eventID(&p.events[i])]
			p.mu.Unlock()
			if c != nil {
				c.fire(p.events[i].Events)
			}
		}
		if n >= 0 && n < len(p.events) {
			return
		}
	}
}

// A ticket is what a connection needs to wait for events.
type ticket struct {
	epoll int
	id    uint64
}

// control makes the poller look for events, once.
func (t ticket) control(op, fd int, events uint32) error {
	e := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(uint32(t.id)), Pad: int32(uint32(t.id >> 32))}
	if err := unix.EpollCtl(t.epoll, op, fd, &e); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// eventID is the ticket's id in e.
func eventID(e *unix.EpollEvent) uint64 {
	return uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
}
