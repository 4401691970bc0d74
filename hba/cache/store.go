package cache

import (
	"math/bits"
	"slices"
	"time"
)

// A Kind is what a write does to its sectors.
type Kind uint8

// Kinds.
const (
	KindWrite    Kind = iota
	KindTrim          // Discard
	KindZero          // Zero without allocate
	KindAllocate      // Zero with allocate
)

// String is write, trim, zero or allocate.
func (k Kind) String() string { return [...]string{"write", "trim", "zero", "allocate"}[k] }

// MarshalText implements encoding.TextMarshaler.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// A write is one call that changed sectors and is not durable in all of them.
type write struct {
	id            uint64
	off, n        int64 // bytes
	kind          Kind
	fua           bool
	acknowledged  bool
	promised      promise // that it is durable
	epoch         uint64  // how many flushes had been answered before
	at            time.Time
	versions      int   // pending ones
	staying       int   // those of them that have not been chosen to become durable; see store.stays
	oldest        int32 // its first version, in ascending order of sectors
	before, after *write
	place         int // index in store.staying, if it stays
}

// A promise is what was said about a pending write's durability.
type promise uint8

const (
	promiseNone  promise = iota
	promiseFlush         // a flush that covers it was answered; then it is not pending
	promiseLie           // the same, by a drive that lies about flushes
	promiseFUA           // it had FUA and was acknowledged, by a drive that ignores FUA
)

// promise records what an answered flush said about w.
func (w *write) promise(p promise) {
	if w.acknowledged && w.promised == promiseNone {
		w.promised = p
	}
}

// none is the index of no version.
const none = int32(-1)

// A version is one sector of one pending write.
type version struct {
	sector       int64
	write        *write
	kind         Kind
	older, newer int32 // of the same sector
	before, next int32 // of the same write
	// leaves: it has been chosen to become durable, as have all older versions of its
	// sector. It stays here until it is durable. See store.leaves.
	leaves bool
}

const (
	slabShift  = 20 // bytes of data that are allocated at once
	groupShift = 6  // sectors of a group
	areaShift  = 14 // sectors of an area
)

// A group holds the lists of pending versions of consecutive sectors, starting at a
// multiple of their number. Finding a group costs more than everything that is done in
// it.
type group struct {
	has    uint64 // a bit for each sector that has versions
	newest [1 << groupShift]int32
}

// placeOf is where in its group a sector is.
func placeOf(sector int64) int { return int(sector & (1<<groupShift - 1)) }

// A store holds pending versions. It is guarded by Cache.mu.
type store struct {
	sectorBytes int
	shift       uint8

	versions []version
	slabs    [][]byte // data of the versions, by index
	free     int32    // list by newer
	used     int
	// stay is how many versions are not leaving.
	stay int
	// leavesBefore: all writes with smaller ids leave, whatever they and their versions
	// say.
	leavesBefore uint64
	// liedBefore: a flush that was a lie has covered all writes with smaller ids.
	liedBefore uint64

	groups map[int64]*group // by number, those that have something
	// found is the group that was looked up last, by its number; nil if it does not
	// exist. It saves the lookup when going from sector to sector.
	found       *group
	foundNumber int64
	spareGroups []*group
	areas       map[int64]int32 // groups of each area, to pass over those that have none

	first, last *write
	writes      int
	// staying are the writes of which something stays. Their order has no meaning, but
	// is the same for the same calls, however far the leaving writes have come.
	staying []*write
	spare   []*write
	nextID  uint64
}

func (s *store) init(sectorBytes int) {
	shift := uint8(9)
	if sectorBytes == 4096 {
		shift = 12
	}
	*s = store{
		sectorBytes: sectorBytes, shift: shift, free: none, slabs: s.slabs, spareGroups: s.spareGroups, nextID: max(s.nextID, 1),
		groups: make(map[int64]*group), areas: make(map[int64]int32),
	}
}

// data is where version i has its bytes, whatever its kind.
func (s *store) data(i int32) []byte {
	perSlab := int32(1 << (slabShift - s.shift))
	at := int(i%perSlab) << s.shift
	return s.slabs[i/perSlab][at : at+s.sectorBytes : at+s.sectorBytes]
}

// content copies what version i makes of its sector into dst.
func (s *store) content(dst []byte, i int32) {
	if s.versions[i].kind == KindWrite {
		copy(dst, s.data(i))
		return
	}
	clear(dst[:s.sectorBytes])
}

// group returns the group of sector, or nil if nothing in it is pending.
func (s *store) group(sector int64) *group {
	number := sector >> groupShift
	if s.found == nil || s.foundNumber != number {
		s.found, s.foundNumber = s.groups[number], number
	}
	return s.found
}

// newGroup makes the group of sector, which has none.
func (s *store) newGroup(sector int64) *group {
	var g *group
	if last := len(s.spareGroups) - 1; last >= 0 {
		g, s.spareGroups = s.spareGroups[last], s.spareGroups[:last]
	} else {
		g = new(group)
	}
	s.found, s.foundNumber = g, sector>>groupShift
	s.groups[s.foundNumber] = g
	s.areas[sector>>areaShift]++
	return g
}

// dropGroup removes the group of sector, which has become empty.
func (s *store) dropGroup(sector int64, g *group) {
	delete(s.groups, sector>>groupShift)
	s.found = nil
	area := sector >> areaShift
	if s.areas[area]--; s.areas[area] == 0 {
		delete(s.areas, area)
	}
	if len(s.spareGroups) < maxSpareGroups {
		s.spareGroups = append(s.spareGroups, g)
	}
}

// maxSpareGroups is how many groups are kept for reuse.
const maxSpareGroups = 1024

func (s *store) take() int32 {
	s.used++
	if i := s.free; i != none {
		s.free = s.versions[i].newer
		return i
	}
	i := int32(len(s.versions))
	if int(i)>>(slabShift-s.shift) == len(s.slabs) {
		s.slabs = append(s.slabs, make([]byte, 1<<slabShift))
	}
	s.versions = append(s.versions, version{})
	return i
}

func (s *store) give(i int32) {
	s.versions[i] = version{newer: s.free}
	s.free = i
	s.used--
}

// newWrite begins a pending write. Its versions follow by add; if there are to
// be none the caller drops it.
func (s *store) newWrite(kind Kind, off, n int64) *write {
	var w *write
	if last := len(s.spare) - 1; last >= 0 {
		w, s.spare = s.spare[last], s.spare[:last]
	} else {
		w = new(write)
	}
	*w = write{id: s.takeID(), off: off, n: n, kind: kind, oldest: none, before: s.last, place: len(s.staying)}
	if s.last == nil {
		s.first = w
	} else {
		s.last.after = w
	}
	s.last = w
	s.writes++
	s.staying = append(s.staying, w)
	return w
}

func (s *store) takeID() uint64 {
	id := s.nextID
	s.nextID++
	return id
}

// add gives w, the newest write, a version of sector. tail is w's last version.
func (s *store) add(w *write, sector int64, kind Kind, tail int32) int32 {
	i, at := s.take(), placeOf(sector)
	g := s.group(sector)
	if g == nil {
		g = s.newGroup(sector)
	}
	v := version{sector: sector, write: w, kind: kind, older: none, newer: none, before: tail, next: none}
	if g.has>>at&1 != 0 {
		v.older = g.newest[at]
		s.versions[v.older].newer = i
	} else {
		g.has |= 1 << at
	}
	g.newest[at] = i
	s.versions[i] = v
	if tail == none {
		w.oldest = i
	} else {
		s.versions[tail].next = i
	}
	w.versions++
	w.staying++
	s.stay++
	return i
}

// leaves reports whether version i has been chosen to become durable.
func (s *store) leaves(i int32) bool {
	v := &s.versions[i]
	return v.leaves || v.write.id < s.leavesBefore
}

// stays is how many versions of w have not been chosen to become durable.
func (s *store) stays(w *write) int {
	if w.id < s.leavesBefore {
		return 0
	}
	return w.staying
}

// leave chooses version i, and all older ones of its sector, to become durable.
func (s *store) leave(i int32) {
	for ; i != none && !s.leaves(i); i = s.versions[i].older {
		s.leaveOne(i)
	}
}

// leaveEverything chooses all that is pending to become durable, without looking at it.
func (s *store) leaveEverything() {
	s.leavesBefore = s.nextID
	s.stay = 0
	clear(s.staying)
	s.staying = s.staying[:0]
}

// leaveAll is leave of all versions of w.
func (s *store) leaveAll(w *write) {
	for i := w.oldest; i != none; i = s.versions[i].next {
		s.leave(i)
	}
}

func (s *store) leaveOne(i int32) {
	v := &s.versions[i]
	v.leaves = true
	s.stay--
	w := v.write
	if w.staying--; w.staying > 0 {
		return
	}
	last := s.staying[len(s.staying)-1]
	s.staying[w.place], last.place = last, w.place
	s.staying[len(s.staying)-1] = nil
	s.staying = s.staying[:len(s.staying)-1]
}

// retire removes version i and all older ones of its sector.
func (s *store) retire(i int32) {
	sector, rest := s.versions[i].sector, s.versions[i].newer
	for i != none {
		older := s.versions[i].older
		s.unlink(i)
		i = older
	}
	g, at := s.group(sector), placeOf(sector)
	if rest != none {
		s.versions[rest].older = none
		return
	}
	if g.has &^= 1 << at; g.has == 0 {
		s.dropGroup(sector, g)
	}
}

// retireBefore removes the versions of sector that are older than write id.
func (s *store) retireBefore(sector int64, id uint64) {
	i, _ := s.newest(sector)
	for ; i != none; i = s.versions[i].older {
		if s.versions[i].write.id < id {
			s.retire(i)
			return
		}
	}
}

// retireAllBefore is retireBefore for the sectors from first to before end.
func (s *store) retireAllBefore(first, end int64, id uint64) {
	for _, sector := range s.between(first, end) {
		s.retireBefore(sector, id)
	}
}

// dropFrom removes all versions of sectors from first on.
func (s *store) dropFrom(first int64) {
	for _, sector := range s.between(first, maxSector) {
		i, _ := s.newest(sector)
		s.retire(i)
	}
}

// between lists the sectors from first to before end that have versions, in ascending
// order, so that EvictRandom proceeds the same way each time. It goes through the groups
// of the range or through all existing groups, whichever are fewer.
func (s *store) between(first, end int64) []int64 {
	var numbers []int64
	from, to := first>>groupShift, (end-1)>>groupShift
	if to-from < int64(len(s.groups)) {
		for number := from; number <= to; number++ {
			if s.groups[number] != nil {
				numbers = append(numbers, number)
			}
		}
	} else {
		for number := range s.groups {
			if number >= from && number <= to {
				numbers = append(numbers, number)
			}
		}
		slices.Sort(numbers)
	}
	var sectors []int64
	for _, number := range numbers {
		for has := s.groups[number].has; has != 0; has &= has - 1 {
			sector := number<<groupShift + int64(bits.TrailingZeros64(has))
			if sector >= first && sector < end {
				sectors = append(sectors, sector)
			}
		}
	}
	return sectors
}

// unlink takes version i from its write, and ends the write if it was the last one.
func (s *store) unlink(i int32) {
	v := &s.versions[i]
	w := v.write
	if !s.leaves(i) {
		s.leaveOne(i)
	}
	if v.before == none {
		w.oldest = v.next
	} else {
		s.versions[v.before].next = v.next
	}
	if v.next != none {
		s.versions[v.next].before = v.before
	}
	s.give(i)
	if w.versions--; w.versions == 0 {
		s.drop(w)
	}
}

func (s *store) drop(w *write) {
	if w.before == nil {
		s.first = w.after
	} else {
		w.before.after = w.after
	}
	if w.after == nil {
		s.last = w.before
	} else {
		w.after.before = w.before
	}
	s.writes--
	*w = write{}
	if len(s.spare) < maxSpareWrites {
		s.spare = append(s.spare, w)
	}
}

// maxSpareWrites is how many writes are kept for reuse.
const maxSpareWrites = 1024

// newest is the newest pending version of sector, or none.
func (s *store) newest(sector int64) (i int32, ok bool) {
	g, at := s.group(sector), placeOf(sector)
	if g == nil || g.has>>at&1 == 0 {
		return none, false
	}
	return g.newest[at], true
}

// nextPending is the first sector from sector on, before end, that has a version,
// or end. It gives up after some steps and returns how far it looked.
func (s *store) nextPending(sector, end int64) (next int64) {
	for steps := 0; sector < end && steps < maxScanSteps; steps++ {
		if s.areas[sector>>areaShift] == 0 {
			sector = min((sector|(1<<areaShift-1))+1, end)
			continue
		}
		if g := s.group(sector); g != nil {
			if has := g.has >> placeOf(sector); has != 0 {
				return min(sector+int64(bits.TrailingZeros64(has)), end)
			}
		}
		sector = min((sector|(1<<groupShift-1))+1, end)
	}
	return sector
}

// maxScanSteps bounds how much one search for pending sectors passes over, or finds.
const maxScanSteps = 1 << 14
