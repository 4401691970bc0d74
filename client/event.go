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
	// EventConnectionOpened is a client that begins to use a disk: connection,
	// remote, tls, client, replies.
	EventConnectionOpened EventType = "connection.opened"
	// EventConnectionClosed is one that does no more: connection, remote, reason,
	// requests, received_bytes, sent_bytes.
	EventConnectionClosed EventType = "connection.closed"
	// EventDiskAdded is a disk that is served from now on: address, backend,
	// size_bytes, origin.
	EventDiskAdded EventType = "disk.added"
	// EventDiskRemoved is one that is not any more: connections_closed,
	// connections_killed, flush_error.
	EventDiskRemoved EventType = "disk.removed"
	// EventDiskUnplugged is a disk that a fault has pulled out: connections_closed,
	// connections_killed. EventDiskPlugged is one that is served again: address.
	EventDiskUnplugged EventType = "disk.unplugged"
	EventDiskPlugged   EventType = "disk.plugged"
	// EventDiskGrown is one that is larger than before: size_bytes, was_bytes.
	EventDiskGrown EventType = "disk.grown"
	// EventReloaded is a configuration that was read again and is in force:
	// disks_added, disks_removed, disks_changed, listeners_added, listeners_removed,
	// how many. EventReloadFailed is one that is not: error.
	EventReloaded     EventType = "config.reloaded"
	EventReloadFailed EventType = "config.failed"
	// EventReset is a reset of a unit, a target or a bus of the adapter: level,
	// address, ok, outstanding. Its disk is the one on whose account it was.
	EventReset EventType = "adapter.reset"
	// EventViolation is a breach of the port's contract, seen by the verifier:
	// check, what.
	EventViolation EventType = "verifier.violation"
	// EventPowerCut is a disk that lost its power: trigger, seed, policy, class,
	// pending_sectors, lost_sectors. EventPowerOn is one that has it again:
	// off_seconds.
	EventPowerCut EventType = "power.cut"
	EventPowerOn  EventType = "power.on"
	// EventFault is a command that has met a fault: rule, kind, class (legal or
	// hostile), op, lba, blocks, tag, seed, times (those not told before included).
	EventFault EventType = "fault.injected"
	// EventFaultSet is a fault rule that has come into force: rule, kind, hostile,
	// seed; EventFaultRemoved one that has ended: rule, fired (how often). One that is
	// replaced by another of its name has no EventFaultRemoved.
	EventFaultSet     EventType = "fault.set"
	EventFaultRemoved EventType = "fault.removed"
	// EventFaultReleased is a rule that has let commands go: rule, released.
	EventFaultReleased EventType = "fault.released"
	// EventTraceStarted is a disk whose steps are recorded from now on: path.
	// EventTraceEnded is one whose recording is complete: path, records, bytes;
	// EventTraceFailed one that goes on without: path, error.
	EventTraceStarted EventType = "trace.started"
	EventTraceEnded   EventType = "trace.ended"
	EventTraceFailed  EventType = "trace.failed"
	// EventMark is a mark that somebody has set: text.
	EventMark EventType = "mark"
	// EventLost stands for events that this reader was too slow for: events, how
	// many. Its number is that of the last one of them.
	EventLost EventType = "lost"
)

// EventTypes are all of them.
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
	// Disk is the name of the disk concerned, absent if it is none.
	Disk string `json:"disk,omitempty"`
	// Fields depend on Type. Numbers are those of JSON, durations in seconds.
	Fields map[string]any `json:"fields,omitempty"`
}

// EventFilter says which events are wanted.
type EventFilter struct {
	// Since, unless nil, asks for those behind this number first, 0 for all that
	// the daemon remembers. Nil asks for those that are to come.
	Since *uint64
	// Types, if there are any, are those wanted. EventLost always comes.
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

// Events asks for events. What happens after it has returned is in the stream,
// until ctx ends or the stream is closed.
//
// Errors: ErrInvalid for a number that the daemon has not reached or a type that
// it does not know; otherwise as Status.
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

// All are the events, one after the other as they come. It ends without an error
// when the daemon stops, and with one in any other case.
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
