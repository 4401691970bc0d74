//go:build !race

package nbd_test

import (
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// load sends rounds of depth requests in one write each and takes the replies,
// without allocating.
type load struct {
	nc      net.Conn
	stream  []byte
	replies []byte
}

func newLoad(nc net.Conn, write bool, size, depth int) *load {
	l := &load{nc: nc}
	for i := range depth {
		cmd := nbdtest.Command{Type: nbdtest.CmdRead, Cookie: uint64(i), Offset: uint64(i * size), Length: uint32(size)}
		reply := 16 + size
		if write {
			cmd.Type, cmd.Payload, reply = nbdtest.CmdWrite, make([]byte, size), 16
		}
		l.stream = cmd.Append(l.stream)
		l.replies = append(l.replies, make([]byte, reply)...)
	}
	return l
}

func (l *load) round(t testing.TB) {
	if _, err := l.nc.Write(l.stream); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(l.nc, l.replies); err != nil {
		t.Fatal(err)
	}
}

// TestAllocs_SteadyState: reads and writes of 4 KiB, 32 in flight, allocate
// nothing, whether they complete inside Submit or later.
func TestAllocs_SteadyState(t *testing.T) {
	const depth, size, rounds = 32, 4096, 400
	for _, async := range []bool{false, true} {
		for _, write := range []bool{false, true} {
			name := "read"
			if write {
				name = "write"
			}
			if async {
				name += "/async"
			}
			t.Run(name, func(t *testing.T) {
				d := nbdtest.NewMemory(1 << 20)
				d.Async = async
				s := newServer(t, d, nbd.Limits{})
				c := s.client("unix")
				l := newLoad(c.Conn, write, size, depth)
				for range 50 {
					l.round(t)
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range rounds {
					l.round(t)
				}
				runtime.ReadMemStats(&after)
				// A background tick of the runtime or the sweeper may allocate.
				if n := after.Mallocs - before.Mallocs; n > depth*rounds/100 {
					t.Errorf("%d allocations for %d requests, want none", n, depth*rounds)
				}
			})
		}
	}
}

// BenchmarkTransmission measures requests over a Unix socket against memory,
// with a client that costs next to nothing.
func BenchmarkTransmission(b *testing.B) {
	for _, bm := range []struct {
		name        string
		write       bool
		size, depth int
	}{
		{"op=read/size=4KiB/depth=1", false, 4 << 10, 1},
		{"op=read/size=4KiB/depth=32", false, 4 << 10, 32},
		{"op=write/size=4KiB/depth=32", true, 4 << 10, 32},
		{"op=read/size=1MiB/depth=4", false, 1 << 20, 4},
		{"op=write/size=1MiB/depth=4", true, 1 << 20, 4},
	} {
		b.Run(bm.name, func(b *testing.B) {
			s := newServer(b, nbdtest.NewMemory(8<<20), nbd.Limits{})
			nc := s.client("unix").Conn
			l := newLoad(nc, bm.write, bm.size, bm.depth)
			if bm.size >= 1<<20 { // more than the socket holds: write and read together
				benchmarkStreams(b, l, bm.size, bm.depth)
				return
			}
			b.SetBytes(int64(bm.size * bm.depth))
			b.ReportAllocs()
			for b.Loop() {
				l.round(b)
			}
			b.ReportMetric(float64(b.N*bm.depth)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}

func benchmarkStreams(b *testing.B, l *load, size, depth int) {
	b.Helper()
	b.SetBytes(int64(size * depth))
	b.ReportAllocs()
	next := make(chan struct{})
	sent := make(chan error, 1)
	go func() {
		var err error
		for range next {
			if err == nil {
				_, err = l.nc.Write(l.stream)
			}
		}
		sent <- err
	}()
	for b.Loop() {
		next <- struct{}{}
		if _, err := io.ReadFull(l.nc, l.replies); err != nil {
			b.Fatal(err)
		}
	}
	close(next)
	if err := <-sent; err != nil {
		b.Fatal(err)
	}
}
