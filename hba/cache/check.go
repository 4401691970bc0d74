package cache

import "bytes"

// judge checks one pending sector after a cut. base is what was durable and now is what
// is; each is nil if it cannot be read. It does not consider how the cut decided, but
// which versions there were and what had been promised about them:
//
// The newest promised version, or one after it, must be there; if none was promised,
// what was durable may be there, too. Parts of several versions are damage to the
// sector. They also break a promise if any part is older than what was promised.
func (c *Cache) judge(k *cut, f *Fate, base, now []byte) {
	v := &k.report.Verdict
	v.CheckedSectors++
	off := f.Sector << k.store.shift
	harm := actOf(f.Outcome)
	if f.Outcome == OutcomeUnreadable {
		now = nil
	}
	var buffer [4096]byte
	allowed := buffer[:k.store.sectorBytes]
	s := &k.store
	pieces := uint64(0) // those that some version has, if the sector is torn
	newest, _ := s.newest(f.Sector)
	for i := newest; i != none; i = s.versions[i].older {
		s.content(allowed, i)
		if now != nil && bytes.Equal(now, allowed) {
			return
		}
		w := s.versions[i].write
		if f.Outcome == OutcomeTorn {
			pieces |= samePieces(now, allowed)
		}
		if w.promised == promiseNone {
			continue
		}
		// Damage is no excuse for a sector that nobody has written since the promise.
		written := i != newest
		excused := f.Outcome == OutcomeTorn && pieces == allPieces(allowed) ||
			written && (f.Outcome == OutcomeGarbage || f.Outcome == OutcomeUnreadable)
		if !excused {
			v.find(off, brokenBy(w.promised), w.id)
		}
		if harm != "" {
			v.find(off, harm, w.id)
		}
		return
	}
	switch {
	case now == nil && base == nil && f.Outcome != OutcomeUnreadable: // as it was
	case now != nil && bytes.Equal(now, base): // audit judges what that may be
	case harm != "":
		v.find(off, harm, 0)
	case now == nil:
		v.find(off, ActLostFlushed, 0)
	default:
		v.find(off, ActDefect, 0)
	}
}

// samePieces has a bit for each 512 bytes that a and b have in common.
func samePieces(a, b []byte) uint64 {
	same := uint64(0)
	for i := 0; i<<9 < min(len(a), len(b)); i++ {
		if bytes.Equal(a[i<<9:(i+1)<<9], b[i<<9:(i+1)<<9]) {
			same |= 1 << i
		}
	}
	return same
}

func allPieces(p []byte) uint64 { return 1<<(len(p)>>9) - 1 }

// actOf names the damage that was asked for, if the outcome is damage.
func actOf(o Outcome) Act {
	switch o {
	case OutcomeTorn:
		return ActTornSector
	case OutcomeGarbage:
		return ActGarbage
	case OutcomeUnreadable:
		return ActUnreadable
	case OutcomeKept, OutcomeLost, outcomes:
	}
	return ""
}

// brokenBy names what broke a promise of that kind.
func brokenBy(p promise) Act {
	switch p {
	case promiseLie:
		return ActLyingFlush
	case promiseFUA:
		return ActIgnoredFUA
	case promiseNone, promiseFlush:
	}
	return ActDefect
}
