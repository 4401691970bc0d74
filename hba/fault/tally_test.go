package fault

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// A tallied is a Tally with the Set in force.
type tallied struct {
	Tally
	t   *testing.T
	set *Set
}

// put replaces the Set in force by one of these rules, for these units.
func (w *tallied) put(in []Unit, rules ...Rule) {
	w.t.Helper()
	s, err := NewSet(Config{Rules: rules, Units: in, Old: w.set, Hostile: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(rules) == 0 {
		s = nil // as the device has it
	}
	w.Replace(w.set, s, func() { w.set = s })
}

// want checks what has been counted.
func (w *tallied) want(want ...Injection) {
	w.t.Helper()
	got := w.Injections(func() *Set { return w.set })
	got = slices.DeleteFunc(got, func(n Injection) bool { return n.Times == 0 })
	slices.SortFunc(got, func(a, b Injection) int {
		return cmp.Compare(a.Disk+a.Rule+string(a.Kind), b.Disk+b.Rule+string(b.Kind))
	})
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		w.t.Errorf("-want +got\n%s", diff)
	}
}

// A count outlives its rule and its disk, goes on with another rule of the same name
// and kind, and is none of those of another kind.
func TestTally(t *testing.T) {
	w := &tallied{t: t}
	rule := Rule{Name: "r", Disk: "a", Match: Match{Op: Ops{"read"}}, Action: busy}
	other := Rule{Name: "all", Match: Match{Op: Ops{"read"}}, Action: Action{Kind: KindFlip}, Hostile: true}
	out := make(map[string]uint64) // by disk, rule and kind
	n := func(disk, name string, times uint64) Injection {
		i := Injection{Disk: disk, Rule: name, Kind: KindBusy, Class: "legal", Times: times}
		if name == "all" {
			i.Kind, i.Class = KindFlip, "hostile"
		}
		i.LeftOut = out[disk+name+string(i.Kind)]
		return i
	}
	ask := func(plan, times int) {
		for i := range times {
			var d Decision
			c := read(0, 1)
			p := w.set.Plans()[plan]
			p.Decide(&c, 0, &d)
			if i == 0 { // there is no room for one of them
				d.LeaveOut(d.Fired()[0])
				r := d.Fired()[0].Rule()
				out[p.Unit().Disk+r.Name+string(r.Action.Kind)]++
			}
		}
	}
	w.want()
	w.put(units, rule, other)
	w.want()
	ask(0, 3)
	ask(1, 2)
	w.want(n("a", "all", 3), n("a", "r", 3), n("b", "all", 2))
	w.put(units, other) // r goes, all goes on
	ask(0, 1)
	w.want(n("a", "all", 4), n("a", "r", 3), n("b", "all", 2))
	w.put(units)
	w.want(n("a", "all", 4), n("a", "r", 3), n("b", "all", 2))
	rule.Budget = 7 // another rule of the same name
	w.put(units, rule)
	ask(0, 2)
	w.want(n("a", "all", 4), n("a", "r", 5), n("b", "all", 2))
	rule.Budget = 8
	w.put(units, rule)
	w.want(n("a", "all", 4), n("a", "r", 5), n("b", "all", 2))
	rule.Action = Action{Kind: KindTaskSetFull}
	w.put(units, rule)
	ask(0, 1)
	full := Injection{Disk: "a", Rule: "r", Kind: KindTaskSetFull, Class: "legal", Times: 1, LeftOut: 1}
	w.want(n("a", "all", 4), n("a", "r", 5), full, n("b", "all", 2))
	w.put(units[1:]) // the disk goes
	w.want(n("a", "all", 4), n("a", "r", 5), full, n("b", "all", 2))
}

// A firing that was decided while its rule went is counted.
func TestTally_OnItsWay(t *testing.T) {
	w := &tallied{t: t}
	w.put(units, Rule{Name: "r", Disk: "a", Action: busy})
	old := w.set.Plans()[0]
	w.put(units)
	var d Decision
	c := read(0, 1)
	old.Decide(&c, 0, &d)
	want := Injection{Disk: "a", Rule: "r", Kind: KindBusy, Class: "legal", Times: 1}
	w.want(want)
	w.put(units, Rule{Name: "other", Action: busy})
	w.want(want)
}

// However many rules come and go, the counts that are kept are bounded, and are those
// of the rules that went last. Rules that never fired take no room.
func TestTally_Bounded(t *testing.T) {
	w := &tallied{t: t}
	const rounds = 2 * MaxPast
	w.put(units, Rule{Name: "stays", Disk: "a", Action: busy})
	fires(w.set, read(0, 1), 1)
	for i := range rounds {
		rules := []Rule{{Name: fmt.Sprintf("r%d", i), Disk: "a", Action: busy}, {Name: fmt.Sprintf("idle%d", i), Disk: "b", Action: busy}}
		if i > rounds/2 && i%2 == 0 {
			rules = append(rules, Rule{Name: "kept", Disk: "a", Action: busy}) // goes and comes
		}
		rules = append(rules, Rule{Name: "stays", Disk: "a", Budget: 1, Action: busy}) // which has come again
		w.put(units, rules...)
		fires(w.set, read(0, 1), 1)
	}
	for _, n := range w.Injections(func() *Set { return w.set }) {
		if n.Rule == "stays" && n.Times != 2 {
			t.Errorf("a rule in force has counted %d, want 2: one before and one since it came again", n.Times)
		}
	}
	w.put(units)
	got := w.Injections(func() *Set { return nil })
	if len(got) != MaxPast {
		t.Errorf("%d counts kept, want %d", len(got), MaxPast)
	}
	names := make(map[string]bool)
	for _, n := range got {
		names[n.Rule] = true
	}
	if first := fmt.Sprintf("r%d", rounds-MaxPast+2); !names["kept"] || !names["stays"] || !names[fmt.Sprintf("r%d", rounds-1)] || !names[first] || names["r0"] {
		t.Errorf("those kept are not those that went last: %s to r%d, kept and stays", first, rounds-1)
	}
}

// No reading sees less than the one before, whatever rules come and go meanwhile.
func TestTally_NeverBack(t *testing.T) {
	w := &tallied{t: t}
	var wait sync.WaitGroup
	stop := make(chan struct{})
	wait.Go(func() {
		defer close(stop)
		for i := range 500 {
			s := newSet(t, Rule{Name: "r", Disk: "a", Seed: uint64(i), Action: busy})
			w.Replace(w.set, s, func() { w.set = s })
			fires(s, read(0, 1), 3)
		}
	})
	last := uint64(0)
	for going := true; going; {
		select {
		case <-stop:
			going = false
		default:
		}
		sum := uint64(0)
		for _, n := range w.Injections(func() *Set { return w.set }) {
			sum += n.Times
		}
		if sum < last {
			t.Fatalf("%d after %d", sum, last)
		}
		last = sum
	}
	wait.Wait()
	if last != 1500 {
		t.Errorf("%d counted, want 1500", last)
	}
}
