package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
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

// TestEvents_Follow: a stream has what happens after it was asked for, as it
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
