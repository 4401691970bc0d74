package client

// A Code says what kind of problem an answer is about. Codes are stable; the
// messages that go with them are for people.
type Code string

// The codes, each with the HTTP status that it comes with.
const (
	// CodeInvalid is a request that cannot be right whatever the daemon's state:
	// 400.
	CodeInvalid Code = "invalid"
	// CodeNotFound is a request about something that does not exist: 404.
	CodeNotFound Code = "not_found"
	// CodeMethodNotAllowed is a request with a method that the path does not have: 405.
	CodeMethodNotAllowed Code = "method_not_allowed"
	// CodeConflict is a request that the daemon's state does not allow: 409.
	CodeConflict Code = "conflict"
	// CodeTooLarge is a request whose body is too long: 413.
	CodeTooLarge Code = "too_large"
	// CodeInternal is a failure of the daemon or of the machine: 500.
	CodeInternal Code = "internal"
	// CodeUnavailable is a request to a daemon that is starting or stopping, or one that
	// has to wait for a medium that hangs: 503.
	CodeUnavailable Code = "unavailable"
)

// An Error is what a daemon answers instead of doing as asked. Compare it with
// errors.Is and ErrInvalid, ErrNotFound and their like.
type Error struct {
	Code Code
	// Message says what was wrong and what is allowed.
	Message string
}

// Targets for errors.Is.
var (
	ErrInvalid     = &Error{Code: CodeInvalid}
	ErrNotFound    = &Error{Code: CodeNotFound}
	ErrConflict    = &Error{Code: CodeConflict}
	ErrInternal    = &Error{Code: CodeInternal}
	ErrUnavailable = &Error{Code: CodeUnavailable}
)

func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return e.Message
}

// Is reports whether target is the sentinel (an Error without a message) of the same
// code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Message == "" && t.Code == e.Code
}

// Problem is the body of every answer that is not a success.
type Problem struct {
	// Message says what was wrong and what is allowed.
	Message string `json:"error"`
	// Code says what kind of problem it is.
	Code Code `json:"code,omitempty"`
}
