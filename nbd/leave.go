package nbd

import (
	"errors"
	"time"
)

// A reader that waits, for a slot or for memory, does not read that its client has gone. The
// fence has to be up all the same: what is under way, and what the reader has yet to read, is
// older than what the client sends on its next connection. See Fencer.

// leaveTime bounds the waits of the reader once it is known that the client has gone: what that
// sent before its DISC should be done, but the fence is around the whole disk meanwhile.
const leaveTime = time.Second

// errLeft ends a wait for memory.
var errLeft = errors.New("no memory, and the client has gone")

// watchLeaving is called by the reader before it waits for anything but input.
func (c *Conn) watchLeaving() {
	if s, ok := c.nc.(interface{ WatchHangup(fn func()) error }); ok {
		if c.onHangup == nil {
			c.onHangup = c.leaves
		}
		_ = s.WatchHangup(c.onHangup) // without, it is seen when the reader reads on
	}
}

// leaves is called when the client has closed the connection, or its half.
//
// Concurrency: any goroutine; takes a lock for a few instructions.
func (c *Conn) leaves() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fencer != nil { // else it is dead, or has left before
		c.fenceLocked()
		time.AfterFunc(leaveTime, c.hasLeft)
	}
}

// hasLeft ends the reader's wait, and allows it no other.
func (c *Conn) hasLeft() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left.Store(true)
	c.cond.Signal()
	c.hurryLocked()
}

// fenceLocked puts up the session's fence, once.
//
// +checklocks:c.mu
func (c *Conn) fenceLocked() {
	if c.fencer != nil {
		c.fencer.Fence()
		c.fencer = nil
	}
}
