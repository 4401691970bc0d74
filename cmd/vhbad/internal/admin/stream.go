package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vhbad/vhbad/client"
)

// Events reports what happens; see package events.
type Events interface {
	// Newest returns the number of the newest event.
	Newest() uint64
	// Read copies events with numbers above after into the buffer. It returns how many it
	// copied and how many before those are lost. If there are none and wait is set, it
	// waits for one.
	Read(ctx context.Context, after uint64, buffer []client.Event, wait bool) (n int, lost uint64, err error)
}

// MediaNDJSON is the type of a stream of JSON values, one on each line.
const MediaNDJSON = "application/x-ndjson"

func eventRoutes(e Events) []Route {
	return []Route{{
		Method: http.MethodGet, Path: "/v1/events", ID: "events",
		Summary: "What happens, as it happens",
		Detail: "One event on each line. The answer begins at once and ends when the daemon stops; there are no lines but " +
			"events. A reader that is too slow loses events, and gets one of type \"lost\" in their place that says how many.",
		Query: []Parameter{
			{Name: "since", Of: uint64(0), Summary: "Begin behind the event with this number, 0 for all that the daemon remembers. Without it the stream begins with the next event."},
			{Name: "type", Of: "", Many: true, Values: eventTypeNames(), Summary: "Send events of this type only; several times for more. Events of type \"lost\" always come."},
			{Name: "follow", Of: true, Summary: "If false, end with the newest event."},
		},
		Endpoint: Endpoint{
			Answer: reflect.TypeFor[client.Event](), Status: http.StatusOK, Media: MediaNDJSON,
			serve: func(w http.ResponseWriter, r *http.Request) { streamEvents(w, r, e) },
		},
	}}
}

func eventTypeNames() []string {
	var names []string
	for _, t := range client.EventTypes() {
		names = append(names, string(t))
	}
	return names
}

// streamBatch is how many events are sent at once.
const streamBatch = 64

// streamEvents sends events until the reader goes away or there will be no more.
func streamEvents(w http.ResponseWriter, r *http.Request, e Events) {
	after, types, follow, err := eventQuery(r, e)
	if err != nil {
		refuse(w, err)
		return
	}
	rc := http.NewResponseController(w)
	// The reader sends nothing more, however long the stream lasts. These calls fail only
	// for the recorders of tests.
	_ = rc.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", MediaNDJSON)
	w.WriteHeader(http.StatusOK)
	allowWrite(w)
	if rc.Flush() != nil || r.Method == http.MethodHead {
		return
	}
	out := json.NewEncoder(w)
	buffer := make([]client.Event, streamBatch)
	for {
		n, lost, err := e.Read(r.Context(), after, buffer, follow)
		allowWrite(w) // also for the end of the stream, which may come long after the last event
		if n == 0 || err != nil {
			return
		}
		if lost > 0 {
			gap := client.Event{
				Seq: after + lost, Time: buffer[0].Time, Type: client.EventLost, Fields: map[string]any{"events": lost},
			}
			if out.Encode(gap) != nil {
				return
			}
		}
		for i := range buffer[:n] {
			if len(types) > 0 && !slices.Contains(types, buffer[i].Type) {
				continue
			}
			if out.Encode(&buffer[i]) != nil {
				return
			}
		}
		if rc.Flush() != nil {
			return
		}
		after = buffer[n-1].Seq
	}
}

// eventQuery reads the parameters of a stream.
func eventQuery(r *http.Request, e Events) (after uint64, types []client.EventType, follow bool, err error) {
	q := r.URL.Query()
	after, follow = e.Newest(), true
	if s := q.Get("since"); q.Has("since") {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, nil, false, Invalid("since %q: want the number of an event, or 0", s)
		}
		if n > after {
			return 0, nil, false, Invalid("since %d: the newest event is %d: numbers begin again when the daemon starts", n, after)
		}
		after = n
	}
	for _, s := range q["type"] {
		t := client.EventType(s)
		if !slices.Contains(client.EventTypes(), t) {
			return 0, nil, false, Invalid("type %q is not known: want %s", s, strings.Join(eventTypeNames(), ", "))
		}
		types = append(types, t)
	}
	if s := q.Get("follow"); q.Has("follow") {
		if follow, err = strconv.ParseBool(s); err != nil {
			return 0, nil, false, Invalid("follow %q: want true or false", s)
		}
	}
	return after, types, follow, nil
}
