package fault

// What a decision does to data: to the data that a write overwrites, and to the data
// that a read has returned.

// Overwrites reports whether Keepers and Heal would do anything.
func (d *Decision) Overwrites() bool { return d.overwrites != nil }

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

// Clip returns the part of a command's blocks that v covers; ok says whether there is
// any.
func (v *Versions) Clip(c *Command) (lba, blocks uint64, ok bool) {
	s := v.clip(c.span())
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
	if total := c.Blocks * uint64(blockBytes) * 8; total != 0 {
		for range d.flips {
			flipBit(segments, d.flip.below(total))
		}
	}
}

// corrupt flips bits in those blocks of in that are rotten, as far as segments have
// them.
func (e *entry) corrupt(in span, blockBytes int, segments [][]byte) {
	from := in.first
	for b, bad := e.firstBad(in); bad; b, bad = e.firstBad(in) {
		in.first = b + 1
		chance := chanceOf(^e.fault.seed, b)
		for range max(1, e.fault.rule.Action.Bits) {
			flipBit(segments, (b-from)*uint64(blockBytes)*8+chance.below(uint64(blockBytes)*8))
		}
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
