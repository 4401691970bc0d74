package port

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// A failing miniport fails a command for some LUNs of target 0.
type failing struct {
	*recorder
	targets int         // with the same units each
	blank   atomic.Bool // it works, without an answer

	mu     sync.Mutex
	op     scsi.Opcode
	luns   []uint8
	since  time.Time
	rounds []time.Duration // since when, of the enumerations that have met it
}

// fail has op fail for these LUNs from now on.
func (f *failing) fail(op scsi.Opcode, luns ...uint8) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.op, f.luns, f.since, f.rounds = op, luns, time.Now(), nil
}

func (f *failing) FindAdapter(p *Processor, a *Adapter, c *Config) FindResult {
	r := f.recorder.FindAdapter(p, a, c)
	c.MaximumNumberOfTargets = f.targets
	return r
}

func (f *failing) met() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rounds
}

func (f *failing) StartIo(p *Processor, srb *SRB) bool {
	f.mu.Lock()
	fails := srb.Function == FunctionExecuteScsi && scsi.Opcode(srb.CDB[0]) == f.op && srb.TargetID == 0 && slices.Contains(f.luns, srb.Lun)
	if at := time.Since(f.since); fails && !slices.Contains(f.rounds, at) {
		f.rounds = append(f.rounds, at)
	}
	f.mu.Unlock()
	if !fails {
		return f.recorder.StartIo(p, srb)
	}
	if srb.Status = StatusError; f.blank.Load() {
		srb.Status, srb.DataTransferBytes = StatusSuccess, 0
	}
	f.a.Complete(p, srb)
	return true
}

func stageFailing(t *testing.T) (*bench, *failing) {
	t.Helper()
	return stageTargets(t, 1)
}

func stageTargets(t *testing.T, targets int) (*bench, *failing) {
	t.Helper()
	f := &failing{recorder: &recorder{driver: driver{model: FullDuplex}}, targets: targets}
	return stageMiniport(t, f.recorder, f), f
}

// If no unit of a target lists its units, an address without a unit does.
func TestEnumerate_NoUnitListsOthers(t *testing.T) {
	b, r := stageFailing(t)
	r.has(0, 1)
	defer b.a.Remove(b.p)
	if err := b.a.Enumerate(b.p); err != nil {
		t.Fatal(err)
	}
	before := b.a.LogicalUnits()
	r.fail(scsi.OpReportLUNs, 0, 1)
	for _, tt := range []struct {
		has  []uint8
		want int
	}{{[]uint8{0, 1, 3}, 3}, {[]uint8{0, 1, 2}, 3}, {[]uint8{0, 1}, 2}} {
		r.has(tt.has...)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		now := b.a.LogicalUnits()
		if len(now) != tt.want || !slices.Equal(now[:2], before) {
			t.Errorf("with units %v: %v, want as many, and those that there were", tt.has, now)
		}
		if last := now[len(now)-1]; last.Lun() != tt.has[len(tt.has)-1] {
			t.Errorf("with units %v: %v", tt.has, now)
		}
	}
	if len(r.met()) == 0 {
		t.Error("nobody was asked")
	}
	b.wantNoViolations()
}

// A unit at LUN 0 that has never said what it is, and does not list units either, hides
// none: neither those that are known nor one that is new.
func TestEnumerate_NewUnitListsNone(t *testing.T) {
	for _, tt := range []struct {
		name       string
		known, now []uint8
		fail       []uint8
		want       []uint8
	}{
		{"a known one lists them", []uint8{1}, []uint8{0, 1, 2}, []uint8{0}, []uint8{0, 1, 2}},
		{"an address without a unit lists them", []uint8{1}, []uint8{0, 1, 2}, []uint8{0, 1}, []uint8{0, 1, 2}},
		{"an address without a unit lists them, none is known", nil, []uint8{0, 1}, []uint8{0, 1}, []uint8{0, 1}},
		{"nobody lists them", []uint8{1}, []uint8{0, 1, 2}, []uint8{0, 1, 2, 3}, []uint8{1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, r := stageFailing(t)
			defer b.a.Remove(b.p)
			r.has(tt.known...)
			if err := b.a.Enumerate(b.p); err != nil {
				t.Fatal(err)
			}
			r.has(tt.now...)
			r.fail(scsi.OpReportLUNs, tt.fail...)
			if err := b.a.Enumerate(b.p); err != nil {
				t.Fatal(err)
			}
			var got []uint8
			for _, lu := range b.a.LogicalUnits() {
				got = append(got, lu.Lun())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("LUNs %v, want %v", got, tt.want)
			}
			b.wantNoViolations()
		})
	}
}

// A target that cannot be asked hides no other, and loses no unit.
func TestEnumerate_OtherTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := stageTargets(t, 2)
		defer b.a.Remove(b.p)
		want := func(when string, targets ...uint8) {
			t.Helper()
			var got []uint8
			for _, lu := range b.a.LogicalUnits() {
				got = append(got, lu.target)
			}
			if !slices.Equal(got, targets) {
				t.Errorf("%s: units of targets %v, want %v", when, got, targets)
			}
		}
		r.has(1)
		r.fail(scsi.OpReportLUNs, 0, 1, 2, 3)
		if err := b.a.Enumerate(b.p); err == nil || !strings.Contains(err.Error(), "target 0:0: REPORT LUNS") {
			t.Errorf("an enumeration with a target that cannot be asked: %v", err)
		}
		want("target 0 fails", 1)
		r.fail(scsi.OpReportLUNs)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		want("all is well", 0, 1)
		r.has(1, 2)
		r.fail(scsi.OpReportLUNs, 0, 1, 2, 3)
		if err := b.a.Enumerate(b.p); err != nil {
			t.Error(err)
		}
		want("target 0 fails again", 0, 1, 1)
		r.blank.Store(true)
		r.has(1, 3)
		if err := b.a.Enumerate(b.p); err == nil || !strings.Contains(err.Error(), "target 0:0: REPORT LUNS: 0 bytes") {
			t.Errorf("an enumeration with a target without a list: %v", err)
		}
		want("target 0 has no list", 0, 1, 1)
		b.wantNoViolations()
	})
}

// A unit that is missed after an earlier one has been found is asked again 1 s later, too,
// although the time to ask for the earlier one had not come.
func TestEnumerate_MissedAnew(t *testing.T) {
	const quarter = time.Second / 4
	synctest.Test(t, func(t *testing.T) {
		b, r := stageFailing(t)
		defer b.a.Remove(b.p)
		for _, step := range []struct{ has, fail []uint8 }{{[]uint8{0, 1}, []uint8{1}}, {[]uint8{0, 1}, nil}, {[]uint8{0, 1, 2}, []uint8{2}}} {
			time.Sleep(quarter)
			r.has(step.has...)
			r.fail(scsi.OpInquiry, step.fail...)
			if err := b.a.Enumerate(b.p); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second + quarter)
		synctest.Wait()
		if want := []time.Duration{0, time.Second}; !slices.Equal(r.met(), want) {
			t.Errorf("the new one is asked after %v, want %v", r.met(), want)
		}
		r.fail(scsi.OpInquiry)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if units := b.a.LogicalUnits(); len(units) != 3 {
			t.Errorf("units %v, want three", units)
		}
		b.wantNoViolations()
	})
}

// A timer that has fired, but gets its turn only after another has taken its place, asks
// nothing and starts no third.
func TestEnumerate_OldTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := stageFailing(t)
		defer b.a.Remove(b.p)
		enumerate := func(has, fail []uint8) {
			t.Helper()
			r.has(has...)
			r.fail(scsi.OpInquiry, fail...)
			if err := b.a.Enumerate(b.p); err != nil {
				t.Fatal(err)
			}
		}
		enumerate([]uint8{0, 1}, []uint8{1})
		busy := make(chan struct{})
		b.a.service.post(func(*Processor) { <-busy })
		time.Sleep(time.Second)
		synctest.Wait() // the timer has fired, and waits for its turn
		enumerate([]uint8{0, 1}, nil)
		enumerate([]uint8{0, 1, 2}, []uint8{2})
		time.Sleep(time.Second / 2)
		close(busy)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if want := []time.Duration{0, time.Second, 3 * time.Second}; !slices.Equal(r.met(), want) {
			t.Errorf("the new one is asked after %v, want %v", r.met(), want)
		}
		r.fail(scsi.OpInquiry)
		b.wantNoViolations()
	})
}

// An enumeration that has missed something is repeated after 1 s, then after twice the
// previous time, up to the time for a reset, until it misses nothing. It logs this once.
func TestEnumerate_Again(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name  string
		op    scsi.Opcode
		luns  []uint8
		empty bool // there was nothing before
	}{
		{"a new unit does not say what it is", scsi.OpInquiry, []uint8{1}, false},
		{"nobody lists units", scsi.OpReportLUNs, []uint8{0, 1, 2, 3}, false},
		{"an unknown target does not list units", scsi.OpReportLUNs, []uint8{0, 1, 2, 3}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, r := stageFailing(t)
				defer b.a.Remove(b.p)
				var log bytes.Buffer
				b.sys.log = slog.New(slog.NewTextHandler(&log, nil))
				known := 0
				if !tt.empty {
					r.has(0)
					known = 1
					if err := b.a.Enumerate(b.p); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 { // the second begins with 1 s again
					r.has(0, 1)
					r.fail(tt.op, tt.luns...)
					if err := b.a.Enumerate(b.p); (err != nil) != tt.empty {
						t.Fatal(err)
					}
					b.a.BusChangeDetected(b.p) // changes nothing of when it is asked again
					time.Sleep(40*s + s/2)
					synctest.Wait()
					if want := []time.Duration{0, 1 * s, 3 * s, 7 * s, 15 * s, 25 * s, 35 * s}; !slices.Equal(r.met(), want) {
						t.Errorf("asked after %v, want %v", r.met(), want)
					}
					if n := len(b.a.LogicalUnits()); n != known {
						t.Errorf("%d units, want %d", n, known)
					}
					if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "they are asked again") {
						t.Errorf("logged: %s", text)
					}
					log.Reset()
					r.fail(tt.op)
					time.Sleep(5 * s)
					synctest.Wait()
					if units := b.a.LogicalUnits(); len(units) != 2 {
						t.Errorf("units %v, want two", units)
					}
					events := len(r.noted())
					time.Sleep(time.Hour)
					if more := r.noted()[events:]; len(more) > 0 {
						t.Errorf("everything is known, and still %v", more)
					}
					r.has([]uint8{0}[:known]...)
					if err := b.a.Enumerate(b.p); err != nil {
						t.Fatal(err)
					}
				}
				b.wantNoViolations()
			})
		})
	}
}

// A change while the adapter is stopped is found as soon as it runs, with no timer until
// then.
func TestEnumerate_Stopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := stageFailing(t)
		defer b.a.Remove(b.p)
		if err := b.a.Stop(b.p); err != nil {
			t.Fatal(err)
		}
		r.has(0)
		if err := b.a.Enumerate(b.p); !errors.Is(err, ErrAdapterStopped) {
			t.Errorf("stopped: %v", err)
		}
		b.a.mu.Lock()
		if b.a.enumAgain != nil {
			t.Error("a timer runs for a stopped adapter")
		}
		b.a.mu.Unlock()
		time.Sleep(time.Minute)
		if err := b.a.Restart(b.p); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if units := b.a.LogicalUnits(); len(units) != 1 {
			t.Errorf("units %v, want one", units)
		}
		b.wantNoViolations()
	})
}

// Class drivers read INQUIRY data while the port enumerates again; see it with -race.
func TestInquiry_BesideEnumeration(t *testing.T) {
	r := &recorder{driver: driver{model: FullDuplex}}
	b, lu := staged(t, r)
	want := string(lu.Inquiry())
	enumerated := make(chan error)
	go func() {
		p := b.processor("operator")
		defer p.Close()
		enumerated <- b.a.Enumerate(p)
	}()
	if got := string(lu.Inquiry()); got != want {
		t.Errorf("INQUIRY data % x, want % x", got, want)
	}
	if err := <-enumerated; err != nil {
		t.Error(err)
	}
	b.a.Remove(b.p)
	b.wantNoViolations()
}

// A queue that a class driver has locked, or left frozen, holds up no enumeration.
func TestEnumerate_QueueClosed(t *testing.T) {
	for name, closeQueue := range map[string]func(b *bench, r *recorder, lu *LogicalUnit, aid *SRB){
		"locked": func(b *bench, _ *recorder, lu *LogicalUnit, aid *SRB) { b.submitFor(lu, aid, FunctionLockQueue) },
		"frozen": func(b *bench, r *recorder, lu *LogicalUnit, aid *SRB) {
			aid.Flags &^= FlagNoQueueFreeze
			lu.Submit(b.p, []*SRB{aid})
			aid.Status = StatusError
			b.a.Complete(b.p, r.take()[0])
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}, keep: true}
				b, lu := staged(t, r)
				aid := b.srb(&finished{})
				closeQueue(b, r, lu, aid)
				r.has(0, 1, 2)
				b.a.BusChangeDetected(b.p)
				synctest.Wait()
				if n := len(b.a.LogicalUnits()); n != 3 {
					t.Errorf("%d units, want 3", n)
				}
				b.a.FreeSRB(aid)
				b.a.Remove(b.p)
				b.wantNoViolations()
			})
		})
	}
}

// A unit that does not answer keeps an enumeration waiting, but not work items that wait
// for nothing: by these, long commands of other units go on.
func TestEnumerate_BesideWorkItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		b := newBench(t, d, AdapterOptions{})
		b.a.BusChangeDetected(b.p)
		synctest.Wait()
		start := time.Now()
		ran, patient := make(chan time.Duration, 1), make(chan time.Duration, 1)
		b.a.QueueWorkItem(b.p, &WorkItem{Routine: func(*Processor) { ran <- time.Since(start) }})
		b.a.QueueWorkItem(b.p, &WorkItem{WaitsForIO: true, Routine: func(*Processor) { patient <- time.Since(start) }})
		time.Sleep(time.Second)
		d.startIo = func(p *Processor, srb *SRB) bool { // the enumeration asks on
			srb.DataTransferBytes = uint32(scsi.PutReportLUNsHeader(srb.DataBuffer, 0))
			d.complete(p, srb)
			return true
		}
		srb := d.take()[0]
		d.startIo(b.p, srb)
		if at := <-ran; at != 0 {
			t.Errorf("a work item waited %s for the enumeration", at)
		}
		if at := <-patient; at != time.Second {
			t.Errorf("one that waits for I/O ran after %s, want its turn after the enumeration", at)
		}
		b.wantNoViolations()
	})
}

// An enumeration that is under way when the adapter fails finds nothing any more: its
// units have ended, and no new one begins.
func TestEnumerate_AdapterFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{driver: driver{model: FullDuplex}}
		r.has(0, 1)
		var list *SRB
		r.deaf = func(s *SRB) bool {
			if list == nil {
				list = s
				return true
			}
			return false
		}
		b := stage(t, r)
		b.a.OnUnitsChanged(func(added, _ []*LogicalUnit) {
			if len(added) != 0 {
				t.Errorf("%v came to an adapter that has failed", added)
			}
		})
		enumerated := make(chan error, 1)
		p := b.processor("operator")
		go func() { enumerated <- b.a.Enumerate(p) }()
		synctest.Wait()
		b.a.MarkDeviceFailed(b.p, wildcard, wildcard, wildcard, "fire")
		synctest.Wait()
		r.StartIo(b.p, list) // it answers after all
		if err := <-enumerated; err != nil && !errors.Is(err, ErrAdapterStopped) {
			t.Errorf("Enumerate: %v", err)
		}
		for _, lu := range b.a.LogicalUnits() {
			if !lu.removed() {
				t.Errorf("%s is in service", lu)
			}
		}
		if events := r.noted(); slices.Contains(events, "INQUIRY") {
			t.Errorf("the miniport got %v", events)
		}
		b.wantRemoved()
	})
}
