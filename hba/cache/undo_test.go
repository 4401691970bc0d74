package cache_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/cache"
)

// TestCut_LosesFlushed: as many sectors as were asked for lose what was promised of
// them, by a flush or FUA, and hold what they held at the last cut, or zeros. The report
// names each. Nothing else is lost, and the same seed loses the same.
func TestCut_LosesFlushed(t *testing.T) {
	const n, lose = 32, 3
	for _, tt := range []struct {
		name    string
		promise func(c *cache.Cache)
	}{
		{"flush", func(c *cache.Cache) {
			put(t, c, 0, 3, n*512)
			flush(t, c)
			put(t, c, 0, 2, n*512) // only what the cut before had left comes back
			flush(t, c)
		}},
		{"FUA", func(c *cache.Cache) {
			if _, err := c.WriteAtFUA(bytes.Repeat([]byte{2}, n*512), 0); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reverted, vanished, which := 0, 0, map[int64]bool{}
			for seed := range uint64(32) {
				image := func() (p []byte) {
					m := memory(t, 64<<10)
					c := open(t, m, cache.Config{CanLoseFlushed: true})
					put(t, c, 0, 1, n*512)
					if r := cut(t, c, cache.CutOptions{Policy: cache.PolicyAll}); r.Class != cache.ClassLegal {
						t.Fatalf("before: %+v", r)
					}
					tt.promise(c)
					put(t, c, n*512, 4, 512) // is pending, and promised by nobody
					o := cache.CutOptions{Seed: seed, Policy: cache.PolicyAll, LoseFlushed: lose}
					r := cut(t, c, o)
					if r.Class != cache.ClassHostile || r.Verdict.Acts[cache.ActLostFlushed] != lose || len(r.Verdict.Acts) != 1 ||
						r.Hostile[cache.ActLostFlushed] != lose || r.Sectors.LostFlushed != lose || r.Sectors.Kept != 1 {
						t.Fatalf("seed %d: %+v", seed, r)
					}
					if s := c.Stats(); s.Acts[cache.ActLostFlushed] != lose || c.BrokenSinceCut() {
						t.Errorf("seed %d: %d acts counted, or of the life after the cut", seed, s.Acts[cache.ActLostFlushed])
					}
					p = make([]byte, 64<<10)
					if _, err := m.ReadAt(p, 0); err != nil {
						t.Fatal(err)
					}
					var lost []int64
					for off := int64(0); off < n*512; off += 512 {
						switch b := at(t, m, off); b {
						case 2:
							continue
						case 1:
							reverted++
						case 0:
							vanished++
						default:
							t.Fatalf("seed %d: sector at %d holds %d", seed, off, b)
						}
						lost = append(lost, off)
						which[off] = true
					}
					var found []int64
					for _, f := range r.Verdict.Findings {
						found = append(found, f.OffsetBytes)
					}
					if !slices.Equal(found, lost) {
						t.Errorf("seed %d: findings at %v, want %v", seed, found, lost)
					}
					if r = cut(t, c, cache.CutOptions{}); r.Class != cache.ClassLegal {
						t.Errorf("seed %d: the next cut: %+v", seed, r)
					}
					return p
				}
				if !bytes.Equal(image(), image()) {
					t.Errorf("seed %d: two images", seed)
				}
			}
			if reverted == 0 || vanished == 0 || len(which) < n/2 {
				t.Errorf("%d have come back, %d are zeros, at %d places of %d", reverted, vanished, len(which), n)
			}
		})
	}
}

// TestCut_LosesNoMoreThanThereIs: what nobody was promised is not lost, nor what would
// hold the same, and a cache that is not ready for it refuses.
func TestCut_LosesNoMoreThanThereIs(t *testing.T) {
	c := open(t, memory(t, 1<<20), cache.Config{SizeBytes: cache.MinSizeBytes, CanLoseFlushed: true})
	put(t, c, 0, 0, 512)
	flush(t, c)
	put(t, c, 1<<19, 1, cache.MinSizeBytes)
	put(t, c, 0, 2, cache.MinSizeBytes) // for which the other becomes durable
	r := cut(t, c, cache.CutOptions{Policy: cache.PolicyAll, LoseFlushed: 100})
	if r.Class != cache.ClassLegal || r.Hostile != nil || r.Sectors.LostFlushed != 0 || r.LoseFlushed != 100 {
		t.Errorf("report: %+v", r)
	}
	if at(t, c, 1<<19) != 1 || at(t, c, 0) != 2 {
		t.Error("something is lost")
	}
	c = open(t, memory(t, 1<<20), cache.Config{})
	if _, err := c.Cut(cache.CutOptions{LoseFlushed: 1}); err == nil {
		t.Error("a cache that remembers nothing has taken it")
	}
	if _, err := c.Cut(cache.CutOptions{LoseFlushed: -1}); err == nil {
		t.Error("-1 sectors were taken")
	}
}

// TestCut_LosesWhatWasPromised: of a sector that was promised, and written since without
// a promise, any content from the promise on may be there. That it holds what was
// promised, or zeros if that is what was, is no loss: it holds the other, or is left alone.
func TestCut_LosesWhatWasPromised(t *testing.T) {
	const n = 2 * cache.MinSizeBytes // goes through
	for _, tt := range []struct {
		name           string
		promised, left byte // left: what the lost hold; the same as promised if none can be
	}{
		{"zeros", 0, 0},
		{"data", 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(8) {
				m := memory(t, 1<<20)
				c := open(t, m, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictNone, CanLoseFlushed: true})
				put(t, c, 0, 3, n)
				put(t, c, 0, tt.promised, n)
				flush(t, c)
				cut(t, c, cache.CutOptions{})
				put(t, c, 0, 2, n)
				r := cut(t, c, cache.CutOptions{Seed: seed, LoseFlushed: 3})
				lost := 0
				for off := int64(0); off < n; off += 512 {
					if b := at(t, m, off); b == tt.left && b != tt.promised {
						lost++
					} else if b != 2 {
						t.Errorf("seed %d: the sector at %d holds %d", seed, off, b)
					}
				}
				if want := map[bool]int{true: 3}[tt.left != tt.promised]; lost != want || r.Sectors.LostFlushed != want || r.Verdict.Acts[cache.ActLostFlushed] != want {
					t.Errorf("seed %d: %d are lost, the report has %d and finds %v; want %d", seed, lost, r.Sectors.LostFlushed, r.Verdict.Acts, want)
				}
			}
		})
	}
}

// TestReplay_OfWhatLostFlushed: a replay cannot know what had been promised, and says so.
func TestReplay_OfWhatLostFlushed(t *testing.T) {
	r, err := cache.NewReplay(memory(t, 1<<20), cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []cache.Step{{Kind: cache.StepCut, Cut: cache.CutOptions{LoseFlushed: 1}}, {Kind: cache.StepImage, Text: "another"}} {
		if err := r.Do(&s, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if r.Inexact() == "" {
		t.Error("the replay takes itself for exact")
	}
}
