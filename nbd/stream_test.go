package nbd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vhbad/vhbad/nbd/socket"
)

// TestCauses: every cause has words, no longer than there is room for.
func TestCauses(t *testing.T) {
	for c := range causeCount {
		for _, errno := range []Errno{OK, EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN, 12345} {
			for _, located := range []bool{false, true} {
				if text := c.text(errno, located); len(text) == 0 || len(text) > maxErrorTextBytes {
					t.Errorf("cause %d, %v: %q has %d bytes, want 1 to %d", c, errno, text, len(text), maxErrorTextBytes)
				}
			}
		}
	}
}

// otherConn is a net.Conn of a type that the package does not know, as a vsock
// connection is.
type otherConn struct{ *net.UnixConn }

// TestNewStream: any stream socket is taken from the runtime, and nothing else.
func TestNewStream(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "socket")
	defer func() { _, _ = f.Close(), syscall.Close(fds[1]) }()
	nc, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	another, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = another.Close() }()
	datagrams, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = datagrams.Close() }()
	pipe, other := net.Pipe()
	defer func() { _, _ = pipe.Close(), other.Close() }()
	for _, tt := range []struct {
		nc     net.Conn
		socket bool
	}{
		{nc, true},
		{otherConn{another.(*net.UnixConn)}, true},
		{datagrams, false},
		{pipe, false},
	} {
		nc := tt.nc
		conn, err := socket.Take(nc)
		switch {
		case err == nil:
			nc = conn
			defer func() { _ = conn.Close() }()
		case !errors.Is(err, socket.ErrNotSocket):
			t.Fatal(err)
		}
		if _, ok := newStream(nc).(*socketStream); ok != tt.socket {
			t.Errorf("%T has a %T", tt.nc, newStream(nc))
		}
	}
}

// TestRecordConn_Bound: answers to key updates that nobody sends do not pile up.
func TestRecordConn_Bound(t *testing.T) {
	rc := &recordConn{socket: &socketStream{}}
	record := make([]byte, 64)
	for n := 0; ; n += len(record) {
		if _, err := rc.Write(record); err != nil {
			if !errors.Is(err, errKeyUpdates) {
				t.Fatal(err)
			}
			return
		}
		if n > maxSealedBytes {
			t.Fatalf("%d bytes wait", n)
		}
	}
}
