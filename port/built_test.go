package port

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// An SRB that BuildIo has passed on and StartIo has not seen has resources of the
// miniport, and goes down when it can, whatever becomes of its unit meanwhile.

// ways are how a unit leaves; unit 1 of a recorder does.
var ways = map[string]func(b *bench, r *recorder) error{
	"enumeration": func(b *bench, r *recorder) error {
		r.has(0)
		return b.a.Enumerate(b.p)
	},
	"marked failed": func(b *bench, _ *recorder) error {
		b.a.MarkDeviceFailed(b.p, 0, 0, 1, "smoke")
		synctest.Wait()
		return nil
	},
}

// onceBuilt has then called at the end of s's BuildIo.
func (d *driver) onceBuilt(s *SRB, then func()) {
	d.buildIo = func(_ *Processor, srb *SRB) bool {
		if srb == s {
			then()
		}
		return true
	}
}

// submitFor submits a queue function to a unit, as somebody else.
func (b *bench) submitFor(lu *LogicalUnit, s *SRB, f Function) {
	p := b.processor("other")
	defer p.Close()
	s.Function = f
	lu.Submit(p, []*SRB{s})
}

// staged is a recorder's bench with two enumerated units.
func staged(t *testing.T, r *recorder) (b *bench, lu *LogicalUnit) {
	t.Helper()
	r.has(0, 1)
	b = stage(t, r)
	if err := b.a.Enumerate(b.p); err != nil {
		t.Fatal(err)
	}
	return b, b.a.LogicalUnits()[1]
}

// When a unit has left, the gate reasons of the unit hold its built SRBs back no more;
// those of the adapter, and a reset, still do.
func TestBuilt_UnitRemoved(t *testing.T) {
	const seconds = 30
	for _, tt := range []struct {
		name string
		hold func(b *bench, r *recorder, lu *LogicalUnit, aid *SRB)
		wait bool // for seconds
	}{
		{"unit paused", func(b *bench, _ *recorder, _ *LogicalUnit, _ *SRB) { b.a.PauseDevice(b.p, 0, 0, 1, 3600) }, false},
		{"unit busy", func(b *bench, _ *recorder, lu *LogicalUnit, aid *SRB) {
			b.submitFor(lu, aid, FunctionExecuteScsi)
			b.a.DeviceBusy(b.p, 0, 0, 1, 2)
		}, false},
		{"queue locked", func(b *bench, _ *recorder, lu *LogicalUnit, aid *SRB) { b.submitFor(lu, aid, FunctionLockQueue) }, false},
		{"adapter paused", func(b *bench, _ *recorder, _ *LogicalUnit, _ *SRB) { b.a.Pause(b.p, seconds) }, true},
		{"link down", func(b *bench, _ *recorder, _ *LogicalUnit, _ *SRB) { b.a.LinkDown(b.p) }, true},
		{"reset", func(b *bench, r *recorder, lu *LogicalUnit, _ *SRB) {
			r.deaf = func(s *SRB) bool { return s.recovery } // for ResetTimeout
			go func() {
				p := b.processor("operator")
				defer p.Close()
				if err := b.a.ResetNow(p, lu, ResetUnit); err == nil {
					b.t.Error("a reset without an answer: no error")
				}
			}()
			synctest.Wait()
		}, true},
	} {
		for way, remove := range ways {
			if way == "enumeration" && tt.wait {
				continue // its commands would wait as well
			}
			t.Run(tt.name+", "+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := &recorder{driver: driver{model: FullDuplex}, keep: true}
					b, lu := staged(t, r)
					w := &patient{}
					s, aid := b.srb(&finished{}), b.srb(&finished{})
					s.Completer = w
					r.onceBuilt(s, func() { tt.hold(b, r, lu, aid) })
					lu.Submit(b.p, []*SRB{s})
					if n := lu.Stats().Parked; n != 1 {
						t.Fatalf("%d SRBs parked, want 1", n)
					}
					if err := remove(b, r); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					if tt.wait {
						if held := r.take(); len(held) != 0 {
							t.Fatalf("the miniport has %v too early", held)
						}
						time.Sleep(seconds*time.Second + time.Millisecond)
						synctest.Wait()
					}
					held := r.take()
					if !slices.Contains(held, s) {
						t.Fatalf("the miniport has %v, want what was built", held)
					}
					w.want(t, "at the miniport")
					for _, x := range held {
						r.complete(b.p, x)
					}
					w.want(t, "at the end", "complete "+StatusSuccess.String())
					if tt.name == "reset" { // its SRB has no answer yet
						b.d.complete(b.p, b.a.resetSRBs[0])
					}
					time.Sleep(2 * time.Second)
					synctest.Wait()
					if n := len(b.a.units.Load().left); n != 0 {
						t.Errorf("%d units are timed that nothing is outstanding of", n)
					}
					b.a.FreeSRB(s)
					b.a.FreeSRB(aid)
					b.a.Remove(b.p)
					b.wantNoViolations()
				})
			})
		}
	}
}

// A built SRB of a unit that left is abandoned like any other if it cannot go down in its
// time: the limits of the adapter hold, whoever uses them up.
func TestBuilt_UnitRemovedWithoutCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tightRecorder{recorder{driver: driver{model: FullDuplex}, keep: true}}
		r.has(0, 1)
		b := stageMiniport(t, &r.recorder, r)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		units := b.a.LogicalUnits()
		w := &patient{}
		s := b.srb(&finished{})
		s.Completer, s.TimeoutSecs = w, 20
		r.onceBuilt(s, func() { b.a.PauseDevice(b.p, 0, 0, 1, 3600) })
		units[1].Submit(b.p, []*SRB{s})
		others := b.srbs(2, &finished{})
		for _, o := range others {
			o.TimeoutSecs = 600
		}
		units[0].Submit(b.p, others)
		b.a.MarkDeviceFailed(b.p, 0, 0, 1, "smoke")
		time.Sleep(15 * time.Second)
		synctest.Wait()
		w.want(t, "before its time is up")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		w.want(t, "after its time", "abandon")
		if held := r.take(); !slices.Equal(held, others) {
			t.Fatalf("the miniport has %v, want the others and no more than it said", held)
		}
		r.complete(b.p, others[0])
		if held := r.take(); !slices.Equal(held, []*SRB{s}) {
			t.Fatalf("the miniport has %v, want what was built: there is room", held)
		}
		r.complete(b.p, s)
		r.complete(b.p, others[1])
		w.want(t, "at the end", "abandon", "complete "+StatusSuccess.String())
		for _, x := range append(others, s) {
			b.a.FreeSRB(x)
		}
		b.a.Remove(b.p)
		b.wantNoViolations()
	})
}

// A tightRecorder takes two SRBs at a time.
type tightRecorder struct{ recorder }

func (r *tightRecorder) FindAdapter(p *Processor, a *Adapter, c *Config) FindResult {
	result := r.recorder.FindAdapter(p, a, c)
	c.MaxNumberOfIO, c.MaxIOsPerLun, c.InitialLunQueueDepth = 2, 2, 2
	return result
}

// SRBs that still wait at a unit that left end with the adapter.
func TestBuilt_AdapterGone(t *testing.T) {
	for name, end := range map[string]func(b *bench) error{
		"removed":             func(b *bench) error { b.a.Remove(b.p); return nil },
		"removed by surprise": func(b *bench) error { return b.a.SurpriseRemove(b.p) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}, keep: true}
				b, lu := staged(t, r)
				w := &patient{}
				s := b.srb(&finished{})
				s.Completer = w
				r.onceBuilt(s, func() { b.a.Pause(b.p, 3600) })
				lu.Submit(b.p, []*SRB{s})
				if err := ways["marked failed"](b, r); err != nil {
					t.Fatal(err)
				}
				w.want(t, "while the adapter is paused")
				if err := end(b); err != nil {
					t.Fatal(err)
				}
				w.want(t, "at the end", "complete "+StatusNoDevice.String())
				if held := r.take(); len(held) != 0 {
					t.Errorf("the miniport got %v", held)
				}
				b.a.FreeSRB(s)
				b.wantNoViolations()
			})
		})
	}
}

// A unit is given up together with its built SRBs, although the limits keep those from
// StartIo. They go down when a reset has helped, before any later SRB, and the unit works
// when they have come back.
func TestBuilt_GivenUp(t *testing.T) {
	const timeoutSecs = 5
	for name, limit := range map[string]func(d *driver, second *SRB){
		"adapter full":      nil,
		"unit full":         nil,
		"behind a head":     func(_ *driver, second *SRB) { second.QueueAction = HeadOfQueueTag },
		"beside one, alone": func(_ *driver, second *SRB) { second.QueueAction = OrderedTag },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex}
				if name == "adapter full" {
					d.features = func(c *Config) { c.MaxNumberOfIO, c.MaxIOsPerLun, c.InitialLunQueueDepth = 2, 2, 2 }
				}
				works := false
				deafTo(d, false, func() bool { return works })
				b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: timeoutSecs})
				if name == "unit full" {
					b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 2)
				}
				w, v := &patient{}, &patient{}
				lock, built := b.srb(&finished{}), b.srb(&finished{})
				built.Completer = v
				others := b.srbs(2, &finished{})
				others[0].Completer, others[1].Completer = w, w
				others[1].Flags |= FlagBypassLockedQueue
				d.onceBuilt(built, func() { b.submitFor(b.lu, lock, FunctionLockQueue) })
				alone := false
				if limit != nil {
					limit(d, others[1])
					alone = others[1].alone()
				}
				if !alone { // one that runs alone needs an idle unit to start
					b.lu.Submit(b.p, others[:1])
				}
				b.lu.Submit(b.p, []*SRB{built})
				b.lu.Submit(b.p, others[1:])
				down := others
				if alone {
					down = others[1:]
				}
				time.Sleep((timeoutSecs + 1) * time.Second)
				synctest.Wait()
				v.want(t, "what was built", "abandon")
				d.mu.Lock()
				held := slices.Clone(d.held)
				d.mu.Unlock()
				if !slices.Equal(held, down) {
					t.Fatalf("the miniport has %v, want %v", held, down)
				}

				works = true
				if err := b.a.ResetNow(b.p, b.lu, ResetBus); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if held = d.take(); !slices.Equal(held, []*SRB{built}) {
					t.Fatalf("the miniport has %v, want what was built", held)
				}
				later := others[1]
				w.mu.Lock()
				w.heard = nil
				w.mu.Unlock()
				b.lu.Submit(b.p, []*SRB{later})
				w.want(t, "what is later", "complete "+StatusNoDevice.String())
				d.complete(b.p, built)
				v.want(t, "what was built", "abandon", "complete "+StatusSuccess.String())
				b.lu.Submit(b.p, []*SRB{later})
				if held = d.take(); !slices.Equal(held, []*SRB{later}) {
					t.Fatalf("the miniport has %v, want what is later: the unit works again", held)
				}
				d.complete(b.p, later)
				for _, s := range append(others, lock, built) {
					b.a.FreeSRB(s)
				}
				b.wantNoViolations()
			})
		})
	}
}

// A unit that is leaving is not reset, or not any further: the others on its bus would
// suffer.
func TestRemoved_NoReset(t *testing.T) {
	for name, at := range map[string]time.Duration{"in time": 2 * time.Second, "while it is reset": 6 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}, keep: true}
				r.resetBus = func(*Processor, uint8) bool { t.Error("ResetBus"); return false }
				var resets []*SRB // without an answer
				r.deaf = func(s *SRB) bool {
					if s.recovery {
						resets = append(resets, s)
					}
					return s.recovery
				}
				b, lu := staged(t, r)
				w := &patient{}
				s := b.srb(&finished{})
				s.Completer, s.TimeoutSecs = w, 5
				lu.Submit(b.p, []*SRB{s})
				time.Sleep(at)
				synctest.Wait()
				w.want(t, "before the removal")
				b.a.detach(b.p, lu) // an enumeration that takes its time holds the rest up
				time.Sleep(at + b.a.options.ResetTimeout + 5*time.Second)
				synctest.Wait()
				w.want(t, "after its time", "abandon")
				b.a.forget(b.p, lu)
				for _, x := range append(resets, s) {
					r.complete(b.p, x)
				}
				w.want(t, "at the end", "abandon", "complete "+StatusSuccess.String())
				r.deaf = nil
				b.a.FreeSRB(s)
				b.a.Remove(b.p)
				b.wantNoViolations()
			})
		})
	}
}

// The end of a unit's pause does not end the pause of a new unit at the same address.
func TestPauseDevice_UnitReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{driver: driver{model: FullDuplex}, keep: true}
		b, old := staged(t, r)
		b.a.PauseDevice(b.p, 0, 0, 1, 10)
		if err := ways["marked failed"](b, r); err != nil {
			t.Fatal(err)
		}
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		lu := b.a.LogicalUnits()[1]
		if lu == old {
			t.Fatal("the unit is the same")
		}
		b.a.PauseDevice(b.p, 0, 0, 1, 60)
		done := &finished{}
		s := b.srb(done)
		lu.Submit(b.p, []*SRB{s})
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if held := r.take(); len(held) != 0 {
			t.Errorf("the miniport has %v in the middle of the pause", held)
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		r.complete(b.p, s)
		b.a.FreeSRB(s)
		b.a.Remove(b.p)
		b.wantNoViolations()
	})
}

// An SRB that is between BuildIo and StartIo when the adapter fails does not wait for a
// gate of the adapter: whoever waits for it hears that the device is gone.
func TestBuilt_AdapterFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{driver: driver{model: FullDuplex}, keep: true}
		b, lu := staged(t, r)
		s := b.srb(&finished{})
		w := &patient{}
		s.Completer, s.TimeoutSecs = w, 20
		r.onceBuilt(s, func() {
			b.a.Pause(b.p, 36000)
			b.a.MarkDeviceFailed(b.p, wildcard, wildcard, wildcard, "smoke")
			synctest.Wait()
		})
		lu.Submit(b.p, []*SRB{s})
		synctest.Wait()
		if heard := w.list(); len(heard) != 1 || s.Status != StatusNoDevice {
			t.Errorf("heard %v, status %s; want a completion with StatusNoDevice", heard, s.Status)
		}
		b.a.FreeSRB(s)
		b.a.Remove(b.p)
	})
}

// An SRB that BuildIo has kept may complete elsewhere before BuildIo has returned, and be in
// the BuildIo of its next life by then: that one goes on to StartIo.
func TestBuilt_CompletedElsewhere(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	again, returned, submitted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	done := &finished{}
	s := b.srb(done)
	d.buildIo = func(_ *Processor, srb *SRB) bool {
		d.buildIo = func(*Processor, *SRB) bool {
			close(again)
			<-returned
			return true
		}
		go func() {
			defer close(submitted)
			p := b.processor("elsewhere")
			defer p.Close()
			d.complete(p, srb)
			b.lu.Submit(p, []*SRB{srb})
		}()
		<-again
		return false
	}
	b.lu.Submit(b.p, []*SRB{s})
	close(returned)
	<-submitted
	b.wantStarted(s)
	d.buildIo = nil
	d.complete(b.p, s)
	if got := done.list(); !slices.Equal(got, []*SRB{s, s}) {
		t.Errorf("completed %v, want it twice", got)
	}
	b.wantNoViolations()
}

// The gate that parked an SRB may be open again by the time it is in the queue. Nobody else
// starts it then, also if it passes a gate that is still closed.
func TestPark_GateOpensMeanwhile(t *testing.T) {
	for name, pause := range map[string]struct {
		begin, end func(a *Adapter, p *Processor)
	}{
		"unit": {
			func(a *Adapter, p *Processor) { a.PauseDevice(p, 0, 0, 0, 60) },
			func(a *Adapter, p *Processor) { a.ResumeDevice(p, 0, 0, 0) },
		},
		"adapter": {
			func(a *Adapter, p *Processor) { a.Pause(p, 60) },
			func(a *Adapter, p *Processor) { a.Resume(p) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := &driver{model: FullDuplex}
			b := newBench(t, d, AdapterOptions{})
			other := b.processor("other")
			defer other.Close()
			s := b.srbs(3, &finished{})
			lock, parked, reset := s[0], s[1], s[2]
			lock.Function = FunctionLockQueue
			b.lu.Submit(b.p, []*SRB{lock})
			parked.Flags |= FlagBypassLockedQueue
			reset.Function = FunctionResetLogicalUnit // passes every gate
			d.buildIo = func(p *Processor, s *SRB) bool {
				if s == parked {
					pause.begin(b.a, p)
				}
				return true
			}
			d.startIo = func(p *Processor, s *SRB) bool {
				if s == reset { // which stays out: its completion would start others
					pause.end(b.a, other) // whose DPC runs at once
					return true
				}
				d.complete(p, s)
				return true
			}
			b.lu.Submit(b.p, []*SRB{parked, reset})
			if parked.Status != StatusSuccess {
				t.Errorf("%s, want success: %+v", parked, b.lu.Stats())
			}
			d.complete(b.p, reset)
			b.wantNoViolations()
		})
	}
}

// An SRB that bypasses the gate may wait for one that is then parked: nothing else tells it
// that it can go.
func TestPark_OthersMayGo(t *testing.T) {
	for name, hold := range map[string]func(b *bench, parked *SRB){
		"order": func(_ *bench, parked *SRB) { parked.QueueAction = OrderedTag },
		"depth": func(b *bench, _ *SRB) { b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			d := &driver{model: FullDuplex}
			b := newBench(t, d, AdapterOptions{})
			other := b.processor("other")
			defer other.Close()
			s := b.srbs(4, &finished{})
			parked, lock, bypass, unlock := s[0], s[1], s[2], s[3]
			lock.Function, unlock.Function = FunctionLockQueue, FunctionUnlockQueue
			bypass.Flags |= FlagBypassLockedQueue
			hold(b, parked)
			d.buildIo = func(_ *Processor, s *SRB) bool {
				if s == parked {
					b.lu.Submit(other, []*SRB{lock, bypass})
				}
				return true
			}
			b.lu.Submit(b.p, []*SRB{parked})
			b.wantStarted(bypass)
			d.complete(b.p, bypass)
			b.wantStarted()
			b.lu.Submit(b.p, []*SRB{unlock})
			b.wantStarted(parked)
			d.complete(b.p, parked)
			b.wantNoViolations()
		})
	}
}
