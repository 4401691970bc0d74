package cache_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
)

// survivors cuts the power of a cache with n pending writes, each of a sector of its
// own, and says which of them are there afterwards, oldest first.
func survivors(t *testing.T, n int, o cache.CutOptions) (kept []bool, r *cache.Report) {
	t.Helper()
	m := memory(t, 64<<10)
	c := open(t, m, cache.Config{})
	for i := range n {
		put(t, c, int64(n-i)*1024, byte(1+i), 512) // backwards: it is the order of arrival that counts
	}
	r = cut(t, c, o)
	for i := range n {
		b := at(t, m, int64(n-i)*1024)
		if b != 0 && b != byte(1+i) {
			t.Fatalf("write %d is %d on the medium", i, b)
		}
		kept = append(kept, b != 0)
		if fate := map[bool]string{true: "kept", false: "lost"}[b != 0]; r.Writes[i].Fate != fate {
			t.Errorf("write %d is %s, the report says %s", i, fate, r.Writes[i].Fate)
		}
	}
	return kept, r
}

// TestPolicies: which of the pending writes survive is what the policy says, and all that
// it allows comes about.
func TestPolicies(t *testing.T) {
	const n, seeds = 4, 128
	count := func(kept []bool) (lost int) {
		for _, k := range kept {
			if !k {
				lost++
			}
		}
		return lost
	}
	for _, tt := range []struct {
		policy cache.Policy
		allows func(kept []bool) bool
		images int // that differ
	}{
		{cache.PolicyNone, func(kept []bool) bool { return count(kept) == n }, 1},
		{cache.PolicyAll, func(kept []bool) bool { return count(kept) == 0 }, 1},
		{cache.PolicyPrefix, func(kept []bool) bool { return !slices.Contains(kept[n-count(kept):], true) }, n + 1},
		{cache.PolicyReverse, func(kept []bool) bool { return !slices.Contains(kept[count(kept):], false) }, n + 1},
		{cache.PolicyOneMissing, func(kept []bool) bool { return count(kept) == 1 }, n},
		{cache.PolicySubset, func([]bool) bool { return true }, 1 << n},
	} {
		t.Run(tt.policy.String(), func(t *testing.T) {
			seen := map[string]int{}
			for seed := range uint64(seeds) {
				kept, r := survivors(t, n, cache.CutOptions{Seed: seed, Policy: tt.policy})
				if !tt.allows(kept) {
					t.Errorf("seed %d: %v survive", seed, kept)
				}
				if r.Verdict.Class != cache.ClassLegal {
					t.Errorf("seed %d: %+v", seed, r.Verdict)
				}
				seen[fmt.Sprint(kept)]++
			}
			if len(seen) != tt.images {
				t.Errorf("%d different images, want %d: %v", len(seen), tt.images, seen)
			}
			for image, times := range seen { // no outcome is rare
				if times < seeds/tt.images/4 {
					t.Errorf("%s by %d seeds of %d", image, times, seeds)
				}
			}
		})
	}
}

// TestPolicies_OneSector: of several writes to one sector, the newest that survives is
// there, and if none does what was durable is.
func TestPolicies_OneSector(t *testing.T) {
	const n = 4
	for policy := range cache.PolicyNames() {
		for seed := range uint64(16) {
			o := cache.CutOptions{Seed: seed, Policy: cache.Policy(policy)}
			kept, _ := survivors(t, n, o)
			want := byte(9)
			for i, k := range kept {
				if k {
					want = byte(1 + i)
				}
			}
			m := memory(t, 64<<10)
			c := open(t, m, cache.Config{})
			put(t, c, 0, 9, 512)
			flush(t, c)
			for i := range n {
				put(t, c, 0, byte(1+i), 512)
			}
			r := cut(t, c, o)
			if got := at(t, m, 0); got != want {
				t.Errorf("%v, seed %d: %d, want %d: %v survive", o.Policy, seed, got, want, kept)
			}
			// Each write is lost, overwritten by a later one that survived, or there.
			for i := range n {
				fate := "overwritten"
				switch {
				case byte(1+i) == want:
					fate = "kept"
				case !slices.Contains(kept[i:], true):
					fate = "lost"
				}
				if r.Writes[i].Fate != fate {
					t.Errorf("%v, seed %d: write %d is %s, want %s: %v survive", o.Policy, seed, i, r.Writes[i].Fate, fate, kept)
				}
			}
		}
	}
}

// pieces are which parts of n bytes a write of all of them at off has left, whose bytes
// were 1 and are 2.
func pieces(t *testing.T, m media.Media, off, n int64) (out []bool) {
	t.Helper()
	p := make([]byte, n)
	if _, err := m.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	for ; len(p) > 0; p = p[512:] {
		if !bytes.Equal(p[:512], bytes.Repeat(p[:1], 512)) || p[0] != 1 && p[0] != 2 {
			t.Fatalf("512 bytes of %d and others", p[0])
		}
		out = append(out, p[0] == 2)
	}
	return out
}

// TestTears: a write that is longer than the tear survives whole, or in pieces of that
// length, from multiples of it on, in any combination. One that is not survives whole. No
// tear lets anything survive that the policy does not.
func TestTears(t *testing.T) {
	const off, seeds = 8192 - 1024, 64 // the first piece of 4096 bytes is of 1024
	for _, tt := range []struct {
		sector, tear int
		n            int64
		pieces       int // at the most
		class        cache.Class
	}{
		{512, 4096, 1024 + 2*4096 + 512, 4, cache.ClassLegal},
		{512, 4096, 4096, 1, cache.ClassLegal},
		{512, 512, 2048, 4, cache.ClassLegal},
		{512, 512, 512, 1, cache.ClassLegal},
		{4096, 4096, 2 * 4096, 2, cache.ClassLegal},
		{4096, 512, 2 * 4096, 16, cache.ClassDamaged},
		{4096, 512, 4096, 8, cache.ClassDamaged},
	} {
		t.Run(fmt.Sprintf("%d of %d in sectors of %d", tt.tear, tt.n, tt.sector), func(t *testing.T) {
			off := off &^ int64(tt.sector-1)
			whole, torn, images := 0, 0, map[string]bool{}
			for seed := range uint64(seeds) {
				m := memory(t, 64<<10)
				c := open(t, m, cache.Config{SectorBytes: tt.sector})
				put(t, c, 0, 1, 32768)
				flush(t, c)
				put(t, c, off, 2, int(tt.n))
				r := cut(t, c, cache.CutOptions{Seed: seed, Policy: cache.PolicyAll, TearBytes: tt.tear})
				got := pieces(t, m, off, tt.n)
				images[fmt.Sprint(got)] = true
				w := &r.Writes[0]
				if !slices.Contains(got, false) {
					whole++
					if w.Fate != "kept" || r.Class != cache.ClassLegal {
						t.Errorf("seed %d: all is there, and the report says %s, %v", seed, w.Fate, r.Class)
					}
					continue
				}
				// Inside of a piece nothing changes.
				for i := range got[1:] {
					if (off+int64(i+1)*512)%int64(tt.tear) != 0 && got[i] != got[i+1] {
						t.Fatalf("seed %d: torn inside of a piece: %v", seed, got)
					}
				}
				if !slices.Contains(got, true) {
					if w.Fate != "lost" {
						t.Errorf("seed %d: nothing is there, and the report says %s", seed, w.Fate)
					}
					continue
				}
				torn++
				if w.Fate != "torn" || w.Kept+w.Lost+w.Damaged != int(tt.n)/tt.sector || r.Class > tt.class {
					t.Errorf("seed %d: %v: %+v, class %v", seed, got, w, r.Class)
				}
				// What is told of sectors is what they are.
				kept, lost, harmed := 0, 0, 0
				for per := tt.sector / 512; len(got) > 0; got = got[per:] {
					switch s := got[:per]; {
					case !slices.Contains(s, false):
						kept++
					case !slices.Contains(s, true):
						lost++
					default:
						harmed++
					}
				}
				if w.Kept != kept || w.Lost != lost || w.Damaged != harmed || r.Sectors.Torn != harmed || (r.Class == cache.ClassDamaged) != (harmed > 0) {
					t.Errorf("seed %d: %d kept, %d lost, %d torn; the report says %+v, class %v", seed, kept, lost, harmed, w, r.Class)
				}
			}
			if long := tt.n > int64(tt.tear); (torn > 0) != long || !long && whole != seeds {
				t.Errorf("%d of %d are whole, %d in pieces", whole, seeds, torn)
			}
			if tt.pieces > 1 && (whole < seeds/3 || whole > seeds*4/5) {
				t.Errorf("%d of %d are whole, want about half", whole, seeds)
			}
			if most := 1 << min(tt.pieces, 4); tt.pieces > 1 && len(images) < min(most, seeds/8) {
				t.Errorf("%d different images, want any combination of %d pieces", len(images), tt.pieces)
			}
			if r := tornUnder(t, tt.sector, tt.tear, off, int(tt.n), cache.PolicyNone); r.Sectors.Lost != r.Sectors.Pending {
				t.Errorf("a tear lets something survive: %+v", r.Sectors)
			}
		})
	}
}

func tornUnder(t *testing.T, sector, tear int, off int64, n int, p cache.Policy) *cache.Report {
	t.Helper()
	c := open(t, memory(t, 64<<10), cache.Config{SectorBytes: sector})
	put(t, c, off, 2, n)
	return cut(t, c, cache.CutOptions{Seed: 1, Policy: p, TearBytes: tear})
}

// TestDamages: one place is harmed, which was being written, and nothing beside it. It is
// drawn by the seed, and so is what garbage is there, which nobody has written.
func TestDamages(t *testing.T) {
	const first, n = 4, 20 // sectors
	for _, tt := range []struct {
		damage cache.Damage
		tear   int
	}{
		{cache.DamageOld, 0},
		{cache.DamageGarbage, 0},
		{cache.DamageUnreadable, 0},
		{cache.DamageGarbage, 4096},
		{cache.DamageUnreadable, 4096},
	} {
		t.Run(fmt.Sprintf("%v/%d", tt.damage, tt.tear), func(t *testing.T) {
			hits := map[int64]bool{}
			for seed := range uint64(64) {
				m := memory(t, 64<<10)
				c := open(t, m, cache.Config{})
				put(t, c, 0, 1, 64*512)
				flush(t, c)
				put(t, c, first*512, 2, n*512)
				r := cut(t, c, cache.CutOptions{Seed: seed, Policy: cache.PolicyAll, Damage: tt.damage, TearBytes: tt.tear})
				var harmed []int64
				for sector := range int64(64) {
					p := make([]byte, 512)
					if _, err := m.ReadAt(p, sector*512); err != nil {
						t.Fatal(err)
					}
					if b := p[0]; (b == 1 || b == 2) && bytes.Equal(p, bytes.Repeat(p[:1], 512)) {
						if b == 2 && (sector < first || sector >= first+n) || b == 1 && sector >= first && sector < first+n && tt.tear == 0 {
							t.Errorf("seed %d: sector %d is %d", seed, sector, b)
						}
						continue
					}
					harmed = append(harmed, sector)
					want, random := make([]byte, 512), rand.NewPCG(seed, 1<<32+uint64(sector))
					for i := 0; i < 512; i += 8 {
						binary.LittleEndian.PutUint64(want[i:], random.Uint64())
					}
					if !bytes.Equal(p, want) {
						t.Errorf("seed %d: sector %d is not the garbage of its seed", seed, sector)
					}
					_, err := c.ReadAt(p, sector*512)
					if bad := tt.damage == cache.DamageUnreadable; (err != nil) != bad {
						t.Errorf("seed %d: sector %d reads with %v", seed, sector, err)
					}
				}
				if tt.damage == cache.DamageOld {
					if len(harmed) != 0 || r.Class != cache.ClassLegal {
						t.Errorf("seed %d: %v are harmed, class %v", seed, harmed, r.Class)
					}
					continue
				}
				per := int64(max(tt.tear/512, 1))
				if len(harmed) == 0 {
					t.Fatalf("seed %d: nothing is harmed", seed)
				}
				block := harmed[0] / per
				var want []int64 // the pending ones of one block
				for sector := block * per; sector < (block+1)*per; sector++ {
					if sector >= first && sector < first+n {
						want = append(want, sector)
					}
				}
				if !slices.Equal(harmed, want) || r.Class != cache.ClassDamaged || r.Sectors.Garbage+r.Sectors.Unreadable != len(want) || r.Writes[0].Damaged != len(want) || r.Writes[0].Fate != "torn" {
					t.Errorf("seed %d: %v are harmed, want %v; class %v, %+v, write %+v", seed, harmed, want, r.Class, r.Sectors, r.Writes[0])
				}
				hits[block] = true
			}
			if blocks := n / max(tt.tear/512, 1); tt.damage != cache.DamageOld && len(hits) < blocks/2 {
				t.Errorf("%d places are hit by 64 seeds, of %d", len(hits), blocks)
			}
		})
	}
}
