package fault

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestBadBlocks compares with a list of all blocks. What is bad does not depend on
// where the span begins.
func TestBadBlocks(t *testing.T) {
	const most = 3*pageBlocks + 100
	for _, share := range []float64{1, 0.5, 0.01, 3.0 / most} {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			const seed = 7
			whole := newBadBlocks(span{0, most}, seed, share)
			n := 0
			chosen := make([]bool, most)
			for b := range chosen {
				_, chosen[b] = whole.first(span{uint64(b), uint64(b) + 1})
				if chosen[b] {
					n++
				}
			}
			if want := share * most; float64(n) < want*0.9-4 || float64(n) > want*1.1+8 {
				t.Errorf("%d of %d blocks are bad at a share of %v", n, most, share)
			}
			rapid.Check(t, func(t *rapid.T) {
				edges := []uint64{0, 1, 63, 64, 65, pageBlocks - 1, pageBlocks, pageBlocks + 1, 2 * pageBlocks, 3 * pageBlocks, most}
				edge := rapid.OneOf(rapid.SampledFrom(edges), rapid.Uint64Range(0, most))
				in := span{edge.Draw(t, "first"), edge.Draw(t, "end")}
				if in.empty() {
					return
				}
				m, bad := newBadBlocks(in, seed, share), make([]bool, most)
				copy(bad[in.first:in.end], chosen[in.first:])
				for range rapid.IntRange(1, 8).Draw(t, "steps") {
					s := span{edge.Draw(t, "from"), edge.Draw(t, "to")}
					if rapid.Bool().Draw(t, "heal") {
						m.heal(s)
						if !s.empty() {
							clear(bad[s.first:s.end])
						}
						continue
					}
					want, found := uint64(0), false
					for b := s.first; b < s.end && !found; b++ {
						want, found = b, bad[b]
					}
					if got, ok := m.first(s); ok != found || ok && got != want {
						t.Fatalf("first bad block of %v in %v: %d, %t, want %d, %t", s, in, got, ok, want, found)
					}
				}
			})
		})
	}
}

// longTrim is a trim of all blocks that a rule may know of, and sets that have such a
// rule.
func longTrim(tb testing.TB, n int, op string, share float64) (sets []*Set, trim Command) {
	tb.Helper()
	for range n {
		s, err := NewSet(Config{
			Rules: []Rule{{Name: "bad", Match: Match{Op: Ops{op}, LBA: new(uint64(0))}, Action: Action{Kind: KindMediumError, Share: &share}}},
			Units: []Unit{{Disk: "a", BlockBytes: 512, Blocks: MaxMarked}},
		})
		if err != nil {
			tb.Fatal(err)
		}
		sets = append(sets, s)
	}
	return sets, Command{Op: OpTrim, Blocks: MaxMarked, Ranged: true}
}

// A trim heals as many blocks as there are without a look at each: nothing is kept of
// pages that are good as a whole.
func TestMediumError_LongTrim(t *testing.T) {
	const runs = 3
	sets, trim := longTrim(t, runs+1, "read", 1)
	i := 0
	if n := testing.AllocsPerRun(runs, func() {
		var d Decision
		sets[i].Plans()[0].Decide(&trim, 0, &d)
		d.Heal(&trim, trim.LBA, trim.Blocks)
		i++
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
	for _, s := range sets {
		var d Decision
		c := read(0, MaxMarked)
		if s.Plans()[0].Decide(&c, 0, &d) {
			t.Errorf("block %d is bad after all were trimmed", d.Sense.Information)
		}
	}
}

// Rot that does not heal is where it was after all was written.
func TestRot_Stays(t *testing.T) {
	s := newSet(t, Rule{Name: "rot", Hostile: true, Match: Match{LBA: new(uint64(0))}, Action: Action{Kind: KindRot, Heal: new(false), Share: new(0.1)}})
	rotten := func() (out []uint64) {
		for b := range uint64(1000) {
			var d Decision
			if c := read(b, 1); s.Plans()[0].Decide(&c, 0, &d) {
				out = append(out, b)
			}
		}
		return out
	}
	before := rotten()
	var d Decision
	c := write(0, 65536)
	if s.Plans()[0].Decide(&c, 0, &d) {
		t.Error("a write is rotten")
	}
	if after := rotten(); len(before) == 0 || !slices.Equal(before, after) {
		t.Errorf("blocks %v are rotten, and %v after a write", before, after)
	}
}

func BenchmarkDecide_LongTrim(b *testing.B) {
	for _, op := range []string{"read", "trim"} { // healed by the trim, met by it
		for _, share := range []float64{1, 1e-9} {
			b.Run(fmt.Sprintf("op=%s/share=%v", op, share), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					sets, trim := longTrim(b, 1, op, share)
					var d Decision
					b.StartTimer()
					if sets[0].Plans()[0].Decide(&trim, 0, &d) && d.Overwrites() {
						d.Heal(&trim, trim.LBA, trim.Blocks)
					}
				}
			})
		}
	}
}
