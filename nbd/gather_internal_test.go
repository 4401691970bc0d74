package nbd

import "testing"

// alone is a connection that has nobody beside it.
type alone struct{}

func (alone) yield() bool     { return false }
func (alone) stepAside() bool { return false }

// tries returns before which of n reads there is a pause, if each pause brings
// paid requests of dataBytes each, and any other read one.
func (g *gatherer) tries(n, paid, dataBytes int) (pauses []int) {
	for i := range n {
		g.pause(alone{})
		if !g.paused {
			g.took(1, dataBytes)
			continue
		}
		pauses = append(pauses, i)
		g.took(paid, paid*dataBytes)
	}
	return pauses
}

// A client with one request in flight is waited for less and less often.
func TestGatherer_Shallow(t *testing.T) {
	g := newGatherer()
	got := g.tries(1200, 1, 4096)
	want := []int{32, 65, 130, 259, 516, 1029}
	if len(got) != len(want) {
		t.Fatalf("pauses before reads %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("pauses before reads %v, want %v", got, want)
		}
	}
}

// One with many is waited for always, until it has no more.
func TestGatherer_Deep(t *testing.T) {
	var g gatherer
	g.tries(500, 1, 4096)
	g.rest = 0
	if got := g.tries(100, gatherLeast, 4096); len(got) != 100 {
		t.Errorf("%d pauses before 100 reads of a deep client", len(got))
	}
	if got := g.tries(30, gatherLeast-1, 4096); len(got) != 1 {
		t.Errorf("%d pauses before 30 reads after it became shallow: want one to notice", len(got))
	}
}

// Long requests are never waited for but to find out.
func TestGatherer_Long(t *testing.T) {
	var g gatherer
	if got := g.tries(30, 16, gatherMaxBytes+1); len(got) != 1 {
		t.Errorf("pauses before reads %v of long requests: want the first only", got)
	}
}

// among is a connection that may have others beside it.
type among struct {
	others  bool
	stepped int
}

func (a *among) yield() bool { return a.others }

func (a *among) stepAside() bool {
	a.stepped++
	return true
}

// Other processes have a turn if connections have all processors and pauses are known
// to pay; if there is but one processor, to find out, too.
func TestGatherer_StepsAside(t *testing.T) {
	for _, tt := range []struct {
		on     bool
		rest   int
		others bool
		sole   bool
		want   int
	}{
		{on: true, others: true, want: 1},
		{on: true, others: false},
		{on: false, others: true}, // a try
		{on: false, others: true, sole: true, want: 1},
		{on: true, others: true, sole: true, want: 1},
		{on: false, rest: 1, others: true, sole: true},
		{on: false, rest: 1, others: true},
	} {
		g := gatherer{on: tt.on, rest: tt.rest, sole: tt.sole}
		a := &among{others: tt.others}
		g.pause(a)
		if a.stepped != tt.want {
			t.Errorf("%+v: %d turns", tt, a.stepped)
		}
	}
}
