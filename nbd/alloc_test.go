//go:build !race

package nbd_test

import (
	"bytes"
	"crypto/tls"
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
	depth   int
	// batches is how many the server makes of a round.
	batches int
}

func newLoad(nc net.Conn, write bool, size, depth int) *load {
	l := &load{nc: nc, depth: depth, batches: 1}
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
				steady(t, newLoad(c.Conn, write, size, depth), rounds)
			})
		}
	}
}

// TestAllocs_Refer: neither do long reads whose pages are lent.
func TestAllocs_Refer(t *testing.T) {
	const depth, size, rounds = 3, 256 << 10, 100
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			s := newServer(t, nbdtest.NewMemory(1<<20), nbd.Limits{})
			c := s.client(network)
			steady(t, newLoad(c.Conn, false, size, depth), rounds)
		})
	}
}

// dialectLoad is a load in another dialect: kind is a request type.
func dialectLoad(nc net.Conn, d dialect, kind uint16, size, depth int) *load {
	l := &load{nc: nc, depth: depth, batches: 1}
	if kind == nbdtest.CmdBlockStatus {
		l.batches = (depth + 7) / 8 // as each counts 128 KiB, of the 1 MiB that a batch has
	}
	for i := range depth {
		cmd := nbdtest.Command{Type: kind, Cookie: uint64(i), Offset: uint64(i * size), Length: uint32(size)}
		chunk, reply := 20, 0
		if d.Extended {
			chunk = 32
		}
		switch {
		case kind == nbdtest.CmdRead && (d.Extended || d.Structured):
			reply = chunk + 8 + size
		case kind == nbdtest.CmdRead:
			reply = 16 + size
		case kind == nbdtest.CmdBlockStatus && d.Extended:
			reply = chunk + 8 + 16
		case kind == nbdtest.CmdBlockStatus:
			reply = chunk + 4 + 8
		case d.Extended:
			reply = chunk
		default:
			reply = 16
		}
		if kind == nbdtest.CmdWrite {
			cmd.Payload = make([]byte, size)
		}
		if d.Extended {
			if kind == nbdtest.CmdWrite {
				cmd.Flags = nbdtest.FlagPayloadLen
			}
			l.stream = cmd.AppendExtended(l.stream)
		} else {
			l.stream = cmd.Append(l.stream)
		}
		l.replies = append(l.replies, make([]byte, reply)...)
	}
	return l
}

// TestAllocs_Dialects: no format allocates, neither for data nor for holes,
// block status and errors. Of TLS only what crypto/tls itself allocates is let
// pass.
func TestAllocs_Dialects(t *testing.T) {
	const depth, size, rounds = 32, 4096, 200
	kinds := []struct {
		name string
		kind uint16
	}{
		{"read", nbdtest.CmdRead},
		{"write", nbdtest.CmdWrite},
		{"status", nbdtest.CmdBlockStatus},
	}
	authority := nbdtest.NewAuthority(t)
	for _, secure := range []bool{false, true} {
		for _, d := range dialects() {
			for _, k := range kinds {
				if k.kind == nbdtest.CmdBlockStatus && d.name == "simple" {
					continue
				}
				m := nbdtest.NewMemory(1 << 20)
				m.Sparse = true
				m.Fill(bytes.Repeat([]byte{1}, 1<<20))
				s := newServer(t, m, nbd.Limits{})
				d := d
				if secure {
					d = s.secure(d, authority)
				}
				t.Run(d.name+"/"+k.name, func(t *testing.T) {
					l := dialectLoad(s.speak("unix", d).Conn, d, k.kind, size, depth)
					steady(t, l, rounds)
				})
			}
		}
	}
	// Holes make replies of another size: half of each read is one.
	for _, d := range dialects()[1:] {
		t.Run(d.name+"/holes", func(t *testing.T) {
			m := nbdtest.NewMemory(1 << 20)
			m.Sparse = true
			b := bytes.Repeat([]byte{1}, 1<<20)
			for at := 0; at < len(b); at += size {
				clear(b[at : at+size/2])
			}
			m.Fill(b)
			l := dialectLoad(newServer(t, m, nbd.Limits{}).speak("unix", d).Conn, d, nbdtest.CmdRead, size, depth)
			hole := 20 + 12
			if d.Extended {
				hole = 32 + 12
			}
			l.replies = l.replies[:len(l.replies)-depth*(size/2-hole)]
			steady(t, l, rounds)
		})
		t.Run(d.name+"/errors", func(t *testing.T) {
			l := dialectLoad(newServer(t, nbdtest.NewMemory(4096), nbd.Limits{}).speak("unix", d).Conn, d, nbdtest.CmdTrim, 1<<20, depth)
			failure := 20 + 6 + len(wordsBeyond)
			if d.Extended {
				failure = 32 + 6 + len(wordsBeyond)
			}
			l.replies = make([]byte, depth*failure)
			steady(t, l, rounds)
		})
	}
}

// steady runs rounds of a load that has warmed up and counts allocations.
func steady(t *testing.T, l *load, rounds int) {
	t.Helper()
	depth := l.depth
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
	pass := depth * rounds / 100
	if _, ok := l.nc.(*tls.Conn); ok {
		// crypto/tls allocates once for each record that it reads, at both ends,
		// and once when there is none. The replies to a batch begin a record.
		pass += rounds * (3 + l.batches + 2*(len(l.stream)+len(l.replies))/(16<<10))
	}
	if n := after.Mallocs - before.Mallocs; n > uint64(pass) {
		t.Errorf("%d allocations for %d requests, want at most %d", n, depth*rounds, pass)
	}
}

// BenchmarkDialects measures the same requests in every format, with TLS and
// without.
func BenchmarkDialects(b *testing.B) {
	authority := nbdtest.NewAuthority(b)
	for _, secure := range []bool{false, true} {
		for _, d := range dialects() {
			for _, bm := range []struct {
				name        string
				kind        uint16
				size, depth int
			}{
				{"op=read/size=4KiB/depth=1", nbdtest.CmdRead, 4 << 10, 1},
				{"op=read/size=4KiB/depth=32", nbdtest.CmdRead, 4 << 10, 32},
				{"op=write/size=4KiB/depth=32", nbdtest.CmdWrite, 4 << 10, 32},
				{"op=read/size=1MiB/depth=4", nbdtest.CmdRead, 1 << 20, 4},
				{"op=write/size=1MiB/depth=4", nbdtest.CmdWrite, 1 << 20, 4},
			} {
				s := newServer(b, nbdtest.NewMemory(8<<20), nbd.Limits{})
				d := d
				if secure {
					d = s.secure(d, authority)
				}
				b.Run("format="+d.name+"/"+bm.name, func(b *testing.B) {
					l := dialectLoad(s.speak("unix", d).Conn, d, bm.kind, bm.size, bm.depth)
					benchmarkStreams(b, l, bm.size, bm.depth)
				})
			}
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
