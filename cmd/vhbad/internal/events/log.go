package events

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/vhbad/vhbad/client"
)

// DefaultCapacity is how many events the daemon remembers.
const DefaultCapacity = 4096

// ErrClosed means that there will be no more events.
var ErrClosed = errors.New("events: no more")

// A Log remembers events: the newest, up to its capacity.
//
// Concurrency: any goroutine. mu is a leaf, held for a few copies, so Publish may be called
// where nothing may wait.
type Log struct {
	now func() time.Time

	mu sync.Mutex
	// ring holds the event with number n at (n-1) % len(ring).
	// +checklocks:mu
	ring []client.Event
	// newest is the number of the newest event; they are counted from 1.
	// +checklocks:mu
	newest uint64
	// changed is closed at the next event, if somebody waits for it.
	// +checklocks:mu
	changed chan struct{}
	// +checklocks:mu
	closed bool
}

// NewLog returns an empty log. A nil now means time.Now.
func NewLog(capacity int, now func() time.Time) *Log {
	if capacity < 1 {
		panic("events: a log of no events")
	}
	if now == nil {
		now = time.Now
	}
	return &Log{now: now, ring: make([]client.Event, capacity)}
}

// Publish adds an event. disk is empty if the event concerns none. Fields that are
// durations become seconds, errors and Stringers become text.
func (l *Log) Publish(t client.EventType, disk string, fields ...slog.Attr) {
	e := client.Event{Type: t, Disk: disk, Fields: fieldMap(fields)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.newest++
	e.Seq, e.Time = l.newest, l.now().Round(0)
	l.ring[(l.newest-1)%uint64(len(l.ring))] = e
	l.wakeLocked()
}

// wakeLocked wakes those who wait.
//
// +checklocks:l.mu
func (l *Log) wakeLocked() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Newest returns the number of the newest event, 0 if there has been none.
func (l *Log) Newest() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest
}

// Read copies events with numbers above after into the buffer. It returns how many it
// copied, and how many events between after and those are forgotten. If there are none and
// wait is set, it waits for one.
//
// Errors: ErrClosed if there are none and there will be none; that of ctx.
func (l *Log) Read(ctx context.Context, after uint64, buffer []client.Event, wait bool) (n int, lost uint64, err error) {
	for {
		n, lost, changed, err := l.look(after, buffer, wait)
		if n > 0 || err != nil || !wait {
			return n, lost, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
}

// look is Read without waiting; changed is closed when there is more.
func (l *Log) look(after uint64, buffer []client.Event, wait bool) (n int, lost uint64, changed <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if after >= l.newest {
		switch {
		case l.closed:
			return 0, 0, nil, ErrClosed
		case wait && l.changed == nil:
			l.changed = make(chan struct{})
		}
		return 0, 0, l.changed, nil
	}
	if size := uint64(len(l.ring)); l.newest-after > size {
		lost = l.newest - after - size
	}
	for seq := after + lost + 1; seq <= l.newest && n < len(buffer); seq++ {
		buffer[n] = l.ring[(seq-1)%uint64(len(l.ring))]
		n++
	}
	return n, lost, nil, nil
}

// Close says that there will be no more events. The events in the log can still be read.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.wakeLocked()
}

// fieldMap turns attributes into JSON values.
func fieldMap(fields []slog.Attr) map[string]any {
	if len(fields) == 0 {
		return nil
	}
	m := make(map[string]any, len(fields))
	for _, f := range fields {
		v := f.Value.Resolve()
		switch v.Kind() {
		case slog.KindDuration:
			m[f.Key] = v.Duration().Seconds()
		case slog.KindAny:
			m[f.Key] = v.String() // errors and Stringers
		default:
			m[f.Key] = v.Any()
		}
	}
	return m
}
