package cache

import (
	"slices"
	"sync"
)

// A ledger records what the callers of a cache were told, in the order in which they
// were told. It knows nothing of what the cache does, so that the check after a power
// cut can find what the cache itself has lost; see account.
//
// A write is entered when it comes, with a hash of each of its sectors, and again when
// it is answered. Answering a flush promises all writes that had been answered when the
// flush came. A failed write promises nothing, and may be there all the same.
//
// It is bounded to the latest ledgerEntries writes, and the latest ledgerBytes of those.
// Anything older is not judged.
//
// Concurrency: any goroutine. mu is held only for copies of hashes, and never taken
// while holding Cache.mu.
type ledger struct {
	shift   uint8
	room    uint64 // how many entries there can be
	sumRoom uint64 // how many hashes

	mu sync.Mutex
	// now counts arrivals and answers: it is the time of all entries.
	// +checklocks:mu
	now uint64
	// entries and sums are rings, by numbers that only grow.
	// +checklocks:mu
	entries []entry
	// +checklocks:mu
	first uint64
	// +checklocks:mu
	next uint64
	// +checklocks:mu
	sums []uint32
	// +checklocks:mu
	sumFirst uint64
	// +checklocks:mu
	sumNext uint64
	// kept are the times that answered flushes cover, oldest first. There are several
	// only if the medium has lost writes in between.
	// +checklocks:mu
	kept []span
	// lie is when the latest flush came that was answered with a lie.
	// +checklocks:mu
	lie uint64
	// horizon is the latest time at which a write that is no longer in entries was
	// answered, or may have been.
	// +checklocks:mu
	horizon uint64
	// adrift counts writes that were dropped from entries before they were answered.
	// +checklocks:mu
	adrift int
}

const (
	ledgerEntries = 1 << 16
	ledgerBytes   = 128 << 20 // of sectors that have a hash
	// longBytes: longer zeros have no hashes, but are charged as many as zeros of this
	// length.
	longBytes = 2 << 20
	// maxSpans bounds ledger.kept.
	maxSpans = 64
)

// An entryKind says what an entry knows of its sectors.
type entryKind uint8

const (
	entrySums    entryKind = iota // the hash of each
	entryZeros                    // they are zeros; too many to be entered one by one
	entryUnknown                  // nothing: anything may be there
	entryLie                      // what was there was answered as if with FUA
	entryNothing                  // it counts no more: not done, or replaced after a cut
)

// An astray says that a write was handled otherwise than its writer asked for.
type astray uint8

const (
	astrayNot  astray = iota
	astrayLost        // nothing was done, but it was answered as if it had been
	astrayGone        // nothing was done here: it was done elsewhere
	astrayHere        // nobody has asked for it here
)

// An entry is one write: of sectors from one on.
type entry struct {
	kind   entryKind
	astray astray
	// failed: it was answered by an error.
	failed bool
	// durable: it had FUA and was answered. lied: the same, but the answer was a lie.
	durable, lied bool
	first, count  int64
	// sums is the number of its first hash.
	sums uint64
	// arrived and answered are times. answered is zero until the write is answered.
	arrived, answered uint64
	// write is its number in reports, if it has one.
	write uint64
}

// A span is the times after one and before another.
type span struct{ after, before uint64 }

func (l *ledger) init(shift uint8) {
	l.shift, l.room, l.sumRoom = shift, ledgerEntries, ledgerBytes>>shift
}

// charge returns how many hashes e is charged for.
func (l *ledger) charge(e *entry) uint64 {
	switch e.kind {
	case entrySums:
		return uint64(e.count)
	case entryZeros:
		return longBytes >> l.shift
	case entryUnknown, entryLie, entryNothing:
	}
	return 0
}

// arrive enters a write that comes now. Its ticket is to be passed to answer.
func (l *ledger) arrive(kind entryKind, first, count int64, sums []uint32) (ticket uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	e := l.addLocked(&entry{kind: kind, first: first, count: count, arrived: l.now}, sums)
	return e + 1
}

// addLocked adds an entry, dropping the oldest ones if necessary.
//
// +checklocks:l.mu
func (l *ledger) addLocked(e *entry, sums []uint32) (number uint64) {
	charge := l.charge(e)
	for l.next-l.first >= l.room || l.sumNext+charge-l.sumFirst > l.sumRoom {
		l.dropLocked()
	}
	if l.next-l.first == uint64(len(l.entries)) {
		l.entries = grown(l.entries, l.first, l.next, 256)
	}
	for l.sumNext+charge-l.sumFirst > uint64(len(l.sums)) {
		l.sums = grown(l.sums, l.sumFirst, l.sumNext, 4096)
	}
	e.sums = l.sumNext
	if len(sums) > 0 {
		copy(l.sums, sums[copy(l.sums[l.sumNext&uint64(len(l.sums)-1):], sums):])
	}
	l.sumNext += charge
	number = l.next
	*at(l.entries, number) = *e
	l.next++
	return number
}

// at returns the element with that number in a ring whose length is a power of two.
func at[T any](ring []T, number uint64) *T { return &ring[number&uint64(len(ring)-1)] }

// grown returns a ring of twice the length, or of least, with the same elements from
// number first to before next.
func grown[T any](ring []T, first, next uint64, least int) []T {
	out := make([]T, max(2*len(ring), least))
	for i := first; i < next; i++ {
		*at(out, i) = *at(ring, i)
	}
	return out
}

// unrolled returns the elements of a ring from number first to before next, in order.
func unrolled[T any](ring []T, first, next uint64) []T {
	out := make([]T, next-first)
	if len(out) > 0 {
		rest := ring[first&uint64(len(ring)-1):]
		copy(out[copy(out, rest):], ring)
	}
	return out
}

// dropLocked forgets the oldest entry.
//
// +checklocks:l.mu
func (l *ledger) dropLocked() {
	e := at(l.entries, l.first)
	switch {
	case e.kind == entryNothing:
	case e.answered == 0:
		l.adrift++
	default:
		l.horizon = max(l.horizon, e.answered)
	}
	l.first++
	l.sumFirst = l.sumNext
	if l.first < l.next {
		l.sumFirst = at(l.entries, l.first).sums
	}
}

// An answer is what a caller was told of its write.
type answer struct {
	write         uint64
	nothing       bool // nothing was done, and it has to be tried again
	failed        bool
	durable, lied bool // as in entry
}

// answer enters what the caller is told now of the write with that ticket.
func (l *ledger) answer(ticket uint64, a answer) {
	if ticket == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	number := ticket - 1
	if number < l.first {
		l.adrift--
		if !a.nothing {
			l.horizon = max(l.horizon, l.now)
		}
		return
	}
	e := at(l.entries, number)
	e.answered, e.write = l.now, a.write
	e.failed, e.durable, e.lied = a.failed, a.durable && !a.failed, a.lied && !a.failed
	if a.nothing {
		e.kind = entryNothing
	}
}

// flushArrives enters a flush that comes now, and returns the time.
func (l *ledger) flushArrives() (arrived uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	return l.now
}

// flushAnswered enters that the flush that arrived then was answered, possibly with a
// lie.
func (l *ledger) flushAnswered(arrived uint64, lie bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lie {
		l.lie = max(l.lie, arrived)
		return
	}
	if len(l.kept) == 0 {
		l.kept = append(l.kept, span{})
	}
	latest := &l.kept[len(l.kept)-1]
	latest.before = max(latest.before, arrived)
}

// lost enters that the medium has reported lost writes: no later flush makes durable
// what was answered until now.
func (l *ledger) lost() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept) == maxSpans {
		l.kept = append(l.kept[:0], l.kept[1:]...)
	}
	l.now++
	l.kept = append(l.kept, span{after: l.now})
}

// liedAll enters that a flush that never came is answered, which is a lie.
func (l *ledger) liedAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	l.lie = l.now
}

// liedRange enters that the latest write of count sectors from first on is answered as
// if with FUA. If that write is no longer known, everything written there counts.
func (l *ledger) liedRange(first, count int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for number := l.next; number > l.first; number-- {
		e := at(l.entries, number-1)
		if e.first == first && e.count == count && (e.kind == entrySums || e.kind == entryUnknown) &&
			e.astray == astrayNot && e.answered != 0 && !e.failed && !e.durable && !e.lied {
			e.lied = true
			return
		}
	}
	l.now++
	l.addLocked(&entry{kind: entryLie, first: first, count: count, arrived: l.now, answered: l.now}, nil)
}

// lostWrite enters a write that is answered now and was never done.
func (l *ledger) lostWrite(e *entry, sums []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	e.arrived, e.answered, e.astray = l.now, l.now, astrayLost
	l.addLocked(e, sums)
}

// misdirected enters that the latest write of count sectors from first on was meant for
// sectors from meant on, and is answered now; if ignored, as if with FUA, which is a
// lie.
func (l *ledger) misdirected(first, meant, count int64, ignored bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	for number := l.next; number > l.first; number-- {
		e := at(l.entries, number-1)
		if e.first != first || e.count != count || e.astray != astrayNot || e.answered == 0 || e.kind != entrySums && e.kind != entryUnknown {
			continue
		}
		e.astray = astrayHere
		gone := *e
		gone.astray, gone.first, gone.arrived, gone.answered, gone.lied = astrayGone, meant, l.now, l.now, ignored
		var sums []uint32
		if gone.kind == entrySums {
			for i := range uint64(count) {
				sums = append(sums, *at(l.sums, e.sums+i))
			}
		}
		l.addLocked(&gone, sums)
		return
	}
}

// forgetFrom enters that the contents of all sectors from first on are unknown.
func (l *ledger) forgetFrom(first int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	l.addLocked(&entry{
		kind: entryUnknown, first: first, count: maxSector - first, arrived: l.now, answered: l.now, durable: true,
	}, nil)
}

const maxSector = 1 << 62

// An account is a ledger as it was when the power went.
type account struct {
	now     uint64
	next    uint64 // number of the entry after the last
	entries []entry
	// sums has the hash of number n at n-sumFirst.
	sums     []uint32
	sumFirst uint64
	kept     []span
	lie      uint64
	horizon  uint64
}

// powerGoes returns the account of what callers have been told by now.
func (l *ledger) powerGoes() *account {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	a := &account{
		now: l.now, next: l.next, sumFirst: l.sumFirst, lie: l.lie, horizon: l.horizon,
		entries: unrolled(l.entries, l.first, l.next), sums: unrolled(l.sums, l.sumFirst, l.sumNext),
		kept: slices.Clone(l.kept),
	}
	if l.adrift > 0 {
		a.horizon = l.now
	}
	return a
}

// opening is what is known of the medium after a power cut.
type opening struct {
	entries []entry // of entrySums and entryUnknown
	sums    []uint32
}

// add adds a sector with that hash, or an unknown one, behind those added before. If it
// does not follow the last one directly, it begins a new entry.
func (o *opening) add(sector int64, sum uint32, known bool) {
	kind := entryUnknown
	if known {
		kind = entrySums
		o.sums = append(o.sums, sum)
	}
	if n := len(o.entries); n > 0 {
		if last := &o.entries[n-1]; last.kind == kind && last.first+last.count == sector {
			last.count++
			return
		}
	}
	o.entries = append(o.entries, entry{kind: kind, first: sector, count: 1})
}

// reopen goes on after a power cut: what o says was true, and durable, when the account
// was closed. all: o is complete and replaces everything that was in the account.
func (l *ledger) reopen(a *account, o *opening, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if all {
		for i := l.first; i < min(a.next, l.next); i++ {
			if e := at(l.entries, i); e.answered != 0 && e.answered < a.now {
				e.kind = entryNothing
			}
		}
		for l.first < l.next && at(l.entries, l.first).kind == entryNothing {
			l.dropLocked()
		}
	}
	sums := o.sums
	for i := range o.entries {
		e := o.entries[i]
		e.arrived, e.answered, e.durable = a.now, a.now, true
		n := l.charge(&e)
		l.addLocked(&e, sums[:n])
		sums = sums[n:]
	}
}
