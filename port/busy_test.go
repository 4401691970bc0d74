package port

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Each BUSY completion begins the pause anew, with the one timer that the unit
// has; DeviceReady ends it, and what is left of the timer ends nothing later.
func TestBusy_OneTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pause = time.Second
		d := &driver{model: FullDuplex}
		var mu sync.Mutex // guards the next three
		refuse := 0
		var starts []time.Duration
		begun := time.Now()
		d.startIo = func(p *Processor, srb *SRB) bool {
			mu.Lock()
			starts = append(starts, time.Since(begun))
			busy := refuse > 0
			refuse--
			mu.Unlock()
			if busy {
				srb.Status = StatusBusy
				d.a.Complete(p, srb)
				return false
			}
			d.complete(p, srb)
			return true
		}
		b := newBench(t, d, AdapterOptions{BusyPauseTime: pause})
		s := b.srb(&finished{})
		defer b.a.FreeSRB(s)
		timer := func() *time.Timer {
			b.lu.mu.Lock()
			defer b.lu.mu.Unlock()
			return b.lu.busyTimer
		}
		want := func(at ...time.Duration) {
			t.Helper()
			synctest.Wait() // the timer service has looked after what is due
			mu.Lock()
			defer mu.Unlock()
			if len(starts) != len(at) {
				t.Fatalf("StartIo at %v, want %v", starts, at)
			}
			for i := range at {
				if starts[i] != at[i] {
					t.Fatalf("StartIo at %v, want %v", starts, at)
				}
			}
		}
		refuseNext := func(n int) {
			mu.Lock()
			starts, begun, refuse = nil, time.Now(), n
			mu.Unlock()
		}
		refuseNext(3)
		b.lu.Submit(b.p, []*SRB{s}) // BUSY at 0, 1 and 2 s, done at 3 s
		first := timer()
		<-time.After(3*pause + pause/2)
		want(0, pause, 2*pause, 3*pause)
		if timer() != first {
			t.Error("the unit has another timer")
		}

		refuseNext(2)
		b.lu.Submit(b.p, []*SRB{s})
		<-time.After(pause / 2)
		b.a.DeviceReady(b.p, 0, 0, 0) // BUSY again at 0.5 s
		<-time.After(pause * 3 / 4)   // the first timer would have ended at 1 s
		want(0, pause/2)
		<-time.After(pause)
		want(0, pause/2, pause*3/2)
		b.wantNoViolations()
	})
}

// A reset or an abort that is turned away waits for no pause, so the port does not try it
// again: that would be at once, as often as it may, or for ever.
func TestBusy_TaskManagement(t *testing.T) {
	for _, f := range []Function{FunctionAbortCommand, FunctionResetLogicalUnit, FunctionResetDevice} {
		t.Run(f.String(), func(t *testing.T) {
			starts := 0
			d := &driver{model: FullDuplex, features: func(c *Config) { c.Features = FeatureAbortCommand }}
			d.startIo = func(p *Processor, srb *SRB) bool {
				srb.Status = StatusBusy
				if starts++; starts == 1000 {
					srb.Status = StatusAborted // or it is for ever
				}
				d.a.Complete(p, srb)
				return false
			}
			b := newBench(t, d, AdapterOptions{BusyRetryCount: -1})
			s := b.srb(&finished{})
			defer b.a.FreeSRB(s)
			s.Function = f
			b.lu.Submit(b.p, []*SRB{s})
			if starts != 1 || s.Status != StatusBusy {
				t.Errorf("%s, started %d times; want BUSY, once", s, starts)
			}
			if gate := b.lu.gate.Load(); gate != 0 {
				t.Errorf("gate %#x, want it open", gate)
			}
			b.wantNoViolations()
		})
	}
}
