package nbd_test

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// deadline bounds every wait of a test; only a failing test meets it, however
// slow the machine.
const deadline = 4 * time.Minute

// Most tests make do with payloads of 1 MiB and little memory: under the race
// detector an arena is zeroed Go memory.
const (
	payloadBytes = 1 << 20
	arenaBytes   = 8 << 20
)

// A testServer serves one device as export "disk0". At the end of the test it
// must drain and have returned all memory.
type testServer struct {
	*nbd.Server
	t        testing.TB
	listener net.Listener
	served   chan error
	closed   bool
}

func newServer(t testing.TB, d nbd.Device, limits nbd.Limits) *testServer {
	t.Helper()
	if limits.MaxPayloadBytes == 0 {
		limits.MaxPayloadBytes = payloadBytes
	}
	return newServerOf(t, limits, max(arenaBytes, 4*limits.MaxPayloadBytes), nbd.Export{Name: "disk0", Device: d})
}

func newServerOf(t testing.TB, limits nbd.Limits, arenaBytes int, exports ...nbd.Export) *testServer {
	t.Helper()
	arena, err := dma.NewArena(arenaBytes)
	if err != nil {
		t.Fatal(err)
	}
	set, err := nbd.NewExportSet(exports...)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range exports {
		if m, ok := e.Device.(*nbdtest.Memory); ok && m.Lends == nil {
			m.Lends = dma.NewIOMMU(arena)
		}
	}
	s := &testServer{Server: &nbd.Server{Exports: set, Arena: arena, Limits: limits}, t: t}
	t.Cleanup(s.close)
	return s
}

// close ends the server early.
func (s *testServer) close() {
	if s.closed {
		return
	}
	s.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		s.t.Errorf("shutdown: %v", err)
		return
	}
	if s.served != nil {
		if err := <-s.served; !errors.Is(err, nbd.ErrServerClosed) {
			s.t.Errorf("Serve returned %v, want ErrServerClosed", err)
		}
	}
	if err := s.Arena.Close(); err != nil {
		s.t.Errorf("memory leak: %v", err)
	}
}

// dial connects by a socket of the given network, or by net.Pipe for "pipe".
func (s *testServer) dial(network string) net.Conn {
	s.t.Helper()
	if network == "pipe" {
		ours, theirs := net.Pipe()
		go func() { _ = s.ServeConn(theirs) }()
		s.prepare(ours)
		return ours
	}
	if s.listener == nil {
		addr := "127.0.0.1:0"
		if network == "unix" {
			addr = filepath.Join(s.t.TempDir(), "s")
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			s.t.Fatal(err)
		}
		s.listener, s.served = l, make(chan error, 1)
		go func() { s.served <- s.Serve(l) }()
	}
	nc, err := connect(network, s.listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.prepare(nc)
	return nc
}

// connect is net.Dial that waits while more than the kernel queues are on their
// way in.
func connect(network, address string) (net.Conn, error) {
	for {
		nc, err := net.Dial(network, address)
		if !errors.Is(err, syscall.EAGAIN) {
			return nc, err
		}
		runtime.Gosched()
	}
}

func (s *testServer) prepare(nc net.Conn) {
	if err := nc.SetDeadline(time.Now().Add(deadline)); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = nc.Close() })
}

// client connects and negotiates.
func (s *testServer) client(network string) *nbdtest.Client {
	s.t.Helper()
	c, err := nbdtest.NewClient(s.dial(network), "disk0")
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// A dialect is a way to talk to the server.
type dialect struct {
	name string
	nbdtest.Options
}

// dialects are all that a client can choose in transmission.
func dialects() []dialect {
	meta := []string{"base:allocation"}
	return []dialect{
		{"simple", nbdtest.Options{}},
		{"structured", nbdtest.Options{Structured: true, Meta: meta}},
		{"extended", nbdtest.Options{Extended: true, Meta: meta}},
	}
}

// secure makes the server offer TLS, and the dialect use it.
func (s *testServer) secure(d dialect, a *nbdtest.Authority) dialect {
	s.TLSMode = nbd.TLSOptional
	s.TLSConfig = func() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{a.ServerCertificate}} }
	d.name += "+tls"
	d.TLS = &tls.Config{RootCAs: a.Roots, ServerName: "localhost"}
	return d
}

// speak connects and negotiates what d is made of.
func (s *testServer) speak(network string, d dialect) *nbdtest.Client {
	s.t.Helper()
	c, err := nbdtest.Dial(s.dial(network), "disk0", d.Options)
	if err != nil {
		s.t.Fatalf("%s: %v", d.name, err)
	}
	return c
}

// waitStats waits until ok holds, which the server brings about by itself.
func (s *testServer) waitStats(what string, ok func(nbd.Stats) bool) nbd.Stats {
	s.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(deadline); time.Now().Before(end); <-tick.C {
		if st := s.Snapshot(); ok(st) {
			return st
		}
	}
	st := s.Snapshot()
	s.t.Fatalf("no %s in time; failures %v, closes %v, connections %+v", what, st.NegotiationFailures, st.Closes, st.Connections)
	return nbd.Stats{}
}

// hx decodes fields of hexadecimal digits; blanks are ignored.
func hx(fields ...string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(fields, ""), " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// hxs is the hexadecimal form of a string, to use inside hx.
func hxs(s string) string { return hex.EncodeToString([]byte(s)) }

// expect reads len(want) bytes and compares them.
func expect(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil {
		t.Fatalf("got %d bytes % x and %v, want % x", n, got[:n], err, want)
	}
	if string(got) != string(want) {
		t.Fatalf("got  % x\nwant % x", got, want)
	}
}

// expectEnd reads to the end of the stream, where nothing more may come.
func expectEnd(t *testing.T, r io.Reader) {
	t.Helper()
	rest, err := io.ReadAll(r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the server did not close the connection")
	}
	if len(rest) > 0 {
		t.Fatalf("% x before the end, want nothing", rest)
	}
}

// must checks the outcome of Client.Do.
func must(t *testing.T, c *nbdtest.Client, cmd nbdtest.Command, want nbd.Errno) nbdtest.Reply {
	t.Helper()
	r, err := c.Do(cmd)
	if err != nil {
		t.Fatalf("type %d, %d bytes at %d: %v", cmd.Type, cmd.Length, cmd.Offset, err)
	}
	if r.Errno != want {
		t.Fatalf("type %d, %d bytes at %d: got %v, want %v", cmd.Type, cmd.Length, cmd.Offset, r.Errno, want)
	}
	return r
}
