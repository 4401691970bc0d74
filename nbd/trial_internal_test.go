package nbd

import (
	"cmp"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A clientele makes a number of requests per second, with pauses and without.
type clientele struct {
	with, without float64
	dearer        float64 // what a request without takes of the processors, instead of 1; zero: the same
	shallow       bool    // nobody would pause for it
	beside        bool    // somebody is there that asks for little
}

// A rehearsal is a trial on processors whose time the test decides.
type rehearsal struct {
	trial
	spentNs float64
}

func rehearse() *rehearsal {
	r := new(rehearsal)
	r.processor = func() int64 { return int64(r.spentNs) }
	return r
}

// run has it make them from fromNs for so long. It returns the time.
func (t *rehearsal) run(c clientele, fromNs int64, long time.Duration) (atNs int64) {
	for atNs = fromNs; atNs < fromNs+int64(long); {
		perSecond, requestNs := c.with, 4000.0
		if c.beside {
			t.askLittle(atNs)
		}
		if !c.shallow && t.spares(&among{others: true}, atNs) {
			perSecond, requestNs = c.without, requestNs*cmp.Or(c.dearer, 1)
		}
		t.spentNs += trialStep * requestNs
		atNs += int64(trialStep / perSecond * 1e9)
		t.add(trialStep, atNs)
	}
	return atNs
}

// untilVerdict is longer than a trial, and shorter than the term of its verdict.
const untilVerdict = 2 * trialWindows * trialWindow

// TestTrial: pauses end if so much more gets done without them, in time and processor time,
// that it is worth the waits of others, and come back if not.
func TestTrial(t *testing.T) {
	for _, tt := range []struct {
		c    clientele
		want bool // to do without
	}{
		{clientele{with: 160_000, without: 200_000}, true},
		{clientele{with: 160_000, without: 171_000}, true},
		{clientele{with: 160_000, without: 169_000}, false},
		{clientele{with: 160_000, without: 80_000}, false},
		{clientele{with: 40_000, without: 60_000}, true},
		{clientele{with: 60_000, without: 40_000}, false},
		{clientele{with: 160_000, without: 160_000, dearer: 0.9}, true},
		{clientele{with: 160_000, without: 180_000, dearer: 1.1}, false},
		{clientele{with: 160_000, without: 200_000, dearer: 1.1}, true},
	} {
		tr := rehearse()
		at := tr.run(tt.c, 1e9, untilVerdict)
		if tr.without.Load() != tt.want {
			t.Errorf("%+v: does without: %t", tt.c, !tt.want)
		}
		// It holds, whatever happens, for its time.
		other := clientele{with: tt.c.without, without: tt.c.with, dearer: 1 / cmp.Or(tt.c.dearer, 1)}
		at = tr.run(other, at, trialTerm-2*untilVerdict)
		if tr.without.Load() != tt.want {
			t.Errorf("%+v: does without: %t, before the term is over", tt.c, !tt.want)
		}
		tr.run(other, at, 3*trialTerm) // the first of its trials may not suffice
		if got, want := tr.without.Load(), other.without > other.with*other.dearer*(1+trialGain); got != want {
			t.Errorf("%+v, then %+v: does without: %t", tt.c, other, got)
		}
	}
}

// TestTrial_Gaps: a time in which a clientele makes no requests counts neither way.
func TestTrial_Gaps(t *testing.T) {
	for _, c := range []clientele{{with: 160_000, without: 200_000}, {with: 200_000, without: 160_000}} {
		tr := rehearse()
		at := int64(1e9)
		for i := range 40 {
			at = tr.run(c, at, trialWindow)
			if i%3 == 0 || tr.without.Load() == (c.without > c.with) { // the better one has more
				at += int64(trialWindow * time.Duration(i%7))
			}
		}
		if got, want := tr.without.Load(), c.without > c.with; got != want {
			t.Errorf("%+v: does without: %t", c, got)
		}
	}
}

// TestTrial_Noise: a machine that has other things to do now and then hardly ever misleads a
// trial, and one that is misled follows others that were not.
func TestTrial_Noise(t *testing.T) {
	const seeds = 100
	for _, c := range []clientele{{with: 160_000, without: 200_000}, {with: 200_000, without: 160_000}} {
		first, third := 0, 0
		for seed := range uint64(seeds) {
			random := rand.New(rand.NewPCG(seed, 1))
			tr := rehearse()
			noisy := func(atNs int64, long time.Duration) int64 {
				for end := atNs + int64(long); atNs < end; {
					f := 0.5 + random.Float64()
					atNs = tr.run(clientele{with: c.with * f, without: c.without * f}, atNs, 10*time.Millisecond)
				}
				return atNs
			}
			at := noisy(1e9, untilVerdict)
			if tr.without.Load() == (c.without > c.with) {
				first++
			}
			noisy(at, 2*trialTerm+untilVerdict)
			if tr.without.Load() == (c.without > c.with) {
				third++
			}
		}
		if first < seeds*8/10 || third < seeds*95/100 {
			t.Errorf("%+v: of %d first trials %d are right, of as many third ones %d", c, seeds, first, third)
		}
	}
}

// TestTrial_Slow: a clientele with few requests decides nothing, and pauses, even if it
// becomes slow in a window without pauses.
func TestTrial_Slow(t *testing.T) {
	for _, c := range []clientele{{with: 500, without: 1000}, {with: 8000, without: 12_000}} {
		tr := rehearse()
		at := int64(1e9)
		for !tr.without.Load() {
			at = tr.run(clientele{with: 160_000, without: 160_000}, at, time.Millisecond)
		}
		at = tr.run(c, at, time.Second)
		for end := at + 1e11; at < end; at = tr.run(c, at, time.Second) {
			if tr.without.Load() {
				t.Fatalf("%+v: it does without", c)
			}
		}
	}
}

// TestTrial_Few: a trial comes to its end, or pauses go on, also where the requests are just
// enough with pauses and too few without.
func TestTrial_Few(t *testing.T) {
	for _, c := range []clientele{{with: 19_000, without: 18_000}, {with: 20_000, without: 16_000}, {with: 22_000, without: 17_500}, {with: 24_000, without: 18_000}, {with: 24_000, without: 8000}} {
		tr := rehearse()
		const long = 10 * trialTerm
		at, without := int64(1e9), time.Duration(0)
		for end := at + int64(long); at < end; {
			before, was := at, tr.without.Load()
			at = tr.run(c, at, time.Millisecond)
			if was {
				without += time.Duration(at - before)
			}
		}
		if without > long/20 {
			t.Errorf("%+v: %v of %v without", c, without, long)
		}
	}
}

// TestTrial_Mad: a trial that is not credible is outweighed by the next two.
func TestTrial_Mad(t *testing.T) {
	tr := rehearse()
	at := tr.run(clientele{with: 100_000, without: 10_000_000}, 1e9, untilVerdict)
	if !tr.without.Load() {
		t.Fatal("it does not do without: the test does not test")
	}
	tr.run(clientele{with: 160_000, without: 130_000}, at, 2*trialTerm+untilVerdict)
	if tr.without.Load() {
		t.Error("it does without")
	}
}

// TestTrial_Nothing: a trial finds nothing while nobody skips a pause, because a connection
// that asks for little has its turn in the pauses or because nobody would pause anyway. What
// was found before holds.
//
// +checklocksignore: nobody else is there.
func TestTrial_Nothing(t *testing.T) {
	for _, c := range []clientele{
		{with: 160_000, without: 200_000, beside: true},
		{with: 160_000, without: 120_000, beside: true},
		{with: 160_000, shallow: true},
	} {
		tr := rehearse()
		at := tr.run(c, 1e9, 3*trialTerm)
		if tr.without.Load() && tr.window == trialWindows {
			t.Errorf("%+v: does without", c)
		}
		at = tr.run(clientele{with: 160_000, without: 200_000}, at, 2*trialTerm+untilVerdict)
		tr.run(c, at, 10*trialTerm)
		if got := tr.ratio; got < 1.2 || !tr.without.Load() {
			t.Errorf("%+v: a ratio of 1.25 has become %.3f", c, got)
		}
	}
}

// TestTrial_Late: a latecomer that says, in a window with pauses, that it skipped a pause in
// the window before adds nothing.
//
// +checklocksignore: nobody else is there.
func TestTrial_Late(t *testing.T) {
	tr := rehearse()
	at := int64(1e9)
	for was := false; at < int64(4*trialTerm); was = tr.without.Load() {
		at = tr.run(clientele{with: 160_000, without: 200_000}, at, time.Millisecond)
		if was && !tr.without.Load() {
			tr.spared.Store(true)
		}
	}
	if !tr.without.Load() || tr.ratio < 1.2 || tr.found > trialPairs {
		t.Errorf("does without: %t, ratio %.3f of %d pairs", tr.without.Load(), tr.ratio, tr.found)
	}
}

// TestTrial_Crowd: connections that come by at any time, as their processors have it, do not
// bring it out of step.
func TestTrial_Crowd(t *testing.T) {
	var tr trial
	var clock atomic.Int64
	clock.Store(1e9)
	var connections sync.WaitGroup
	for range 4 {
		connections.Go(func() {
			for clock.Load() < int64(20*trialTerm) {
				tr.spares(&among{others: true}, clock.Load())
				tr.add(trialStep, clock.Add(int64(100*time.Microsecond)))
			}
		})
	}
	connections.Wait()
	if tr.ratio == 0 {
		t.Error("no trial has found anything")
	}
}

// TestTrial_Half: a trial of which less than half is conclusive does not count.
func TestTrial_Half(t *testing.T) {
	for _, tt := range []struct{ says, want int }{{trialPairs / 2, 0}, {trialPairs/2 + 1, 1}} {
		tr := rehearse()
		at := tr.run(clientele{with: 160_000, without: 200_000}, 1e9, time.Duration(2*tt.says)*trialWindow+trialWindow)
		tr.run(clientele{with: 160_000, shallow: true}, at, untilVerdict)
		if got := int(tr.ratio); got != tt.want {
			t.Errorf("%d pairs: ratio %.3f", tt.says, tr.ratio)
		}
	}
}

// TestTrial_Many: connections count at the same time, and all of it counts.
func TestTrial_Many(t *testing.T) {
	tr := trial{window: 4, beganNs: 1}
	tr.endNs.Store(int64(trialWindow))
	const each = 1000
	var connections sync.WaitGroup
	for range 4 {
		connections.Go(func() {
			for range each {
				tr.add(trialStep, 2)
			}
		})
	}
	connections.Wait()
	if n := tr.requests.Load(); n != 4*each*trialStep {
		t.Errorf("%d requests, want %d", n, 4*each*trialStep)
	}
	var turns sync.WaitGroup
	for range 4 {
		turns.Go(func() { tr.add(trialStep, int64(trialWindow)+1) })
	}
	turns.Wait()
	if tr.window != 5 || !tr.without.Load() {
		t.Errorf("window %d, without pauses: %t; want one turn", tr.window, tr.without.Load())
	}
}
