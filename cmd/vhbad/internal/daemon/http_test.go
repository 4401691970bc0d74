package daemon

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
)

// A countingListener counts the connections that are open at once.
type countingListener struct {
	net.Listener
	open, peak atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	// Nobody else calls Accept.
	l.peak.Store(max(l.peak.Load(), l.open.Add(1)))
	return &countedConn{Conn: c, l: l}, nil
}

type countedConn struct {
	net.Conn
	l      *countingListener
	closed atomic.Bool
}

func (c *countedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.l.open.Add(-1)
	}
	return c.Conn.Close()
}

// TestHTTP_Limit: clients that keep connections to the metrics take no more than so many
// descriptors from clients of disks, and whoever comes then is served when one has gone.
func TestHTTP_Limit(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	o := s.options(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &countingListener{Listener: inner}
	o.Inherited.HTTP = l
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))

	ask := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", inner.Addr().String())
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			_, err = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: vhbad\r\n\r\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	answered := func(c net.Conn) {
		t.Helper()
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v; want 200", r, err)
		}
		_ = r.Body.Close()
	}
	var held, late []net.Conn
	for range maxHTTPConnections {
		c := ask()
		answered(c)
		held = append(held, c)
	}
	for range maxHTTPConnections {
		late = append(late, ask())
	}
	for i, c := range late {
		_ = held[i].Close()
		answered(c)
	}
	if got := l.peak.Load(); got != maxHTTPConnections {
		t.Errorf("%d connections were open at once, want %d", got, maxHTTPConnections)
	}
}
