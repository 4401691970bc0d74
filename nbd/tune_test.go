package nbd

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTune: small replies leave at once, and a peer that has vanished is noticed.
func TestTune(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	tcp := nc.(*net.TCPConn)
	if err := tcp.SetNoDelay(false); err != nil {
		t.Fatal(err)
	}
	if err := tcp.SetKeepAlive(false); err != nil {
		t.Fatal(err)
	}
	tune(nc)
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for name, option := range map[string][2]int{"TCP_NODELAY": {unix.IPPROTO_TCP, unix.TCP_NODELAY}, "SO_KEEPALIVE": {unix.SOL_SOCKET, unix.SO_KEEPALIVE}} {
			if v, err := unix.GetsockoptInt(int(fd), option[0], option[1]); err != nil || v == 0 {
				t.Errorf("%s is %d (%v), want it set", name, v, err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}
