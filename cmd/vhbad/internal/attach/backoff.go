package attach

import (
	"context"
	"math/rand/v2"
	"time"
)

// Waiting times between attempts to reconnect: twice as long each time.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// A backoff spaces attempts. The zero value is ready.
type backoff struct{ attempts int }

// next returns how long to wait after another failure: a random time in the upper half of
// the step, so that the clients of one server do not all come back at once.
func (b *backoff) next() time.Duration {
	step := lastBackoff
	if b.attempts < 16 {
		step = min(step, firstBackoff<<b.attempts)
		b.attempts++
	}
	return step/2 + rand.N(step/2)
}

// wait waits for the next attempt, or for early.
//
// Errors: the context's.
func (b *backoff) wait(ctx context.Context, early <-chan struct{}) error {
	t := time.NewTimer(b.next())
	defer t.Stop()
	select {
	case <-t.C:
	case <-early:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
