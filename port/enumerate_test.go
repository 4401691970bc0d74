package port

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// A failing miniport fails a command for some LUNs.
type failing struct {
	*recorder
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

func (f *failing) met() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rounds
}

func (f *failing) StartIo(p *Processor, srb *SRB) bool {
	f.mu.Lock()
	fails := srb.Function == FunctionExecuteScsi && scsi.Opcode(srb.CDB[0]) == f.op && slices.Contains(f.luns, srb.Lun)
	if at := time.Since(f.since); fails && !slices.Contains(f.rounds, at) {
		f.rounds = append(f.rounds, at)
	}
	f.mu.Unlock()
	if !fails {
		return f.recorder.StartIo(p, srb)
	}
	srb.Status = StatusError
	f.a.Complete(p, srb)
	return true
}

func stageFailing(t *testing.T) (*bench, *failing) {
	t.Helper()
	f := &failing{recorder: &recorder{driver: driver{model: FullDuplex}}}
	return stageMiniport(t, f.recorder, f), f
}

// If no unit of a target says which others there are, an address without a unit does.
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

// What an enumeration has not found out it asks again, after 1 s, then after twice the time
// each up to the time for a reset, until it knows; and no longer.
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
		{"an unknown target does not list units", scsi.OpReportLUNs, []uint8{0}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, r := stageFailing(t)
				defer b.a.Remove(b.p)
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

// What changes while the adapter is stopped is found once it runs.
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
		time.Sleep(time.Minute)
		if err := b.a.Restart(b.p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if units := b.a.LogicalUnits(); len(units) != 1 {
			t.Errorf("units %v, want one", units)
		}
		b.wantNoViolations()
	})
}
