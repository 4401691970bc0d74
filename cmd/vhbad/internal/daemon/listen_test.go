package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/nbd"
)

// A lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	// +checklocks:mu
	b bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Port probes are counted, and leave nothing in the log.
func TestProbe_Silent(t *testing.T) {
	s := newSettings(t, "d=memory:1MiB")
	s.Listen = append(s.Listen, config.Address{Network: "tcp", Target: "127.0.0.1:0"})
	s.Limits.HandshakeTimeout = config.MinTimeout
	var log lockedBuffer
	o := s.options(t)
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer stopper(t, d)()
	before := log.String()
	address := strings.TrimPrefix(d.Endpoints()[1].URI, "tcp://")
	const rounds = 20
	for range rounds {
		for _, probe := range []func(c net.Conn) error{
			func(net.Conn) error { return nil },
			func(c net.Conn) error { return c.(*net.TCPConn).SetLinger(0) }, // reset
			func(c net.Conn) error { _, err := io.Copy(io.Discard, c); return err },
		} {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(probe(c), c.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	var st nbd.Stats
	for {
		snap, _ := d.Snapshot()
		if st = snap.NBD; st.ConnectionsTotal == 3*rounds && st.ConnectionsOpen == 0 {
			break
		}
		runtime.Gosched()
	}
	if n := st.NegotiationFailures[nbd.NegotiationProbe] + st.NegotiationFailures[nbd.NegotiationTimeout]; n != 3*rounds {
		t.Errorf("%d of %d probes counted: %v", n, 3*rounds, st.NegotiationFailures)
	}
	if said := strings.TrimPrefix(log.String(), before); said != "" {
		t.Errorf("the log tells of probes:\n%s", said)
	}
}

func TestListen_UnixModeAndOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	for _, tt := range []struct {
		a    config.Address
		mode os.FileMode
	}{
		{config.Address{Mode: 0o640}, 0o640},
		{config.Address{Owner: fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())}, 0o660},
		{config.Address{Owner: fmt.Sprintf(":%d", os.Getgid()), Mode: 0o666}, 0o666},
	} {
		tt.a.Network, tt.a.Target = "unix", path
		l, err := listen(t.Context(), tt.a)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != tt.mode {
			t.Errorf("%v: mode %v, %v; want %v", tt.a, fi.Mode(), err, tt.mode)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	for owner, want := range map[string]string{"no such user": "no such user", ":no such group": "no such group"} {
		if _, err := listen(t.Context(), config.Address{Network: "unix", Target: path, Owner: owner}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("owner %q: %v, want %s", owner, err, want)
		}
	}
}

func TestListenTCP_NoIPv6(t *testing.T) {
	for target, want := range map[string]string{
		":0":                  "tcp4 :0",
		"[::]:10809":          "tcp4 :10809",
		"localhost:10809":     "tcp4 127.0.0.1:10809",
		"[::1]:10809":         "",
		"somewhere.else:1080": "",
	} {
		got := ""
		_, err := listenTCP(target, func(network, address string) (net.Listener, error) {
			if network == "tcp" {
				return nil, &net.OpError{Op: "listen", Err: os.NewSyscallError("socket", syscall.EAFNOSUPPORT)}
			}
			got = network + " " + address
			return nil, nil
		})
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v; want %q", target, got, err, want)
		}
	}
	for target, want := range map[string]string{"localhost:10809": "tcp4 127.0.0.1:10809", "somewhere.else:1080": ""} {
		got := ""
		_, err := listenTCP(target, func(network, address string) (net.Listener, error) {
			if network == "tcp" { // as in the sandbox
				return nil, &net.OpError{Op: "listen", Err: &net.DNSError{Name: "a name", Err: "permission denied"}}
			}
			got = network + " " + address
			return nil, nil
		})
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%s without names: %q, %v; want %q", target, got, err, want)
		}
	}
	if _, err := listenTCP(":0", func(string, string) (net.Listener, error) { return nil, syscall.EADDRINUSE }); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("address in use: %v", err)
	}
}

// Only a port that is root's is told to need root.
func TestPlain(t *testing.T) {
	const advice = "ports below 1024 need root"
	bind := os.NewSyscallError("bind", syscall.EACCES)
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{&net.OpError{Op: "listen", Net: "tcp", Addr: &net.TCPAddr{Port: 1023}, Err: bind}, true},
		{&net.OpError{Op: "listen", Net: "tcp", Addr: &net.TCPAddr{Port: 1024}, Err: bind}, false},
		{&net.OpError{Op: "listen", Net: "tcp", Addr: &net.TCPAddr{}, Err: bind}, false},
		{&net.OpError{Op: "listen", Net: "vsock", Addr: &vsock.Addr{Port: 1023}, Err: bind}, true},
		{&net.OpError{Op: "listen", Net: "vsock", Addr: &vsock.Addr{Port: 1024}, Err: bind}, false},
		{&net.OpError{Op: "dial", Net: "unix", Addr: &net.UnixAddr{Name: "/run/vhbad.sock"}, Err: os.NewSyscallError("connect", syscall.EACCES)}, false},
	} {
		got := plain(tt.err)
		if !errors.Is(got, syscall.EACCES) || strings.Contains(got.Error(), advice) != tt.want {
			t.Errorf("%v: %v, want advice about ports: %v", tt.err, got, tt.want)
		}
	}
}

// Where the kernel has vsock, it is served; where it has not, the error says so.
func TestListen_Vsock(t *testing.T) {
	l, err := listen(t.Context(), config.Address{Network: "vsock", Target: "any:4294967294"})
	if err != nil {
		if !strings.Contains(err.Error(), "vsock") && !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("error %v, want one that speaks of vsock", err)
		}
		return
	}
	if got := endpointURI(l.Addr()); got != "vsock://any:4294967294" {
		t.Errorf("serves %s", got)
	}
	// As a hand-over or socket activation would pass it on.
	fd, err := duplicate(l.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	again, err := listenerOf(os.NewFile(uintptr(fd), "vsock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Close(), again.Close()); err != nil {
		t.Error(err)
	}
}

func TestEndpoint_Vsock(t *testing.T) {
	a := &vsock.Addr{ContextID: config.VsockAny, Port: 10809}
	if got := endpointURI(a); got != "vsock://any:10809" {
		t.Errorf("URI %s", got)
	}
	if got := attachHint(a, &config.Disk{Name: "a b"}, &config.TLS{}); got != "nbdcopy nbd+vsock://2:10809/a%20b copy.img" {
		t.Errorf("hint %s", got)
	}
	if got := attachHint(a, &config.Disk{Name: "d", TLSOnly: true}, &config.TLS{}); got != "nbdcopy nbds+vsock://2:10809/d copy.img" {
		t.Errorf("hint with TLS %s", got)
	}
}

func TestListenerOf_NotListening(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fds[1]) }()
	if _, err := listenerOf(os.NewFile(uintptr(fds[0]), "pair")); err == nil || !strings.Contains(err.Error(), "listen") {
		t.Errorf("error %v, want that it does not listen", err)
	}
}

func TestStdio(t *testing.T) {
	for _, kind := range []string{"socket", "pipes"} {
		t.Run(kind, func(t *testing.T) {
			var in, out int      // the server's ends
			var peer [2]*os.File // what the client reads and writes
			if kind == "socket" {
				fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					t.Fatal(err)
				}
				in = fds[0]
				if out, err = unix.FcntlInt(uintptr(in), unix.F_DUPFD_CLOEXEC, 0); err != nil {
					t.Fatal(err)
				}
				f := os.NewFile(uintptr(fds[1]), "client")
				peer = [2]*os.File{f, f}
			} else {
				var a, b [2]int
				if err := errors.Join(unix.Pipe2(a[:], unix.O_CLOEXEC|unix.O_NONBLOCK), unix.Pipe2(b[:], unix.O_CLOEXEC|unix.O_NONBLOCK)); err != nil {
					t.Fatal(err)
				}
				in, out = a[0], b[1]
				peer = [2]*os.File{os.NewFile(uintptr(b[0]), "client"), os.NewFile(uintptr(a[1]), "client")}
			}
			nc, err := stdio(in, out)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = errors.Join(unix.Close(in), unix.Close(out)) }() // /dev/null by now
			s := newSettings(t, "d=memory:1MiB")
			s.Listen, s.Admin = nil, config.Off
			c, err := s.Resolve(client.DefaultPath(), true)
			if err != nil {
				t.Fatal(err)
			}
			d, err := Start(t.Context(), Options{Config: c, Log: slog.New(slog.DiscardHandler), Single: true, Conn: nc})
			if err != nil {
				t.Fatal(err)
			}
			defer stopper(t, d)()
			far := &pipeConn{in: peer[0], out: peer[1]}
			conn := negotiate(t, far, "d")
			want := bytes.Repeat([]byte("stdio"), 100_000)
			if _, err := conn.do(cmdWrite, 7, len(want), want); err != nil {
				t.Error(err)
			}
			if got, err := conn.do(cmdRead, 7, len(want), nil); err != nil || !bytes.Equal(got, want) {
				t.Errorf("read: %v, or other data", err)
			}
			_ = far.Close() // both ends of a socket are one file
			<-d.ClientGone()
		})
	}
}

// Stop ends the wait for a client that never comes.
func TestSingle_NobodyComes(t *testing.T) {
	s := newSettings(t, "d=memory:1MiB")
	s.Listen = nil
	c, err := s.Resolve(client.DefaultPath(), true)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", s.socket())
	if err != nil {
		t.Fatal(err)
	}
	d, err := Start(t.Context(), Options{
		Config: c, Log: slog.New(slog.DiscardHandler), Single: true, Inherited: Sockets{NBD: []net.Listener{l}}, HoldLimit: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.HandOver(t.Context(), client.HandOver{DiscardMemory: true}); err == nil || !strings.Contains(err.Error(), "single client") {
		t.Errorf("a hand-over: %v", err)
	}
	stopper(t, d)()
	<-d.ClientGone()
}
