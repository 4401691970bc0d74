package cache

import (
	"cmp"
	"hash/crc32"
	"slices"
)

// What a sector may hold after a power cut, by what callers were told of their writes to
// it:
//
// It may hold a write that was promised to be durable, or a later one. A write counts as
// later unless it was answered before the other came: the order of two that were under
// way together is not known. A write that was not answered, or was answered with an
// error, may be there or not. Nothing is claimed about a sector for which no write was
// promised: it may still hold what was there before all entries.

// castagnoli is the polynomial of the hashes; processors have an instruction for it.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the hash of a sector. Equal hashes of different contents hide a loss once in
// 2^32.
func sum(p []byte) uint32 { return crc32.Update(0, castagnoli, p) }

// A claim says that an entry gives one sector that hash.
type claim struct {
	sector int64
	entry  int32
	sum    uint32
}

// claims lists the claims of the account, by sector. Of long runs of zeros it lists only
// the first sectors.
func (a *account) claims(shift uint8) []claim {
	zero := sum(make([]byte, 1<<shift))
	var out []claim
	for i := range a.entries {
		switch e := &a.entries[i]; e.kind {
		case entrySums:
			for j := range e.count {
				out = append(out, claim{e.first + j, int32(i), a.sums[e.sums-a.sumFirst+uint64(j)]})
			}
		case entryZeros:
			for j := range min(e.count, longBytes>>shift) {
				out = append(out, claim{e.first + j, int32(i), zero})
			}
		case entryUnknown, entryLie, entryNothing:
		}
	}
	slices.SortFunc(out, func(x, y claim) int {
		return cmp.Or(cmp.Compare(x.sector, y.sector), cmp.Compare(x.entry, y.entry))
	})
	return out
}

// wide are the entries that are not in claims, or not with all of their sectors, in
// order of their first sector. They are looked up by sector in ascending order.
type wide struct {
	a      *account
	coming []int32
	here   []int32 // those that have the sector, or had one before
}

func (a *account) wide() *wide {
	w := &wide{a: a}
	for i := range a.entries {
		if k := a.entries[i].kind; k == entryZeros || k == entryUnknown || k == entryLie {
			w.coming = append(w.coming, int32(i))
		}
	}
	slices.SortFunc(w.coming, func(x, y int32) int { return cmp.Compare(a.entries[x].first, a.entries[y].first) })
	return w
}

// at returns the entries that have sector.
func (w *wide) at(sector int64) []int32 {
	for len(w.coming) > 0 && w.a.entries[w.coming[0]].first <= sector {
		w.here = append(w.here, w.coming[0])
		w.coming = w.coming[1:]
	}
	if len(w.here) > 0 {
		w.here = slices.DeleteFunc(w.here, func(i int32) bool {
			return w.a.entries[i].first+w.a.entries[i].count <= sector
		})
	}
	return w.here
}

// A ruling is what the account says of a sector.
type ruling struct {
	checked bool
	act     Act    // what was broken, if anything
	write   uint64 // the promise that was broken
}

// A bar is the latest promise of one kind about a sector: a write that was answered
// before the promised one came must not be there any more.
type bar struct {
	arrived uint64
	write   uint64
	act     Act // what breaks it
}

func (b *bar) raise(e *entry, act Act) {
	switch e.astray {
	case astrayLost:
		act = ActLostWrite
	case astrayGone:
		act = ActMisdirected
	case astrayNot, astrayHere:
	}
	if e.arrived > b.arrived {
		*b = bar{e.arrived, e.write, act}
	}
}

// keeps reports whether an answered flush covers e.
func (a *account) keeps(e *entry) bool {
	return e.durable || slices.ContainsFunc(a.kept, func(s span) bool { return e.answered > s.after && e.answered < s.before })
}

// rule judges a sector that has claims and wide entries and whose contents have hash
// now; ok is false if it cannot be read.
func (a *account) rule(claims []claim, wide []int32, zero, now uint32, ok bool) ruling {
	var v evidence
	for _, i := range wide {
		if e := &a.entries[i]; e.kind == entryLie {
			v.latestLie = max(v.latestLie, e.arrived)
		}
	}
	for _, c := range claims {
		e := &a.entries[c.entry]
		v.addPromise(a, e)
		switch {
		case !ok || c.sum != now:
		case e.astray == astrayHere:
			v.stray = e
		default:
			v.addFound(e)
		}
	}
	for _, i := range wide {
		switch e := &a.entries[i]; e.kind {
		case entryZeros:
			v.addPromise(a, e)
			if ok && now == zero {
				v.addFound(e)
			}
		case entryUnknown:
			v.addPromise(a, e)
			if e.astray == astrayGone {
				continue // whatever this write was, it is not here
			}
			v.addFound(e)
			v.vague = max(v.vague, e.end())
		case entrySums, entryLie, entryNothing:
		}
	}
	return v.judge(a.horizon)
}

// An evidence is what the entries of an account say of one sector and what it holds.
type evidence struct {
	// honest is the latest promise that a drive keeps, lie the latest of those made by a
	// drive that lies about flushes and FUA.
	honest, lie bar
	// latestLie is when the latest FUA write came whose answer was a lie.
	latestLie uint64
	// found: the sector may hold some of the writes. latest is when the latest of those
	// was answered.
	found  bool
	latest uint64
	// vague is when the latest of those with unknown bytes was answered; zero if there
	// is none.
	vague uint64
	// stray is the latest write that the sector holds and that was not meant for it.
	stray *entry
}

// addPromise records what e's answer has promised.
func (v *evidence) addPromise(a *account, e *entry) {
	if e.answered == 0 || e.failed || e.astray == astrayHere {
		return
	}
	if a.keeps(e) {
		v.honest.raise(e, ActLostFlushed)
		return
	}
	if e.answered < a.lie {
		v.lie.raise(e, ActLyingFlush)
	}
	if e.lied || e.answered < v.latestLie {
		v.lie.raise(e, ActIgnoredFUA)
	}
}

// addFound records that the sector may hold e.
func (v *evidence) addFound(e *entry) {
	v.found = true
	v.latest = max(v.latest, e.end())
}

// judge returns which promise is broken, if any. Promises that came before horizon are
// not enforced.
func (v *evidence) judge(horizon uint64) ruling {
	if v.vague > 0 && v.vague >= max(v.honest.arrived, v.lie.arrived) {
		return ruling{}
	}
	for _, b := range [...]bar{v.honest, v.lie} {
		switch {
		case b.arrived <= horizon: // none, or one that came while others were under way that are forgotten
		case v.found && v.latest >= b.arrived:
		case v.stray != nil && v.stray.end() >= b.arrived:
			return ruling{true, ActMisdirected, b.write}
		default:
			return ruling{true, b.act, b.write}
		}
	}
	if v.stray != nil && !v.found && v.vague == 0 { // nothing was promised, but nobody wrote that here
		return ruling{true, ActMisdirected, 0}
	}
	return ruling{checked: max(v.honest.arrived, v.lie.arrived) > horizon}
}

// end returns when e was answered; if it was not, the end of time.
func (e *entry) end() uint64 {
	if e.answered == 0 {
		return maxTime
	}
	return e.answered
}

const maxTime = ^uint64(0)
