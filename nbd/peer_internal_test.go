package nbd

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// from is a connection that claims to come from an address.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// A vsockAddr looks like one of package vsock.
type vsockAddr string

func (vsockAddr) Network() string  { return "vsock" }
func (a vsockAddr) String() string { return string(a) }

func TestPeerOf(t *testing.T) {
	tcp := func(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	tests := []struct {
		name string
		a, b net.Addr
		same bool
	}{
		{"ports", tcp("192.0.2.1", 1), tcp("192.0.2.1", 2), true},
		{"addresses", tcp("192.0.2.1", 1), tcp("192.0.2.2", 1), false},
		{"IPv4 in IPv6", tcp("::ffff:192.0.2.1", 1), tcp("192.0.2.1", 1), true},
		{"IPv6", tcp("2001:db8::1", 1), tcp("2001:db8::2", 1), false},
		{"zones", &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, tcp("fe80::1", 2), true},
		{"vsock ports", vsockAddr("vm(3):1024"), vsockAddr("vm(3):1025"), true},
		{"vsock contexts", vsockAddr("vm(3):1024"), vsockAddr("vm(4):1024"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := peerOf(from{addr: tt.a}), peerOf(from{addr: tt.b})
			if a == (peer{}) || b == (peer{}) {
				t.Fatalf("%v is %+v, %v is %+v: want somebody", tt.a, a, tt.b, b)
			}
			if (a == b) != tt.same {
				t.Errorf("%v and %v are the same: %v, want %v", tt.a, tt.b, a == b, tt.same)
			}
		})
	}
	for _, nobody := range []net.Addr{nil, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1)}, &net.UnixAddr{Net: "unix", Name: "@"}} {
		if p := peerOf(from{addr: nobody}); p != (peer{}) {
			t.Errorf("%v is %+v, want nobody", nobody, p)
		}
	}
}

// TestPeerOf_Unix: the other end of a unix socket is this process's user.
func TestPeerOf_Unix(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	nc, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := peerOf(server), (peer{user: uint32(os.Getuid()) + 1}); got != want {
		t.Errorf("peer %+v, want %+v", got, want)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if got := peerOf(server); got != (peer{}) {
		t.Errorf("peer of a closed socket %+v, want nobody", got)
	}
}
