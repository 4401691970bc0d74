package hba

import (
	"math"
	"testing"
)

func TestPhaseAt(t *testing.T) {
	for _, tt := range []struct {
		position uint32
		entries  int
		want     uint32
	}{
		{0, 4, 1},
		{3, 4, 1},
		{4, 4, 0},
		{7, 4, 0},
		{8, 4, 1},
		{math.MaxUint32, 4, 0}, // so that position 0 begins an odd pass again
		{math.MaxUint32 - 4, 4, 1},
		{math.MaxUint32, MaxRingEntries, 0},
	} {
		if got := PhaseAt(tt.position, tt.entries); got != tt.want {
			t.Errorf("PhaseAt(%d, %d) = %d, want %d", tt.position, tt.entries, got, tt.want)
		}
	}
}

func TestJudge(t *testing.T) {
	const top = math.MaxUint32
	for _, tt := range []struct {
		name              string
		old, value, limit uint32
		want              verdict
	}{
		{"one more", 10, 11, 18, doorbellNewer},
		{"all there is room for", 10, 18, 18, doorbellNewer},
		{"one too many", 10, 19, 18, doorbellBad},
		{"same", 10, 10, 18, doorbellStale},
		{"overtaken", 10, 9, 18, doorbellStale},
		{"far behind", 10, 10 + 1<<31, 18, doorbellStale},
		{"far ahead", 10, 9 + 1<<31, 18, doorbellBad},
		{"no room", 10, 11, 10, doorbellBad},
		{"across the wrap", top, 3, 4, doorbellNewer},
		{"too many across the wrap", top, 5, 4, doorbellBad},
		{"behind across the wrap", 2, top, 4, doorbellStale},
	} {
		if got := judge(tt.old, tt.value, tt.limit); got != tt.want {
			t.Errorf("%s: judge(%d, %d, %d) = %d, want %d", tt.name, tt.old, tt.value, tt.limit, got, tt.want)
		}
	}
}

// FuzzJudge compares judge with 64-bit arithmetic, in which nothing wraps.
func FuzzJudge(f *testing.F) {
	f.Add(uint32(0), int32(1), uint16(8))
	f.Add(uint32(math.MaxUint32), int32(1), uint16(1))
	f.Add(uint32(5), int32(math.MinInt32), uint16(0))
	f.Fuzz(func(t *testing.T, old uint32, ahead int32, room uint16) {
		wide := int64(old) + 1<<33
		value, limit := wide+int64(ahead), wide+int64(room)
		want := doorbellNewer
		if value <= wide {
			want = doorbellStale
		} else if value > limit {
			want = doorbellBad
		}
		if got := judge(uint32(wide), uint32(value), uint32(limit)); got != want {
			t.Fatalf("judge(%d, %d, %d) = %d, want %d", uint32(wide), uint32(value), uint32(limit), got, want)
		}
	})
}
