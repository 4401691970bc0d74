package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// An EventType says what has happened.
type EventType string

// Types of events, with their fields.
const (
	// EventReady and EventStopping frame the life of the daemon.
	EventReady    EventType = "daemon.ready"
	EventStopping EventType = "daemon.stopping"
	// EventConnectionOpened: a client has begun to use a disk. Fields: connection,
	// remote, tls, client, replies.
	EventConnectionOpened EventType = "connection.opened"
	// EventConnectionClosed: a client has stopped using a disk. Fields: connection,
	// remote, reason, requests, received_bytes, sent_bytes.
	EventConnectionClosed EventType = "connection.closed"
	// EventDiskAdded: a disk is served from now on. Fields: address, backend, size_bytes,
	// origin.
	EventDiskAdded EventType = "disk.added"
	// EventDiskRemoved: a disk is no longer served. Fields: connections_closed,
	// connections_killed, flush_error.
	EventDiskRemoved EventType = "disk.removed"
	// EventDiskUnplugged: a fault has pulled a disk out. Fields: connections_closed,
	// connections_killed. EventDiskPlugged: the disk is served again. Field: address.
	EventDiskUnplugged EventType = "disk.unplugged"
	EventDiskPlugged   EventType = "disk.plugged"
	// EventDiskGrown: a disk is larger than before. Fields: size_bytes, was_bytes.
	EventDiskGrown EventType = "disk.grown"
	// EventReloaded: the configuration was read again and is in force. Fields, all
	// counts: disks_added, disks_removed, disks_changed, listeners_added,
	// listeners_removed. EventReloadFailed: it is not in force. Field: error.
	EventReloaded     EventType = "config.reloaded"
	EventReloadFailed EventType = "config.failed"
	// EventReset: a unit, a target or a bus of the adapter was reset. Fields: level,
	// address, ok, outstanding. Its disk is the one that caused the reset.
	EventReset EventType = "adapter.reset"
	// EventViolation: the verifier has seen a breach of the port's contract. Fields:
	// check, what.
	EventViolation EventType = "verifier.violation"
	// EventPowerCut: a disk lost its power. Fields: trigger, seed, policy, class,
	// pending_sectors, lost_sectors. EventPowerOn: it has power again. Field:
	// off_seconds.
	EventPowerCut EventType = "power.cut"
	EventPowerOn  EventType = "power.on"
	// EventFault: a command has met a fault. Fields: rule, kind, class (legal or
	// hostile), op, lba, blocks, tag, seed, times (including those not reported before).
	EventFault EventType = "fault.injected"
	// EventFaultSet: a fault rule has come into force. Fields: rule, kind, hostile, seed.
	// EventFaultRemoved: a rule has ended. Fields: rule, fired (how often). A rule that
	// is replaced by another of its name has no EventFaultRemoved.
	EventFaultSet     EventType = "fault.set"
	EventFaultRemoved EventType = "fault.removed"
	// EventFaultReleased: a rule has released commands. Fields: rule, released.
	EventFaultReleased EventType = "fault.released"
	// EventTraceStarted: a disk's steps are recorded from now on. Field: path.
	// EventTraceEnded: the recording is complete. Fields: path, records, bytes.
	// EventTraceFailed: the disk goes on without a recording. Fields: path, error.
	EventTraceStarted EventType = "trace.started"
	EventTraceEnded   EventType = "trace.ended"
	EventTraceFailed  EventType = "trace.failed"
	// EventMark: somebody has set a mark. Field: text.
	EventMark EventType = "mark"
	// EventLost stands for events that this reader was too slow to receive. Field:
	// events, their count. Its Seq is that of the last one lost.
	EventLost EventType = "lost"
)

// EventTypes returns all event types.
func EventTypes() []EventType {
	return []EventType{
		EventReady, EventStopping, EventConnectionOpened, EventConnectionClosed, EventDiskAdded, EventDiskRemoved, EventDiskUnplugged, EventDiskPlugged, EventDiskGrown,
		EventReloaded, EventReloadFailed, EventReset, EventViolation,
		EventPowerCut, EventPowerOn, EventTraceStarted, EventTraceEnded, EventTraceFailed, EventFault, EventFaultSet, EventFaultRemoved, EventFaultReleased, EventMark, EventLost,
	}
}

// Event is one thing that has happened: one line of GET /v1/events.
type Event struct {
	// Seq counts events from 1 since the daemon started.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Type EventType `json:"type"`
	// Disk is the name of the disk concerned, absent if there is none.
	Disk string `json:"disk,omitempty"`
	// Fields depend on Type. Numbers are JSON numbers; durations are in seconds.
	Fields map[string]any `json:"fields,omitempty"`
}

// EventFilter says which events are wanted.
type EventFilter struct {
	// Since, unless nil, asks for the remembered events with numbers above it first; 0
	// asks for all that the daemon remembers. Nil asks for new events only.
	Since *uint64
	// Types, unless empty, are the types wanted. EventLost always comes.
	Types []EventType
	// NoFollow ends the stream with the newest event there is.
	NoFollow bool
}

func (f *EventFilter) query() string {
	q := url.Values{}
	if f.Since != nil {
		q.Set("since", strconv.FormatUint(*f.Since, 10))
	}
	for _, t := range f.Types {
		q.Add("type", string(t))
	}
	if f.NoFollow {
		q.Set("follow", "false")
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// An EventStream gives a daemon's events as they happen.
//
// Concurrency: one goroutine; Close may be called from any.
type EventStream struct {
	c    *Client
	body io.ReadCloser
}

// Events opens a stream of events. It has everything that happens after Events has
// returned, until ctx ends or the stream is closed.
//
// Errors: ErrInvalid for a number that the daemon has not reached or a type that it does
// not know; otherwise as Status.
func (c *Client) Events(ctx context.Context, f EventFilter) (*EventStream, error) {
	res, err := c.do(ctx, http.MethodGet, "/v1/events"+f.query(), nil)
	if err != nil {
		return nil, err
	}
	return &EventStream{c: c, body: res.Body}, nil
}

// Close ends the stream.
func (s *EventStream) Close() error { return s.body.Close() }

// maxEventBytes bounds one event.
const maxEventBytes = 1 << 20

// All iterates over the events as they come. It ends without an error when the daemon
// stops, and with one in any other case.
func (s *EventStream) All() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		lines := bufio.NewScanner(s.body)
		lines.Buffer(nil, maxEventBytes)
		for lines.Scan() {
			var e Event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				if lines.Err() != nil {
					break // it is the first part of a line
				}
				yield(Event{}, fmt.Errorf("admin socket %s: event %.80q: %w", s.c.path, lines.Bytes(), err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: the daemon has died", err)
			}
			yield(Event{}, fmt.Errorf("admin socket %s: events: %w", s.c.path, err))
		}
	}
}
