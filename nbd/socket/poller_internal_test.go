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

// TestClaim_NeverTooMany: who asks in vain takes nothing, not for a moment: one that
// has the right would give it up.
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

// TestCrowded: one that waits to receive leaves its processor to others; one that
// waits to send has none.
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
	polling.giveUp()
}

// TestReceiveSoon: who waits for what is on its way does so in a system call only while
// some connection leaves its processor to others.
func TestReceiveSoon(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	peer := fds[1]
	defer func() { _ = unix.Close(peer) }()
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
	defer func() { _ = c.Close() }()
	defer polling.processors.Store(polling.processors.Load())

	for _, tt := range []struct {
		processors int32
		keeps      bool
	}{{1, true}, {64, false}} {
		polling.processors.Store(tt.processors)
		if !c.block() {
			t.Fatal("the only connection has no right to wait in a system call")
		}
		received := make(chan error, 1)
		go func() {
			_, err := c.ReceiveSoon(make([]byte, 1), nil)
			received <- err
		}()
		// Either way the poller has it wait in the end. A wait in a system call has cost it
		// the right to another.
		for end := time.Now().Add(time.Minute); polling.waiting.Load() == 0; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatal("after a minute it does not wait for the poller")
			}
		}
		if c.mayBlock != tt.keeps {
			t.Errorf("%d processors: it has waited in a system call: %t, want %t", tt.processors, !c.mayBlock, !tt.keeps)
		}
		if _, err := unix.Write(peer, []byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := <-received; err != nil {
			t.Error(err)
		}
	}
}
