package nbd

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/internal/dma"
)

// A broken stream takes so many bytes, a few at a time, and then fails. It discards pages.
type broken struct {
	stream
	left int
}

func (s *broken) take(n int) (int, error) {
	if s.left == 0 {
		return 0, io.ErrClosedPipe
	}
	n = min(n, s.left, 10_000)
	s.left -= n
	return n, nil
}

func (s *broken) tryWrite(bufs [][]byte) (int, error) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return s.take(n)
}

func (s *broken) tryWriteMore(bufs [][]byte) (int, error) { return s.tryWrite(bufs) }
func (s *broken) trySplice(pages *dma.Pipe) (int, error)  { return s.take(pages.Left()) }
func (s *broken) splice(pages *dma.Pipe) (int, error)     { return s.trySplice(pages) }

// TestSend_PagesTold: of replies with pages and without, the client has got those that have
// gone whole when the connection breaks, and no other.
func TestSend_PagesTold(t *testing.T) {
	const data = dma.PipeLeastBytes
	for _, tt := range []struct {
		format      format
		flush, read int // bytes of the replies
	}{
		{formatSimple, 16, 16 + data},
		{formatStructured, 16, 20 + 8 + data},
		{formatExtended, 32, 32 + 8 + data},
	} {
		first, second := tt.flush, tt.flush+tt.read
		third, fourth := second+tt.read, second+tt.read+tt.flush
		for _, sent := range []int{
			0, 1, first - 1, first, first + 1, second - data, second - data + 1, second - 1, second, second + 1,
			third - data, third - 1, third, third + 1, fourth - 1, fourth,
		} {
			t.Run(fmt.Sprintf("%d/%d", tt.format, sent), func(t *testing.T) {
				arena, err := dma.NewArena(1 << 20)
				if err != nil {
					t.Fatal(err)
				}
				ours, theirs := net.Pipe()
				defer func() { _ = theirs.Close() }()
				c := newBareConn(arena)
				c.nc, c.server = ours, &Server{}
				c.ctx, c.cancel = context.WithCancel(context.Background())
				defer c.cancel()
				c.format, c.sender.format = tt.format, tt.format
				s := &broken{left: sent}
				c.stream, c.splicer = s, s
				for i, op := range []Op{OpFlush, OpRead, OpRead, OpFlush} {
					r := &Request{Op: op, conn: c}
					r.counted, r.receivedNs = op, int64(i) // not counted together
					if op == OpRead {
						lentRead(t, c, r, data)
					}
					c.sender.list = append(c.sender.list, r)
				}
				if !c.send(false) {
					t.Fatal("the stream is not full")
				}
				want := map[Op]uint64{}
				for _, x := range []struct {
					endsAt int
					op     Op
				}{{first, OpFlush}, {second, OpRead}, {third, OpRead}, {fourth, OpFlush}} {
					if x.endsAt <= sent {
						want[x.op]++
					}
				}
				for _, op := range []Op{OpFlush, OpRead} {
					o := &c.ops[op]
					if told, untold := o.successes.Load(), o.untold.Load(); told != want[op] || told+untold != 2 {
						t.Errorf("op %d: %d replies have gone whole and %d have not, want %d and %d", op, told, untold, want[op], 2-want[op])
					}
				}
				if got := c.ops[OpRead].bytes.Load(); got != want[OpRead]*data {
					t.Errorf("%d bytes read", got)
				}
				if got := int(c.sentBytes.Load()); got != sent {
					t.Errorf("%d bytes sent, want %d", got, sent)
				}
				if got := c.lentBytes.Load(); got != lentOf(sent, second-data, second)+lentOf(sent, third-data, third) {
					t.Errorf("%d bytes of pages sent", got)
				}
				if err := arena.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// lentOf is how many of the bytes in [from, to) are among the first sent.
func lentOf(sent, from, to int) uint64 { return uint64(min(max(sent-from, 0), to-from)) }

// lentRead makes r a read of n bytes whose pages were lent.
func lentRead(t *testing.T, c *Conn, r *Request, n int) {
	t.Helper()
	r.LengthBytes = uint64(n)
	if !c.carve(r, n) {
		t.Fatal("no memory")
	}
	c.refer(r)
	pages := dma.NewIOMMU(c.arena).PagesOf(r.Data)
	fd, ok := pages.Begin()
	if !ok {
		t.Fatal("no pages")
	}
	if k, err := unix.Write(fd, make([]byte, n)); k != n || err != nil {
		t.Fatalf("%d bytes, %v", k, err)
	}
	if !pages.End(true) || !c.arena.Disarm(r.pipe) {
		t.Fatal("the pages are not taken")
	}
}
