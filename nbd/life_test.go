package nbd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestBackPressure: a client that sends without reading gets no further than
// the limits allow, and everything is answered once it reads.
func TestBackPressure(t *testing.T) {
	tests := []struct {
		name   string
		limits nbd.Limits
		length uint32
		n      int
		// inFlight and held are what the server must not exceed.
		inFlight uint64
		held     int
	}{
		{"slots", nbd.Limits{MaxRequests: 8}, 4096, 2000, 8, 1 << 20},
		{"bytes", nbd.Limits{MaxBytesInFlight: 2 << 20}, 1 << 20, 64, 256, 3 << 20},
		{"a batch", nbd.Limits{}, 256 << 10, 64, 4, 2 << 20},
	}
	for _, tt := range tests {
		for _, network := range []string{"unix", "pipe"} {
			t.Run(network+"/"+tt.name, func(t *testing.T) {
				s := newServer(t, nbdtest.NewMemory(2<<20), tt.limits)
				c := s.client(network)
				var cmds []nbdtest.Command
				for i := range tt.n {
					cmds = append(cmds, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: uint64(i), Length: tt.length})
				}
				sent := make(chan error, 1)
				go func() { sent <- c.Send(cmds...) }()
				// The server works until the socket is full, then holds still.
				s.waitStats("load", func(st nbd.Stats) bool {
					return len(st.Connections) == 1 && st.Connections[0].InFlight > 0
				})
				for range tt.n {
					for _, cs := range s.Snapshot().Connections {
						if cs.InFlight > tt.inFlight || cs.HeldBytes > tt.held {
							t.Fatalf("%d requests in flight, %d bytes held: want at most %d, %d", cs.InFlight, cs.HeldBytes, tt.inFlight, tt.held)
						}
					}
					if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
						t.Fatalf("%v, %v", r.Errno, err)
					}
				}
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// TestOneLargeRequest: a request beyond the whole budget is served when it is
// alone.
func TestOneLargeRequest(t *testing.T) {
	const size = 8 << 20
	c := newServer(t, nbdtest.NewMemory(size), nbd.Limits{MaxBytesInFlight: 64 << 10, MaxPayloadBytes: size}).client("unix")
	for i := range uint64(3) {
		data := pattern(size, byte(i))
		must(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: i, Length: size, Payload: data}, nbd.OK)
		if r := must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: i, Length: size}, nbd.OK); string(r.Data) != string(data) {
			t.Fatal("other data than was written")
		}
	}
}

// TestVanish drops connections at awkward moments. Others must not notice, and
// the session must be closed exactly once, after the last completion.
func TestVanish(t *testing.T) {
	header := nbdtest.Command{Type: nbdtest.CmdWrite, Length: 1 << 20}.Append(nil)
	tests := []struct {
		name   string
		send   []byte
		reason nbd.CloseReason
	}{
		{"between requests", nil, nbd.CloseEOF},
		{"inside a header", header[:13], nbd.CloseTruncated},
		{"inside a short payload", nbdtest.Command{Type: nbdtest.CmdWrite, Length: 100, Payload: []byte("short")}.Append(nil), nbd.CloseTruncated},
		{"inside a long payload", append(header, make([]byte, 300_000)...), nbd.CloseTruncated},
		{"inside a skipped payload", nbdtest.Command{Type: nbdtest.CmdWrite, Flags: 1 << 15, Length: 1 << 20, Payload: make([]byte, 1000)}.Append(nil), nbd.CloseTruncated},
	}
	for _, network := range []string{"unix", "tcp", "pipe"} {
		for _, tt := range tests {
			t.Run(network+"/"+tt.name, func(t *testing.T) {
				d := nbdtest.NewManual(4 << 20)
				s := newServer(t, d, nbd.Limits{})
				other := s.client(network)
				c := s.client(network)
				// One request is with the device when the client vanishes.
				if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 4096}); err != nil {
					t.Fatal(err)
				}
				stuck := <-d.Requests
				if _, err := c.Conn.Write(tt.send); err != nil {
					t.Fatal(err)
				}
				if err := c.Conn.Close(); err != nil {
					t.Fatal(err)
				}
				// Serving the other meanwhile.
				if err := other.Send(nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 9}); err != nil {
					t.Fatal(err)
				}
				nbdtest.Complete(<-d.Requests, nbd.OK)
				if r, err := other.Receive(); err != nil || r.Cookie != 9 {
					t.Fatalf("%+v, %v", r, err)
				}
				s.waitStats("vanished client", func(st nbd.Stats) bool {
					return len(st.Connections) == 2 && st.Connections[1].Closing
				})
				if len(d.Closed) != 0 {
					t.Fatal("the session was closed with a request outstanding")
				}
				for i := range stuck.Data {
					stuck.Data[i] = 1 // the memory must still be the request's
				}
				nbdtest.Complete(stuck, nbd.OK)
				<-d.Closed
				s.waitStats("close", func(st nbd.Stats) bool { return st.Closes[tt.reason] == 1 && st.ConnectionsOpen == 1 })
			})
		}
	}
}

// TestDisconnect_FinishesInFlight: DISC waits for what was sent before it.
func TestDisconnect_FinishesInFlight(t *testing.T) {
	d := nbdtest.NewManual(1 << 20)
	s := newServer(t, d, nbd.Limits{})
	c := s.client("unix")
	if err := c.Send(
		nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 512},
		nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 2},
		nbdtest.Command{Type: nbdtest.CmdDisc},
	); err != nil {
		t.Fatal(err)
	}
	for want := range uint64(2) {
		nbdtest.Complete(<-d.Requests, nbd.OK)
		if r, err := c.Receive(); err != nil || r.Cookie != want+1 {
			t.Fatalf("%+v, %v, want cookie %d", r, err, want+1)
		}
	}
	expectEnd(t, c.Conn)
	<-d.Closed
}

// TestShutdown_Drains: what is in flight is answered, then the connection ends;
// those that negotiate are closed; new ones are not accepted.
func TestShutdown_Drains(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			d := nbdtest.NewManual(1 << 20)
			s := newServer(t, d, nbd.Limits{})
			c := s.client(network)
			haggling := s.dial(network)
			expect(t, haggling, hello)
			if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 5, Length: 4096}); err != nil {
				t.Fatal(err)
			}
			r := <-d.Requests
			done := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), deadline)
				defer cancel()
				done <- s.Shutdown(ctx)
			}()
			expectEnd(t, haggling)
			select {
			case err := <-done:
				t.Fatalf("Shutdown returned %v with a request in flight", err)
			default:
			}
			nbdtest.Complete(r, nbd.OK)
			if rep, err := c.Receive(); err != nil || rep.Cookie != 5 || len(rep.Data) != 4096 {
				t.Fatalf("%v, %v", rep.Cookie, err)
			}
			expectEnd(t, c.Conn)
			if err := c.Conn.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			st := s.Snapshot()
			if st.Closes[nbd.CloseShutdown] != 1 || st.NegotiationFailures[nbd.NegotiationShutdown] != 1 {
				t.Errorf("closes %v, failures %v", st.Closes, st.NegotiationFailures)
			}
			if nc, err := net.Dial(network, s.listener.Addr().String()); err == nil {
				_ = nc.Close()
				t.Error("the listener still accepts")
			}
		})
	}
}

// TestShutdown_Deadline: a device that completes nothing cannot hold Shutdown
// beyond its context, and completing long afterwards is harmless.
func TestShutdown_Deadline(t *testing.T) {
	d := nbdtest.NewManual(1 << 20)
	s := newServer(t, d, nbd.Limits{})
	c := s.client("unix")
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Length: 4096}); err != nil {
		t.Fatal(err)
	}
	r := <-d.Requests
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want the context's error", err)
	}
	expectEnd(t, c.Conn)
	nbdtest.Complete(r, nbd.OK)
	<-d.Closed
}

// synctestServer is a server inside a bubble, where time is free.
func synctestServer(t *testing.T, d nbd.Device, limits nbd.Limits) (*nbd.Server, *dma.Arena) {
	t.Helper()
	limits.MaxPayloadBytes = 1 << 20
	arena, err := dma.NewArena(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	set, err := nbd.NewExportSet(nbd.Export{Name: "disk0", Device: d})
	if err != nil {
		t.Fatal(err)
	}
	return &nbd.Server{Exports: set, Arena: arena, Limits: limits}, arena
}

func pipeTo(s *nbd.Server) net.Conn {
	ours, theirs := net.Pipe()
	go func() { _ = s.ServeConn(theirs) }()
	return ours
}

func TestHandshake_Timeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
		begin := time.Now()
		nc := pipeTo(s)
		expect(t, nc, hello)
		expectEnd(t, nc)
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("closed after %v, want 10s", d)
		}
		synctest.Wait()
		if n := s.Snapshot().NegotiationFailures[nbd.NegotiationTimeout]; n != 1 {
			t.Errorf("%d timeouts counted, want 1", n)
		}
	})
}

// TestHandshake_NoMemory: the time for the handshake covers a wait for memory, and is what
// the end of that is counted as.
func TestHandshake_NoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, arena := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
		for size := arena.SizeBytes(); size >= 4096; size /= 2 {
			for mem := arena.Alloc(size); mem != nil; { // never given back
				mem = arena.Alloc(size)
			}
		}
		begin := time.Now()
		nc := pipeTo(s)
		expect(t, nc, hello)
		<-time.After(6 * time.Second)
		if _, err := nc.Write(append(hx(fixedNoZer), option(goTo, infoData("disk0"))...)); err != nil {
			t.Fatal(err)
		}
		expectEnd(t, nc)
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("closed after %v, want 10s", d)
		}
		synctest.Wait()
		if n := s.Snapshot().NegotiationFailures[nbd.NegotiationTimeout]; n != 1 {
			t.Errorf("failures %v, want one timeout", s.Snapshot().NegotiationFailures)
		}
	})
}

// TestHandshake_NoMemoryDrain: a client that waits for memory does not hold up a drain of the
// server, nor one of the device that it is about to get, and is told.
func TestHandshake_NoMemoryDrain(t *testing.T) {
	for name, drain := range map[string]func(context.Context, *nbd.Server, nbd.Device) error{
		"server": func(ctx context.Context, s *nbd.Server, _ nbd.Device) error { return s.Shutdown(ctx) },
		"device": func(ctx context.Context, s *nbd.Server, d nbd.Device) error {
			_, err := s.DrainDevice(ctx, d)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := nbdtest.NewMemory(4096)
				s, arena := synctestServer(t, d, nbd.Limits{})
				for size := arena.SizeBytes(); size >= 4096; size /= 2 {
					for mem := arena.Alloc(size); mem != nil; { // never given back
						mem = arena.Alloc(size)
					}
				}
				h := &haggler{t: t, nc: pipeTo(s)}
				expect(t, h.nc, hello)
				h.write(hx(fixedNoZer))
				h.write(option(goTo, infoData("disk0")))
				synctest.Wait()
				begin := time.Now()
				drained := make(chan error, 1)
				go func() { drained <- drain(t.Context(), s, d) }()
				if typ, data := readReply(t, h.nc, goTo); replyInWords(t, typ, data) != "ERR_SHUTDOWN" {
					t.Errorf("reply %s, want ERR_SHUTDOWN", replyInWords(t, typ, data))
				}
				h.ended()
				if err := <-drained; err != nil {
					t.Error(err)
				}
				if took := time.Since(begin); took > time.Second {
					t.Errorf("the drain took %v", took)
				}
				synctest.Wait()
				if n := s.Snapshot().NegotiationFailures[nbd.NegotiationShutdown]; n != 1 {
					t.Errorf("failures %v, want one because of the drain", s.Snapshot().NegotiationFailures)
				}
			})
		})
	}
}

// TestReplyTimeout: a client that never takes its replies is closed.
func TestReplyTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{ReplyTimeout: 5 * time.Second})
		c, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Length: 4096}); err != nil {
			t.Fatal(err)
		}
		for s.Snapshot().ConnectionsOpen > 0 {
			<-time.After(100 * time.Millisecond)
		}
		if d := time.Since(begin); d < 5*time.Second || d > 8*time.Second {
			t.Errorf("closed after %v, want a little more than 5s", d)
		}
		if n := s.Snapshot().Closes[nbd.CloseReplyTimeout]; n != 1 {
			t.Errorf("closes %v, want one by reply timeout", s.Snapshot().Closes)
		}
	})
}

// TestRequestTimeout: a client that begins a request and stops is closed; one
// that is merely idle is not.
func TestRequestTimeout(t *testing.T) {
	long := nbdtest.Command{Type: nbdtest.CmdWrite, Length: 1 << 20, Payload: make([]byte, 70_000)}.Append(nil)
	for name, sent := range map[string][]byte{
		"header":          long[:27],
		"long payload":    long,
		"short payload":   nbdtest.Command{Type: nbdtest.CmdWrite, Length: 100, Payload: []byte("short")}.Append(nil),
		"skipped payload": nbdtest.Command{Type: nbdtest.CmdWrite, Flags: 1 << 15, Length: 4096}.Append(nil),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, arena := synctestServer(t, nbdtest.NewMemory(1<<20), nbd.Limits{ReplyTimeout: 5 * time.Second})
				idle, err := nbdtest.NewClient(pipeTo(s), "disk0")
				if err != nil {
					t.Fatal(err)
				}
				c, err := nbdtest.NewClient(pipeTo(s), "disk0")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.Conn.Write(sent); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				if err := c.Conn.SetReadDeadline(begin.Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
				expectEnd(t, c.Conn)
				if d := time.Since(begin); d < 5*time.Second || d > 8*time.Second {
					t.Errorf("closed after %v, want a little more than 5s", d)
				}
				<-time.After(time.Minute)
				if n := s.Snapshot().Closes[nbd.CloseRequestTimeout]; n != 1 {
					t.Errorf("closes %v, want one by request timeout", s.Snapshot().Closes)
				}
				must(t, idle, nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 1}, nbd.OK)
				if err := idle.Close(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if n := arena.Stats().InUseBytes; n != 0 {
					t.Errorf("%d bytes in use", n)
				}
			})
		})
	}
}

// TestStalledClient: a client that takes no replies does not take the memory
// that others need.
func TestStalledClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, arena := synctestServer(t, nbdtest.NewMemory(1<<20), nbd.Limits{})
		stalled, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for i := range uint64(64) {
				if stalled.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: i, Length: 200_000}) != nil {
					return // the server has given it up
				}
			}
		}()
		synctest.Wait()
		if n := s.Snapshot().Connections[0].HeldBytes; n < arena.SizeBytes()/8 {
			t.Fatalf("the stalled client holds %d bytes: the test does not test", n)
		}
		other, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for i := range uint64(10) {
			must(t, other, nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: i, Length: 200_000, Payload: make([]byte, 200_000)}, nbd.OK)
			must(t, other, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: i, Length: 200_000}, nbd.OK)
		}
		if d := time.Since(begin); d > time.Second {
			t.Errorf("the other client waited %v", d)
		}
		if err := errors.Join(stalled.Conn.Close(), other.Close()); err != nil {
			t.Fatal(err)
		}
		<-sent
	})
}

// TestStalledWriters: clients that do not go on with their writes do not take the memory
// that others need, neither for what they have begun nor for what they may send next.
func TestStalledWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stalled, block = 9, 256 << 10
		s, arena := synctestServer(t, nbdtest.NewMemory(1<<20), nbd.Limits{})
		var clients []*nbdtest.Client
		for range stalled {
			c, err := nbdtest.NewClient(pipeTo(s), "disk0")
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
			b := nbdtest.Command{Type: nbdtest.CmdWrite, Length: 200_000, Payload: make([]byte, 200_000)}.Append(nil)
			if _, err := c.Conn.Write(b[:len(b)-1]); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if n := arena.Stats().InUseBytes; len(clients) == 1 && n < 2*block {
				t.Fatalf("a stalled client holds %d bytes, want some for its next write: the test does not test", n)
			}
		}
		other, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		must(t, other, nbdtest.Command{Type: nbdtest.CmdWrite, Length: 100_000, Payload: make([]byte, 100_000)}, nbd.OK)
		if d := time.Since(begin); d > time.Second {
			t.Errorf("the other client waited %v", d)
		}
		for _, c := range append(clients, other) {
			_ = c.Conn.Close()
		}
	})
}

// TestIdle: a connection that was busy gives its memory back when it rests.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, arena := synctestServer(t, nbdtest.NewMemory(1<<20), nbd.Limits{})
		c, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		var cmds []nbdtest.Command
		for i := range uint64(200) {
			cmds = append(cmds, nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: i, Length: 30_000, Payload: make([]byte, 30_000)},
				nbdtest.Command{Type: nbdtest.CmdRead, Cookie: i + 1000, Length: 30_000})
		}
		sent := make(chan error, 1)
		go func() { sent <- c.Send(cmds...) }()
		for range cmds {
			if _, err := c.Receive(); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := arena.Stats().InUseBytes; n <= 64<<10 {
			t.Fatalf("busy connection holds %d bytes: the test does not test", n)
		}
		<-time.After(5 * time.Second)
		synctest.Wait()
		if n := arena.Stats().InUseBytes; n > 32<<10 {
			t.Errorf("idle connection holds %d bytes, want at most 32 KiB", n)
		}
		must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 100_000}, nbd.OK)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestNoMemory: a request that cannot have memory for a while is answered with
// ENOMEM, its payload skipped, and the connection goes on.
func TestNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, arena := synctestServer(t, nbdtest.NewMemory(1<<20), nbd.Limits{})
		c, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 4096}, nbd.OK)
		var taken [][]byte
		for b := arena.Alloc(64 << 10); b != nil; b = arena.Alloc(64 << 10) {
			taken = append(taken, b)
		}
		must(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 2, Length: 200_000, Payload: make([]byte, 200_000)}, nbd.ENOMEM)
		must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 3, Length: 200_000}, nbd.ENOMEM)
		must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 4, Length: 4096}, nbd.OK)
		// A request that waits gets what others return.
		if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 5, Length: 200_000}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for _, b := range taken {
			arena.Free(b)
		}
		if r, err := c.Receive(); err != nil || r.Errno != nbd.OK || len(r.Data) != 200_000 {
			t.Fatalf("%v, %v", r.Errno, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestMemory_ScarceNoMore: a request that waits as memory is scarce gets it when others have
// returned some, whatever the device does with those before it.
func TestMemory_ScarceNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := nbdtest.NewManual(1 << 20)
		s, arena := synctestServer(t, d, nbd.Limits{})
		c, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		read := nbdtest.Command{Type: nbdtest.CmdRead, Length: 200_000}
		if err := c.Send(read); err != nil {
			t.Fatal(err)
		}
		requests := []*nbd.Request{<-d.Requests}
		var taken [][]byte
		for !arena.Scarce() {
			taken = append(taken, arena.Alloc(64<<10))
		}
		if err := c.Send(read); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(d.Requests) != 0 {
			t.Fatal("the request has memory: the test does not test")
		}
		for _, b := range taken {
			arena.Free(b)
		}
		select {
		case r := <-d.Requests:
			requests = append(requests, r)
		case <-time.After(10 * time.Second):
			t.Error("the request waits for another one, and not for memory")
		}
		_ = c.Conn.Close()
		for _, r := range requests {
			nbdtest.Complete(r, nbd.EIO)
		}
	})
}

// TestMemory_Patience: a request of ordinary size waits for memory as long as
// others may hold it, and is not failed.
func TestMemory_Patience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, arena := synctestServer(t, nbdtest.NewMemory(1<<20), nbd.Limits{})
		c, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		var taken [][]byte
		for b := arena.Alloc(4096); b != nil; b = arena.Alloc(4096) {
			taken = append(taken, b)
		}
		begin := time.Now()
		time.AfterFunc(50*time.Second, func() {
			for _, b := range taken {
				arena.Free(b)
			}
		})
		must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 4096}, nbd.OK)
		if d := time.Since(begin); d != 50*time.Second {
			t.Errorf("answered after %v, want when there was memory, 50s", d)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// takeAll takes all memory that is left.
func takeAll(arena *dma.Arena) (taken [][]byte) {
	for size := arena.SizeBytes(); size >= dma.MinBlockBytes; size /= 2 {
		for b := arena.Alloc(size); b != nil; b = arena.Alloc(size) {
			taken = append(taken, b)
		}
	}
	return taken
}

// TestMemory_Drain: a request that waits for memory does not hold up a drain, of the server or
// of its device alone. It has a moment to get some, and is answered if it does.
func TestMemory_Drain(t *testing.T) {
	drains := map[string]func(context.Context, *nbd.Server, nbd.Device) error{
		"server": func(ctx context.Context, s *nbd.Server, _ nbd.Device) error { return s.Shutdown(ctx) },
		"device": func(ctx context.Context, s *nbd.Server, d nbd.Device) error {
			_, err := s.DrainDevice(ctx, d)
			return err
		},
	}
	for name, drain := range drains {
		for _, returned := range []bool{false, true} {
			for _, length := range []uint32{4096, 200_000} {
				t.Run(fmt.Sprintf("%s/%d bytes/returned %t", name, length, returned), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						d := nbdtest.NewMemory(1 << 20)
						s, arena := synctestServer(t, d, nbd.Limits{})
						c, err := nbdtest.NewClient(pipeTo(s), "disk0")
						if err != nil {
							t.Fatal(err)
						}
						taken := takeAll(arena)
						if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: length}); err != nil {
							t.Fatal(err)
						}
						synctest.Wait()
						begin := time.Now()
						drained := make(chan error, 1)
						go func() { drained <- drain(t.Context(), s, d) }()
						if returned {
							synctest.Wait()
							for _, b := range taken {
								arena.Free(b)
							}
							if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
								t.Errorf("%v, %v", r.Errno, err)
							}
						}
						expectEnd(t, c.Conn)
						if err := <-drained; err != nil {
							t.Error(err)
						}
						if took := time.Since(begin); took > 2*time.Second {
							t.Errorf("the drain took %v", took)
						}
						if n := s.Snapshot().Closes[nbd.CloseShutdown]; n != 1 {
							t.Errorf("closes %v, want one because of the drain", s.Snapshot().Closes)
						}
						_ = s.Shutdown(t.Context())
					})
				})
			}
		}
	}
}

// TestMemory_NotIdle: a connection whose request waits for memory is not idle.
func TestMemory_NotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, arena := synctestServer(t, nbdtest.NewMemory(1<<20), nbd.Limits{IdleTimeout: 20 * time.Second})
		c, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		taken := takeAll(arena)
		time.AfterFunc(50*time.Second, func() {
			for _, b := range taken {
				arena.Free(b)
			}
		})
		must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 4096}, nbd.OK)
		begin := time.Now()
		expectEnd(t, c.Conn) // now it is
		if d := time.Since(begin); d < 20*time.Second || d > 40*time.Second {
			t.Errorf("closed after %v, want 20s or a little more", d)
		}
		synctest.Wait()
		if n := s.Snapshot().Closes[nbd.CloseIdle]; n != 1 {
			t.Errorf("closes %v, want an idle one", s.Snapshot().Closes)
		}
	})
}

// TestMemory_OwnBlock: a connection that waits for memory goes on when a block that it has can
// be used again, because what was in flight has been answered.
func TestMemory_OwnBlock(t *testing.T) {
	for name, cmd := range map[string]nbdtest.Command{
		"receive block": {Type: nbdtest.CmdWrite, Length: 4096, Payload: make([]byte, 4096)},
		"reply block":   {Type: nbdtest.CmdRead, Length: 16 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := nbdtest.NewManual(1 << 20)
				s, arena := synctestServer(t, d, nbd.Limits{})
				c, err := nbdtest.NewClient(pipeTo(s), "disk0")
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Send(cmd); err != nil {
					t.Fatal(err)
				}
				nbdtest.Complete(<-d.Requests, nbd.OK) // now there is a reply block
				if _, err := c.Receive(); err != nil {
					t.Fatal(err)
				}
				takeAll(arena) // never given back
				sent := make(chan error, 1)
				const commands = 12
				go func() {
					for cookie := range uint64(commands) {
						cmd.Cookie = cookie
						if err := c.Send(cmd); err != nil {
							sent <- err
							return
						}
					}
					sent <- nil
				}()
				synctest.Wait()
				if n := len(d.Requests); n == 0 || n == commands {
					t.Fatalf("%d of %d requests have memory: the test does not test", n, commands)
				}
				begin := time.Now()
				go func() {
					for range commands {
						nbdtest.Complete(<-d.Requests, nbd.OK)
					}
				}()
				for range commands {
					if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
						t.Fatalf("%v, %v", r.Errno, err)
					}
				}
				if took := time.Since(begin); took > time.Second {
					t.Errorf("all was answered after %v, though nobody else had anything to do with it", took)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
				_ = s.Shutdown(t.Context())
			})
		})
	}
}

// TestMemory_OwnBlockInBudget: a connection that may have no more memory until a long request is
// answered goes on when its reply block can be used again.
func TestMemory_OwnBlockInBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := nbdtest.NewManual(1 << 20)
		s, _ := synctestServer(t, d, nbd.Limits{MaxBytesInFlight: 256 << 10})
		c, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		read := func(cookie uint64, length uint32) {
			t.Helper()
			if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: cookie, Length: length}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		read(0, 128<<10)
		long := <-d.Requests
		last := uint64(0)
		for len(d.Requests) == int(last) {
			last++
			read(last, 16<<10)
		}
		for range last - 1 {
			nbdtest.Complete(<-d.Requests, nbd.OK)
			get(t, c)
		}
		synctest.Wait()
		if n := len(d.Requests); n != 1 {
			t.Errorf("%d requests go on with the reply block, want the one that waits for it", n)
		}
		nbdtest.Complete(long, nbd.OK)
		get(t, c)
		nbdtest.Complete(<-d.Requests, nbd.OK)
		get(t, c)
		_ = s.Shutdown(t.Context())
	})
}

// flakyListener fails Accept a few times before it goes on.
type flakyListener struct {
	net.Listener
	errs []error
}

func (l *flakyListener) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, err
	}
	return l.Listener.Accept()
}

func TestServe_AcceptErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
	var log logLines
	s.Log = slog.New(slog.NewJSONHandler(&log, nil))
	s.listener, s.served = l, make(chan error, 1)
	go func() {
		s.served <- s.Serve(&flakyListener{Listener: l, errs: []error{
			&net.OpError{Op: "accept", Err: syscall.EMFILE}, &net.OpError{Op: "accept", Err: syscall.ECONNABORTED},
		}})
	}()
	must(t, s.client("tcp"), nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 1}, nbd.OK)
	if got := log.String(); !strings.Contains(got, `"error":"accept: too many open files"`) {
		t.Errorf("the log has %s", got)
	}

	boom := errors.New("boom")
	if err := s.Serve(&flakyListener{Listener: nopListener{}, errs: []error{boom}}); !errors.Is(err, boom) {
		t.Errorf("got %v, want boom", err)
	}
}

// A scriptedListener has an error or a connection for each Accept, then waits for its end.
type scriptedListener struct {
	nopListener
	outcomes chan any
	once     sync.Once
	closed   chan struct{}
}

func (l *scriptedListener) Accept() (net.Conn, error) {
	select {
	case o := <-l.outcomes:
		if err, isErr := o.(error); isErr {
			return nil, err
		}
		return o.(net.Conn), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *scriptedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// TestServe_Drought: as long as there are no descriptors, Accept is tried once a second, and
// the log has one line about it, and one about the end; a shortage that comes and goes does
// not fill the log.
func TestServe_Drought(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logLines
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
		s.Log = slog.New(slog.NewTextHandler(&log, nil))
		l := &scriptedListener{outcomes: make(chan any), closed: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		none := &net.OpError{Op: "accept", Err: syscall.EMFILE}
		connect := func() {
			ours, theirs := net.Pipe()
			l.outcomes <- theirs
			expect(t, ours, hello)
			_ = ours.Close()
			synctest.Wait()
		}
		begun := time.Now()
		const failures = 100
		for range failures {
			l.outcomes <- none
		}
		connect()
		// 5, 10, … 640 ms, and a second each time from then on
		if took, want := time.Since(begun), 1275*time.Millisecond+(failures-8)*time.Second; took != want {
			t.Errorf("%d failures took %v, want %v", failures, took, want)
		}
		if n := strings.Count(log.String(), "cannot accept"); n != 1 {
			t.Errorf("%d lines about one shortage, want 1:\n%s", n, log.String())
		}
		if want := `msg="accepts again" listener=nowhere failures=100 after=1m33.275s`; !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, log.String())
		}
		log.text.Reset()
		for range failures {
			l.outcomes <- none
			connect()
		}
		if n := strings.Count(log.String(), "cannot accept"); n < 1 || n > 12 {
			t.Errorf("%d lines about %d shortages within a second, want 10 and one a second", n, failures)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

type nopListener struct{}

func (nopListener) Accept() (net.Conn, error) { return nil, io.EOF }
func (nopListener) Close() error              { return nil }
func (nopListener) Addr() net.Addr            { return &net.UnixAddr{Name: "nowhere", Net: "unix"} }

func TestServer_Configuration(t *testing.T) {
	arena, err := dma.NewArena(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	set, err := nbd.NewExportSet()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		server *nbd.Server
	}{
		{"no exports", &nbd.Server{Arena: arena}},
		{"no arena", &nbd.Server{Exports: set}},
		{"arena too small", &nbd.Server{Exports: set, Arena: arena}},
		{"MaxRequests", &nbd.Server{Exports: set, Arena: arena, Limits: nbd.Limits{MaxRequests: 4097, MaxPayloadBytes: 1 << 20}}},
		{"MaxConnections", &nbd.Server{Exports: set, Arena: arena, Limits: nbd.Limits{MaxConnections: -1, MaxPayloadBytes: 1 << 20}}},
		{"MaxPayloadBytes", &nbd.Server{Exports: set, Arena: arena, Limits: nbd.Limits{MaxPayloadBytes: 1}}},
		{"ReplyTimeout", &nbd.Server{Exports: set, Arena: arena, Limits: nbd.Limits{ReplyTimeout: -1, MaxPayloadBytes: 1 << 20}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			if err := tt.server.ServeConn(theirs); err == nil {
				t.Error("ServeConn took the configuration")
			}
			expectEnd(t, ours)
		})
	}
}

func TestExportSet(t *testing.T) {
	d := nbdtest.NewMemory(1)
	set, err := nbd.NewExportSet(nbd.Export{Name: "a", Device: d}, nbd.Export{Name: "b", Device: d})
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := set.Lookup(""); !ok || e.Name != "a" {
		t.Errorf("the default export is %q, %v, want a", e.Name, ok)
	}
	if err := set.Replace(nbd.Export{Name: "c", Device: d}, nbd.Export{Name: "c", Device: d}); err == nil {
		t.Error("a name was taken twice")
	}
	if err := set.Replace(nbd.Export{Name: "\xff", Device: d}); err == nil {
		t.Error("a name that is not UTF-8 was taken")
	}
	if err := set.Replace(nbd.Export{Name: "x"}); err == nil {
		t.Error("an export without a device was taken")
	}
	if l := set.List(); len(l) != 2 {
		t.Errorf("failed Replace left %d exports, want the 2 from before", len(l))
	}
	if err := set.Replace(nbd.Export{Name: "b", Device: d}, nbd.Export{Name: "", Device: d}); err != nil {
		t.Fatal(err)
	}
	if e, ok := set.Lookup(""); !ok || e.Name != "" {
		t.Errorf("the default export is %q, %v, want the one without a name", e.Name, ok)
	}
	if _, ok := set.Lookup("a"); ok {
		t.Error("a is still there")
	}
}
