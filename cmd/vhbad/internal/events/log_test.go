package events

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/client"
)

func TestLog_Fields(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	l := NewLog(2, func() time.Time { return at })
	l.Publish(client.EventReset, "d", slog.Duration("took", 1500*time.Millisecond), slog.Any("error", errors.New("no")), slog.Bool("ok", true), slog.Int("n", 3))
	var got [2]client.Event
	n, lost, err := l.Read(t.Context(), 0, got[:], true)
	if n != 1 || lost != 0 || err != nil {
		t.Fatal(n, lost, err)
	}
	want := client.Event{Seq: 1, Time: at, Type: client.EventReset, Disk: "d", Fields: map[string]any{
		"took": 1.5, "error": "no", "ok": true, "n": int64(3),
	}}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestLog_Lost(t *testing.T) {
	l := NewLog(3, nil)
	for range 10 {
		l.Publish(client.EventReady, "")
	}
	for _, tt := range []struct {
		after, lost, first uint64
		n                  int
	}{
		{0, 7, 8, 2}, {6, 1, 8, 2}, {7, 0, 8, 2}, {8, 0, 9, 2}, {9, 0, 10, 1}, {10, 0, 0, 0}, {99, 0, 0, 0},
	} {
		var buffer [2]client.Event
		n, lost, err := l.Read(t.Context(), tt.after, buffer[:], false)
		if n != tt.n || lost != tt.lost || buffer[0].Seq != tt.first || err != nil {
			t.Errorf("after %d: %d events from %d, %d lost, %v; want %+v", tt.after, n, buffer[0].Seq, lost, err, tt)
		}
	}
}

func TestLog_WaitAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(3, nil)
		var buffer [1]client.Event
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if n, _, err := l.Read(ctx, 0, buffer[:], true); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an empty log: %d, %v", n, err)
		}
		time.AfterFunc(time.Minute, func() { l.Publish(client.EventReady, "") })
		if n, _, err := l.Read(t.Context(), 0, buffer[:], true); n != 1 || err != nil {
			t.Errorf("a log with one event: %d, %v", n, err)
		}
		time.AfterFunc(time.Minute, l.Close)
		if n, _, err := l.Read(t.Context(), 1, buffer[:], true); n != 0 || !errors.Is(err, ErrClosed) {
			t.Errorf("a closed log: %d, %v", n, err)
		}
		l.Publish(client.EventReady, "")
		if n, _, err := l.Read(t.Context(), 0, buffer[:], true); n != 1 || err != nil || l.Newest() != 1 {
			t.Errorf("the rest of a closed log: %d of %d, %v", n, l.Newest(), err)
		}
	})
}

// TestLog_Concurrent: whatever readers do, each sees every event once, in order,
// or is told how many it has not seen.
func TestLog_Concurrent(t *testing.T) {
	const writers, each = 4, 1000
	l := NewLog(16, nil)
	var write, read sync.WaitGroup
	for range writers {
		write.Go(func() {
			for range each {
				l.Publish(client.EventReady, "")
			}
		})
	}
	for range 3 {
		read.Go(func() {
			var buffer [5]client.Event
			var after, seen, missed uint64
			for {
				n, lost, err := l.Read(t.Context(), after, buffer[:], true)
				if errors.Is(err, ErrClosed) {
					break
				}
				for i := range buffer[:n] {
					if want := after + lost + 1 + uint64(i); buffer[i].Seq != want {
						t.Errorf("event %d, want %d", buffer[i].Seq, want)
						return
					}
				}
				after, seen, missed = buffer[n-1].Seq, seen+uint64(n), missed+lost
			}
			if seen+missed != writers*each {
				t.Errorf("%d seen and %d missed, want %d in all", seen, missed, writers*each)
			}
		})
	}
	write.Wait()
	l.Close()
	read.Wait()
}
