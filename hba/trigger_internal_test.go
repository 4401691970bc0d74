package hba

import (
	"slices"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
)

// A countingClock stands still, and counts what it was asked to call.
type countingClock struct {
	now   time.Duration
	asked int
	calls []*timerCall
}

type timerCall struct {
	at time.Duration
	fn func()
}

func (c *countingClock) Now() time.Duration { return c.now }

func (c *countingClock) AfterFunc(d time.Duration, fn func()) func() bool {
	c.asked++
	k := &timerCall{c.now + d, fn}
	c.calls = append(c.calls, k)
	return func() bool {
		n := len(c.calls)
		c.calls = slices.DeleteFunc(c.calls, func(other *timerCall) bool { return other == k })
		return len(c.calls) < n
	}
}

// advance makes all calls that are due at that time or before, as late as that.
func (c *countingClock) advance(to time.Duration) {
	c.now = to
	for {
		i := slices.IndexFunc(c.calls, func(k *timerCall) bool { return k.at <= to })
		if i < 0 {
			return
		}
		k := c.calls[i]
		c.calls = slices.Delete(c.calls, i, i+1)
		k.fn()
	}
}

// A timedWorld is a device that has nothing but rules about the disks "d" and, later,
// "e".
type timedWorld struct {
	d     *Device
	clock *countingClock
	units []fault.Unit
}

func newTimedWorld(t *testing.T) *timedWorld {
	w := &timedWorld{clock: &countingClock{}, units: []fault.Unit{{Disk: "d", BlockBytes: 512, Blocks: 1 << 12, PowerSwitch: true}}}
	w.d = &Device{clock: w.clock, ruleTimers: make(map[ruleUnit]*ruleTimer)}
	w.d.intr.init(1)
	w.attach(t)
	t.Cleanup(w.d.goroutines.Wait)
	return w
}

// attach adds the last of w.units to the device.
func (w *timedWorld) attach(t *testing.T) {
	t.Helper()
	u := w.units[len(w.units)-1]
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: int64(u.Blocks) * int64(u.BlockBytes)})
	if err != nil {
		t.Fatal(err)
	}
	unit, err := target.NewUnit(m, target.Config{Serial: u.Disk, BlockBytes: u.BlockBytes})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.d.AddUnit(u.Target, u.Lun, unit); err != nil {
		t.Fatal(err)
	}
}

func (w *timedWorld) set(t *testing.T, rules ...fault.Rule) *fault.Set {
	t.Helper()
	s, err := fault.NewSet(fault.Config{Rules: rules, Units: w.units, Now: w.clock.now, Old: w.d.Faults()})
	if err != nil {
		t.Fatal(err)
	}
	w.d.SetFaults(s)
	return s
}

func (w *timedWorld) timers() int {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	return len(w.d.ruleTimers)
}

func timed(name string, m fault.Match, budget uint64) fault.Rule {
	m.Op = fault.Ops{"time"}
	return fault.Rule{Name: name, Match: m, Budget: budget, Action: fault.Action{Kind: fault.KindPowerCut}}
}

// TestTimers_Periodic: a rule is asked each period, and only so, whatever other rules,
// disks and marks come and go, until its budget is used up.
func TestTimers_Periodic(t *testing.T) {
	w := newTimedWorld(t)
	rule := timed("often", fault.Match{Start: fault.Duration(time.Second), For: fault.Duration(time.Second), Period: fault.Duration(time.Minute)}, 6)
	marked := fault.Rule{Name: "marked", Match: fault.Match{AtMark: "now"}, Action: fault.Action{Kind: fault.KindBusy}}
	f := w.set(t, rule).Fault("often")
	for i, disturb := range []func(){
		func() {},
		func() { w.set(t, rule, marked) },
		func() { w.d.Mark("now") },
		func() { w.set(t, rule) },
		func() { w.units[0].Blocks *= 2; w.set(t, rule) },
	} {
		at := time.Second + time.Duration(i)*time.Minute
		w.clock.advance(at - 1)
		disturb()
		w.clock.advance(at)
		if got := f.Stats().Fired; got != uint64(i+1) {
			t.Fatalf("fired %d times after %v, want %d", got, at, i+1)
		}
		if w.timers() != 1 || len(w.clock.calls) != 1 {
			t.Errorf("%d timers and %d calls due, want one", w.timers(), len(w.clock.calls))
		}
	}
	// Nobody was awake for an hour: that is one time, and then as before.
	w.clock.advance(time.Hour + 1500*time.Millisecond)
	if got := f.Stats(); got.Fired != 6 || got.Matched != 6 {
		t.Errorf("%+v after an hour without a call, want 6", got)
	}
	if len(w.clock.calls) != 0 {
		t.Error("a rule is asked again whose budget is used up")
	}
	if w.set(t); w.timers() != 0 {
		t.Error("a timer is left of a rule that is gone")
	}
}

// TestTimers_Late: a call that comes late misses no window, however short: the rule is asked
// as of its time. A disk that comes when a window is over has missed it.
func TestTimers_Late(t *testing.T) {
	const late = 10 * time.Millisecond
	w := newTimedWorld(t)
	rule := timed("short", fault.Match{For: fault.Duration(time.Millisecond), Period: fault.Duration(time.Minute)}, 9)
	s, err := fault.NewSet(fault.Config{Rules: []fault.Rule{rule}, Units: w.units, Now: w.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	w.clock.now = late
	w.d.SetFaults(s)
	f := s.Fault("short")
	for i := range 3 {
		w.clock.advance(time.Duration(i)*time.Minute + late)
		if got := f.Stats().Fired; got != uint64(i+1) {
			t.Fatalf("fired %d times, called %s late in minute %d, want %d", got, late, i, i+1)
		}
	}
	w.units = append(w.units, fault.Unit{Disk: "e", Lun: 1, BlockBytes: 512, Blocks: 1 << 12, PowerSwitch: true})
	w.attach(t)
	w.set(t, rule)
	w.clock.advance(2*time.Minute + 2*late)
	if got := f.Stats().Fired; got != 3 {
		t.Errorf("fired %d times: a disk that comes late has met what was before it, too", got)
	}
	w.clock.advance(3*time.Minute + late)
	if got := f.Stats().Fired; got != 5 {
		t.Errorf("fired %d times after the next minute, want once for each disk more, 5", got)
	}
}

// TestTimers_Once: a rule that is asked at its time and does not fire is not asked
// again because of other rules.
func TestTimers_Once(t *testing.T) {
	w := newTimedWorld(t)
	never := timed("never", fault.Match{Start: fault.Duration(time.Second), Probability: new(0.0)}, 1)
	f := w.set(t, never).Fault("never")
	w.clock.advance(time.Second)
	w.set(t, never, timed("other", fault.Match{Start: fault.Duration(time.Hour)}, 1))
	w.set(t, never)
	w.clock.advance(2 * time.Second)
	if got := f.Stats().Matched; got != 1 || w.clock.asked != 2 {
		t.Errorf("asked %d times, with %d calls, want once", got, w.clock.asked-1)
	}
	// A disk that comes later is asked when it comes.
	w.units = append(w.units, fault.Unit{Disk: "e", Lun: 1, BlockBytes: 512, Blocks: 1 << 12, PowerSwitch: true})
	w.attach(t)
	w.set(t, never)
	w.clock.advance(3 * time.Second)
	if got := f.Stats().Matched; got != 2 || w.timers() != 2 {
		t.Errorf("asked %d times for two disks, want once for each", got)
	}
}

// TestUndoLater: what a rule has done to a unit ends with the rule, also if that
// was gone before it was done.
func TestUndoLater(t *testing.T) {
	d := &Device{clock: &wallClock{}}
	d.intr.init(1)
	rule := fault.Rule{Name: "small", Action: fault.Action{Kind: fault.KindCapacity, Size: 1 << 20}}
	set := func(old *fault.Set, rules ...fault.Rule) *fault.Set {
		s, err := fault.NewSet(fault.Config{Rules: rules, Units: []fault.Unit{{Disk: "d", BlockBytes: 512, Blocks: 1 << 12}}, Old: old})
		if err != nil {
			t.Fatal(err)
		}
		d.SetFaults(s)
		return s
	}
	s := set(nil, rule)
	f := s.Fault("small")
	undone := 0
	small := &undo{fault: f, run: func() { undone++ }}
	d.undoLater(small)
	if s = set(s, rule); undone != 0 {
		t.Fatal("undone while the rule is in force")
	}
	if s = set(s); undone != 1 {
		t.Fatalf("undone %d times at the end of the rule, want once", undone)
	}
	d.undoLater(small)
	if undone != 2 {
		t.Error("not undone: the rule had gone while it was done")
	}
	if set(s); undone != 2 {
		t.Error("undone twice")
	}
}

// TestUndoLater_Again: a rule that limits a unit over and over is remembered once, with
// its last time, and counts as the latest.
func TestUndoLater_Again(t *testing.T) {
	w := newTimedWorld(t)
	unit := w.d.unitAt(w.units[0])
	small := fault.Rule{Name: "small", Budget: 9, Action: fault.Action{Kind: fault.KindCapacity, Size: 1 << 10, For: fault.Duration(time.Minute)}}
	large := fault.Rule{Name: "large", Budget: 9, Action: fault.Action{Kind: fault.KindCapacity, Size: 1 << 20}}
	s := w.set(t, small, large)
	want := func(when string, blocks uint64, undos int) {
		t.Helper()
		if got, n := unit.Blocks(), w.d.Undos(); got != blocks || n != undos {
			t.Errorf("%s: %d blocks, %d to undo; want %d and %d", when, got, n, blocks, undos)
		}
	}
	for range 3 {
		for _, name := range []string{"small", "large", "large", "small"} {
			w.d.trigger(s.Fault(name), w.units[0])
			w.clock.advance(w.clock.now + time.Second)
		}
	}
	want("with both", 2, 2)
	if n := len(w.clock.calls); n != 1 {
		t.Errorf("%d timers, want one for the rule that has a time", n)
	}
	w.clock.advance(w.clock.now + 58*time.Second)
	want("before the end of the last small one", 2, 2)
	w.clock.advance(w.clock.now + time.Second)
	want("after it", 1<<11, 1)
	w.d.trigger(s.Fault("small"), w.units[0])
	w.set(t)
	want("without rules", 1<<12, 0)
	if n := len(w.clock.calls); n != 0 {
		t.Errorf("%d timers of rules that have gone", n)
	}
}
