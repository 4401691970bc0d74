package nbd

import (
	"testing"
	"time"
)

// TestPacer: a burst is free, then each event waits; a pause earns a burst again,
// and no more.
func TestPacer(t *testing.T) {
	p := newPacer(100, 3)
	const ms = int64(time.Millisecond)
	for i, e := range []struct {
		atNs int64
		want time.Duration
	}{
		{-5000 * ms, 0},
		{-5000 * ms, 0},
		{-5000 * ms, 10 * time.Millisecond},
		{-4990 * ms, 10 * time.Millisecond},
		{-4985 * ms, 15 * time.Millisecond},
		{-4960 * ms, 0},
		{1000 * ms, 0},
		{1000 * ms, 0},
		{1000 * ms, 10 * time.Millisecond},
		{1000 * ms, 20 * time.Millisecond},
	} {
		if got := p.take(e.atNs); got != e.want {
			t.Errorf("event %d, at %v: %v, want %v", i, time.Duration(e.atNs), got, e.want)
		}
	}
	p = newPacer(1, 2)
	for i, e := range []struct {
		atNs int64
		want bool
	}{{0, true}, {0, true}, {0, false}, {999 * ms, false}, {1000 * ms, true}, {1000 * ms, false}, {9000 * ms, true}, {9000 * ms, true}, {9000 * ms, false}} {
		if got := p.allow(e.atNs); got != e.want {
			t.Errorf("event %d, at %v: allowed %v, want %v", i, time.Duration(e.atNs), got, e.want)
		}
	}
}
