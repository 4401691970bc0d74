package fault

import "sync"

// MaxKept is how many bytes of a disk a rule may cover if it keeps earlier versions of
// them.
const MaxKept = Size(64 << 20)

// A span is a range of blocks: from first up to, and without, end.
type span struct{ first, end uint64 }

// overlap returns what two spans have in common. If that is nothing, its first is not
// below its end.
func (s span) overlap(t span) span { return span{max(s.first, t.first), min(s.end, t.end)} }

func (s span) empty() bool { return s.first >= s.end }

// A Versions keeps what blocks held before they were last written.
//
// Concurrency: any goroutine.
type Versions struct {
	blockBytes int
	in         span

	mu sync.Mutex
	// +checklocks:mu
	old map[uint64][]byte
}

func newVersions(in span, blockBytes int) *Versions {
	return &Versions{in: in, blockBytes: blockBytes, old: map[uint64][]byte{}}
}

// Keep stores data as earlier versions of the blocks from lba on, as far as they are of
// interest. It copies.
func (v *Versions) Keep(lba uint64, data []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for ; len(data) >= v.blockBytes; lba, data = lba+1, data[v.blockBytes:] {
		if lba < v.in.first || lba >= v.in.end {
			continue
		}
		old := v.old[lba]
		if old == nil {
			old = make([]byte, v.blockBytes)
			v.old[lba] = old
		}
		copy(old, data)
	}
}

// Replace overwrites a block's data by its earlier version, and reports whether
// there is one.
func (v *Versions) Replace(lba uint64, data []byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.old[lba]
	copy(data, old)
	return old != nil
}

// clip is the part of a range of blocks that is of interest.
func (v *Versions) clip(s span) span { return s.overlap(v.in) }
