package daemon

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/metrics"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// connect is net.Dial that waits while the kernel's queue is full.
func (s *settings) connect(t *testing.T) net.Conn {
	t.Helper()
	for {
		nc, err := net.Dial("unix", s.socket())
		if err == nil {
			return nc
		}
		if !errors.Is(err, syscall.EAGAIN) {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
}

// TestHostile_Daemon: a client reads back what it wrote while 1,000 others are connected
// and idle, and 50 misbehave, over and over. Nothing that they used is left when they have
// gone.
func TestHostile_Daemon(t *testing.T) {
	const (
		idle, hostile = 1000, 50
		rounds, steps = 20, 200 // of the hostile each, and of the good client at least
		// A connection holds a block of 32 KiB and one for the adapter in
		// transmission, and heap for its request slots. The hostile may hold what
		// memory there is beyond the idle.
		idleArenaBytes = 64 << 10
		heapPerConn    = 256 << 10
		heapSlack      = 64 << 20
	)
	s := newSettings(t, "d=memory:1MiB")
	s.Limits.Memory = 64 * config.MiB
	s.Limits.Connections = 2 * (idle + hostile) // some are on their way out
	d, _ := s.mustStart(t)
	snapshot := func() metrics.Snapshot { snap, _ := d.Snapshot(); return snap }
	wait := func(ok func(metrics.Snapshot) bool) {
		t.Helper()
		for !ok(snapshot()) {
			runtime.Gosched()
		}
	}
	good, err := nbdtest.NewClient(s.connect(t), "d")
	if err != nil {
		t.Fatal(err)
	}
	start, goroutines, heap := snapshot().Arena.InUseBytes, runtime.NumGoroutine(), heapBytes()

	crowd := make([]*nbdConn, idle)
	for i := range crowd {
		crowd[i] = negotiate(t, s.connect(t), "d")
	}
	if n := snapshot().Arena.InUseBytes - start; n > idle*idleArenaBytes {
		t.Errorf("%d bytes of memory in use for %d idle clients: want at most %d", n, idle, idle*idleArenaBytes)
	}

	// The hostile come again as soon as they are thrown out.
	var wg sync.WaitGroup
	over := make(chan struct{})
	for i := range hostile {
		input := mischief[i%len(mischief)]
		wg.Go(func() {
			for range rounds {
				nc, err := net.Dial("unix", s.socket())
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = nc.Write(input) // the server may hang up in the middle
				expected := 18
				if i%2 == 0 {
					_ = nc.(*net.UnixConn).CloseWrite()
					expected = 1 << 10
				}
				// They wait until they have been let in, to be 50 and no more.
				_, _ = io.ReadFull(nc, make([]byte, expected))
				_ = nc.Close()
			}
		})
	}
	go func() {
		wg.Wait()
		close(over)
	}()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	model := make([]byte, 256<<10)
	for i, going := 0, true; going; i++ {
		select {
		case <-over:
			going = i < steps
		default:
		}
		length := 512 << rng.IntN(6)
		at := rng.IntN(len(model)/length) * length
		cmd := nbdtest.Command{Type: nbdtest.CmdRead, Cookie: uint64(i), Offset: uint64(at), Length: uint32(length)}
		want := model[at : at+length]
		if rng.IntN(2) == 0 {
			cmd.Type = nbdtest.CmdWrite
			for j := 0; j < length; j += 8 {
				binary.LittleEndian.PutUint64(want[j:], rng.Uint64())
			}
			cmd.Payload = want
		}
		r, err := good.Do(cmd)
		if err != nil || r.Errno != 0 || cmd.Type == nbdtest.CmdRead && !bytes.Equal(r.Data, want) {
			t.Fatalf("step %d, %s: %v, %v, or other data than was written", i, cmd, r.Errno, err)
		}
	}
	// The idle have been left alone.
	for i := 0; i < idle; i += 97 {
		if b, err := crowd[i].do(cmdRead, 0, 4096, nil); err != nil || !bytes.Equal(b, model[:4096]) {
			t.Errorf("idle client %d: %v, or other data than was written", i, err)
		}
	}
	wait(func(m metrics.Snapshot) bool { return m.NBD.ConnectionsOpen == idle+1 })
	if got, most := heapBytes(), heap+heapSlack+idle*heapPerConn; got > most {
		t.Errorf("heap of %d bytes: want at most %d", got, most)
	}
	for _, c := range crowd {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// What the good client itself holds may have grown to a larger block.
	wait(func(m metrics.Snapshot) bool {
		return m.NBD.ConnectionsOpen == 1 && m.Arena.InUseBytes <= start+1<<20
	})
	for runtime.NumGoroutine() > goroutines+hostile { // workers are kept
		runtime.Gosched()
	}
	if err := good.Close(); err != nil {
		t.Error(err)
	}
}

// mischief is what hostile clients say.
var mischief = func() [][]byte {
	enter := []byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00")
	send := func(commands ...nbdtest.Command) []byte {
		b := bytes.Clone(enter)
		for _, c := range commands {
			b = c.Append(b)
		}
		return b
	}
	many := func(c nbdtest.Command) []byte {
		commands := make([]nbdtest.Command, 300)
		for i := range commands {
			commands[i] = c
		}
		return send(commands...)
	}
	return [][]byte{
		nil,
		enter[:20],
		[]byte("GET / HTTP/1.1\r\n\r\n"),
		bytes.Repeat([]byte{0xa5}, 4096),
		append(send(), bytes.Repeat([]byte{0xa5}, 4096)...),
		append([]byte("\x00\x00\x00\x03"), bytes.Repeat([]byte("IHAVEOPT\x00\x00\x00\x03\x00\x00\x00\x00"), 1000)...),
		[]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"),
		many(nbdtest.Command{Type: nbdtest.CmdRead, Length: 64 << 10}),
		many(nbdtest.Command{Type: nbdtest.CmdRead, Length: 1 << 20}),
		many(nbdtest.Command{Type: nbdtest.CmdRead}),
		many(nbdtest.Command{Type: nbdtest.CmdFlush}),
		send(nbdtest.Command{Type: nbdtest.CmdRead, Length: 1<<32 - 1}, nbdtest.Command{Type: nbdtest.CmdTrim, Offset: 1<<64 - 16, Length: 1<<32 - 1}),
		send(nbdtest.Command{Type: nbdtest.CmdWrite, Offset: 512 << 10, Length: 256 << 10}),
		send(nbdtest.Command{Type: nbdtest.CmdWrite, Length: 1<<32 - 1}),
	}
}()

// heapBytes is what the Go heap has in use.
func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
