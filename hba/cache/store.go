package cache

import (
	"maps"
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
	oldest        int32 // its first version, in ascending order of sectors
	before, after *write
	place         int // index in store.pending
}

// A promise is what was said about a pending write's durability.
type promise uint8

const (
	promiseNone  promise = iota
	promiseFlush         // a flush was answered that covers it; then it is not pending
	promiseLie           // so it was, by a drive that lies about flushes
	promiseFUA           // it had FUA and was acknowledged, by one that ignores it
)

// none is the index of no version.
const none = int32(-1)

// A version is one sector of one pending write.
type version struct {
	sector       int64
	write        *write
	kind         Kind
	older, newer int32 // of the same sector
	before, next int32 // of the same write
}

// A chain is the list of a sector's pending versions.
type chain struct{ oldest, newest int32 }

const (
	slabShift  = 20 // bytes of data that are allocated at once
	groupShift = 20 // bytes that share a count, to pass over what has nothing pending
)

// A store holds pending versions. It is guarded by Cache.mu.
type store struct {
	sectorBytes int
	shift       uint8

	versions []version
	slabs    [][]byte // data of the versions, by index
	free     int32    // list by newer
	used     int

	index  map[int64]chain // by sector
	groups map[int64]int32 // sectors in index, by group

	first, last *write
	pending     []*write // in no order that means anything, but in the same for the same calls
	spare       []*write
	nextID      uint64
}

func (s *store) init(sectorBytes int) {
	shift := uint8(9)
	if sectorBytes == 4096 {
		shift = 12
	}
	*s = store{
		sectorBytes: sectorBytes, shift: shift, free: none, slabs: s.slabs, nextID: max(s.nextID, 1),
		index: make(map[int64]chain), groups: make(map[int64]int32),
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
	*w = write{id: s.takeID(), off: off, n: n, kind: kind, oldest: none, before: s.last, place: len(s.pending)}
	if s.last == nil {
		s.first = w
	} else {
		s.last.after = w
	}
	s.last = w
	s.pending = append(s.pending, w)
	return w
}

func (s *store) takeID() uint64 {
	id := s.nextID
	s.nextID++
	return id
}

// add gives w, the newest write, a version of sector. tail is w's last version.
func (s *store) add(w *write, sector int64, kind Kind, tail int32) int32 {
	i := s.take()
	c, known := s.index[sector]
	v := version{sector: sector, write: w, kind: kind, older: none, newer: none, before: tail, next: none}
	if known {
		v.older = c.newest
		s.versions[c.newest].newer = i
		c.newest = i
	} else {
		c = chain{i, i}
		s.groups[sector>>(groupShift-s.shift)]++
	}
	s.index[sector] = c
	s.versions[i] = v
	if tail == none {
		w.oldest = i
	} else {
		s.versions[tail].next = i
	}
	w.versions++
	return i
}

// retire removes version i and all older ones of its sector.
func (s *store) retire(i int32) {
	sector, rest := s.versions[i].sector, s.versions[i].newer
	for i != none {
		older := s.versions[i].older
		s.unlink(i)
		i = older
	}
	if rest != none {
		s.versions[rest].older = none
		s.index[sector] = chain{rest, s.index[sector].newest}
		return
	}
	delete(s.index, sector)
	group := sector >> (groupShift - s.shift)
	if s.groups[group]--; s.groups[group] == 0 {
		delete(s.groups, group)
	}
}

// retireBefore removes the versions of sector that are older than write id.
func (s *store) retireBefore(sector int64, id uint64) {
	c, ok := s.index[sector]
	if !ok {
		return
	}
	for i := c.newest; i != none; i = s.versions[i].older {
		if s.versions[i].write.id < id {
			s.retire(i)
			return
		}
	}
}

// retireAllBefore is retireBefore for the sectors from first to before end. It
// goes through those or through what is pending, whichever are fewer.
func (s *store) retireAllBefore(first, end int64, id uint64) {
	if end-first <= int64(len(s.index)) {
		for sector := first; sector < end; sector++ {
			s.retireBefore(sector, id)
		}
		return
	}
	var sectors []int64
	for sector := range s.index {
		if sector >= first && sector < end {
			sectors = append(sectors, sector)
		}
	}
	slices.Sort(sectors) // so that EvictRandom goes on the same each time
	for _, sector := range sectors {
		s.retireBefore(sector, id)
	}
}

// dropFrom removes all versions of sectors from first on.
func (s *store) dropFrom(first int64) {
	// In order, so that EvictRandom goes on the same each time.
	for _, sector := range slices.Sorted(maps.Keys(s.index)) {
		if sector >= first {
			s.retire(s.index[sector].newest)
		}
	}
}

// unlink takes version i from its write, and ends the write with its last one.
func (s *store) unlink(i int32) {
	v := &s.versions[i]
	w := v.write
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
	moved := s.pending[len(s.pending)-1]
	s.pending[w.place] = moved
	moved.place = w.place
	s.pending[len(s.pending)-1] = nil
	s.pending = s.pending[:len(s.pending)-1]
	*w = write{}
	if len(s.spare) < maxSpareWrites {
		s.spare = append(s.spare, w)
	}
}

// maxSpareWrites is how many writes are kept for the next ones.
const maxSpareWrites = 1024

// newest is the newest pending version of sector.
func (s *store) newest(sector int64) (i int32, ok bool) {
	c, ok := s.index[sector]
	return c.newest, ok
}

// nextPending is the first sector from sector on, before end, that has a version,
// or end. It gives up after some groups and returns how far it looked.
func (s *store) nextPending(sector, end int64) (next int64, found bool) {
	perGroup := int64(1) << (groupShift - s.shift)
	for scanned := 0; sector < end && scanned < maxScannedGroups; scanned++ {
		groupEnd := min((sector|(perGroup-1))+1, end)
		if s.groups[sector>>(groupShift-s.shift)] == 0 {
			sector = groupEnd
			continue
		}
		for ; sector < groupEnd; sector++ {
			if _, ok := s.index[sector]; ok {
				return sector, true
			}
		}
	}
	return sector, false
}

// maxScannedGroups bounds how much one look for pending sectors passes over.
const maxScannedGroups = 1 << 14
