package hba

import (
	"testing"

	"github.com/vhbad/vhbad/hba/fault"
)

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
	undo := func() { undone++ }
	d.undoLater(f, undo)
	if s = set(s, rule); undone != 0 {
		t.Fatal("undone while the rule is in force")
	}
	if s = set(s); undone != 1 {
		t.Fatalf("undone %d times at the end of the rule, want once", undone)
	}
	d.undoLater(f, undo)
	if undone != 2 {
		t.Error("not undone: the rule had gone while it was done")
	}
	if set(s); undone != 2 {
		t.Error("undone twice")
	}
}
