//go:build interleave

package hba

import (
	"testing"

	"github.com/vhbad/vhbad/internal/interleave"
)

// TestInterleaveMutants shows that the scenarios of interleave_test.go bite: each
// mistake below, made in the device itself, is found within their bounds.
func TestInterleaveMutants(t *testing.T) {
	interleave.FindMutants(t, []interleave.Mutant{
		{
			Name: "what is raised while masked is dropped",
			Test: "TestInterleave_Mask",
			File: "interrupt.go",
			Old: `		if s&messageConnected == 0 || s&(messageMasked|messageLine) == messageMasked {
			if w.state.CompareAndSwap(s, s|messagePending) {
				return
			}
			continue
		}`,
			New: `if s&messageConnected == 0 || s&(messageMasked|messageLine) == messageMasked {
				return
			}`,
		},
		{
			Name: "pending is set after the mask was looked at",
			Test: "TestInterleave_Mask",
			File: "interrupt.go",
			Old: `		if s&messageConnected == 0 || s&(messageMasked|messageLine) == messageMasked {
			if w.state.CompareAndSwap(s, s|messagePending) {
				return
			}
			continue
		}`,
			New: `if s&messageConnected == 0 || s&(messageMasked|messageLine) == messageMasked {
				w.state.Or(messagePending)
				return
			}`,
		},
		{
			Name: "unmasking leaves what is pending",
			Test: "TestInterleave_Mask",
			File: "interrupt.go",
			Old: `		if deliver {
			next = next&^messagePending + messageCall
		}`,
			New: `deliver = false`,
		},
		{
			Name: "the causes' mask is taken away in silence",
			Test: "TestInterleave_LineMask",
			File: "interrupt.go",
			Old: `	if up {
		x.deliverLine(src)
	}`,
		},
		{
			Name: "disconnect does not wait for calls under way",
			Test: "TestInterleave_Reconnect",
			File: "interrupt.go",
			Old: `		for x.messages[m].state.Load() >= messageCall {
			waitCond(&x.idle)
		}`,
		},
		{
			Name: "nobody tells disconnect of the last call",
			Test: "TestInterleave_Reconnect",
			File: "interrupt.go",
			Old:  `		broadcastCond(&x.idle)`,
		},
		{
			Name: "causes are not carried over into messages",
			Test: "TestInterleave_Reconnect",
			File: "interrupt.go",
			Old: `		if kept&causeOf(pci.Message(m)) != 0 {
			bits |= messagePending
		}`,
		},
		{
			Name: "messages are not carried over into causes",
			Test: "TestInterleave_Reconnect",
			File: "interrupt.go",
			Old: `		if x.messages[m].toLine() {
			kept |= causeOf(pci.Message(m))
		}`,
			New: `x.messages[m].toLine()`,
		},
		{
			Name: "two goroutines become the engine",
			Test: "TestInterleave_Doorbells",
			File: "engine.go",
			Old: `			if !q.engine.CompareAndSwap(engineIdle, engineRunning) {
				break
			}`,
			New: `if q.engine.Load() != engineIdle {
				break
			}
			yieldPoint("engine: become it after all")
			q.engine.Store(engineRunning)`,
		},
		{
			Name: "an engine does not look at the tail again",
			Test: "TestInterleave_Doorbells",
			File: "engine.go",
			Old: `			if q.gate.Load()&gateDead != 0 {
				q.dev.settle() // a reset may wait for this engine
			}`,
			New: `if q.gate.Load()&gateDead != 0 {
				q.dev.settle()
			}
			break`,
		},
		{
			Name: "what an engine hands over is forgotten",
			Test: "TestInterleave_HandOver",
			File: "engine.go",
			Old:  `	q.dev.runOwed.Or(1 << q.index)`,
		},
		{
			Name: "nobody wakes who takes over from an engine",
			Test: "TestInterleave_HandOver",
			File: "engine.go",
			Old:  `	q.dev.intr.wake()`,
		},
		{
			Name: "an engine does not tell a reset that it has stopped",
			Test: "TestInterleave_Reset",
			File: "engine.go",
			Old: `			if q.gate.Load()&gateDead != 0 {
				q.dev.settle() // a reset may wait for this engine
			}`,
		},
		{
			Name: "an engine does not complete controls",
			Test: "TestInterleave_ResetUnit",
			File: "engine.go",
			Old: `	if q.gate.Load()&gateControl != 0 {
		q.dev.advance(q)
	}`,
		},
		{
			Name: "room in the completion ring wakes no engine",
			Test: "TestInterleave_Acknowledge",
			File: "queue.go",
			Old: `		if q.consumed.CompareAndSwap(old, consumed) {
			break
		}`,
			New: `if q.consumed.CompareAndSwap(old, consumed) {
				return
			}`,
		},
		{
			Name: "a new tail is stored without a look at the old one",
			Test: "TestInterleave_Doorbells",
			File: "queue.go",
			Old: `		if q.tail.CompareAndSwap(old, tail) {
			break
		}`,
			New: `q.tail.Store(tail)
			break`,
		},
		{
			Name: "a reset does not wait for engines",
			Test: "TestInterleave_Reset",
			File: "reset.go",
			Old: `		if q.gate.Load()&gateDead != 0 && q.busy == 0 && q.engine.CompareAndSwap(engineIdle, engineGone) {
			d.slots[i].queue.Store(nil)
			continue
		}`,
			New: `if q.gate.Load()&gateDead != 0 && q.busy == 0 {
				d.slots[i].queue.Store(nil)
				continue
			}`,
		},
		{
			Name: "a reset does not wait for workers",
			Test: "TestInterleave_Reset",
			File: "reset.go",
			Old: `		if q.gate.Load()&gateDead != 0 && q.busy == 0 && q.engine.CompareAndSwap(engineIdle, engineGone) {
			d.slots[i].queue.Store(nil)
			continue
		}`,
			New: `if q.gate.Load()&gateDead != 0 && q.engine.CompareAndSwap(engineIdle, engineGone) {
				d.slots[i].queue.Store(nil)
				continue
			}`,
		},
		{
			Name: "an abort does not wait for its victim",
			Test: "TestInterleave_Abort",
			File: "control.go",
			Old: `	if c.kind == controlAbort {
		return c.victim.state == recordFree
	}`,
			New: `if c.kind == controlAbort {
				return true
			}`,
		},
		{
			Name: "a reset of a unit does not wait for commands",
			Test: "TestInterleave_ResetUnit",
			File: "control.go",
			Old: `		if !d.isOverLocked(c) {
			kept = append(kept, c)
			continue
		}`,
		},
		{
			Name: "a worker that ends does not look at controls",
			Test: "TestInterleave_ResetUnit",
			File: "lane.go",
			Old: `	if len(d.controls) != 0 {
		raise |= d.advanceLocked()
	}`,
		},
		{
			Name: "a lane that has lost its leader has no other",
			Test: "TestInterleave_LanesAbort",
			File: "worker.go",
			Old: `		if !l.led {
			d.leadLocked(l)
		}`,
		},
		{
			Name: "what waits behind a worker that is stuck stays there",
			Test: "TestInterleave_Lanes",
			File: "lane.go",
			Old: `		d.work.Signal()
		d.lines[rec.line].push(rec)`,
		},
	})
}
