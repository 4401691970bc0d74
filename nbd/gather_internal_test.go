package nbd

import (
	"math"
	"slices"
	"testing"
	"time"
)

// alone is a connection that has nobody beside it.
type alone struct{}

func (alone) crowded() bool   { return false }
func (alone) yield() bool     { return false }
func (alone) stepAside() bool { return false }

// tries returns which of n reads follow a pause, if each pause brings paid requests of
// dataBytes each, and any other read one request.
func (g *gatherer) tries(n, paid, dataBytes int) (pauses []int) {
	for i := range n {
		g.pause(alone{}, 0)
		if !g.paused {
			g.took(1, dataBytes, 0)
			continue
		}
		pauses = append(pauses, i)
		g.took(paid, paid*dataBytes, 0)
	}
	return pauses
}

// A client with one request in flight is waited for less and less often.
func TestGatherer_Shallow(t *testing.T) {
	g := newGatherer(decided())
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
	g := gatherer{trial: decided()}
	g.tries(500, 1, 4096)
	g.rest = 0
	if got := g.tries(100, gatherLeast, 4096); len(got) != 100 {
		t.Errorf("%d pauses before 100 reads of a deep client", len(got))
	}
	if got := g.tries(30, gatherLeast-1, 4096); len(got) != 1 {
		t.Errorf("%d pauses before 30 reads after it became shallow: want one to notice", len(got))
	}
}

// Long requests are waited for only to find out whether that pays.
func TestGatherer_Long(t *testing.T) {
	g := gatherer{trial: decided()}
	if got := g.tries(30, 16, gatherMaxBytes+1); len(got) != 1 {
		t.Errorf("pauses before reads %v of long requests: want the first only", got)
	}
}

// decided is a trial whose verdict, that pauses pay, holds for ever.
func decided() *trial {
	var t trial
	t.endNs.Store(math.MaxInt64)
	return &t
}

// While pauses do not pay on this machine there is one now and then, to find out what is
// in flight, and those that paid are not forgotten.
func TestGatherer_Without(t *testing.T) {
	tr := decided()
	g := newGatherer(tr)
	g.rest = 0
	tr.without.Store(true)
	if got := g.tries(1, gatherLeast, 4096); len(got) != 1 {
		t.Error("without a pause it cannot find out how deep its client is")
	}
	if got := g.tries(2*maxSpared+2, gatherLeast, 4096); !slices.Equal(got, []int{maxSpared, 2*maxSpared + 1}) {
		t.Errorf("pauses before reads %v", got)
	}
	tr.without.Store(false)
	if got := g.tries(100, gatherLeast, 4096); len(got) != 100 {
		t.Errorf("%d pauses before 100 reads of a deep client", len(got))
	}
}

// TestGatherer_Others: whether pauses pay or not, there is one while connections have all
// processors and one that asks for little wants its turn, or had one not long ago.
func TestGatherer_Others(t *testing.T) {
	const at = int64(time.Minute)
	for _, tt := range []struct {
		name    string
		crowded bool
		reads   int // of the other one
		agoNs   int64
		sole    bool
		want    bool
	}{
		{name: "one beside", crowded: true, reads: 1000, want: true},
		{name: "there is room", reads: 1000},
		{name: "not long ago", crowded: true, reads: 1000, agoNs: int64(shallowTerm) - 1, want: true},
		{name: "long ago", crowded: true, reads: 1000, agoNs: int64(shallowTerm)},
		{name: "nobody", crowded: true},
		{name: "one that may be deep", crowded: true, reads: 2 * minGatherPenalty},
		{name: "one processor", crowded: true, sole: true, want: true},
	} {
		tr := decided()
		tr.without.Store(true)
		other := newGatherer(tr)
		for range tt.reads {
			other.pause(alone{}, 0)
			other.took(1, 4096, at-tt.agoNs)
		}
		other.pause(alone{}, 0)
		other.took(0, 0, at) // of no requests
		g := gatherer{on: true, sole: tt.sole, trial: tr}
		if got := g.pause(&among{others: tt.crowded}, at); got != tt.want {
			t.Errorf("%s: pauses: %t", tt.name, got)
		}
		if held := tt.want && !tt.sole; tr.held.Load() != held || tr.spared.Load() == tt.want {
			t.Errorf("%s: the trial knows of one held back: %t, and of one spared: %t", tt.name, tr.held.Load(), tr.spared.Load())
		}
	}
}

// All requests count, a step at a time.
func TestGatherer_Counts(t *testing.T) {
	tr := decided()
	g := newGatherer(tr)
	for all, n := 0, 1; all < 10_000; n = n%40 + 1 {
		g.took(n, 0, 0)
		all += n
		if known := int(tr.requests.Load()); known+g.done != all || g.done >= trialStep {
			t.Fatalf("of %d requests the trial knows %d, and the connection %d", all, known, g.done)
		}
	}
}

// among is a connection that may have others beside it.
type among struct {
	others  bool
	debt    bool // others had too long a turn not long ago
	stepped int
}

func (a *among) crowded() bool { return a.others }
func (a *among) yield() bool   { return a.others }

func (a *among) stepAside() bool {
	if a.debt {
		return false
	}
	a.stepped++
	return true
}

// Other processes have a turn if connections have all processors and pauses are known
// to pay. If there is but one processor, they have one to find out, too, and instead of
// the pause.
func TestGatherer_StepsAside(t *testing.T) {
	for _, tt := range []struct {
		on, others, debt, sole bool
		turns                  int
		instead                bool
	}{
		{on: true, others: true, turns: 1},
		{on: true, others: false},
		{on: false, others: true}, // a try
		{on: true, others: true, debt: true},
		{on: false, others: true, sole: true, turns: 1, instead: true},
		{on: true, others: true, sole: true, turns: 1, instead: true},
		{on: true, others: true, sole: true, debt: true},
		{on: true, others: false, sole: true},
	} {
		g := gatherer{on: tt.on, sole: tt.sole, trial: decided()}
		a := &among{others: tt.others, debt: tt.debt}
		if got := g.turn(a); got != tt.instead || a.stepped != tt.turns {
			t.Errorf("%+v: %d turns, instead of the pause: %t", tt, a.stepped, got)
		}
	}
}

// Who rests steps aside for nobody.
func TestGatherer_Rests(t *testing.T) {
	g := gatherer{rest: 1, sole: true}
	a := &among{others: true}
	if g.pause(a, 0) || a.stepped != 0 {
		t.Errorf("%d turns", a.stepped)
	}
}

func TestSeveralProcessors(t *testing.T) {
	for list, want := range map[string]bool{"0\n": false, "3\n": false, "0-1\n": true, "0,2\n": true, "0-3,8\n": true} {
		if got := severalProcessors(list); got != want {
			t.Errorf("%q: %t", list, got)
		}
	}
}
