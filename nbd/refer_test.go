package nbd_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestRefer: long reads whose pages were lent and short ones come in whatever order, to a
// client that at first takes nothing, as they were on the disk.
func TestRefer(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, dia := range dialects() {
			for _, async := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/async=%t", network, dia.name, async), func(t *testing.T) {
					const seed, diskBytes, depth = 7, 4 << 20, 40
					d := nbdtest.NewMemory(diskBytes)
					d.Async, d.Seed = async, seed
					random := rand.New(rand.NewPCG(seed, 1))
					disk := make([]byte, diskBytes)
					for i := range disk {
						disk[i] = byte(random.Uint32())
					}
					d.Fill(disk)
					s := newServer(t, d, nbd.Limits{})
					c := s.speak(network, dia)
					var commands []nbdtest.Command
					for i := range depth {
						n := []int{512, dma.PipeLeastBytes - 512, dma.PipeLeastBytes, 100_000, 256 << 10, payloadBytes}[random.IntN(6)]
						commands = append(commands, nbdtest.Command{
							Type: nbdtest.CmdRead, Cookie: uint64(i),
							Offset: uint64(random.IntN((diskBytes-n)/512+1)) * 512, Length: uint32(n),
						})
					}
					if err := c.Send(commands...); err != nil {
						t.Fatal(err)
					}
					for range commands {
						r, err := c.Receive()
						if err != nil {
							t.Fatalf("seed %d: %v", seed, err)
						}
						cmd := commands[r.Cookie]
						if r.Errno != nbd.OK || !bytes.Equal(r.Data, disk[cmd.Offset:][:cmd.Length]) {
							t.Fatalf("seed %d: %v: %v, or other data than the disk's", seed, cmd, r.Errno)
						}
					}
					if err := c.Close(); err != nil {
						t.Fatal(err)
					}
					st := s.waitStats("end", func(st nbd.Stats) bool { return len(st.Connections) == 0 })
					if st.LentBytes < dma.PipeLeastBytes || st.LentBytes >= st.SentBytes {
						t.Errorf("%d of %d bytes were lent", st.LentBytes, st.SentBytes)
					}
					if n := s.Arena.Stats().PipesInUse; n != 0 {
						t.Errorf("%d pipes are in use", n)
					}
				})
			}
		}
	}
}

// lending is a server with one client and a device whose requests are the test's to answer.
type lending struct {
	*testServer
	device *nbdtest.Manual
	iommu  *dma.IOMMU
	client *nbdtest.Client
}

func newLending(t *testing.T, network string, dia dialect) *lending {
	t.Helper()
	d := nbdtest.NewManual(4 << 20)
	s := newServer(t, d, nbd.Limits{})
	if dia.TLS != nil {
		panic("not here: secure makes the dialect for one server")
	}
	return &lending{s, d, dma.NewIOMMU(s.Arena), s.speak(network, dia)}
}

// read sends a read of n bytes and returns it as the device gets it.
func (l *lending) read(t *testing.T, n int) *nbd.Request {
	t.Helper()
	if err := l.client.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 5, Length: uint32(n)}); err != nil {
		t.Fatal(err)
	}
	return <-l.device.Requests
}

// end closes the client, and sees to it that all pipes are back.
func (l *lending) end(t *testing.T) {
	t.Helper()
	_ = l.client.Conn.Close()
	<-l.device.Closed
	l.waitStats("end", func(st nbd.Stats) bool { return len(st.Connections) == 0 })
	if n := l.Arena.Stats().PipesInUse; n != 0 {
		t.Errorf("%d pipes are in use", n)
	}
}

// TestRefer_None: there are no pages to fill for short reads and very long ones, for
// writes, where there is no socket to take them, or TLS, and for a server that copies.
func TestRefer_None(t *testing.T) {
	const mostBytes = 2 << 20
	authority := nbdtest.NewAuthority(t)
	for _, tt := range []struct {
		network string
		secure  bool
		copies  bool
		bytes   int
		write   bool
		want    bool
	}{
		{network: "unix", bytes: dma.PipeLeastBytes, want: true},
		{network: "tcp", bytes: dma.PipeMostBytes, want: true},
		{network: "unix", bytes: dma.PipeLeastBytes - 512},
		{network: "unix", bytes: dma.PipeMostBytes + 512},
		{network: "unix", bytes: dma.PipeLeastBytes, write: true},
		{network: "pipe", bytes: dma.PipeLeastBytes},
		{network: "unix", bytes: dma.PipeLeastBytes, secure: true},
		{network: "unix", bytes: dma.PipeLeastBytes, copies: true},
	} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			d := nbdtest.NewManual(4 << 20)
			s := newServer(t, d, nbd.Limits{MaxPayloadBytes: mostBytes})
			s.CopyReads = tt.copies
			m := dma.NewIOMMU(s.Arena)
			dia := dialects()[1]
			if tt.secure {
				dia = s.secure(dia, authority)
			}
			c := s.speak(tt.network, dia)
			cmd := nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 5, Length: uint32(tt.bytes)}
			if tt.write {
				cmd.Type, cmd.Payload = nbdtest.CmdWrite, make([]byte, tt.bytes)
			}
			sent := make(chan error, 1)
			go func() { sent <- c.Send(cmd) }() // a pipe keeps nothing
			r := <-d.Requests
			if got := !m.PagesOf(r.Data).Expired(); got != tt.want {
				t.Errorf("pages: %t", got)
			}
			clear(r.Data)
			nbdtest.Complete(r, nbd.OK)
			if _, err := c.Receive(); err != nil {
				t.Error(err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRefer_Failed: pages of a request that failed are not sent, and nobody else gets them.
func TestRefer_Failed(t *testing.T) {
	for _, dia := range dialects() {
		t.Run(dia.name, func(t *testing.T) {
			l := newLending(t, "unix", dia)
			r := l.read(t, 256<<10)
			if !nbdtest.Lend(l.iommu, r, pattern(256<<10, 1)) {
				t.Fatal("no pages")
			}
			nbdtest.Complete(r, nbd.EIO)
			if got, err := l.client.Receive(); err != nil || got.Errno != nbd.EIO {
				t.Errorf("%v, %v", got.Errno, err)
			}
			want := pattern(256<<10, 2)
			r = l.read(t, len(want))
			if !nbdtest.Lend(l.iommu, r, want) {
				t.Fatal("no pages")
			}
			nbdtest.Complete(r, nbd.OK)
			if got, err := l.client.Receive(); err != nil || got.Errno != nbd.OK || !bytes.Equal(got.Data, want) {
				t.Errorf("%v, %v, or other data", got.Errno, err)
			}
			l.end(t)
		})
	}
}

// TestRefer_Returned: a pipe that does not hold what is to be sent is returned without waiting
// for the reply.
func TestRefer_Returned(t *testing.T) {
	l := newLending(t, "unix", dialects()[0])
	for _, tt := range []struct {
		lends bool
		errno nbd.Errno
	}{{false, nbd.OK}, {false, nbd.EIO}, {true, nbd.EIO}} {
		r := l.read(t, dma.PipeLeastBytes)
		clear(r.Data)
		if tt.lends && !nbdtest.Lend(l.iommu, r, pattern(dma.PipeLeastBytes, 1)) {
			t.Fatal("no pages")
		}
		c, flush := r.Conn(), r.Complete(tt.errno)
		if n := l.Arena.Stats().PipesInUse; n != 0 {
			t.Errorf("%+v: %d pipes are in use before the reply is sent", tt, n)
		}
		if flush {
			c.Flush()
		}
		if got, err := l.client.Receive(); err != nil || got.Errno != tt.errno {
			t.Errorf("%+v: %v, %v", tt, got.Errno, err)
		}
	}
	l.end(t)
}

// TestRefer_Lie: a device that has not put into a pipe what it says it has ends the
// connection.
func TestRefer_Lie(t *testing.T) {
	for _, size := range []int{0, 1000} {
		l := newLending(t, "unix", dialects()[0])
		r := l.read(t, dma.PipeLeastBytes)
		pages := l.iommu.PagesOf(r.Data)
		fd, ok := pages.Begin()
		if !ok {
			t.Fatal("no pages")
		}
		want := pattern(size, 1)
		if n, err := unix.Write(fd, want); n != size || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		pages.End(true)
		nbdtest.Complete(r, nbd.OK)
		if got, err := io.ReadAll(l.client.Conn); err != nil || !bytes.HasSuffix(got, want) || len(got) != 16+size {
			t.Errorf("%d bytes of reply, %v, want %d", len(got), err, 16+size)
		}
		l.end(t)
		if n := l.Snapshot().Closes[nbd.CloseWriteError]; n != 1 {
			t.Errorf("%d connections ended by a write error, want 1", n)
		}
	}
}

// TestRefer_Holes: a reply of pages and holes is made up in memory.
func TestRefer_Holes(t *testing.T) {
	for _, dia := range dialects()[1:] {
		t.Run(dia.name, func(t *testing.T) {
			l := newLending(t, "unix", dia)
			want := pattern(256<<10, 1)
			clear(want[4096:8192])
			r := l.read(t, len(want))
			if !nbdtest.Lend(l.iommu, r, want) || !r.AddHole(4096, 4096) {
				t.Fatal("no pages, or no holes")
			}
			nbdtest.Complete(r, nbd.OK)
			got, err := l.client.Receive()
			if err != nil || !bytes.Equal(got.Data, want) || len(got.Holes) != 1 {
				t.Errorf("%v, or other data, %d holes", err, len(got.Holes))
			}
			l.end(t)
		})
	}
}

// TestRefer_Abandoned: once a request is abandoned, the device, which may still work on it,
// can no longer fill its pages.
func TestRefer_Abandoned(t *testing.T) {
	l := newLending(t, "unix", dialects()[1])
	r := l.read(t, 256<<10)
	pages := l.iommu.PagesOf(r.Data)
	conn := r.Conn()
	loan, flush := r.Abandon(nbd.EIO)
	if _, ok := pages.Begin(); ok {
		t.Error("they can still be filled, before the reply is sent")
	}
	if flush {
		conn.Flush()
	}
	if got, err := l.client.Receive(); err != nil || got.Errno != nbd.EIO {
		t.Errorf("%v, %v", got.Errno, err)
	}
	loan.Return()
	l.end(t)
}

// TestRefer_Share: a client has so many pipes and no more, and others have theirs.
func TestRefer_Share(t *testing.T) {
	const reads, most = 12, 8
	l := newLending(t, "unix", dialects()[0])
	other := l.speak("unix", dialects()[0])
	for _, c := range []*nbdtest.Client{l.client, other} {
		var requests []*nbd.Request
		lent := 0
		for range reads {
			if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Length: dma.PipeLeastBytes}); err != nil {
				t.Fatal(err)
			}
			r := <-l.device.Requests
			if !l.iommu.PagesOf(r.Data).Expired() {
				lent++
			}
			clear(r.Data)
			requests = append(requests, r)
		}
		if lent != most {
			t.Errorf("%d of %d reads have a pipe, want %d", lent, reads, most)
		}
		defer func() {
			for _, r := range requests {
				nbdtest.Complete(r, nbd.OK)
			}
			_ = c.Conn.Close()
			<-l.device.Closed
		}()
	}
}

// TestRefer_Again: a connection has its pipes back however its requests ended.
func TestRefer_Again(t *testing.T) {
	const size = 64 << 10
	l := newLending(t, "unix", dialects()[1])
	for i := range 30 {
		r := l.read(t, size)
		switch i % 5 {
		case 0:
			if !nbdtest.Lend(l.iommu, r, pattern(size, byte(i))) {
				t.Fatalf("read %d has no pipe", i)
			}
			nbdtest.Complete(r, nbd.OK)
		case 1:
			clear(r.Data) // from memory
			nbdtest.Complete(r, nbd.OK)
		case 2:
			nbdtest.Complete(r, nbd.EIO)
		case 3:
			conn := r.Conn()
			loan, flush := r.Abandon(nbd.EIO)
			if flush {
				conn.Flush()
			}
			loan.Return()
		case 4:
			nbdtest.Lend(l.iommu, r, pattern(size, byte(i)))
			nbdtest.Complete(r, nbd.EIO)
		}
		if _, err := l.client.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	l.end(t)
}

// TestRefer_Leaves: a client that goes with replies on their way leaves nothing behind.
func TestRefer_Leaves(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			l := newLending(t, network, dialects()[0])
			for range 2 { // more than a unix socket holds
				r := l.read(t, payloadBytes)
				nbdtest.Lend(l.iommu, r, pattern(payloadBytes, 1))
				nbdtest.Complete(r, nbd.OK)
			}
			if _, err := io.CopyN(io.Discard, l.client.Conn, payloadBytes/2); err != nil {
				t.Fatal(err)
			}
			l.end(t)
		})
	}
}

// TestRefer_Cut: a reply breaks off where it should though its data were lent.
func TestRefer_Cut(t *testing.T) {
	for i, dia := range dialects() {
		for _, at := range []uint32{0, 16, 1000, 100_000, nbd.HalfReply} {
			t.Run(fmt.Sprintf("%s/%d", dia.name, at), func(t *testing.T) {
				l := newLending(t, "unix", dia)
				data := pattern(256<<10, 1)
				header := []int{16, 28, 40}[i]
				r := l.read(t, len(data))
				if !nbdtest.Lend(l.iommu, r, data) {
					t.Fatal("no pages")
				}
				r.CutReply(at)
				nbdtest.Complete(r, nbd.OK)
				got, err := io.ReadAll(l.client.Conn)
				if err != nil {
					t.Fatal(err)
				}
				want := int(at)
				if at == nbd.HalfReply {
					want = []int{16, 20 + 4, 32 + 4}[i] + len(data)/2
				}
				if len(got) != want || want > header && !bytes.Equal(got[header:], data[:want-header]) {
					t.Errorf("%d bytes, want %d, or other ones", len(got), want)
				}
				l.end(t)
			})
		}
	}
}
