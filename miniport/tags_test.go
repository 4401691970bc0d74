package miniport

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// TestTagPool_Model: a tag is never given out twice at once, and one that was at
// the device comes back under another generation.
func TestTagPool_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 40).Draw(t, "size")
		pool := newTagPool(size)
		out := map[uint32]uint32{}  // by index
		last := map[uint32]uint32{} // last tag that was at the device, by index
		t.Repeat(map[string]func(*rapid.T){
			"get": func(t *rapid.T) {
				tag := pool.get()
				if tag == 0 {
					if len(out) != size {
						t.Fatalf("no tag with %d of %d out", len(out), size)
					}
					return
				}
				index := tag & tagIndexMask
				if _, taken := out[index]; taken || int(index) >= size || tag>>tagIndexBits == 0 {
					t.Fatalf("got tag %#x with %v out", tag, out)
				}
				if old, ok := last[index]; ok && old == tag {
					t.Fatalf("tag %#x was at the device already", tag)
				}
				out[index] = tag
			},
			"retire": func(*rapid.T) {
				for index, tag := range out {
					delete(out, index)
					last[index] = tag
					pool.retire(tag)
					return
				}
			},
			"put": func(*rapid.T) {
				for index, tag := range out {
					delete(out, index)
					pool.put(tag)
					return
				}
			},
		})
	})
}

func TestNextGeneration_SkipsZero(t *testing.T) {
	const index = 7
	tag := uint32(math.MaxUint32&^tagIndexMask | index)
	if got, want := nextGeneration(tag), uint32(tagGeneration|index); got != want {
		t.Errorf("after %#x: %#x, want %#x", tag, got, want)
	}
	seen := map[uint32]bool{}
	for range math.MaxUint32 >> tagIndexBits {
		if seen[tag] || tag == index {
			t.Fatalf("tag %#x came twice, or is no tag", tag)
		}
		seen[tag] = true
		tag = nextGeneration(tag)
	}
}

// TestTagPool_FullMagazines: the sum that tags.go states. With every magazine
// full, a whole ring can still be started.
func TestTagPool_FullMagazines(t *testing.T) {
	pool := newTagPool(MaxRingEntries + magazineTags*magazineProcessors)
	for range magazineTags * magazineProcessors {
		pool.get()
	}
	for i := range MaxRingEntries {
		if pool.get() == 0 {
			t.Fatalf("no tag for entry %d", i)
		}
	}
	if tag := pool.get(); tag != 0 {
		t.Errorf("tag %#x beyond the table", tag)
	}
}
