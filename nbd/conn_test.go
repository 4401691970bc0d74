package nbd

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
)

// newBareConn returns a connection without a peer, for tests of its parts.
func newBareConn(arena *dma.Arena) *Conn {
	c := &Conn{arena: arena, limits: &Limits{MaxBytesInFlight: 1 << 30}}
	c.cond.L = &c.mu
	return c
}

// trickle is a stream that was full once and then takes a byte a second.
type trickle struct {
	stream
	calls int
	since *atomic.Int64
	worst time.Duration // longest time without progress noted
}

func (s *trickle) tryWrite([][]byte) (int, error) {
	s.calls++
	if s.calls == 1 {
		return 0, nil
	}
	return s.write(nil)
}

func (s *trickle) write([][]byte) (int, error) {
	<-time.After(time.Second)
	s.worst = max(s.worst, time.Duration(now()-s.since.Load()))
	return 1, nil
}

// TestSend_NotesProgress: a client that takes something is not taken for one
// that takes nothing, even if the socket is never found full again.
func TestSend_NotesProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBareConn(nil)
		s := &trickle{since: &c.replySince}
		c.stream = s
		for range 4 {
			c.sender.list = append(c.sender.list, &Request{Op: OpFlush, conn: c})
		}
		if !c.send(true) || s.calls < 4*simpleReplyBytes {
			t.Fatalf("the replies were not sent, after %d calls", s.calls)
		}
		if s.worst > time.Second {
			t.Errorf("progress was noted %v late, want at each write", s.worst)
		}
	})
}

// TestTrim_NoMemory: a connection that finds no smaller block keeps its own, and
// the next one holds as much.
func TestTrim_NoMemory(t *testing.T) {
	const size = maxBlockBytes / 2
	arena, err := dma.NewArena(2 * size)
	if err != nil {
		t.Fatal(err)
	}
	c := newBareConn(arena)
	c.rxBytes = size
	c.rx = c.allocate(size)
	rest := arena.Alloc(size)
	c.trim()
	arena.Free(rest)

	// Now the block is full, its last part not parsed yet, and a request's
	// payload lies in it.
	tail := c.rx.mem[size-100_000:]
	for i := range tail {
		tail[i] = byte(i % 251)
	}
	want := bytes.Clone(tail)
	c.start, c.end = size-len(tail), size
	c.rx.refs.Add(1)
	c.needBytes = len(tail) + 1
	if !c.makeRoom() {
		t.Fatal("the connection is dead")
	}
	if got := c.rx.mem[c.start:c.end]; !bytes.Equal(got, want) {
		t.Errorf("%d bytes came along to the next block, want all %d", len(got), len(want))
	}
}

// TestOpCounters_Load: a snapshot taken between two counters of one reply never
// has more errors than requests.
func TestOpCounters_Load(t *testing.T) {
	var c opCounters
	c.started.Store(1)
	c.errors[BlameNone].Store(1) // and nothing else yet
	var s OpStats
	c.load(&s)
	if s.Errors > s.Requests || s.InFlight != 0 {
		t.Errorf("%d errors among %d requests, %d in flight", s.Errors, s.Requests, s.InFlight)
	}
}

// expired is a stream that finds its deadline gone by: c's quiet time if it is set,
// else that of a poke.
type expired struct {
	stream
	c *Conn
}

func (expired) yield() bool { return false }

func (e expired) read([][]byte, bool) (int, error) {
	if e.c != nil {
		e.c.orders.quietNs = now()
	}
	return 0, os.ErrDeadlineExceeded
}

// TestLastOrders_Poked: being asked for something else, or once more, does not end
// last orders before the client has had its time.
func TestLastOrders_Poked(t *testing.T) {
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	c := newBareConn(arena)
	ours, theirs := net.Pipe()
	defer func() { _ = errors.Join(ours.Close(), theirs.Close()) }()
	c.nc, c.stream, c.rxBytes = ours, expired{}, minBlockBytes
	c.rx = c.allocate(minBlockBytes)
	c.poke(wishDrain)
	for _, wish := range []uint32{wishTrim, wishDrain} {
		c.poke(wish)
		if reason, stop := c.fill(); stop {
			t.Fatalf("poked for %d: orders end with %v", wish, reason)
		}
	}
	c.stream = expired{c: c}
	if reason, stop := c.fill(); !stop || reason != CloseShutdown {
		t.Errorf("after the silence: %v, %v; want %v", reason, stop, CloseShutdown)
	}
	c.abandon()
	if err := arena.Close(); err != nil {
		t.Error(err)
	}
}
