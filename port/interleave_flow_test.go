//go:build interleave

package port

import (
	"fmt"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/interleave"
)

// The things that a timer ends are gone through here, while a call replaces them: the
// timer leaves the replacement alone.

// longSeconds is time that no test has.
const longSeconds = 1_000_000

// replacements are the things that may be replaced as their time ends: begin replaces
// one, and end is the timer of the first.
var replacements = []struct {
	name  string
	begin func(m *machine, p *Processor)
	end   func(m *machine, p *Processor)
	gate  func(m *machine) uint32
	want  uint32
}{
	{
		name:  "Pause",
		begin: func(m *machine, p *Processor) { m.a.Pause(p, longSeconds) },
		end:   func(m *machine, p *Processor) { m.a.endPause(p, 1) },
		gate:  func(m *machine) uint32 { return m.a.gate.Load() },
		want:  gatePaused,
	},
	{
		name:  "PauseDevice",
		begin: func(m *machine, p *Processor) { m.a.PauseDevice(p, 0, 0, 0, longSeconds) },
		end:   func(m *machine, p *Processor) { m.a.unitAt(0, 0, 0).endPause(p, 1) },
		gate:  func(m *machine) uint32 { return m.a.unitAt(0, 0, 0).gate.Load() },
		want:  gatePaused,
	},
	{
		name:  "LinkDown",
		begin: func(m *machine, p *Processor) { m.a.LinkDown(p) },
		end:   func(m *machine, p *Processor) { m.a.endLinkDown(p, 1) },
		gate:  func(m *machine) uint32 { return m.a.gate.Load() },
		want:  gateLinkDown,
	},
}

func TestInterleave_Replaced(t *testing.T) {
	for _, tt := range replacements {
		t.Run(tt.name, func(t *testing.T) {
			explore(t, interleave.Search{Preemptions: 2, Seeds: 100}, limits(4, 4, 4), func(m *machine) {
				m.a.options.LinkDownTimeout = longSeconds * time.Second
				m.a.unitAt(0, 0, 0)
				tt.begin(m, m.processor("first"))
				m.task("timer", func(p *Processor) { tt.end(m, p) })
				m.task("second", func(p *Processor) { tt.begin(m, p) })
				m.Check(func() error {
					if gate := tt.gate(m); gate != tt.want {
						return fmt.Errorf("gate %#x at rest, want %#x: the first's timer has ended the second", gate, tt.want)
					}
					return nil
				})
			})
		})
	}
}

// A call that cancels or replaces the adapter's timer with the StartIo lock held is not
// followed by the previous request's callback.
func TestInterleave_TimerCallCancelled(t *testing.T) {
	for _, again := range []time.Duration{0, longSeconds * time.Second} {
		t.Run(again.String(), func(t *testing.T) {
			explore(t, interleave.Search{Preemptions: 2, Seeds: 100}, limits(4, 4, 4), func(m *machine) {
				cancelled := false
				first := func(*Processor) {
					if cancelled {
						m.Failf("the timer's routine runs after it was cancelled")
					}
				}
				m.a.RequestTimerCall(m.processor("first"), first, longSeconds*time.Second)
				m.task("timer", func(p *Processor) { m.a.callTimer(p, 1, first) })
				m.task("miniport", func(p *Processor) {
					h := m.a.AcquireSpinLock(p, StartIoLock, nil)
					m.a.RequestTimerCall(p, func(*Processor) {}, again)
					cancelled = true
					m.a.ReleaseSpinLock(p, h)
				})
			})
		})
	}
}
