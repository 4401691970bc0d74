package port

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A patient is a Completer that is told when its SRB is given up.
type patient struct {
	mu      sync.Mutex
	heard   []string
	abandon func(p *Processor, srb *SRB) // called by AbandonSRB, if not nil
}

func (w *patient) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = append(w.heard, what)
}

func (w *patient) CompleteSRB(_ *Processor, srb *SRB) {
	w.note("complete " + srb.Status.Code().String())
}

func (w *patient) AbandonSRB(p *Processor, srb *SRB) {
	if w.abandon != nil {
		w.abandon(p, srb)
	}
	w.note("abandon")
}

func (w *patient) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.heard)
}

func (w *patient) want(t *testing.T, when string, want ...string) {
	t.Helper()
	if got := w.list(); !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", when, got, want)
	}
}

// deafTo makes the driver keep everything and fail every reset: with an error, or,
// if silent, by not answering; ResetBus fails until works says otherwise, and
// then hands all back.
func deafTo(d *driver, silent bool, works func() bool) {
	d.startIo = func(p *Processor, s *SRB) bool {
		if s.taskManagement() && !silent {
			s.Status = StatusError
			d.a.Complete(p, s)
			return true
		}
		d.mu.Lock()
		d.held = append(d.held, s)
		d.mu.Unlock()
		return true
	}
	d.resetBus = func(p *Processor, _ uint8) bool {
		if !works() {
			return false
		}
		for _, s := range d.take() {
			s.Status = StatusBusReset
			d.a.Complete(p, s)
		}
		return true
	}
}

// Whoever waits for an SRB that no reset brings back is told so once the last level has
// failed, which takes the time-out of the request and those of the resets, and no longer.
// The SRB stays the miniport's, with its memory mapped, until a reset works; then it is
// handed back, and the unit works.
func TestGiveUp_Abandons(t *testing.T) {
	const timeoutSecs, resetTimeout = 5, 3 * time.Second
	for name, silent := range map[string]bool{"resets fail": false, "resets do not answer": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex}
				works := false // the recovery service looks while the test waits for it
				deafTo(d, silent, func() bool { return works })
				b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: timeoutSecs, ResetTimeout: resetTimeout})
				w := &patient{}
				held, later := b.srb(&finished{}), b.srb(&finished{})
				held.Completer, later.Completer = w, w
				memory := b.arena.Alloc(4096)
				held.Flags |= FlagDataIn
				held.DataBuffer, held.DataTransferBytes = memory, 4096
				b.lu.Submit(b.p, []*SRB{held})

				time.Sleep(timeoutSecs*time.Second - time.Second/2)
				synctest.Wait()
				w.want(t, "before the time-out")
				limit := time.Second
				if silent {
					limit += 2 * resetTimeout
				}
				time.Sleep(limit)
				synctest.Wait()
				w.want(t, "after the last reset", "abandon")
				if owner := held.owner.Load(); owner != ownerMiniport {
					t.Errorf("the SRB that was given up has owner %d, want the miniport", owner)
				}
				if _, ok := b.sys.iommu.Translate(held.SGL[0].Addr, 4096, accessOf(FlagDataIn)); !ok {
					t.Error("the memory of the SRB that was given up is not mapped any more")
				}
				b.lu.Submit(b.p, []*SRB{later})
				w.want(t, "a new request", "abandon", "complete "+StatusNoDevice.String())
				if s := b.lu.Stats(); s.Abandoned != 1 {
					t.Errorf("statistics %+v, want 1 abandoned", s)
				}
				time.Sleep(60 * time.Second) // the road is taken again and again
				synctest.Wait()
				w.want(t, "a minute later", "abandon", "complete "+StatusNoDevice.String())

				works = true
				if err := b.a.ResetNow(b.p, b.lu, ResetBus); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				w.want(t, "after a reset that works", "abandon", "complete "+StatusNoDevice.String(), "complete "+StatusBusReset.String())
				b.lu.Submit(b.p, []*SRB{later})
				if h := d.take(); !slices.Equal(h, []*SRB{later}) {
					t.Fatalf("the miniport has %v, want the new request", h)
				}
				d.complete(b.p, later)
				b.a.FreeSRB(held)
				b.a.FreeSRB(later)
				b.arena.Free(memory)
				b.wantNoViolations()
			})
		})
	}
}

// A unit whose last SRB comes back while the resets fail is not given up: it goes on
// working, and SRBs that waited meanwhile go down.
func TestGiveUp_NothingStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeoutSecs = 5
		d := &driver{model: FullDuplex}
		var stuck *SRB
		d.startIo = func(p *Processor, s *SRB) bool {
			switch {
			case s.taskManagement():
				if stuck != nil {
					d.complete(p, stuck)
					stuck = nil
				}
				s.Status = StatusError
				d.a.Complete(p, s)
			case stuck == nil:
				stuck = s
			}
			return true
		}
		b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: timeoutSecs})
		b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 1)
		first, second := &patient{}, &patient{}
		srbs := []*SRB{b.srb(&finished{}), b.srb(&finished{})}
		srbs[0].Completer, srbs[1].Completer = first, second
		b.lu.Submit(b.p, srbs)
		time.Sleep((timeoutSecs + 1) * time.Second)
		synctest.Wait()
		first.want(t, "after the last reset", "complete "+StatusSuccess.String())
		second.want(t, "what waited, on its way")
		if stuck != srbs[1] {
			t.Fatalf("the miniport has %v, want what waited", stuck)
		}
		d.complete(b.p, stuck)
		second.want(t, "what waited", "complete "+StatusSuccess.String())
		if s := b.lu.Stats(); s.Timeouts != 1 || s.Abandoned != 0 {
			t.Errorf("statistics %+v, want 1 timeout, 0 abandoned", s)
		}
		b.a.FreeSRB(srbs[0])
		b.a.FreeSRB(srbs[1])
		b.wantNoViolations()
	})
}

// An SRB that was between BuildIo and StartIo when the unit's time ran out goes down
// when the unit is given up, and is given up with the rest. Outstanding resets that get no
// answer do not matter: they take none of the unit's depth and hold nothing back.
func TestGiveUp_Built(t *testing.T) {
	const timeoutSecs, resetTimeout = 5, 3 * time.Second
	for name, depth := range map[string]int{"depth left": 32, "depth taken": 2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex}
				works := false
				deafTo(d, true, func() bool { return works })
				b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: timeoutSecs, ResetTimeout: resetTimeout})
				b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, depth)
				held, built := b.srb(&finished{}), b.srb(&finished{})
				first, second := &patient{}, &patient{}
				held.Completer, built.Completer = first, second
				d.buildIo = func(_ *Processor, s *SRB) bool {
					if s == built {
						time.Sleep((timeoutSecs + 1) * time.Second)
					}
					return true
				}
				b.lu.Submit(b.p, []*SRB{held})
				b.lu.Submit(b.p, []*SRB{built})
				if n := b.lu.Stats().Parked; n != 1 {
					t.Fatalf("%d parked, want 1", n)
				}
				time.Sleep(2 * resetTimeout)
				synctest.Wait()
				first.want(t, "what the miniport has", "abandon")
				second.want(t, "what was built", "abandon")
				if owner := built.owner.Load(); owner != ownerMiniport {
					t.Errorf("what was built has owner %d, want the miniport", owner)
				}

				works = true
				if err := b.a.ResetNow(b.p, b.lu, ResetBus); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				first.want(t, "what the miniport has", "abandon", "complete "+StatusBusReset.String())
				second.want(t, "what was built", "abandon", "complete "+StatusBusReset.String())
				b.a.FreeSRB(held)
				b.a.FreeSRB(built)
				b.wantNoViolations()
			})
		})
	}
}

// An SRB that comes back while its Abandoner is being told is handed back after that.
func TestGiveUp_ComesBackMeanwhile(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	w := &patient{abandon: func(_ *Processor, s *SRB) {
		p := b.processor("device")
		defer p.Close()
		d.complete(p, s)
	}}
	s := b.srb(&finished{})
	s.Completer = w
	b.lu.Submit(b.p, []*SRB{s})
	d.take()
	b.a.giveUp(b.p, b.lu)
	w.want(t, "given up", "abandon", "complete "+StatusSuccess.String())
	// The unit has nothing outstanding: it works.
	b.lu.Submit(b.p, []*SRB{s})
	d.complete(b.p, d.take()[0])
	w.want(t, "used again", "abandon", "complete "+StatusSuccess.String(), "complete "+StatusSuccess.String())
	b.a.FreeSRB(s)
	b.wantNoViolations()
}

// An SRB that was given up is not sent again, whatever it comes back with.
func TestGiveUp_NoRetry(t *testing.T) {
	d := &driver{model: FullDuplex}
	d.buildIo = func(_ *Processor, s *SRB) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.held = append(d.held, s)
		return false // kept: only such an SRB may come back BUSY
	}
	b := newBench(t, d, AdapterOptions{})
	w := &patient{}
	s := b.srb(&finished{})
	s.Completer = w
	b.lu.Submit(b.p, []*SRB{s})
	held := d.take()
	b.a.giveUp(b.p, b.lu)
	// A reset that helps opens the gate before what it has brought back has been
	// looked at.
	b.lu.mu.Lock()
	b.lu.openGateLocked(gateGivenUp)
	b.lu.mu.Unlock()
	held[0].Status = StatusBusy
	b.a.Complete(b.p, held[0])
	w.want(t, "BUSY", "abandon", "complete "+StatusBusy.String())
	if n := len(d.take()); n != 0 {
		t.Errorf("%d SRBs were built again", n)
	}
	b.a.FreeSRB(s)
	b.wantNoViolations()
}

// Nor is one without anybody to give it up to.
func TestGiveUp_NoRetryOfOthers(t *testing.T) {
	for name, end := range map[string]func(b *bench){
		"given up": func(b *bench) { b.a.giveUp(b.p, b.lu) },
		"removed":  func(b *bench) { b.a.MarkDeviceFailed(b.p, 0, 0, 0, "smoke") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex}
				d.buildIo = func(*Processor, *SRB) bool { return false } // kept, as above
				b := newBench(t, d, AdapterOptions{})
				done := &finished{}
				s := b.srbs(2, done)
				b.lu.Submit(b.p, s)
				end(b)
				synctest.Wait()
				s[0].Status = StatusBusy
				b.a.Complete(b.p, s[0])
				if l := done.list(); len(l) != 1 || l[0] != s[0] || l[0].Status.Code() != StatusBusy {
					t.Errorf("completions %v, want one BUSY", l)
				}
				if st := b.lu.Stats(); st.Waiting != 0 {
					t.Errorf("stats %+v, want none waiting", st)
				}
				b.d.complete(b.p, s[1])
				b.wantNoViolations()
			})
		})
	}
}

// Execute does not wait for an SRB that was given up, and frees its memory when it
// comes back.
func TestGiveUp_Execute(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	sent := make(chan *SRB, 1)
	d.startIo = func(_ *Processor, s *SRB) bool { sent <- s; return true }
	s := b.srb(&finished{})
	result := make(chan bool)
	go func() {
		p := b.processor("caller")
		defer p.Close()
		result <- b.lu.Execute(p, s, func() { b.a.FreeSRB(s) })
	}()
	held := <-sent
	b.a.giveUp(b.p, b.lu)
	if <-result {
		t.Error("Execute says that the SRB has completed")
	}
	windows := b.sys.iommu.WindowsInUse()
	d.complete(b.p, held)
	if got := b.sys.iommu.WindowsInUse(); got >= windows {
		t.Errorf("%d IOMMU windows in use, %d before the SRB came back: it was not released", got, windows)
	}
	b.wantNoViolations()
}

// An enumeration keeps a unit that was given up, so that a reset can bring it back, and
// looks at the others.
func TestGiveUp_Enumerate(t *testing.T) {
	r := &recorder{driver: driver{model: FullDuplex}}
	r.has(0, 1)
	b := stage(t, r)
	if err := b.a.Enumerate(b.p); err != nil {
		t.Fatal(err)
	}
	before := b.a.LogicalUnits()
	r.keep = true
	w := &patient{}
	s := b.srb(&finished{})
	s.Completer = w
	for _, lu := range before {
		lu.Submit(b.p, []*SRB{s})
		held := r.take()
		b.a.giveUp(b.p, lu)
		r.has(0, 1, 2)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		units := b.a.LogicalUnits()
		if len(units) < 2 || !slices.Equal(units[:2], before) {
			t.Errorf("units with %v given up: %v, want those that there were", lu, units)
		}
		if len(units) != 3 {
			t.Errorf("units with %v given up: %v, want the new one too", lu, units)
		}
		r.has(0, 1)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		if units := b.a.LogicalUnits(); !slices.Equal(units, before) {
			t.Errorf("units with %v given up: %v, want the new one gone", lu, units)
		}
		r.complete(b.p, held[0])
	}
	w.want(t, "both given up", "abandon", "complete "+StatusSuccess.String(), "abandon", "complete "+StatusSuccess.String())
	b.a.FreeSRB(s)
	b.a.Remove(b.p)
	b.wantNoViolations()
}

// If unit 0 does not answer REPORT LUNS, another unit of its target is asked once the
// port has given up. One that the answer leaves out is gone, given up or not.
func TestGiveUp_ReportLUNs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{driver: driver{model: FullDuplex}}
		r.has(0, 1)
		b := stage(t, r)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		before := b.a.LogicalUnits()
		var deaf []*SRB
		r.deaf = func(s *SRB) bool {
			if s.Lun == 0 {
				deaf = append(deaf, s)
			}
			return s.Lun == 0
		}
		r.has(0, 1, 2)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		units := b.a.LogicalUnits()
		if len(units) != 3 || !slices.Equal(units[:2], before) {
			t.Errorf("units while %v hangs: %v, want the new one too", before[0], units)
		}
		r.has(1, 2)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		if got := b.a.LogicalUnits(); len(units) != 3 || !slices.Equal(got, units[1:]) {
			t.Errorf("units without %v: %v, want the others", before[0], got)
		}
		r.deaf = nil
		for _, s := range deaf {
			r.complete(b.p, s)
		}
		b.a.Remove(b.p)
		b.wantNoViolations()
	})
}

// SRBs that the miniport holds of a unit that has left the table are not reset, but
// whoever waits for them waits no longer than their time-out.
func TestGiveUp_UnitGone(t *testing.T) {
	for name, remove := range ways {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}, keep: true}
				r.has(0, 1)
				b := stage(t, r)
				if err := b.a.Enumerate(b.p); err != nil {
					t.Fatal(err)
				}
				lu := b.a.LogicalUnits()[1]
				slow, quick := &patient{}, &patient{}
				srbs := []*SRB{b.srb(&finished{}), b.srb(&finished{})}
				srbs[0].Completer, srbs[1].Completer = quick, slow
				for _, s := range srbs {
					s.TimeoutSecs = 20
				}
				lu.Submit(b.p, srbs)
				if err := remove(b, r); err != nil {
					t.Fatal(err)
				}
				if units := b.a.LogicalUnits(); len(units) != 1 {
					t.Fatalf("units: %v, want one left", units)
				}
				time.Sleep(10 * time.Second)
				r.complete(b.p, srbs[0])
				time.Sleep(15 * time.Second)
				synctest.Wait()
				slow.want(t, "before its time is up, for the other has come back")
				time.Sleep(10 * time.Second)
				synctest.Wait()
				slow.want(t, "after its time", "abandon")
				time.Sleep(60 * time.Second)
				synctest.Wait()
				r.complete(b.p, srbs[1])
				slow.want(t, "it comes back", "abandon", "complete "+StatusSuccess.String())
				quick.want(t, "what came back in time", "complete "+StatusSuccess.String())
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if n := len(b.a.units.Load().left); n != 0 {
					t.Errorf("%d units are timed that nothing is outstanding of", n)
				}
				b.a.FreeSRB(srbs[0])
				b.a.FreeSRB(srbs[1])
				r.take()
				b.a.Remove(b.p)
				b.wantNoViolations()
			})
		})
	}
}

// Once the adapter has gone, nobody waits any more for SRBs that the miniport keeps, be
// their unit in service, removed by an enumeration, or marked failed.
func TestGiveUp_AdapterGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{driver: driver{model: FullDuplex}, keep: true}
		r.has(0, 1, 2)
		b := stage(t, r)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		units := b.a.LogicalUnits()
		w := &patient{}
		var srbs []*SRB
		for _, lu := range units {
			s := b.srb(&finished{})
			s.Completer = w
			lu.Submit(b.p, []*SRB{s})
			srbs = append(srbs, s)
		}
		r.has(0, 2)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		b.a.detach(b.p, units[2])
		b.a.forget(b.p, units[2])
		if err := b.a.SurpriseRemove(b.p); !errors.Is(err, ErrOutstanding) {
			t.Errorf("SurpriseRemove: %v, want ErrOutstanding", err)
		}
		w.want(t, "after the removal", "abandon", "abandon", "abandon")
		for _, s := range srbs {
			r.complete(b.p, s)
		}
		done := "complete " + StatusSuccess.String()
		w.want(t, "better late than never", "abandon", "abandon", "abandon", done, done, done)
		for _, s := range srbs {
			b.a.FreeSRB(s)
		}
		b.a.release()
		if n := b.sys.Verifier().Count(CheckStopOutstanding); n != 1 {
			t.Errorf("%d violations of V14, want 1", n)
		}
	})
}

// A class driver can open the queue that it has closed although the unit has been given
// up meanwhile: otherwise the queue would stay closed when the unit works again.
func TestGiveUp_QueueFunctions(t *testing.T) {
	for name, f := range map[string][2]Function{
		"lock": {FunctionLockQueue, FunctionUnlockQueue}, "freeze": {FunctionExecuteScsi, FunctionReleaseQueue},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex}
				deafTo(d, false, func() bool { return false })
				b := newBench(t, d, AdapterOptions{})
				done := &finished{}
				queue := func(f Function) *SRB {
					s := b.srb(done)
					s.Function = f
					b.lu.Submit(b.p, []*SRB{s})
					return s
				}
				held := b.srb(done)
				held.Completer, held.TimeoutSecs = &patient{}, 5
				b.lu.Submit(b.p, []*SRB{held})
				if f[0] == FunctionLockQueue {
					queue(f[0])
				} else {
					failed := b.srb(done)
					failed.Flags &^= FlagNoQueueFreeze
					b.lu.Submit(b.p, []*SRB{failed})
					d.mu.Lock()
					d.held = d.held[:1]
					d.mu.Unlock()
					failed.Status = StatusError
					b.a.Complete(b.p, failed)
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
				if b.lu.gate.Load()&gateGivenUp == 0 {
					t.Fatal("the unit is not given up")
				}
				if s := queue(f[1]); s.Status != StatusSuccess {
					t.Errorf("on a unit that is given up: %s", s)
				}
				if s := queue(FunctionQuiesceDevice); s.Status != StatusNoDevice {
					t.Errorf("on a unit that is given up: %s", s)
				}
				for _, s := range d.take() {
					d.complete(b.p, s)
				}
				s := b.srb(done)
				b.lu.Submit(b.p, []*SRB{s})
				b.wantStarted(s)
				d.complete(b.p, s)
				b.wantNoViolations()
			})
		})
	}
}
