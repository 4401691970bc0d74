package cache

import (
	"bytes"
	"hash/maphash"
)

// judgeLocked checks one pending sector after a cut: base is what was durable,
// now is what is. It does not ask how the cut decided, but which versions there
// were and what had been promised about them:
//
// The newest promised version, or one after it, must be there; if none was
// promised, what was durable may be there too.
//
// +checklocks:c.mu
func (c *Cache) judgeLocked(k *cut, f *Fate, base, now []byte) {
	v := &k.report.Verdict
	v.CheckedSectors++
	off := f.Sector << c.shift
	var content [4096]byte
	allowed := content[:len(now)]
	s := &c.store
	for i := s.index[f.Sector].newest; i != none; i = s.versions[i].older {
		s.content(allowed, i)
		if f.Outcome != OutcomeUnreadable && bytes.Equal(now, allowed) {
			return
		}
		if w := s.versions[i].write; w.promised != promiseNone {
			v.find(off, actOf(f.Outcome, w.promised), w.id)
			return
		}
	}
	if f.Outcome == OutcomeUnreadable || !bytes.Equal(now, base) {
		v.find(off, actOf(f.Outcome, promiseNone), 0)
		return
	}
	if known, same := c.record.compare(f.Sector, base); known && !same {
		v.find(off, ActLostFlushed, 0)
	}
}

// actOf names what a correct drive would not have done: harm that was asked for,
// or a promise of that kind broken.
func actOf(o Outcome, p promise) Act {
	switch o {
	case OutcomeTorn:
		return ActTornSector
	case OutcomeGarbage:
		return ActGarbage
	case OutcomeUnreadable:
		return ActUnreadable
	case OutcomeKept, OutcomeLost, outcomes:
	}
	switch p {
	case promiseLie:
		return ActLyingFlush
	case promiseFUA:
		return ActIgnoredFUA
	case promiseNone, promiseFlush:
	}
	return ActDefect
}

// compare reports whether sector is remembered, and if so whether p is the same.
func (r *record) compare(sector int64, p []byte) (known, same bool) {
	h, known := r.hashes[sector]
	return known, known && h == maphash.Bytes(r.seed, p)
}

func (r *record) matches(sector int64, p []byte) bool {
	_, same := r.compare(sector, p)
	return same
}
