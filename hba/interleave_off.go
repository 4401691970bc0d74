//go:build !interleave

package hba

import "sync"

// How many commands make a turn of an engine, and how many turns a goroutine takes in a
// row before it hands over.
const (
	turnCommands = 256
	maxTurns     = 4
)

// Yield points are where a test may let another goroutine go on in the middle of
// an algorithm: before each step that others can notice. Here they are nothing;
// with the build tag interleave they are in interleave_on.go. They are inlined
// away: the hot path does not pay for them.

// yieldPoint is a step; next says what comes after it.
func yieldPoint(next string) {}

// yieldLock is a step that goes on when mu is free. The caller locks mu next.
func yieldLock(next string, mu *sync.Mutex) {}

// waitCond is c.Wait.
func waitCond(c *sync.Cond) { c.Wait() }

// broadcastCond is c.Broadcast.
func broadcastCond(c *sync.Cond) { c.Broadcast() }
