package socket

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A poller waits for events of many sockets, and says who may wait without it.
type poller struct {
	// processors is GOMAXPROCS when the last connection came; asking takes a lock.
	processors atomic.Int32
	// open counts the connections, waiting those that wait for the poller.
	open    atomic.Int32
	waiting atomic.Int32
	// blocking counts those that have the right to wait in a system call. They keep
	// it while they are busy, so that a request does not touch it.
	blocking atomic.Int32

	mu sync.Mutex
	// epoll is the descriptor, and stop an eventfd that ends the goroutine. They are
	// the goroutine's, and there is one while there are connections.
	// +checklocks:mu
	epoll int
	// +checklocks:mu
	stop int
	// +checklocks:mu
	conns map[uint64]*Conn
	// +checklocks:mu
	lastID uint64
}

// polling is the process's poller.
var polling = poller{conns: make(map[uint64]*Conn)}

// claim says whether one more connection may wait in a system call, and if so counts
// it. One processor must be left for all others. If there is but one, it may
// be taken by the only connection: what else there is to do comes to it when
// the scheduler's monitor notices, after 10 ms at most.
func (p *poller) claim() bool {
	limit := p.processors.Load() - 1
	if limit == 0 && p.open.Load() == 1 {
		limit = 1
	}
	if p.blocking.Add(1) <= limit {
		return true
	}
	p.blocking.Add(-1)
	return false
}

// giveUp undoes claim.
func (p *poller) giveUp() { p.blocking.Add(-1) }

// Crowded says whether connections have all processors, at work or in a system
// call. One that goes on without waiting should let others have a turn then:
// nobody else will, the poller least of all, until the scheduler's monitor
// notices after 10 ms.
//
// Concurrency: any goroutine.
func Crowded() bool {
	return polling.open.Load()-polling.waiting.Load() >= polling.processors.Load()
}

// enter counts c, with which the goroutine begins if it is the first, and gives it
// its id.
func (p *poller) enter(c *Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) == 0 {
		if err := p.startLocked(); err != nil {
			return err
		}
	}
	p.lastID++
	c.ticket = ticket{epoll: p.epoll, id: p.lastID}
	p.conns[c.ticket.id] = c
	p.processors.Store(int32(runtime.GOMAXPROCS(0)))
	p.open.Store(int32(len(p.conns)))
	return nil
}

// leave forgets c, before its descriptor is closed.
func (p *poller) leave(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c.ticket.id)
	p.open.Store(int32(len(p.conns)))
	if len(p.conns) == 0 {
		p.endLocked()
	}
}

// +checklocks:p.mu
func (p *poller) startLocked() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll)
		return fmt.Errorf("eventfd: %w", err)
	}
	e := unix.EpollEvent{Events: unix.EPOLLIN}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, stop, &e); err != nil {
		_, _ = unix.Close(epoll), unix.Close(stop)
		return fmt.Errorf("epoll: %w", err)
	}
	p.epoll, p.stop = epoll, stop
	go p.run(epoll, stop)
	return nil
}

// endLocked ends the goroutine, which closes both descriptors; the next connection
// begins another.
//
// +checklocks:p.mu
func (p *poller) endLocked() {
	one := [8]byte{1}
	if _, err := unix.Write(p.stop, one[:]); err != nil {
		panic(fmt.Sprintf("socket: eventfd: %v", err)) // it takes 2^64-2 of them
	}
}

// run waits for events until stop is written to, then closes both descriptors.
func (p *poller) run(epoll, stop int) {
	var events [64]unix.EpollEvent
	for {
		n, err := unix.EpollWait(epoll, events[:], -1)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("socket: epoll_wait: %v", err)) // only of a wrong call
		}
		for i := range max(n, 0) {
			id := eventID(&events[i])
			if id == 0 {
				_, _ = unix.Close(epoll), unix.Close(stop)
				return
			}
			p.mu.Lock()
			c := p.conns[id]
			p.mu.Unlock()
			if c != nil {
				c.fire(events[i].Events)
			}
		}
		// Those that were woken up go first: the wait keeps this processor.
		runtime.Gosched()
	}
}

// A ticket is what a connection needs to have events looked for.
type ticket struct {
	epoll int
	id    uint64 // never zero
}

// control has events looked for, once.
func (t ticket) control(op, fd int, events uint32) error {
	e := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(uint32(t.id)), Pad: int32(uint32(t.id >> 32))}
	if err := unix.EpollCtl(t.epoll, op, fd, &e); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// eventID is the ticket's id in e, zero for the eventfd.
func eventID(e *unix.EpollEvent) uint64 {
	return uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
}
