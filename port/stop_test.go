package port

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// A stop waits for a miniport that keeps an SRB until the stop's time is up, and no
// longer. Then the adapter is removed: by a bus reset, after which a good miniport has
// handed back everything.
func TestStopContext_TakesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		d.resetBus = func(p *Processor, _ uint8) bool {
			for _, srb := range d.take() {
				srb.Status = StatusBusReset
				d.a.Complete(p, srb)
			}
			return true
		}
		b := newBench(t, d, AdapterOptions{})
		done := &finished{}
		held, late := b.srb(done), b.srb(done)
		b.lu.Submit(b.p, []*SRB{held})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		stopped := make(chan error)
		p := b.processor("stop")
		start := time.Now()
		go func() { stopped <- b.a.StopContext(ctx, p) }()
		synctest.Wait()
		b.lu.Submit(b.p, []*SRB{late}) // waits for a restart that will not be
		err := <-stopped
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("it took %s, want what ctx allows", d)
		}
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrOutstanding) || !strings.Contains(err.Error(), held.request()) {
			t.Errorf("StopContext: %v; want context.DeadlineExceeded, nothing outstanding, and %s", err, held.request())
		}
		if n := len(done.list()); n != 2 || held.Status != StatusBusReset || late.Status != StatusNoDevice {
			t.Errorf("%d completions: %s, %s", n, held, late)
		}
		if err := b.a.Restart(b.p); err == nil {
			t.Error("Restart of an adapter that was taken away: no error")
		}
		b.a.FreeSRB(held)
		b.a.FreeSRB(late)
		if n := b.sys.iommu.WindowsInUse(); n != 0 {
			t.Errorf("%d IOMMU windows left", n)
		}
		b.wantNoViolations()
	})
}

// stops are the ways to stop an adapter that tell how it went.
var stops = map[string]func(a *Adapter, p *Processor) error{
	"stop":   (*Adapter).Stop,
	"remove": func(a *Adapter, p *Processor) error { return a.RemoveContext(context.Background(), p) },
}

// SRBs that not even a bus reset brings back keep their memory, and neither Stop nor
// Remove waits for them, nor for anything inside the port that waits for them.
func TestStop_Stuck(t *testing.T) {
	for name, stop := range stops {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const limit = 30 * time.Second
				d := &driver{model: FullDuplex}
				resets := 0
				d.resetBus = func(*Processor, uint8) bool { resets++; return false }
				b := newBench(t, d, AdapterOptions{StopTimeout: limit})
				b.a.BusChangeDetected(b.p)
				synctest.Wait() // the enumeration waits for REPORT LUNS
				start := time.Now()
				err := stop(b.a, b.p)
				if d := time.Since(start); d != limit+takeAwayTime {
					t.Errorf("it took %s, want %s", d, limit+takeAwayTime)
				}
				held := d.take()
				if len(held) != 1 || resets != 1 {
					t.Fatalf("%d SRBs held, %d bus resets; want 1, 1", len(held), resets)
				}
				if !errors.Is(err, ErrOutstanding) || !strings.Contains(err.Error(), held[0].request()) {
					t.Errorf("%s: %v; want ErrOutstanding and %s", name, err, held[0].request())
				}
				if err := b.a.RemoveContext(t.Context(), b.p); !errors.Is(err, ErrOutstanding) {
					t.Errorf("RemoveContext again: %v, want ErrOutstanding", err)
				}
				if n := b.sys.Verifier().Count(CheckStopOutstanding); n != 1 {
					t.Errorf("%d violations of V14, want 1", n)
				}
				d.complete(b.p, held[0]) // better late than never: the worker ends
				b.wantRemoved()
			})
		})
	}
}

// A unit that does not answer FLUSH does not hold up a stop beyond its time. If a bus
// reset does not bring the FLUSH back either, it keeps its memory.
func TestStopContext_Flush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex, features: func(c *Config) { c.CachesData = true }}
		b := newBench(t, d, AdapterOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		err := b.a.StopContext(ctx, b.p)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrOutstanding) {
			t.Errorf("StopContext: %v, want context.DeadlineExceeded and ErrOutstanding", err)
		}
		if d := time.Since(start); d != 2*time.Second+takeAwayTime {
			t.Errorf("it took %s, want 2s and %s", d, takeAwayTime)
		}
		if err := b.a.RemoveContext(t.Context(), b.p); !errors.Is(err, ErrOutstanding) {
			t.Errorf("RemoveContext: %v, want ErrOutstanding", err)
		}
		if n := b.sys.Verifier().Count(CheckStopOutstanding); n != 1 {
			t.Errorf("%d violations of V14, want 1", n)
		}
		for _, srb := range d.take() {
			d.complete(b.p, srb)
		}
		b.wantRemoved()
	})
}

// A reset that the miniport has kept, and the port has given up, is outstanding like any
// SRB: the miniport is not stopped while it is, and its memory stays until it is back.
func TestStop_KeptReset(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(a *Adapter, p *Processor) error
		why  error // also if ResetBus has brought it back
	}{
		{"stop", (*Adapter).Stop, errNoAnswer},
		{"remove", func(a *Adapter, p *Processor) error { return a.RemoveContext(context.Background(), p) }, errNoAnswer},
		{"surprise", (*Adapter).SurpriseRemove, nil},
	} {
		for _, back := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s back=%t", tt.name, back), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d := &driver{model: FullDuplex}
					handBack := func(p *Processor) {
						for _, srb := range d.take() {
							srb.Status = StatusBusReset
							d.a.Complete(p, srb)
						}
					}
					d.resetBus = func(p *Processor, _ uint8) bool {
						if back {
							handBack(p)
						}
						return true
					}
					d.control = func(_ *Processor, c ControlType) {
						if c == ControlStopAdapter {
							t.Error("the miniport was stopped")
						}
					}
					b := newBench(t, d, AdapterOptions{})
					for level := range ResetBus {
						if err := b.a.ResetNow(b.p, b.lu, level); err == nil {
							t.Errorf("%s reset that nobody answers: no error", level)
						}
					}
					err := tt.end(b.a, b.p)
					if errors.Is(err, ErrOutstanding) == back || tt.why != nil && !errors.Is(err, tt.why) {
						t.Errorf("%s: %v", tt.name, err)
					}
					if tt.why != nil && !strings.Contains(fmt.Sprint(err), FunctionResetLogicalUnit.String()) {
						t.Errorf("%s: %v, want the reset named", tt.name, err)
					}
					violations := uint64(0)
					if !back {
						violations = 1
						if err := b.a.RemoveContext(t.Context(), b.p); !errors.Is(err, ErrOutstanding) {
							t.Errorf("RemoveContext: %v, want ErrOutstanding", err)
						}
					}
					if n := b.sys.Verifier().Count(CheckStopOutstanding); n != violations {
						t.Errorf("%d violations of V14, want %d", n, violations)
					}
					handBack(b.p)
					b.wantRemoved()
				})
			})
		}
	}
}

// A reset that is under way when the adapter is stopped is waited for.
func TestStop_BesideReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		b := newBench(t, d, AdapterOptions{})
		reset, stopped := make(chan error, 1), make(chan error, 1)
		p, q := b.processor("reset"), b.processor("stop")
		go func() { reset <- b.a.ResetNow(p, b.lu, ResetUnit) }()
		synctest.Wait()
		go func() { stopped <- b.a.Stop(q) }()
		time.Sleep(time.Second)
		if len(stopped) != 0 {
			t.Error("stopped with a reset under way")
		}
		d.complete(b.p, d.take()[0])
		if err := <-reset; err != nil {
			t.Errorf("ResetNow: %v", err)
		}
		if err := <-stopped; err != nil {
			t.Errorf("Stop: %v", err)
		}
		b.wantNoViolations()
	})
}

// A reset that is under way delays a stop no longer than the end of a stop may take.
func TestStopContext_BesideReset(t *testing.T) {
	for name, stop := range map[string]func(*Adapter, context.Context, *Processor) error{
		"stop": (*Adapter).StopContext, "remove": (*Adapter).RemoveContext,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex}
				d.resetBus = func(p *Processor, _ uint8) bool {
					for _, srb := range d.take() {
						srb.Status = StatusBusReset
						d.a.Complete(p, srb)
					}
					return true
				}
				b := newBench(t, d, AdapterOptions{})
				reset := make(chan error, 1)
				p, q := b.processor("reset"), b.processor("stop")
				go func() { reset <- b.a.ResetNow(p, b.lu, ResetUnit) }()
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				start := time.Now()
				if err := stop(b.a, ctx, q); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrOutstanding) {
					t.Errorf("%v, want context.DeadlineExceeded and nothing outstanding", err)
				}
				if d := time.Since(start); d != 2*time.Second+takeAwayTime {
					t.Errorf("it took %s, want 2s and %s", d, takeAwayTime)
				}
				if err := <-reset; err == nil {
					t.Error("ResetNow of an adapter that is gone: no error")
				}
				if err := b.a.RemoveContext(t.Context(), b.p); err != nil {
					t.Errorf("RemoveContext: %v", err)
				}
			})
		})
	}
}

// Memory that a work item may still use is not freed, and ctx bounds the wait for its end.
func TestRemove_WorkItemAfterReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		b := newBench(t, d, AdapterOptions{})
		leave := make(chan struct{})
		b.a.worker.post(func(*Processor) { <-leave })
		if err := b.a.ResetNow(b.p, b.lu, ResetUnit); err == nil {
			t.Error("a reset that nobody answers: no error")
		}
		if err := b.a.RemoveContext(t.Context(), b.p); !errors.Is(err, ErrOutstanding) {
			t.Errorf("RemoveContext: %v, want ErrOutstanding", err)
		}
		for _, srb := range d.take() {
			d.complete(b.p, srb)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.a.RemoveContext(ctx, b.p); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrOutstanding) {
			t.Errorf("RemoveContext beside a work item: %v, want context.DeadlineExceeded and ErrOutstanding", err)
		}
		start := time.Now()
		if err := b.a.RemoveContext(context.Background(), b.p); err == nil || time.Since(start) != b.a.options.StopTimeout {
			t.Errorf("RemoveContext beside a work item: %v after %s, want an error after StopTimeout", err, time.Since(start))
		}
		if b.sys.iommu.WindowsInUse() == 0 {
			t.Error("the memory is gone, and a work item runs")
		}
		close(leave)
		b.wantRemoved()
	})
}

// A work item that removes the adapter would wait for its own end.
func TestRemove_InWorkItem(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	removed, surprised := make(chan error, 1), make(chan error, 1)
	b.a.QueueWorkItem(b.p, &WorkItem{Routine: func(p *Processor) {
		removed <- b.a.RemoveContext(t.Context(), p)
		surprised <- b.a.SurpriseRemove(p)
	}})
	for what, errs := range map[string]chan error{"RemoveContext": removed, "SurpriseRemove": surprised} {
		if err := <-errs; !errors.Is(err, ErrWrongPlace) {
			t.Errorf("%s: %v, want ErrWrongPlace", what, err)
		}
	}
	b.wantViolations(CheckCallingPlace, 2)
}

// A function that an enumeration calls would wait, in Remove or in another enumeration,
// for the end of the first.
func TestRemove_InEnumeration(t *testing.T) {
	for _, in := range []Callback{inUnitControl, inUnitsChanged} {
		t.Run(in.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}}
				r.has(0)
				calls := 0
				var b *bench
				try := func(p *Processor) {
					if p.callback != in {
						return
					}
					calls++
					start := time.Now()
					for what, err := range map[string]error{
						"RemoveContext": b.a.RemoveContext(t.Context(), p), "SurpriseRemove": b.a.SurpriseRemove(p), "Enumerate": b.a.Enumerate(p),
					} {
						if !errors.Is(err, ErrWrongPlace) {
							t.Errorf("%s: %v, want ErrWrongPlace", what, err)
						}
					}
					if d := time.Since(start); d != 0 {
						t.Errorf("it took %s", d)
					}
				}
				r.unitControl = try
				b = stage(t, r)
				b.a.OnUnitsChanged(func(_, _ []*LogicalUnit) { try(b.p) })
				if err := b.a.Enumerate(b.p); err != nil {
					t.Error(err)
				}
				if calls != 1 {
					t.Errorf("%d calls, want 1", calls)
				}
				b.wantViolations(CheckCallingPlace, 3)
				b.wantRemoved()
			})
		})
	}
}

// An idle adapter can be stopped in order even with no time left.
func TestStopContext_Ended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stops := 0
		d := &driver{model: FullDuplex, control: func(_ *Processor, c ControlType) {
			if c == ControlStopAdapter {
				stops++
			}
		}}
		b := newBench(t, d, AdapterOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.a.StopContext(ctx, b.p); err != nil || stops != 1 {
			t.Errorf("StopContext: %v; the miniport was stopped %d times, want once", err, stops)
		}
		if err := b.a.RemoveContext(ctx, b.p); err != nil {
			t.Errorf("RemoveContext: %v", err)
		}
		b.wantNoViolations()
	})
}

// The last SRB of a stop counts as back if it comes back at once, whatever time is left.
func TestStopContext_FlushedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		flushes, log := 0, new(bytes.Buffer)
		d := &driver{model: FullDuplex, features: func(c *Config) { c.CachesData = true }}
		d.startIo = func(p *Processor, srb *SRB) bool { flushes++; d.complete(p, srb); return true }
		b := newBenchIn(t, d, AdapterOptions{}, SystemConfig{Log: slog.New(slog.NewTextHandler(log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		const stops = 50 // it would be by chance
		for range stops {
			if err := b.a.StopContext(ctx, b.p); err != nil {
				t.Fatal(err)
			}
			if err := b.a.Restart(b.p); err != nil {
				t.Fatal(err)
			}
		}
		if flushes != stops || log.Len() != 0 {
			t.Errorf("%d flushes, want %d; logged: %.300s", flushes, stops, log)
		}
		b.wantNoViolations()
	})
}

// Nobody waits for a class driver's reset, but the verifier reports it.
func TestStop_TaskManagement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		b := newBench(t, d, AdapterOptions{})
		srb, err := b.a.NewSRB(b.p)
		if err != nil {
			t.Fatal(err)
		}
		srb.Function = FunctionResetLogicalUnit
		srb.Flags, srb.QueueAction = FlagNoQueueFreeze|FlagQueueActionEnable, HeadOfQueueTag
		done := make(chan Status, 1)
		srb.Completer = ownCompleter(done)
		b.lu.Submit(b.p, []*SRB{srb})
		if err := b.a.Stop(b.p); err != nil {
			t.Errorf("Stop: %v", err)
		}
		b.wantOnly(CheckStopOutstanding, "stopped with 1 SRBs outstanding")
		d.complete(b.p, d.take()[0])
		<-done
		b.a.FreeSRB(srb)
	})
}

// A class driver's reset that is built as the adapter is stopped goes down after the
// restart, and MaxNumberOfIO is what it was.
func TestStop_ParkedTaskManagement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		b := newBench(t, d, AdapterOptions{})
		s := b.srb(&finished{})
		s.Function = FunctionResetLogicalUnit
		stop := func() {
			p := b.processor("operator")
			defer p.Close()
			if err := b.a.Stop(p); err != nil {
				t.Errorf("Stop: %v", err)
			}
		}
		d.onceBuilt(s, stop)
		b.lu.Submit(b.p, []*SRB{s})
		b.wantOnly(CheckStopOutstanding, "stopped with 1 SRBs outstanding")
		d.buildIo = nil
		if err := b.a.Restart(b.p); err != nil {
			t.Fatal(err)
		}
		b.wantStarted(s)
		d.complete(b.p, s)
		if n := b.a.Stats(b.p).Outstanding; n != 0 {
			t.Errorf("%d SRBs outstanding, want none", n)
		}
		stop() // which waits for just that
		b.a.FreeSRB(s)
	})
}

// An unstoppable miniport does not take ControlStopAdapter.
type unstoppable struct{ recorder }

func (u *unstoppable) AdapterControl(p *Processor, c ControlType) ControlResult {
	if c == ControlStopAdapter {
		return ControlUnsuccessful
	}
	return u.recorder.AdapterControl(p, c)
}

// A reset that is given up when the stop has failed keeps its memory, too.
func TestRemove_KeptResetAfterStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &unstoppable{recorder{driver: driver{model: FullDuplex}, keep: true}}
		b := stageMiniport(t, &u.recorder, u)
		lu := b.a.unitAt(0, 0, 0)
		if err := b.a.Stop(b.p); err == nil {
			t.Error("Stop of a miniport that cannot: no error")
		}
		if err := b.a.ResetNow(b.p, lu, ResetUnit); err == nil {
			t.Error("a reset that nobody answers: no error")
		}
		if err := b.a.RemoveContext(t.Context(), b.p); !errors.Is(err, ErrOutstanding) {
			t.Errorf("RemoveContext: %v, want ErrOutstanding", err)
		}
		u.complete(b.p, u.take()[0])
		b.wantRemoved()
		b.wantNoViolations()
	})
}

// Neither a work item nor an enumeration that does not end keeps Remove beyond its time,
// and memory that they may still use is not freed.
func TestRemove_NeverEnds(t *testing.T) {
	users := map[string]func(b *bench, leave chan struct{}){
		"work item": func(b *bench, leave chan struct{}) {
			b.a.QueueWorkItem(b.p, &WorkItem{Routine: func(*Processor) { <-leave }})
		},
		"enumeration": func(b *bench, leave chan struct{}) {
			b.d.startIo = func(p *Processor, srb *SRB) bool {
				srb.DataTransferBytes = uint32(scsi.PutReportLUNsHeader(srb.DataBuffer, 0))
				b.d.complete(p, srb)
				return true
			}
			b.a.OnUnitsChanged(func(_, _ []*LogicalUnit) { <-leave })
			p := b.processor("operator")
			go func() {
				defer p.Close()
				if err := b.a.Enumerate(p); err != nil {
					b.t.Errorf("Enumerate: %v", err)
				}
			}()
		},
	}
	for what, use := range users {
		for _, failed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s failed=%t", what, failed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
					leave := make(chan struct{})
					use(b, leave)
					synctest.Wait()
					if failed {
						b.a.MarkDeviceFailed(b.p, wildcard, wildcard, wildcard, "fire")
					}
					ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
					defer cancel()
					start := time.Now()
					removed := make(chan error, 1)
					go func() { removed <- b.a.RemoveContext(ctx, b.p) }()
					select {
					case err := <-removed:
						if !errors.Is(err, ErrOutstanding) || !strings.Contains(err.Error(), what) {
							t.Errorf("RemoveContext: %v, want ErrOutstanding and what does not end", err)
						}
					case <-time.After(40 * time.Second):
						t.Error("RemoveContext does not return")
						close(leave)
						if err := <-removed; err != nil {
							t.Error(err)
						}
						return
					}
					if d := time.Since(start); d > 30*time.Second+takeAwayTime {
						t.Errorf("it took %s, want what ctx allows", d)
					}
					if b.sys.iommu.WindowsInUse() == 0 {
						t.Error("the memory is gone")
					}
					close(leave)
					b.wantRemoved()
					b.wantNoViolations()
				})
			})
		}
	}
}

// An adapter that fails while it is being stopped will not become idle by itself: nobody
// waits for that any more, and Remove resets it.
func TestStop_Fails(t *testing.T) {
	for name, stop := range stops {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex}
				d.resetBus = func(p *Processor, _ uint8) bool {
					for _, srb := range d.take() {
						srb.Status = StatusBusReset
						d.a.Complete(p, srb)
					}
					return true
				}
				b := newBench(t, d, AdapterOptions{})
				s := b.srb(&finished{})
				b.lu.Submit(b.p, []*SRB{s})
				stopped := make(chan error, 1)
				p := b.processor("stop")
				go func() { stopped <- stop(b.a, p) }()
				synctest.Wait()
				start := time.Now()
				b.a.MarkDeviceFailed(b.p, wildcard, wildcard, wildcard, "fire")
				err := <-stopped
				if d := time.Since(start); d != 0 {
					t.Errorf("it took %s to notice", d)
				}
				if failed := name == "stop"; errors.Is(err, ErrAdapterStopped) != failed || !failed && err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := b.a.RemoveContext(t.Context(), b.p); err != nil {
					t.Errorf("RemoveContext: %v", err)
				}
				b.a.FreeSRB(s)
				b.wantRemoved()
				b.wantNoViolations()
			})
		})
	}
}
