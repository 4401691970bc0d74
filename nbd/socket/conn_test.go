package socket_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/vhbad/vhbad/nbd/socket"
)

// pair returns both ends of a connection over network, not yet taken.
func pair(t testing.TB, network string) (a, b net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if a, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

// take takes nc, and closes the Conn with the test.
func take(t testing.TB, nc net.Conn) *socket.Conn {
	t.Helper()
	c, err := socket.Take(nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestConn is the suite that every net.Conn has to pass, with one end or both
// taken.
func TestConn(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, both := range []bool{false, true} {
			name := network + "/one"
			if both {
				name = network + "/both"
			}
			t.Run(name, func(t *testing.T) {
				nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
					a, b := pair(t, network)
					a = take(t, a)
					if both {
						b = take(t, b)
					}
					return a, b, func() { _, _ = a.Close(), b.Close() }, nil
				})
			})
		}
	}
}

// TestTake_Refused: what is no stream socket stays with the runtime, and works.
func TestTake_Refused(t *testing.T) {
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = datagrams.Close() }()
	if _, err := socket.Take(datagrams.(*net.UDPConn)); !errors.Is(err, socket.ErrNotSocket) {
		t.Errorf("datagrams: %v", err)
	}
	if _, err := datagrams.WriteTo([]byte("x"), datagrams.LocalAddr()); err != nil {
		t.Errorf("datagrams after Take: %v", err)
	}
	pipe, other := net.Pipe()
	defer func() { _, _ = pipe.Close(), other.Close() }()
	if _, err := socket.Take(pipe); !errors.Is(err, socket.ErrNotSocket) {
		t.Errorf("a pipe: %v", err)
	}
	closed, _ := pair(t, "unix")
	_ = closed.Close()
	if _, err := socket.Take(closed); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed socket: %v", err)
	}
}

// TestTake_Addresses: they are what they were, and the old connection is closed.
func TestTake_Addresses(t *testing.T) {
	a, b := pair(t, "tcp")
	local, remote := b.LocalAddr().String(), b.RemoteAddr().String()
	c := take(t, b)
	if c.LocalAddr().String() != local || c.RemoteAddr().String() != remote {
		t.Errorf("%v to %v, want %s to %s", c.LocalAddr(), c.RemoteAddr(), local, remote)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read of what was taken: %v, want it closed", err)
	}
	if _, err := a.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	if n, err := c.Read(got); err != nil || string(got[:n]) != "hello" {
		t.Errorf("%q and %v", got[:n], err)
	}
}

// TestReceive_SeveralBuffers: each is filled behind the one before it, and empty ones are
// left out.
func TestReceive_SeveralBuffers(t *testing.T) {
	a, b := pair(t, "unix")
	c := take(t, b)
	if n, err := c.TryReceive([][]byte{make([]byte, 1)}); n != 0 || err != nil {
		t.Fatalf("there is nothing: %d and %v", n, err)
	}
	for _, lengths := range [][]int{{3, 5}, {8, 0}, {0, 8}, {3, 2}, {2, 3, 1, 4}, {1, 0, 0, 9}} {
		if _, err := a.Write([]byte("abcdefgh")); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for len(got) < 8 {
			var bufs [][]byte
			for _, n := range lengths {
				bufs = append(bufs, make([]byte, n))
			}
			receive := c.Receive
			if len(got) > 0 {
				receive = c.ReceiveSoon
			}
			n, err := receive(bufs)
			if err != nil || n == 0 {
				t.Fatalf("%v: %d and %v", lengths, n, err)
			}
			got = append(got, bytes.Join(bufs, nil)[:n]...)
		}
		if string(got) != "abcdefgh" {
			t.Errorf("%v: %q", lengths, got)
		}
	}
	_ = a.Close()
	for _, receive := range []func([][]byte) (int, error){c.Receive, c.ReceiveSoon, c.Receive} {
		if n, err := receive([][]byte{make([]byte, 1)}); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %d and %v", n, err)
		}
	}
}

// TestSend_Full: TrySend does not wait for room, Send does, and what was sent
// arrives in order.
func TestSend_Full(t *testing.T) {
	a, b := pair(t, "unix")
	c := take(t, b)
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	total := 0
	for {
		n, err := c.TrySend([][]byte{chunk[total%16 : 100], nil, chunk[4:]})
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		total += n
	}
	if total == 0 {
		t.Fatal("nothing was sent")
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Send([][]byte{[]byte("last")})
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(a)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if len(got) != total+4 || string(got[total:]) != "last" {
		t.Errorf("%d bytes that end with %q, want %d and last", len(got), got[len(got)-4:], total+4)
	}
}

// TestClose_Wakes: whoever waits is told, in whatever way it waits.
func TestClose_Wakes(t *testing.T) {
	// More than may wait in a system call, so that some wait for the poller.
	n := runtime.GOMAXPROCS(0) + 2
	conns := make([]*socket.Conn, n)
	errs := make(chan error, 2*n)
	for i := range conns {
		_, b := pair(t, "unix")
		c := take(t, b)
		conns[i] = c
		for k := 1; k > 0; { // until there is no room
			k, _ = c.TrySend([][]byte{make([]byte, 64<<10)})
		}
		go func() {
			_, err := c.Receive([][]byte{make([]byte, 1)})
			errs <- err
		}()
		go func() {
			_, err := c.Send([][]byte{{1}})
			errs <- err
		}()
	}
	for range 100 {
		runtime.Gosched()
	}
	for _, c := range conns {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed twice: %v", err)
		}
	}
	for range 2 * n {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a call on a closed connection: %v", err)
		}
	}
}

// TestSetReadDeadline_Wakes: a deadline set meanwhile ends a wait, and lifted it
// does so no more.
func TestSetReadDeadline_Wakes(t *testing.T) {
	a, b := pair(t, "unix")
	c := take(t, b)
	for range 3 {
		done := make(chan error, 1)
		go func() {
			_, err := c.Receive([][]byte{make([]byte, 1)})
			done <- err
		}()
		if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("received with %v", err)
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Receive([][]byte{make([]byte, 1)}); n != 1 || err != nil {
			t.Fatalf("%d and %v after the deadline was lifted", n, err)
		}
	}
}

// TestMany: connections that have been silent for long and many at once are
// served, whoever may wait in which way.
func TestMany(t *testing.T) {
	const conns, rounds = 50, 20
	var clients []net.Conn
	for range conns {
		a, b := pair(t, "unix")
		clients = append(clients, a)
		c := take(t, b)
		go func() {
			buf := make([]byte, 64)
			for {
				n, err := c.Receive([][]byte{buf})
				if err != nil {
					return
				}
				if _, err := c.Send([][]byte{buf[:n]}); err != nil {
					return
				}
			}
		}()
	}
	for r := range rounds {
		for i, a := range clients {
			if _, err := a.Write([]byte{byte(r), byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		for i, a := range clients {
			got := make([]byte, 2)
			if _, err := io.ReadFull(a, got); err != nil || got[0] != byte(r) || got[1] != byte(i) {
				t.Fatalf("round %d, client %d: %v and %v", r, i, got, err)
			}
		}
	}
}

// TestAwaitHangup: only that the peer has closed ends the wait, or that it is to end; what has
// been sent before stays, and can be received then.
func TestAwaitHangup(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		a, b := pair(t, network)
		c := take(t, b)
		if _, err := a.Write([]byte("sent")); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		for range 2 {
			go func() { done <- c.AwaitHangup() }()
			for range 100 {
				runtime.Gosched()
			}
			if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: with the peer there, the wait ended with %v", network, err)
			}
			if err := c.SetReadDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		go func() { done <- c.AwaitHangup() }()
		_ = a.Close()
		if err := <-done; err != nil {
			t.Errorf("%s: a peer that closed: %v", network, err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != "sent" {
			t.Errorf("%s: %q and %v afterwards", network, got, err)
		}
		_ = c.Close()
		if err := c.AwaitHangup(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: closed: %v", network, err)
		}
	}
}

// TestWatchHangup: the function is called when the peer closes, or at once if it has, beside
// other waits and though they come and go; and not before.
func TestWatchHangup(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, first := range []bool{false, true} { // the peer closes first
			a, b := pair(t, network)
			c := take(t, b)
			hungUp := make(chan struct{}, 16)
			watch := func() {
				t.Helper()
				if err := c.WatchHangup(func() { hungUp <- struct{}{} }); err != nil {
					t.Fatal(err)
				}
			}
			if !first {
				for range 2 {
					watch()
					if _, err := a.Write([]byte("sent")); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
						t.Fatal(err)
					}
				}
				go func() { _, _ = c.Read(make([]byte, 1)) }() // ends with the test
				select {
				case <-hungUp:
					t.Errorf("%s: called with the peer there", network)
				default:
				}
			}
			_ = a.Close()
			watch()
			<-hungUp
			_ = c.Close()
			if err := c.WatchHangup(nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: closed: %v", network, err)
			}
		}
	}
}

// pollers is how many goroutines wait for the epoll descriptor.
func pollers() int {
	stacks := make([]byte, 1<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "(*poller).startLocked in")
}

// TestPoller_Ends: there is one while there are connections, and none after the
// last.
func TestPoller_Ends(t *testing.T) {
	for pollers() > 0 {
		runtime.Gosched() // those of other tests are on their way out
	}
	for range 20 {
		var conns []*socket.Conn
		for range 3 {
			_, b := pair(t, "unix")
			conns = append(conns, take(t, b))
			if n := pollers(); n != 1 {
				t.Fatalf("%d with %d connections, want one", n, len(conns))
			}
		}
		for _, c := range conns {
			go func() { _, _ = c.Receive([][]byte{make([]byte, 1)}) }()
		}
		for _, c := range conns {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for pollers() > 0 {
			runtime.Gosched() // it ends in its own time
		}
	}
}

// TestPoller_ComeAndGo: connections go, the last among them, while there are events
// to tell of. There are more than may wait in a system call.
func TestPoller_ComeAndGo(t *testing.T) {
	n := runtime.GOMAXPROCS(0) + 2
	for range 100 {
		var conns []*socket.Conn
		var received sync.WaitGroup
		for range n {
			a, b := pair(t, "unix")
			c, d := take(t, a), take(t, b)
			conns = append(conns, c, d)
			received.Go(func() {
				buf := make([]byte, 8)
				for {
					if _, err := c.Receive([][]byte{buf}); err != nil {
						return
					}
				}
			})
		}
		for range 3 {
			for i := 1; i < len(conns); i += 2 {
				if _, err := conns[i].Send([][]byte{{1}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, c := range conns {
			_ = c.Close()
		}
		received.Wait()
	}
}

// TestNoAllocs: a round trip allocates nothing.
func TestNoAllocs(t *testing.T) {
	a, b := pair(t, "unix")
	c, peer := take(t, b), take(t, a)
	in, out := make([]byte, 64), [][]byte{make([]byte, 16), make([]byte, 16)}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := peer.TrySend(out); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Receive([][]byte{in[:20], in[20:]}); n != 32 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := c.TryReceive([][]byte{in}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
