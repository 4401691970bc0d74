package cache_test

import (
	"bytes"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/hbatest"
)

// TestCut_NamesWhatWasDoneToWrites: a write that was answered and never done, or done
// elsewhere, is named: by sector where the image shows it, and in any case by the
// report, whose class it makes hostile.
func TestCut_NamesWhatWasDoneToWrites(t *testing.T) {
	const lost, gone = string(cache.ActLostWrite), string(cache.ActMisdirected)
	data := func(b byte) [][]byte { // of two segments, 4096 bytes in all
		p := bytes.Repeat([]byte{b}, 4096)
		return [][]byte{p[:1000], p[1000:]}
	}
	lose := func(c *cache.Cache, durable bool) {
		c.Broke(lost)
		c.LostWrite(0, 4096, data(2), durable)
	}
	misdirect := func(c *cache.Cache, off int64) {
		put(t, c, off, 2, 4096)
		c.Broke(gone)
		c.Misdirected(off, 0, 4096, false)
	}
	for _, tt := range []struct {
		name string
		do   func(c *cache.Cache)
		told cache.Act
		acts map[cache.Act]int // sectors
		at   []int64           // some that findings name
	}{
		{"a lost write that a flush promised", func(c *cache.Cache) {
			lose(c, false)
			flush(t, c)
		}, cache.ActLostWrite, map[cache.Act]int{cache.ActLostWrite: 8}, []int64{0, 3584}},
		{
			"a lost write with FUA", func(c *cache.Cache) { lose(c, true) },
			cache.ActLostWrite,
			map[cache.Act]int{cache.ActLostWrite: 8},
			[]int64{0},
		},
		{"a lost write that promises nothing", func(c *cache.Cache) { lose(c, false) }, cache.ActLostWrite, nil, nil},
		{"a lost write of what is there", func(c *cache.Cache) {
			put(t, c, 0, 2, 4096)
			lose(c, true)
			flush(t, c)
		}, cache.ActLostWrite, nil, nil},
		{"a lost write under a later one", func(c *cache.Cache) {
			lose(c, false)
			put(t, c, 0, 3, 2048)
			flush(t, c)
		}, cache.ActLostWrite, map[cache.Act]int{cache.ActLostWrite: 4}, []int64{2048}},
		{"a lost write of zeros", func(c *cache.Cache) {
			put(t, c, 0, 1, 4096)
			c.Broke(lost)
			c.LostWrite(0, 2048, nil, false)
			flush(t, c)
		}, cache.ActLostWrite, map[cache.Act]int{cache.ActLostWrite: 4}, []int64{0}},
		{"a lost write of long zeros", func(c *cache.Cache) {
			put(t, c, 0, 1, 4096)
			flush(t, c)
			c.Broke(lost)
			c.LostWrite(0, 4<<20, nil, true)
		}, cache.ActLostWrite, map[cache.Act]int{cache.ActLostWrite: 8}, []int64{0}},
		{"a misdirected write over a promise", func(c *cache.Cache) {
			put(t, c, 0, 1, 4096)
			put(t, c, 1<<20, 1, 2048)
			flush(t, c)
			misdirect(c, 1<<20)
			flush(t, c)
		}, cache.ActMisdirected, map[cache.Act]int{cache.ActMisdirected: 16}, []int64{0, 1 << 20, 1<<20 + 3584}},
		{
			"a misdirected write that promises nothing", func(c *cache.Cache) { misdirect(c, 1<<20) },
			cache.ActMisdirected,
			map[cache.Act]int{cache.ActMisdirected: 8},
			[]int64{1 << 20},
		},
		{"a misdirected write under a later one", func(c *cache.Cache) {
			misdirect(c, 1<<20)
			put(t, c, 1<<20, 3, 4096)
			put(t, c, 0, 3, 4096)
			flush(t, c)
		}, cache.ActMisdirected, nil, nil},
		{"another act", func(c *cache.Cache) { c.Broke("flip") }, "flip", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, memory(t, 8<<20), cache.Config{})
			tt.do(c)
			if !c.BrokenSinceCut() {
				t.Error("nothing is said to have happened")
			}
			r := cut(t, c, cache.CutOptions{Policy: cache.PolicyAll})
			if !maps.Equal(r.Verdict.Acts, tt.acts) || (r.Verdict.Class == cache.ClassHostile) != (len(tt.acts) > 0) {
				t.Errorf("verdict: %+v, want %v", r.Verdict, tt.acts)
			}
			if r.Class != cache.ClassHostile || fmt.Sprint(r.Hostile) != fmt.Sprintf("map[%s:1]", tt.told) {
				t.Errorf("class %v of %v, want hostile for one %s", r.Class, r.Hostile, tt.told)
			}
			for _, off := range tt.at {
				found := false
				for _, f := range r.Verdict.Findings {
					found = found || f.OffsetBytes == off
				}
				if !found {
					t.Errorf("findings %+v, want one at %d", r.Verdict.Findings, off)
				}
			}
			if n := c.Stats().Acts[tt.told]; n != 1 || c.BrokenSinceCut() {
				t.Errorf("%d acts are counted, or one is said to have happened since the cut", n)
			}
			// What has been left so is what there is from now on.
			if r = cut(t, c, cache.CutOptions{}); r.Class != cache.ClassLegal || r.Hostile != nil {
				t.Errorf("the next cut: class %v of %v", r.Class, r.Hostile)
			}
		})
	}
}

// TestCut_LiesThatDidNotShow: a drive that lied and lost nothing by it has left a
// legal image, and is hostile.
func TestCut_LiesThatDidNotShow(t *testing.T) {
	c := open(t, memory(t, 1<<20), cache.Config{})
	c.LieAboutFlush(true)
	c.IgnoreFUA(true)
	if _, err := c.WriteAtFUA(bytes.Repeat([]byte{1}, 512), 0); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	c.PromisedAll()
	c.PromisedRange(0, 512)
	r := cut(t, c, cache.CutOptions{Policy: cache.PolicyAll})
	want := map[cache.Act]uint64{cache.ActLyingFlush: 2, cache.ActIgnoredFUA: 2}
	if r.Verdict.Class != cache.ClassLegal || r.Class != cache.ClassHostile || !maps.Equal(r.Hostile, want) {
		t.Errorf("image %v, class %v, acts %v, want %v", r.Verdict.Class, r.Class, r.Hostile, want)
	}
}

// TestCut_LieAboutOneOfTwo: a lie about a write is no promise of another that has come
// there before the lie was told, pending still or not. What was lied about is promised.
func TestCut_LieAboutOneOfTwo(t *testing.T) {
	seen := make(map[string]int)
	for seed := range uint64(16) {
		for _, pending := range []bool{true, false} {
			m := memory(t, 1<<20)
			c := open(t, m, cache.Config{})
			put(t, c, 0, 1, 1024)
			put(t, c, 512, 2, 1024)
			c.PromisedRange(0, 1024) // of the first
			if !pending {            // the cache has nothing, and does not know what became of it
				for c.Stats().PendingBytes > 0 {
					c.EvictDropping()
				}
				if seed&1 != 0 {
					put(t, m, 0, 1, 1024)
				}
				if seed&2 != 0 {
					put(t, m, 512, 2, 1024)
				}
			}
			r := cut(t, c, cache.CutOptions{Policy: cache.PolicySubset, Seed: seed})
			want := cache.ClassHostile
			if at(t, m, 0) == 1 && at(t, m, 512) != 0 {
				want = cache.ClassLegal
			}
			if r.Verdict.Class != want || r.Class != cache.ClassHostile {
				t.Errorf("pending=%v, with %d and %d there: image %v for %v, disk %v; want the image %v and the disk hostile",
					pending, at(t, m, 0), at(t, m, 512), r.Verdict.Class, r.Verdict.Acts, r.Class, want)
			}
			seen[fmt.Sprint(pending, at(t, m, 0), at(t, m, 512))]++
		}
	}
	if len(seen) != 8 {
		t.Errorf("seen %v, want all that may become of two writes, twice", seen)
	}
}

// TestCut_LieBesideFUAUnderWay: a lie about a write is not one about a newer write with
// FUA to the same range that is not done yet.
func TestCut_LieBesideFUAUnderWay(t *testing.T) {
	c := open(t, memory(t, 1<<20), cache.Config{})
	put(t, c, 0, 1, 512)
	var r *cache.Report
	err := c.WriteFUAAfter(bytes.Repeat([]byte{2}, 512), 0, func() {
		c.PromisedRange(0, 512)
		r = cut(t, c, cache.CutOptions{Policy: cache.PolicyNone})
	})
	if err == nil {
		t.Error("the write with FUA is answered as done")
	}
	if len(r.Writes) != 2 || !r.Writes[0].Promised || r.Writes[1].Promised {
		t.Errorf("writes %+v, want two, of which the first is promised", r.Writes)
	}
}

// TestCut_LiesToldMeanwhile: what is told of while the power is being cut, of commands
// that had been executed, is of that cut, also in a replay, and not of the next.
func TestCut_LiesToldMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name string
		tell func(c *cache.Cache)
		act  cache.Act
	}{
		{"a write", func(c *cache.Cache) { c.PromisedRange(0, 512) }, cache.ActIgnoredFUA},
		{"a flush", func(c *cache.Cache) { c.PromisedAll() }, cache.ActLyingFlush},
		{"an act", func(c *cache.Cache) { c.Broke("flip") }, "flip"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := &notebook{}
			slow := hbatest.NewMedia(memory(t, 1<<20), hbatest.MediaConfig{})
			c := open(t, slow, cache.Config{SizeBytes: cache.MinSizeBytes, Recorder: n})
			put(t, c, 0, 1, 512)
			tt.tell(c)
			slow.Hold()
			var group sync.WaitGroup
			var first *cache.Report
			group.Go(func() { first = cut(t, c, cache.CutOptions{Policy: cache.PolicyAll}) })
			slow.WaitHeld(1) // the cut, with what was pending
			tt.tell(c)
			slow.Release()
			group.Wait()
			next := cut(t, c, cache.CutOptions{})
			want := map[cache.Act]uint64{tt.act: 2}
			if first.Class != cache.ClassHostile || !maps.Equal(first.Hostile, want) {
				t.Errorf("class %v of %v, want hostile for %v", first.Class, first.Hostile, want)
			}
			if next.Class != cache.ClassLegal || next.Hostile != nil {
				t.Errorf("the next cut: class %v of %v", next.Class, next.Hostile)
			}
			r, err := cache.NewReplay(memory(t, 1<<20), cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
			if err != nil {
				t.Fatal(err)
			}
			live := []*cache.Report{first, next}
			for _, s := range n.all() {
				if err := r.Do(&s, time.Time{}); err != nil {
					t.Fatal(err)
				}
				if s.Kind != cache.StepImage {
					continue
				}
				if got := r.Report(); got.Class != live[0].Class || !maps.Equal(got.Hostile, live[0].Hostile) {
					t.Errorf("replayed: class %v of %v, want %v of %v", got.Class, got.Hostile, live[0].Class, live[0].Hostile)
				}
				live = live[1:]
			}
			if len(live) > 0 {
				t.Errorf("%d cuts were not replayed", len(live))
			}
		})
	}
}
