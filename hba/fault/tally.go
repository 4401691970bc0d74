package fault

import (
	"slices"
	"sync"
)

// MaxPast is how many counts of removed rules a Tally keeps.
const MaxPast = 1024

// An Injection is how often the rules of one name, kind and class have fired on one
// disk; an empty disk means the adapter.
type Injection struct {
	Disk, Rule string
	Kind       Kind
	Class      string
	Times      uint64
	// LeftOut is how many of their effects were left out for want of room.
	LeftOut uint64
}

// A series identifies what an Injection counts.
type series struct {
	disk, rule string
	kind       Kind
	class      string
}

// A Tally counts what rules have injected, for somebody who reads it now and then: a
// count outlives its rule and continues when a rule of the same name, kind and disk
// returns, so that no count is lost between two readings or goes backwards. Of removed
// rules it keeps the MaxPast counts most recently removed. Its zero value is ready.
//
// Concurrency: any goroutine.
type Tally struct {
	mu sync.Mutex
	// +checklocks:mu
	past map[series]past
	// order are the keys of past with nonzero counts, in order of removal.
	// +checklocks:mu
	order []series
	// idle are the keys whose counts were zero when removed, at the last Replace.
	// +checklocks:mu
	idle []series
}

// A past is what removed rules have counted. The last of them may still count for a
// command that was under way.
type past struct {
	times, leftOut uint64 // before the last
	last           *counts
}

// sum returns what all of them have counted, the last included.
func (p past) sum() (times, leftOut uint64) {
	if p.last == nil {
		return p.times, p.leftOut
	}
	return p.times + p.last.fired.Load(), p.leftOut + p.last.leftOut.Load()
}

// isIdle reports whether they have counted nothing.
func (p past) isIdle() bool {
	times, _ := p.sum()
	return times == 0
}

// Replace calls install to put a Set into force in place of another, and keeps the
// counts of the old Set that the new one does not. Either may be nil.
func (t *Tally) Replace(old, s *Set, install func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	install()
	going, inForce := make(map[*counts]bool), make(map[series]bool)
	for _, c := range s.counted() {
		going[c.counts], inForce[c.key] = true, true
	}
	for _, key := range t.idle {
		if t.past[key].isIdle() {
			delete(t.past, key)
		} else {
			t.order = append(t.order, key)
		}
	}
	t.idle = t.idle[:0]
	for _, c := range old.counted() {
		if going[c.counts] {
			continue
		}
		key := c.key
		if _, there := t.past[key]; there {
			t.order = slices.DeleteFunc(t.order, func(other series) bool { return other == key })
		}
		if t.past == nil {
			t.past = make(map[series]past)
		}
		times, leftOut := t.past[key].sum()
		t.past[key] = past{times, leftOut, c.counts}
		if t.past[key].isIdle() {
			t.idle = append(t.idle, key)
		} else {
			t.order = append(t.order, key)
		}
	}
	excess, kept := len(t.order)-MaxPast, t.order[:0]
	for _, key := range t.order {
		if excess <= 0 || inForce[key] { // its count must not go back
			kept = append(kept, key)
			continue
		}
		delete(t.past, key)
		excess--
	}
	t.order = kept
}

// Injections returns all counts: those of the Set in force, which current returns, and
// those of removed rules.
func (t *Tally) Injections(current func() *Set) []Injection {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Injection
	seen := make(map[series]bool)
	for _, c := range current().counted() {
		key := c.key
		seen[key] = true
		times, leftOut := t.past[key].sum()
		out = append(out, key.injection(times+c.counts.fired.Load(), leftOut+c.counts.leftOut.Load()))
	}
	for _, key := range append(slices.Clip(t.order), t.idle...) {
		if times, leftOut := t.past[key].sum(); times != 0 && !seen[key] {
			out = append(out, key.injection(times, leftOut))
		}
	}
	return out
}

func (s series) injection(times, leftOut uint64) Injection {
	return Injection{s.disk, s.rule, s.kind, s.class, times, leftOut}
}

// A counted is what an entry of a Set counts, and its counters.
type counted struct {
	key    series
	counts *counts
}

// counted are all that the set counts. The set may be nil.
func (s *Set) counted() (out []counted) {
	if s == nil {
		return nil
	}
	for _, p := range append(slices.Clip(s.plans), s.bus) {
		for i := range p.entries {
			e := &p.entries[i]
			r := &e.fault.rule
			out = append(out, counted{series{p.unit.Disk, r.Name, r.Action.Kind, e.fault.Class()}, e.counts})
		}
	}
	return out
}
