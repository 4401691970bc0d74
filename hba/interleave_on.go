//go:build interleave

package hba

import "sync"

// Tests make turns short.
var (
	turnCommands = 256
	maxTurns     = 4
)

// interleaving is the run that decides who goes on at a yield point, or nil.
// Tests set it while no goroutine of this package's runs.
var interleaving interface {
	Yield(point string)
	Lock(point string, mu *sync.Mutex)
	Wait(point string, c *sync.Cond)
	Broadcast(c *sync.Cond)
}

func yieldPoint(next string) {
	if interleaving != nil {
		interleaving.Yield(next)
	}
}

func yieldLock(next string, mu *sync.Mutex) {
	if interleaving != nil {
		interleaving.Lock(next, mu)
	}
}

func waitCond(c *sync.Cond) {
	if interleaving != nil {
		interleaving.Wait("wait", c)
	} else {
		c.Wait()
	}
}

func broadcastCond(c *sync.Cond) {
	if interleaving != nil {
		interleaving.Broadcast(c)
	} else {
		c.Broadcast()
	}
}
