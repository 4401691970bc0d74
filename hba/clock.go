package hba

import "time"

// A Clock is what a device measures time by when it holds commands back. Its zero has no
// meaning.
type Clock interface {
	Now() time.Duration
	// AfterFunc calls fn on a goroutine of its own once d has passed. stop prevents the
	// call if it is not too late.
	AfterFunc(d time.Duration, fn func()) (stop func() bool)
}

// wallClock is real time.
type wallClock struct{ start time.Time }

func (c wallClock) Now() time.Duration { return time.Since(c.start) }

func (c wallClock) AfterFunc(d time.Duration, fn func()) func() bool {
	return time.AfterFunc(d, fn).Stop
}
