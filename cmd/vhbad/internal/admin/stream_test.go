package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/events"
)

func newTestLog(capacity int) *events.Log {
	return events.NewLog(capacity, func() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC) })
}

// serveEvents serves a log on a socket.
func serveEvents(t *testing.T, l *events.Log) *client.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.sock")
	s := Serve(listen(t, path, 0o600), Handler(Sources{Events: l}), slog.New(slog.DiscardHandler))
	c := client.New(path)
	t.Cleanup(func() {
		c.Close()
		l.Close()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestEvents_Follow: a stream has everything that happens after it was asked for, as it
// happens, and ends with the daemon.
func TestEvents_Follow(t *testing.T) {
	l := newTestLog(8)
	l.Publish(client.EventReady, "")
	c := serveEvents(t, l)
	s, err := c.Events(t.Context(), client.EventFilter{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var got []string
	n := 0
	l.Publish(client.EventConnectionOpened, "a", slog.Int("connection", 7))
	for e, err := range s.All() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(e.Seq, " ", e.Type, " ", e.Disk, " ", e.Fields))
		switch n++; n {
		case 1:
			l.Publish(client.EventStopping, "")
		case 2:
			l.Close()
		}
	}
	want := []string{"2 connection.opened a map[connection:7]", "3 daemon.stopping  map[]"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestEvents_Filter: since, types, and the end without following.
func TestEvents_Filter(t *testing.T) {
	l := newTestLog(3)
	for i := range 5 { // 1 and 2 are forgotten
		l.Publish([]client.EventType{client.EventConnectionOpened, client.EventConnectionClosed}[i%2], "a")
	}
	c := serveEvents(t, l)
	for since, want := range map[uint64][]string{
		0: {"2 lost map[events:2]", "3 connection.opened map[]", "5 connection.opened map[]"},
		2: {"3 connection.opened map[]", "5 connection.opened map[]"},
		3: {"5 connection.opened map[]"},
		5: nil,
	} {
		s, err := c.Events(t.Context(), client.EventFilter{Since: &since, Types: []client.EventType{client.EventConnectionOpened}, NoFollow: true})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for e, err := range s.All() {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(e.Seq, " ", e.Type, " ", e.Fields))
		}
		if !slices.Equal(got, want) {
			t.Errorf("since %d: got %q, want %q", since, got, want)
		}
	}
	since := uint64(6)
	if _, err := c.Events(t.Context(), client.EventFilter{Since: &since}); !errors.Is(err, client.ErrInvalid) || !strings.Contains(err.Error(), "newest event is 5") {
		t.Errorf("since beyond the newest: %v", err)
	}
}

// TestEvents_Gone: a stream whose reader goes away ends, and leaves nothing behind
// that would keep the server.
func TestEvents_Gone(t *testing.T) {
	l := newTestLog(8)
	c := serveEvents(t, l)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.Events(ctx, client.EventFilter{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for _, err := range s.All() {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the stream goes on with %v", err)
		}
	}
}

// A pipeListener accepts the other ends of pipes, whose deadlines go by the time of
// the test.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	close(l.closed)
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// servePipe serves routes, and returns a client with one connection and what ends both.
func servePipe(h http.Handler) (c *http.Client, end func() error) {
	l := &pipeListener{make(chan net.Conn), make(chan struct{})}
	s := Serve(l, h, slog.New(slog.DiscardHandler))
	t := &http.Transport{MaxConnsPerHost: 1, DialContext: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		l.conns <- far
		return near, nil
	}}
	return &http.Client{Transport: t}, func() error {
		t.CloseIdleConnections()
		return s.Close(context.Background())
	}
}

// TestEvents_EndAfterSilence: a stream in which nothing has happened for longer than a
// client may take for an answer ends well all the same.
func TestEvents_EndAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLog(8)
		c, end := servePipe(Handler(Sources{Events: l}))
		res, err := c.Get("http://vhbad/v1/events")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(writeTimeout + time.Second)
		l.Close()
		if text, err := io.ReadAll(res.Body); err != nil || len(text) != 0 {
			t.Errorf("%q, %v; want the end", text, err)
		}
		_ = res.Body.Close()
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}
