package daemon

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/port"
)

// An eventReader reads the events of a daemon, one after the other.
type eventReader struct {
	t    *testing.T
	next func() (client.Event, error, bool)
}

// follow begins to read the events of the daemon of s; those that have been come
// first.
func (s *settings) follow(t *testing.T, types ...client.EventType) *eventReader {
	t.Helper()
	c := client.New(s.Admin)
	t.Cleanup(c.Close)
	stream, err := c.Events(t.Context(), client.EventFilter{Since: new(uint64), Types: types})
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan func() (client.Event, error))
	go func() {
		defer close(ch)
		for e, err := range stream.All() {
			ch <- func() (client.Event, error) { return e, err }
		}
	}()
	t.Cleanup(func() {
		_ = stream.Close()
		for range ch { // so that the reader ends
		}
	})
	return &eventReader{t: t, next: func() (client.Event, error, bool) {
		get, ok := <-ch
		if !ok {
			return client.Event{}, nil, false
		}
		e, err := get()
		return e, err, true
	}}
}

// want is the next event, which must be of that type and about that disk.
func (r *eventReader) want(typ client.EventType, disk string) client.Event {
	r.t.Helper()
	e, err, ok := r.next()
	if !ok || err != nil || e.Type != typ || e.Disk != disk {
		r.t.Fatalf("event %+v, %v; want %s of disk %q", e, err, typ, disk)
	}
	return e
}

// TestDaemon_Events: the life of a daemon with one client and one reset, as its
// events tell it.
func TestDaemon_Events(t *testing.T) {
	s := newSettings(t, "d=memory:1MiB", "e=memory:1MiB")
	d, stop := s.mustStart(t)
	r := s.follow(t)
	r.want(client.EventReady, "")
	c := open(t, s.socket(), "e")
	opened := r.want(client.EventConnectionOpened, "e")
	if _, err := c.do(cmdRead, 0, 4096, nil); err != nil {
		t.Error(err)
	}
	d.mu.RLock()
	m := d.machine
	d.mu.RUnlock()
	err := m.onProcessor("reset", func(p *port.Processor) error {
		return m.adapter.ResetNow(p, m.list()[1].LogicalUnit(), port.ResetUnit)
	})
	if err != nil {
		t.Error(err)
	}
	reset := r.want(client.EventReset, "e")
	if got := fmt.Sprint(reset.Fields); got != "map[address:0:0:1 level:unit ok:true outstanding:0]" {
		t.Errorf("reset %s", got)
	}
	stop()
	r.want(client.EventStopping, "")
	closed := r.want(client.EventConnectionClosed, "e")
	if opened.Fields["remote"] != "" || closed.Fields["remote"] != "" { // as in the status: unix sockets have no names here
		t.Errorf("remote %q and %q, want none", opened.Fields["remote"], closed.Fields["remote"])
	}
	if closed.Fields["reason"] != "shutdown" || closed.Fields["requests"] != 1.0 || closed.Fields["connection"] != opened.Fields["connection"] {
		t.Errorf("opened %v, closed %v", opened.Fields, closed.Fields)
	}
	if e, err, ok := r.next(); ok {
		t.Errorf("after the last event: %+v, %v", e, err)
	}
}

// TestEvents_NoLock: a reset is reported even while somebody holds the daemon's lock or
// waits for it: the holder may be waiting for the reset.
func TestEvents_NoLock(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	d, _ := s.mustStart(t)
	events, m := s.follow(t, client.EventReset), machineOf(d)
	done := make(chan error, 1)
	d.mu.Lock()
	go func() {
		done <- m.onProcessor("reset", func(p *port.Processor) error {
			return m.adapter.ResetNow(p, m.find("one").LogicalUnit(), port.ResetUnit)
		})
	}()
	var err error
	select {
	case err = <-done:
	case <-time.After(20 * time.Second):
		err = errors.New("it waits for the daemon's lock")
	}
	d.mu.Unlock()
	if err != nil {
		t.Fatalf("reset: %v", err)
	}
	events.want(client.EventReset, "one")
}
