package socket

import (
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestClaim: one processor is left, and with one alone only one connection takes
// it.
func TestClaim(t *testing.T) {
	for _, tt := range []struct {
		processors, open int32
		want             int
	}{{1, 1, 1}, {1, 2, 0}, {2, 1, 1}, {2, 9, 1}, {4, 9, 3}} {
		var p poller
		p.processors.Store(tt.processors)
		p.open.Store(tt.open)
		got := 0
		for range tt.open {
			if p.claim() {
				got++
			}
		}
		if got != tt.want {
			t.Errorf("%d processors, %d connections: %d may block, want %d", tt.processors, tt.open, got, tt.want)
		}
		if tt.want > 0 {
			p.giveUp()
			if !p.claim() {
				t.Errorf("%d processors, %d connections: what was given up cannot be had", tt.processors, tt.open)
			}
		}
	}
}

// TestClaim_NeverTooMany: a claim that fails takes nothing, not even for a moment, in which
// a connection that has the right would give it up.
func TestClaim_NeverTooMany(t *testing.T) {
	var p poller
	p.processors.Store(2)
	p.open.Store(3)
	if !p.claim() {
		t.Fatal("nobody has it, and it cannot be had")
	}
	var asking sync.WaitGroup
	for range 2 {
		asking.Go(func() {
			for range 100_000 {
				if p.claim() {
					t.Error("two may block on two processors")
					return
				}
			}
		})
	}
	for range 100_000 {
		if p.tooMany() {
			t.Error("too many have the right, and there is but one")
			break
		}
	}
	asking.Wait()
}

// TestCrowded: a connection that waits to receive leaves its processor to others; one that
// waits to send does not.
func TestCrowded(t *testing.T) {
	for _, tt := range []struct {
		processors, open, waiting int32
		want                      bool
	}{{2, 1, 0, false}, {2, 2, 0, true}, {2, 3, 2, false}, {2, 9, 7, true}, {1, 1, 0, true}, {1, 1, 1, false}} {
		var p poller
		p.processors.Store(tt.processors)
		p.open.Store(tt.open)
		p.waiting.Store(tt.waiting)
		if got := p.crowded(); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestBlock_GivenUp: a connection that may block no more does not.
func TestBlock_GivenUp(t *testing.T) {
	alone(t)
	c := &Conn{mayBlock: true}
	old := polling.processors.Load()
	defer polling.processors.Store(old)
	polling.processors.Store(2)
	polling.blocking.Add(2)
	if c.block() {
		t.Error("two of two processors are waited with")
	}
	if n := polling.blocking.Load(); n != 1 {
		t.Errorf("%d hold the right, want the other one", n)
	}
	polling.giveUp()
	if !c.block() {
		t.Error("nobody waits, and it may not")
	}
	c.noBlock()
}

// TestBlocks: a receiver whose input may take long waits in a system call right away. One
// whose input is on its way tries without waiting first, and then waits in a system call
// only while some connection leaves its processor to others.
func TestBlocks(t *testing.T) {
	c := connect(t)
	for _, tt := range []struct {
		p          patience
		looked     bool
		processors int32
		want       bool
	}{
		{waitsLong, false, 1, true},
		{waitsLong, false, 64, true},
		{waitsLong, true, 64, false},
		{waitsSoon, false, 64, false},
		{waitsSoon, true, 64, true},
		{waitsSoon, true, 1, false},
		{waitsNot, false, 64, false},
		{waitsNot, true, 64, false},
	} {
		polling.processors.Store(tt.processors)
		if got := c.blocks(tt.p, tt.looked); got != tt.want {
			t.Errorf("%+v: %t", tt, got)
		}
		if c.mayBlock != tt.want {
			t.Errorf("%+v: has the right to block: %t", tt, c.mayBlock)
		}
		c.noBlock()
	}
	if n := polling.blocking.Load(); n != 0 {
		t.Errorf("%d rights are out, want none", n)
	}
}

// TestReceive_LeavesRight: a connection that waits for the poller keeps no other from waiting
// in a system call, whether or not it has tried to wait there itself.
func TestReceive_LeavesRight(t *testing.T) {
	c := connect(t)
	for _, tt := range []struct {
		what       string
		receive    func([][]byte) (int, error)
		processors int32
		last       bool // the peer closes
	}{
		{"soon, and connections have all processors", c.ReceiveSoon, 1, false},
		{"soon", c.ReceiveSoon, 64, false},
		{"long", c.Receive, 64, false},
		{"for the peer to close", func(bufs [][]byte) (int, error) {
			if err := c.AwaitHangup(); err != nil {
				return 0, err
			}
			return c.Receive(bufs)
		}, 64, true},
	} {
		polling.processors.Store(tt.processors)
		if !c.block() {
			t.Fatal("the only connection has no right to wait in a system call")
		}
		received := make(chan error, 1)
		go func() {
			_, err := tt.receive([][]byte{make([]byte, 1)})
			received <- err
		}()
		until(t, tt.what+": it waits for the poller", func() bool { return polling.waiting.Load() > 0 })
		if n := polling.blocking.Load(); n != 0 {
			t.Errorf("%s: it waits for the poller and keeps the right to wait in a system call", tt.what)
		}
		if _, err := unix.Write(c.peer, []byte{1}); err != nil {
			t.Fatal(err)
		}
		if tt.last {
			if err := unix.Shutdown(c.peer, unix.SHUT_WR); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-received; err != nil {
			t.Error(err)
		}
	}
}

// A connected Conn has its other end with it.
type connected struct {
	*Conn
	peer int
}

// connect makes the only connection that there is.
func connect(t *testing.T) connected {
	t.Helper()
	alone(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[1]) })
	file := os.NewFile(uintptr(fds[0]), "socket")
	nc, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Take(nc)
	if err != nil {
		t.Fatal(err)
	}
	old := polling.processors.Load()
	t.Cleanup(func() {
		_ = c.Close()
		polling.processors.Store(old)
	})
	return connected{c, fds[1]}
}

// alone waits until the connections that other tests have left are closed.
func alone(t *testing.T) {
	t.Helper()
	until(t, "no connection is open", func() bool { return polling.open.Load() == 0 })
}

// until waits for something to be so, a minute at most.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not so after a minute: %s", what)
		}
	}
}
