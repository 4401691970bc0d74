package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/vhbad/vhbad/client"
)

// Invalid returns the error for a request that cannot be right whatever the daemon's state.
// The message names the value and says what is allowed.
func Invalid(format string, args ...any) error { return problem(client.CodeInvalid, format, args) }

// NotFound returns the error for a request about something that does not exist.
func NotFound(format string, args ...any) error { return problem(client.CodeNotFound, format, args) }

// NoDisk returns the error for a request about a disk that does not exist.
func NoDisk(name string) error {
	return NotFound("disk %q: there is none of that name: `vhbad disk list` shows those there are", name)
}

// Conflict returns the error for a request that the daemon's state does not allow.
func Conflict(format string, args ...any) error { return problem(client.CodeConflict, format, args) }

// Unavailable returns the error for a request to a daemon that is starting or stopping.
func Unavailable(format string, args ...any) error {
	return problem(client.CodeUnavailable, format, args)
}

func methodNotAllowed(format string, args ...any) error {
	return problem(client.CodeMethodNotAllowed, format, args)
}

func problem(c client.Code, format string, args []any) error {
	return &client.Error{Code: c, Message: fmt.Sprintf(format, args...)}
}

// statuses maps codes to HTTP statuses.
var statuses = map[client.Code]int{
	client.CodeInvalid:          http.StatusBadRequest,
	client.CodeNotFound:         http.StatusNotFound,
	client.CodeMethodNotAllowed: http.StatusMethodNotAllowed,
	client.CodeConflict:         http.StatusConflict,
	client.CodeTooLarge:         http.StatusRequestEntityTooLarge,
	client.CodeInternal:         http.StatusInternalServerError,
	client.CodeUnavailable:      http.StatusServiceUnavailable,
}

// refuse answers with a problem: that of a client.Error in err's chain, with err's whole
// text as its message, or else an internal one.
func refuse(w http.ResponseWriter, err error) {
	code := client.CodeInternal
	if e, ok := errors.AsType[*client.Error](err); ok && statuses[e.Code] != 0 {
		code = e.Code
	}
	answer(w, statuses[code], client.Problem{Message: err.Error(), Code: code})
}

// answer sends a body as JSON.
func answer(w http.ResponseWriter, status int, body any) {
	allowWrite(w)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error means that the client has gone; there is nobody to tell.
	_ = json.NewEncoder(w).Encode(body)
}

// allowWrite gives the client writeTimeout, from now on, to receive what is written next.
// The time that the handler took does not count.
func allowWrite(w http.ResponseWriter) {
	// This fails for the recorders of tests, which need no deadline.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
}
