package port

import (
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Units that left are in the scope of resets like those in service, as long as the
// miniport has something of theirs.

// A built SRB of a unit that left waits for the end of a reset of its address, its
// target or its bus.
func TestLeft_HeldBackInReset(t *testing.T) {
	for level := range ResetLevels {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}, keep: true}
				b, lu := staged(t, r)
				done := &finished{}
				s := b.srb(done)
				r.onceBuilt(s, func() { b.a.Pause(b.p, 3600) })
				lu.Submit(b.p, []*SRB{s})
				if err := ways["marked failed"](b, r); err != nil {
					t.Fatal(err)
				}
				next := b.a.unitAt(0, 0, 1) // of the same address
				reports := make(chan ResetReport, 1)
				b.a.OnReset(func(r ResetReport) { reports <- r })
				var reset *SRB
				r.deaf = func(srb *SRB) bool {
					if srb.recovery {
						reset = srb
					}
					return srb.recovery
				}
				r.resetBus = func(p *Processor, _ uint8) bool {
					b.a.Resume(p) // seen to before the reset has ended
					return true
				}
				failed := make(chan error, 1)
				go func() {
					p := b.processor("operator")
					defer p.Close()
					failed <- b.a.ResetNow(p, next, level)
				}()
				synctest.Wait()
				if level != ResetBus {
					b.a.Resume(b.p) // now nothing but the reset holds s back
					if held := r.take(); len(held) != 0 {
						t.Errorf("the miniport got %v during the reset", held)
					}
					r.complete(b.p, reset)
				}
				if err := <-failed; err != nil {
					t.Fatal(err)
				}
				if got := <-reports; got.Outstanding != 0 {
					t.Fatalf("%d SRBs got down during the reset", got.Outstanding)
				}
				synctest.Wait()
				if held := r.take(); !slices.Equal(held, []*SRB{s}) {
					t.Fatalf("the miniport has %v, want what was built", held)
				}
				r.deaf = nil
				r.complete(b.p, s)
				if got := done.list(); !slices.Equal(got, []*SRB{s}) {
					t.Errorf("completed %v, want what was built", got)
				}
				b.a.FreeSRB(s)
				b.a.Remove(b.p)
				b.wantNoViolations()
			})
		})
	}
}

// A reset that leaves the miniport with an SRB of a unit that left has not worked,
// whatever the miniport says.
func TestLeft_CountedInReset(t *testing.T) {
	for level := range ResetLevels {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}, keep: true}
				r.resetBus = func(*Processor, uint8) bool { return true }
				b, lu := staged(t, r)
				s := b.srb(&finished{})
				lu.Submit(b.p, []*SRB{s})
				if err := ways["marked failed"](b, r); err != nil {
					t.Fatal(err)
				}
				next := b.a.unitAt(0, 0, 1)
				reports := make(chan ResetReport, 1)
				b.a.OnReset(func(r ResetReport) { reports <- r })
				r.keep = false // resets are answered
				if err := b.a.ResetNow(b.p, next, level); err != nil {
					t.Fatal(err)
				}
				if got, want := <-reports, (ResetReport{Level: level, Unit: next, OK: true, Outstanding: 1}); got != want {
					t.Errorf("report %+v, want %+v", got, want)
				}
				if n := b.sys.Verifier().Count(CheckResetOutstanding); n != 1 {
					t.Errorf("%d violations of %s, want 1", n, CheckResetOutstanding)
				}
				r.complete(b.p, s)
				b.a.FreeSRB(s)
				b.a.Remove(b.p)
			})
		})
	}
}

// Whoever waits for SRBs that the miniport holds of a unit that left is told to wait no
// more, also if the adapter has failed and resets do not bring them back.
func TestLeft_AdapterFailed(t *testing.T) {
	for way, remove := range ways {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}, keep: true}
				b, lu := staged(t, r)
				w := &patient{}
				s := b.srb(&finished{})
				s.Completer, s.TimeoutSecs = w, 20
				lu.Submit(b.p, []*SRB{s})
				if err := remove(b, r); err != nil {
					t.Fatal(err)
				}
				r.keep = false // resets are answered
				var works atomic.Bool
				r.resetBus = func(p *Processor, _ uint8) bool {
					if works.Load() {
						for _, s := range r.take() {
							s.Status = StatusBusReset
							r.a.Complete(p, s)
						}
					}
					return true
				}
				b.a.MarkDeviceFailed(b.p, wildcard, wildcard, wildcard, "smoke")
				time.Sleep(15 * time.Second)
				synctest.Wait()
				w.want(t, "before its time is up")
				time.Sleep(10 * time.Second)
				synctest.Wait()
				w.want(t, "after its time", "abandon")
				// No SRB goes to the unit, so that ResetBus is all that was tried.
				if n := b.sys.Verifier().Count(CheckResetOutstanding); n != 1 {
					t.Errorf("%d violations of %s, want 1 for ResetBus", n, CheckResetOutstanding)
				}
				works.Store(true)
				time.Sleep(25 * time.Second)
				synctest.Wait()
				w.want(t, "after a reset that works", "abandon", "complete "+StatusBusReset.String())
				b.a.FreeSRB(s)
				b.a.Remove(b.p)
			})
		})
	}
}

// Resets made for another unit that do not help give no SRB at the miniport more time,
// neither those of a unit that left, nor those of one in service.
func TestLeft_OthersAreReset(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		name := "in service"
		if leaves {
			name = "left"
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &helplessRecorder{recorder{driver: driver{model: FullDuplex}, keep: true}}
				r.has(0, 1)
				b := stageMiniport(t, &r.recorder, r)
				if err := b.a.Enumerate(b.p); err != nil {
					t.Fatal(err)
				}
				units := b.a.LogicalUnits()
				often, w := &patient{}, &patient{}
				srbs := []*SRB{b.srb(&finished{}), b.srb(&finished{})}
				srbs[0].Completer, srbs[0].TimeoutSecs = often, 5
				srbs[1].Completer, srbs[1].TimeoutSecs = w, 20
				units[0].Submit(b.p, srbs[:1])
				units[1].Submit(b.p, srbs[1:])
				if leaves {
					if err := ways["marked failed"](b, &r.recorder); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(15 * time.Second)
				synctest.Wait()
				often.want(t, "the unit that is reset", "abandon")
				w.want(t, "before its time is up")
				time.Sleep(10 * time.Second)
				synctest.Wait()
				w.want(t, "after its time", "abandon")
				for _, s := range srbs {
					r.complete(b.p, s)
					b.a.FreeSRB(s)
				}
				r.take()
				b.a.Remove(b.p)
				b.wantNoViolations()
			})
		})
	}
}

// A helplessRecorder fails every reset.
type helplessRecorder struct{ recorder }

func (r *helplessRecorder) StartIo(p *Processor, srb *SRB) bool {
	if !srb.taskManagement() {
		return r.recorder.StartIo(p, srb)
	}
	srb.Status = StatusError
	r.a.Complete(p, srb)
	return true
}

// SRBs that the miniport has from before a reset that it reported itself are looked for
// at units that left, too.
func TestLeft_ResetDetected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const hold = 2 * time.Second
		d := &driver{model: FullDuplex, features: func(c *Config) { c.BusResetHoldTime = hold }}
		b := newBench(t, d, AdapterOptions{})
		s := b.srb(&finished{})
		b.lu.Submit(b.p, []*SRB{s})
		b.a.MarkDeviceFailed(b.p, 0, 0, 0, "smoke")
		synctest.Wait()
		b.a.ResetDetected(b.p)
		time.Sleep(hold)
		synctest.Wait()
		if n := b.sys.Verifier().Count(CheckResetOutstanding); n != 1 {
			t.Errorf("%d violations of %s, want 1", n, CheckResetOutstanding)
		}
		d.complete(b.p, d.take()[0])
		b.a.FreeSRB(s)
	})
}

// A unit that comes while its target or its address is reset is no part of that reset:
// SRBs of it that the miniport has afterwards do not count against the reset.
func TestReset_UnitComesMeanwhile(t *testing.T) {
	for _, level := range []ResetLevel{ResetUnit, ResetTarget} {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}, keep: true}
				b, _ := staged(t, r)
				reports := make(chan ResetReport, 1)
				b.a.OnReset(func(r ResetReport) { reports <- r })
				var reset *SRB
				r.deaf = func(srb *SRB) bool {
					if srb.recovery {
						reset = srb
					}
					return srb.recovery
				}
				done := make(chan error, 1)
				first, p := b.a.LogicalUnits()[0], b.processor("operator")
				go func() { done <- b.a.ResetNow(p, first, level) }()
				synctest.Wait()
				comes := uint8(2)
				if level == ResetUnit {
					b.a.MarkDeviceFailed(b.p, 0, 0, 0, "smoke")
					synctest.Wait()
					comes = 0
				}
				s := b.srb(&finished{})
				b.a.unitAt(0, 0, comes).Submit(b.p, []*SRB{s})
				if held := r.take(); len(held) != 1 || held[0] != s {
					t.Fatalf("the miniport has %v, want the new unit's SRB", held)
				}
				r.complete(b.p, reset)
				if err := <-done; err != nil {
					t.Errorf("ResetNow: %v", err)
				}
				if got := <-reports; !got.OK || got.Outstanding != 0 {
					t.Errorf("reported %+v, want a reset that worked", got)
				}
				r.deaf = nil
				r.complete(b.p, s)
				b.a.FreeSRB(s)
				b.a.Remove(b.p)
				b.wantNoViolations()
			})
		})
	}
}
