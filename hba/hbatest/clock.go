package hbatest

import (
	"slices"
	"sync"
	"time"
)

// A Clock is an hba.Clock that stands still until it is told to go on. Its zero
// value is ready.
type Clock struct {
	mu sync.Mutex
	// +checklocks:mu
	now time.Duration
	// +checklocks:mu
	calls []*call
}

// A call is one of AfterFunc that is yet to come.
type call struct {
	at time.Duration
	fn func()
}

// Now implements hba.Clock.
func (c *Clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc implements hba.Clock. fn is called by Advance, on its goroutine; if it
// is due already, at once on another.
func (c *Clock) AfterFunc(d time.Duration, fn func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d <= 0 {
		go fn()
		return func() bool { return false }
	}
	k := &call{c.now + d, fn}
	c.calls = append(c.calls, k)
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := len(c.calls)
		c.calls = slices.DeleteFunc(c.calls, func(other *call) bool { return other == k })
		return len(c.calls) < n
	}
}

// Advance lets time pass, and what is due on the way happen in order.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	end := c.now + d
	for {
		first := -1
		for i, k := range c.calls {
			if k.at <= end && (first < 0 || k.at < c.calls[first].at) {
				first = i
			}
		}
		if first < 0 {
			break
		}
		k := c.calls[first]
		c.calls = slices.Delete(c.calls, first, first+1)
		c.now = max(c.now, k.at)
		c.mu.Unlock()
		k.fn()
		c.mu.Lock()
	}
	c.now = end
	c.mu.Unlock()
}

// Pending is how many calls are yet to come.
func (c *Clock) Pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.calls)
}
