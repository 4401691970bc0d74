package fault

import "github.com/vhbad/vhbad/internal/scsi"

// What a decision does to data: to the data that a write overwrites, and to the data
// that a read has returned.

// Overwrites reports whether Keepers and Heal would do anything.
func (d *Decision) Overwrites() bool { return d.overwrites != nil }

// Watch has Keepers and Heal work for the rules of p, which may be nil: those in force as
// c begins to be executed, which need not be those that decided.
func (d *Decision) Watch(p *Plan, c *Command) {
	if d.overwrites = nil; p != nil {
		p.watch(c, d)
	}
}

// Watches reports whether rules look at what commands with this CDB overwrite.
func (p *Plan) Watches(cdb *[scsi.CDBMaxBytes]byte) bool {
	return p.watched != 0 && p.watched&OpOf(cdb) != 0
}

// Keepers returns the Versions that are to get what c has overwritten.
func (d *Decision) Keepers(c *Command) (all []*Versions) {
	for i := range d.overwrites.entries {
		if e := &d.overwrites.entries[i]; e.versions != nil && !e.in.overlap(d.written(c)).empty() {
			all = append(all, e.versions)
		}
	}
	return all
}

// Written returns the part, up to end, of the blocks from lba on that c has written. It
// is empty if first is not below end.
func (d *Decision) Written(c *Command, lba, blocks uint64) (first, end uint64) {
	s := span{lba, lba + blocks}.overlap(d.written(c))
	return s.first, s.end
}

// Heal repairs those of the blocks from lba on that c has written.
func (d *Decision) Heal(c *Command, lba, blocks uint64) {
	s := span{lba, lba + blocks}.overlap(d.written(c))
	for i := range d.overwrites.entries {
		if e := &d.overwrites.entries[i]; e.bad != nil && e.watches() {
			e.bad.heal(s)
		}
	}
}

// Clip returns the part of the blocks that c writes which v covers; ok says whether there
// is any.
func (d *Decision) Clip(v *Versions, c *Command) (lba, blocks uint64, ok bool) {
	s := v.clip(d.written(c))
	return s.first, s.end - s.first, !s.empty()
}

// Corrupts reports whether Corrupt would do anything.
func (d *Decision) Corrupts() bool { return d.flips != 0 || d.rots || d.stales }

// Corrupt changes what a command has read, in segments, the first of which begins
// with the first block.
func (d *Decision) Corrupt(c *Command, blockBytes int, segments [][]byte) {
	if d.stales {
		block := make([]byte, blockBytes)
		for i := d.n - 1; i >= 0; i-- { // the first has the last word
			old := d.entries[i].versions
			if old == nil {
				continue
			}
			in := old.clip(c.span())
			for b := in.first; b < in.end; b++ {
				if old.Replace(b, block) {
					scatter(segments, int(b-c.LBA)*blockBytes, block)
				}
			}
		}
	}
	for _, e := range d.entries[:d.n] {
		if e.fault.rule.Action.Kind == KindRot {
			e.corrupt(c.span(), blockBytes, segments)
		}
	}
	flipBits(segments, 0, c.Blocks*uint64(blockBytes)*8, d.flips, &d.flip)
}

// corrupt flips bits in those blocks of in that are rotten, as far as segments have
// them.
func (e *entry) corrupt(in span, blockBytes int, segments [][]byte) {
	from := in.first
	for b, bad := e.firstBad(in); bad; b, bad = e.firstBad(in) {
		in.first = b + 1
		chance := chanceOf(^e.fault.seed, b)
		blockBits := uint64(blockBytes) * 8
		flipBits(segments, (b-from)*blockBits, blockBits, max(1, e.fault.rule.Action.Bits), &chance)
	}
}

// scatter copies b into segments from an offset on.
func scatter(segments [][]byte, off int, b []byte) {
	for _, s := range segments {
		if off >= len(s) {
			off -= len(s)
			continue
		}
		n := copy(s[off:], b)
		b, off = b[n:], 0
		if len(b) == 0 {
			return
		}
	}
}

// flipBits flips n bits, or all if that is less, of so many from a bit on. One that is drawn
// again would flip back: the next one that has not been drawn takes its place.
func flipBits(segments [][]byte, from, bits uint64, n uint32, c *chance) {
	if n == 1 && bits != 0 {
		flipBit(segments, from+c.below(bits))
		return
	}
	var drawn bitSet
	if bits > fewBits {
		drawn.many = make(map[uint64]struct{}, n)
	}
	for range min(uint64(n), bits) {
		bit := c.below(bits)
		for !drawn.add(bit) {
			bit = (bit + 1) % bits
		}
		flipBit(segments, from+bit)
	}
}

// fewBits are those of the largest block.
const fewBits = 4096 * 8

// A bitSet is a set of numbers: below fewBits, unless it has many.
type bitSet struct {
	few  [fewBits / 64]uint64
	many map[uint64]struct{}
}

// add reports whether bit was not in the set, which it is in now.
func (s *bitSet) add(bit uint64) bool {
	if s.many != nil {
		before := len(s.many)
		s.many[bit] = struct{}{}
		return len(s.many) != before
	}
	word, mask := &s.few[bit/64], uint64(1)<<(bit%64)
	added := *word&mask == 0
	*word |= mask
	return added
}

// flipBit flips one bit, counted from the first byte of the first segment.
func flipBit(segments [][]byte, bit uint64) {
	at := bit / 8
	for _, s := range segments {
		if at < uint64(len(s)) {
			s[at] ^= 1 << (bit % 8)
			return
		}
		at -= uint64(len(s))
	}
}
