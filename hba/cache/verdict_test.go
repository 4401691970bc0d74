package cache_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/cache"
)

// TestCut_HarmIsNoExcuse: a promise that was a lie is named even where the sector
// was harmed as well, unless a correct drive could have left it so: it was writing
// there again, and what it has left of the old is what was promised.
func TestCut_HarmIsNoExcuse(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage cache.Damage
		again  bool // the sector is written after the promise
		harm   cache.Act
		broken bool
	}{
		{"garbage", cache.DamageGarbage, false, cache.ActGarbage, true},
		{"unreadable", cache.DamageUnreadable, false, cache.ActUnreadable, true},
		{"garbage while written again", cache.DamageGarbage, true, cache.ActGarbage, false},
		{"unreadable while written again", cache.DamageUnreadable, true, cache.ActUnreadable, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, memory(t, 1<<20), cache.Config{SectorBytes: 4096})
			c.LieAboutFlush(true)
			put(t, c, 0, 1, 4096)
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			if tt.again {
				put(t, c, 0, 2, 4096)
			}
			r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone, Damage: tt.damage})
			want := 0
			if tt.broken {
				want = 1
			}
			if r.Verdict.Acts[tt.harm] != 1 || r.Verdict.Acts[cache.ActLyingFlush] != want || (r.Verdict.Class == cache.ClassHostile) != tt.broken {
				t.Errorf("verdict: %+v", r.Verdict)
			}
		})
	}
}

// TestCut_TornOverAPromise does the same for sectors of which pieces survive.
func TestCut_TornOverAPromise(t *testing.T) {
	harmed, broken := 0, 0
	for seed := range uint64(64) {
		c := open(t, memory(t, 1<<20), cache.Config{SectorBytes: 4096})
		c.LieAboutFlush(true)
		put(t, c, 0, 1, 4096)
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		put(t, c, 0, 2, 8192)
		r := cut(t, c, cache.CutOptions{Seed: seed, TearBytes: 512})
		p := make([]byte, 4096)
		if _, err := c.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		lost := bytes.IndexByte(p, 0) >= 0 // something is older than what was promised
		if got := r.Verdict.Acts[cache.ActLyingFlush] == 1; got != lost {
			t.Errorf("seed %d: a broken promise was seen: %v, want %v: %+v", seed, got, lost, r.Verdict)
		}
		whole := bytes.Equal(p, bytes.Repeat(p[:1], 4096))
		if !whole && r.Verdict.Acts[cache.ActTornSector] == 0 {
			t.Errorf("seed %d: the sector is torn: %+v", seed, r.Verdict)
		}
		if !whole && lost {
			broken++
		} else if !whole {
			harmed++
		}
	}
	if harmed == 0 || broken == 0 {
		t.Errorf("%d sectors were torn over what was promised, %d over what was before", harmed, broken)
	}
}

// TestCache_FUAIsIgnoredOrNot: a write is either durable or promised by a lie,
// whenever the switch is thrown.
func TestCache_FUAIsIgnoredOrNot(t *testing.T) {
	var c *cache.Cache
	c = open(t, memory(t, 1<<20), cache.Config{Now: func() time.Time { // asked while the write is put into the cache
		c.IgnoreFUA(false)
		return time.Time{}
	}})
	c.IgnoreFUA(true)
	if _, err := c.WriteAtFUA(bytes.Repeat([]byte{1}, 512), 0); err != nil {
		t.Fatal(err)
	}
	r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone})
	if r.Verdict.Acts[cache.ActIgnoredFUA] != 1 {
		t.Errorf("verdict: %+v, want the lie", r.Verdict)
	}
}
