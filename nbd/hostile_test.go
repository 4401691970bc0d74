package nbd_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// Bounds of what hostile clients can make a server use. All data is in the
// arena, which does not grow; the Go heap has a connection's own state.
const (
	hostileArenaBytes = 64 << 20
	// heapPerConnBytes covers a connection with all of its request slots, and what
	// its test client allocates in the same process.
	heapPerConnBytes = 256 << 10
	heapSlackBytes   = 16 << 20
	// Good clients with a request of 4 KiB at a time hold this much of the arena.
	goodClientBytes = 256 << 10
)

// An attack is what hostile clients do. The connections it returns stay open until
// the bystander has been checked. It returns an error if something happens to the
// clients that should not.
type attack struct {
	name string
	run  func(v *victim) ([]net.Conn, error)
	// dataless marks attacks that do not reach transmission, and so get no memory for
	// data.
	dataless bool
}

// A victim is where a server is.
type victim struct {
	path string      // of its unix socket
	tls  *tls.Config // for clients
}

// victim is where s is, which has been dialled.
func (s *testServer) victim(a *nbdtest.Authority) *victim {
	return &victim{path: s.listener.Addr().String(), tls: a.ClientConfig(false)}
}

// knock connects without the harness's clean-up functions, as thousands would pile up.
// While the backlog is full it sleeps: trying again and again would make work for the
// kernel, and none for the server.
func (v *victim) knock() net.Conn {
	nc, err := connectAsleep(v.path)
	if err == nil {
		err = nc.SetDeadline(time.Now().Add(deadline))
	}
	if err != nil {
		panic(err) // no attack can go on from here
	}
	return nc
}

// connectAsleep is net.Dial to a unix socket, but the kernel does the waiting.
func connectAsleep(path string) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	for {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	nc, err := net.FileConn(f)
	return nc, errors.Join(err, f.Close())
}

// into is the shortest way into transmission.
func into() []byte { return hx(fixedNoZer, opt, "00000007", "00000006", "00000000", "0000") }

// crowd makes n connections that each send input and then nothing.
func crowd(n int, input []byte) func(v *victim) ([]net.Conn, error) {
	return func(v *victim) ([]net.Conn, error) {
		conns := make([]net.Conn, n)
		for i := range conns {
			conns[i] = v.knock()
			// The server may have hung up in the middle, as it should.
			_, _ = conns[i].Write(input)
		}
		return conns, nil
	}
}

// bytewise sends input one byte to a write.
func bytewise(input []byte) func(v *victim) ([]net.Conn, error) {
	return func(v *victim) (conns []net.Conn, err error) {
		for range 20 {
			conns = append(conns, v.knock())
		}
		for i := range input {
			for _, c := range conns {
				if _, err := c.Write(input[i : i+1]); err != nil {
					return conns, fmt.Errorf("byte %d: %w", i, err)
				}
			}
		}
		return conns, nil
	}
}

// churn has clients come, read something, and go.
func churn(v *victim) ([]net.Conn, error) {
	var wg sync.WaitGroup
	var errs [8]error
	for i := range errs {
		wg.Go(func() {
			for range 60 {
				nc := v.knock()
				c, err := nbdtest.NewClient(nc, "disk0")
				if err == nil {
					_, err = c.Do(nbdtest.Command{Type: nbdtest.CmdRead, Length: 4096})
				}
				if errs[i] = errors.Join(err, nc.Close()); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return nil, errors.Join(errs[:]...)
}

// probes makes connections that go away again.
func probes(n int, input []byte) func(v *victim) ([]net.Conn, error) {
	return func(v *victim) ([]net.Conn, error) {
		for range n {
			c := v.knock()
			_, _ = c.Write(input) // the server may have hung up
			if err := c.Close(); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
}

func attacks() []attack {
	request := func(typ, flags, offset, length string) []byte {
		return hx(reqMagic, flags, typ, cookie, offset, length)
	}
	const start, huge = "0000000000000000", "ffffffff"
	reads := bytes.Repeat(request("0000", "0000", start, "00010000"), 300)
	longReads := bytes.Repeat(request("0000", "0000", start, "00100000"), 300)
	list := bytes.Repeat(hx(opt, "00000003", "00000000"), 1000)
	info := bytes.Repeat(hx(opt, "00000006", "00000006", "00000000", "0000"), 1000)
	withStatus := hx(fixedNoZer, opt, "00000008", "00000000",
		opt, "0000000a", "0000001b", "00000000", "00000001", "0000000f", hxs("base:allocation"),
		opt, "00000007", "00000006", "00000000", "0000")
	fragments := bytes.Join([][]byte{
		hx(fixedNoZer), option(structured, nil), option(setContexts, contextData("fragments", "base:allocation")),
		option(goTo, infoData("fragments")),
	}, nil)
	return []attack{
		{name: "silence", run: crowd(200, nil), dataless: true},
		{name: "silence after the flags", run: crowd(200, hx(fixedNoZer)), dataless: true},
		{name: "slow handshake", run: bytewise(into()[:16]), dataless: true},
		{name: "slow request", run: bytewise(append(into(), request("0001", "0000", start, "00001000")[:27]...))},
		{name: "header without payload", run: crowd(60, append(into(), request("0001", "0000", start, "00100000")...))},
		{name: "payload that never ends", run: crowd(60, append(append(into(), request("0001", "0000", start, "00100000")...), make([]byte, 1000)...))},
		{name: "read of 4 GiB", run: crowd(60, append(into(), request("0000", "0000", start, huge)...))},
		{name: "write of 4 GiB", run: crowd(60, append(into(), request("0001", "0000", start, huge)...))},
		{name: "trim of 4 GiB beyond the end", run: crowd(60, append(into(), request("0004", "0000", "fffffffffffffff0", huge)...))},
		{name: "option of 4 GiB", run: crowd(60, hx(fixedNoZer, opt, "00000007", huge)), dataless: true},
		{name: "name of 4 GiB", run: crowd(60, hx(fixedNoZer, opt, "00000007", "00000006", huge, "0000")), dataless: true},
		{name: "garbage for a handshake", run: crowd(60, bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 100)), dataless: true},
		{name: "garbage for requests", run: crowd(60, append(into(), bytes.Repeat([]byte{0xa5}, 4096)...))},
		{name: "lists for ever", run: crowd(20, append(hx(fixedNoZer), list...)), dataless: true},
		{name: "infos for ever", run: crowd(20, append(hx(fixedNoZer), info...)), dataless: true},
		{name: "one cookie for all", run: crowd(10, append(into(), bytes.Repeat(request("0000", "0000", start, "00000200"), 300)...))},
		{name: "nothing at all, at length", run: crowd(10, append(into(), bytes.Repeat(request("0000", "0000", start, "00000000"), 3000)...))},
		{name: "replies never read", run: crowd(40, append(into(), reads...))},
		{name: "long replies never read", run: crowd(40, append(into(), longReads...))},
		{name: "extents never read", run: crowd(40, append(withStatus, bytes.Repeat(request("0007", "0000", start, "00100000"), 300)...))},
		{name: "names that are none", run: crowd(60, append(hx(fixedNoZer), option(exportName, bytes.Repeat([]byte{0xff, 0, '/'}, 1300))...)), dataless: true},
		{name: "a name of 60 KiB", run: crowd(60, append(hx(fixedNoZer), option(exportName, make([]byte, 60<<10))...)), dataless: true},
		{name: "longest options for ever", run: crowd(20, append(hx(fixedNoZer), bytes.Repeat(option(unknownOption, make([]byte, 60<<10)), 70)...)), dataless: true},
		{name: "contexts for ever", run: crowd(20, append(hx(fixedNoZer), bytes.Repeat(option(listContexts, contextData("disk0", "base:", "base:allocation")), 1000)...)), dataless: true},
		{name: "a million extents never read", run: crowd(40, append(fragments, bytes.Repeat(request("0007", "0000", start, "20000000"), 300)...))},
		{name: "come and go", run: churn},
		{name: "10,000 probes", run: probes(10_000, nil), dataless: true},
		{name: "1,000 handshakes broken off", run: probes(1000, into()[:20]), dataless: true},
		{name: "1,000 clients that vanish", run: probes(1000, append(into(), request("0000", "0000", start, "00001000")...))},
		{name: "half-closed", run: func(v *victim) ([]net.Conn, error) {
			conns, err := crowd(60, append(into(), request("0000", "0000", start, "00001000")...))(v)
			for _, c := range conns {
				err = errors.Join(err, c.(*net.UnixConn).CloseWrite())
			}
			return conns, err
		}},
	}
}

// A bystander is a client that does as it should: it writes, reads back and
// compares, one request after the other.
type bystander struct {
	c     *nbdtest.Client
	rng   *rand.Rand
	model []byte
	took  []time.Duration
}

func newBystander(c *nbdtest.Client, seed uint64) *bystander {
	return &bystander{c: c, rng: rand.New(rand.NewPCG(seed, 0)), model: make([]byte, 64<<10)}
}

func (b *bystander) step() error {
	const blockBytes = 4096
	off := b.rng.IntN(len(b.model)/blockBytes) * blockBytes
	cmd := nbdtest.Command{Type: nbdtest.CmdRead, Cookie: b.rng.Uint64(), Offset: uint64(off), Length: blockBytes}
	want := b.model[off : off+blockBytes]
	if b.rng.IntN(2) == 0 {
		cmd.Type = nbdtest.CmdWrite
		for i := 0; i < blockBytes; i += 8 {
			binary.LittleEndian.PutUint64(want[i:], b.rng.Uint64())
		}
		cmd.Payload = want
	}
	begin := time.Now()
	r, err := b.c.Do(cmd)
	b.took = append(b.took, time.Since(begin))
	if err != nil || r.Errno != nbd.OK {
		return errors.Join(fmt.Errorf("%s: %s", cmd, r.Errno), err)
	}
	if cmd.Type == nbdtest.CmdRead && !bytes.Equal(r.Data, want) {
		return fmt.Errorf("%s: read something else than was written", cmd)
	}
	return nil
}

func (b *bystander) steps(n int) error {
	for range n {
		if err := b.step(); err != nil {
			return err
		}
	}
	return nil
}

// hostileServer is one with little memory and room for many.
func hostileServer(t testing.TB, a *nbdtest.Authority) *testServer {
	limits := hostileLimits()
	limits.MaxConnectionRate = 1 << 20 // attacks should meet everything else
	s := newServerOf(t, limits, hostileArenaBytes, hostileExports()...)
	s.TLSMode, s.TLSConfig = nbd.TLSOptional, serveTLS(a.ServerConfig(false))
	return s
}

func hostileLimits() nbd.Limits { return nbd.Limits{MaxPayloadBytes: 1 << 20, MaxConnections: 1000} }

func hostileExports() []nbd.Export {
	return []nbd.Export{
		{Name: "disk0", Device: nbdtest.NewMemory(1 << 20)},
		{Name: "fragments", Device: fragments{}, Hidden: true},
	}
}

// fragments is a device whose every other block of 512 bytes is a hole: 512 MiB
// have as many extents as a reply can carry.
type fragments struct{}

func (fragments) Info() nbd.Info {
	return nbd.Info{SizeBytes: 1 << 30, ReadOnly: true, MinBlockBytes: 1, PreferredBlockBytes: 4096}
}

func (fragments) SizeBytes() uint64 { return 1 << 30 }

func (fragments) Open(*nbd.Conn) (nbd.Session, error) { return fragments{}, nil }

func (fragments) Submit(batch []*nbd.Request) {
	for _, r := range batch {
		if r.Op != nbd.OpBlockStatus {
			r.Complete(nbd.EIO)
			continue
		}
		for state := nbd.ExtentState(0); r.AddExtent(512, state); {
			state ^= nbd.StateHole | nbd.StateZero
		}
		r.Complete(nbd.OK)
	}
}

func (fragments) Close() {}

// Whatever hostile clients do, a good one beside them sees no error, old or new,
// what they make the server use has a bound, and it is all given back.
func TestHostile(t *testing.T) {
	authority := nbdtest.NewAuthority(t)
	for _, a := range slices.Concat(attacks(), tlsAttacks()) {
		t.Run(a.name, func(t *testing.T) {
			s := hostileServer(t, authority)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			old := newBystander(s.client("unix"), seed)
			if err := old.steps(10); err != nil {
				t.Fatal(err)
			}
			goroutines, heap := runtime.NumGoroutine(), heapBytes()
			var wg sync.WaitGroup
			stop := make(chan struct{})
			var during error
			wg.Go(func() {
				for during == nil {
					select {
					case <-stop:
						return
					default:
						during = old.step()
					}
				}
			})
			conns, err := a.run(s.victim(authority))
			// Those that came before go on, and a newcomer gets in.
			fresh := newBystander(s.newcomer(), seed+1)
			close(stop)
			wg.Wait()
			if err := errors.Join(err, during, old.steps(20)); err != nil {
				t.Fatal(err)
			}
			copy(fresh.model, old.model)
			if err := fresh.steps(20); err != nil {
				t.Fatal(err)
			}
			if got, most := heapBytes(), heap+heapSlackBytes+uint64(len(conns))*heapPerConnBytes; got > most {
				t.Errorf("heap of %d bytes for %d connections: want at most %d", got, len(conns), most)
			}
			if n := s.Arena.Stats().InUseBytes; a.dataless && n > 2*goodClientBytes {
				t.Errorf("%d bytes of memory in use: want at most %d, for the good clients", n, 2*goodClientBytes)
			}
			for _, c := range conns {
				_ = c.Close() // the server may have been first
			}
			if err := errors.Join(old.c.Close(), fresh.c.Close()); err != nil {
				t.Fatal(err)
			}
			s.waitStats("end of all connections", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
			for runtime.NumGoroutine() > goroutines {
				runtime.Gosched() // those that have closed are on their way out
			}
			if n := s.Arena.Stats().InUseBytes; n != 0 {
				t.Errorf("%d bytes of memory not given back", n)
			}
		})
	}
}

// newcomer is let in once there are fewer than MaxConnections: those that have hung up
// count until the server has seen it.
func (s *testServer) newcomer() *nbdtest.Client {
	s.t.Helper()
	for end := time.Now().Add(deadline); ; {
		c, err := nbdtest.NewClient(s.dial("unix"), "disk0")
		if err == nil {
			return c
		}
		if !ended(err) || time.Now().After(end) {
			s.t.Fatal(err)
		}
	}
}

// heapBytes is what the Go heap has in use.
func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestHostile_SilentToTheLimit: clients that connect and say nothing, or stop in the
// middle of an option, are thrown out when their time is up, without the client's
// help, and nothing of them is left.
func TestHostile_SilentToTheLimit(t *testing.T) {
	s := newServerOf(t, nbd.Limits{MaxPayloadBytes: 1 << 20, MaxConnections: 1000, HandshakeTimeout: 100 * time.Millisecond}, arenaBytes,
		nbd.Export{Name: "disk0", Device: nbdtest.NewMemory(1 << 20)})
	// On a slow machine a good client's own time may be up before it is through.
	var good *bystander
	for good == nil {
		if c, err := nbdtest.NewClient(s.dial("unix"), "disk0"); err == nil {
			good = newBystander(c, 1)
		}
	}
	v := &victim{path: s.listener.Addr().String()}
	for _, input := range [][]byte{nil, hx(fixedNoZer), into()[:25]} {
		goroutines := runtime.NumGoroutine()
		before := late(s.Snapshot())
		conns, err := crowd(300, input)(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := good.steps(100); err != nil {
			t.Fatal(err)
		}
		for _, c := range conns {
			// It comes with nothing but the greeting before it.
			if rest, err := io.ReadAll(c); err != nil && !ended(err) || !bytes.HasPrefix(hello, rest) {
				t.Errorf("% x and %v, want the end", rest, err)
			}
			_ = c.Close()
		}
		st := s.waitStats("end of the silent", func(st nbd.Stats) bool { return st.ConnectionsOpen == 1 })
		if n := late(st) - before; n != uint64(len(conns)) {
			t.Errorf("%d of %d counted as late: %v", n, len(conns), st.NegotiationFailures)
		}
		for runtime.NumGoroutine() > goroutines {
			runtime.Gosched() // those that have ended are on their way out
		}
	}
	if n := s.Arena.Stats().InUseBytes; n > goodClientBytes {
		t.Errorf("%d bytes of memory in use: want at most %d, for the good client", n, goodClientBytes)
	}
	if err := good.c.Close(); err != nil {
		t.Fatal(err)
	}
}

// late counts those whose time was up: as probes, if that was even before they
// were greeted.
func late(st nbd.Stats) uint64 {
	return st.NegotiationFailures[nbd.NegotiationTimeout] + st.NegotiationFailures[nbd.NegotiationProbe]
}
