package hba

import (
	"testing"

	"github.com/vhbad/vhbad/hba/fault"
)

// TestQueue_Fetchable: there is never room for less than nothing, whatever
// completions that answer no command have been counted.
func TestQueue_Fetchable(t *testing.T) {
	for _, tt := range []struct {
		name                          string
		tail, head, consumed, surplus uint32
		want                          uint32
	}{
		{"nothing submitted", 5, 5, 5, 0, 0},
		{"all submitted", 25, 5, 5, 0, 16},
		{"some room", 25, 15, 5, 0, 6},
		{"a surplus completion takes room", 25, 15, 5, 2, 4},
		{"full", 25, 21, 5, 0, 0},
		{"full, and a surplus completion is looking for room", 25, 21, 5, 1, 0},
		{"full, and so are many", 25, 21, 5, 7, 0},
		{"across the wrap", 4, ^uint32(0), ^uint32(0) - 14, 0, 2},
		{"consumed since head was loaded", 25, 5, 9, 0, 20},
	} {
		q := &queue{completionEntries: 16}
		q.tail.Store(tt.tail)
		q.head.Store(tt.head)
		q.consumed.Store(tt.consumed)
		q.surplus.Store(tt.surplus)
		if got := q.fetchable(); got != tt.want {
			t.Errorf("%s: %d commands, want %d", tt.name, got, tt.want)
		}
	}
}

// TestQueue_SurplusWithoutRoom: what a completion has taken and given back, an
// engine may have missed. It is told.
func TestQueue_SurplusWithoutRoom(t *testing.T) {
	d := &Device{}
	d.intr.init(2)
	q := &queue{dev: d, completionEntries: 64}
	q.head.Store(60)
	q.tail.Store(60)
	if raise := q.postSurplus(&Completion{}, &fault.Decision{}, nil); raise != 0 || q.surplus.Load() != 0 {
		t.Fatalf("a completion has found room that there is not")
	}
	if d.runOwed.Load() != 0 {
		t.Error("an engine is told of room that it has no use for")
	}
	q.tail.Store(61)
	q.postSurplus(&Completion{}, &fault.Decision{}, nil)
	if d.runOwed.Load() != 1 {
		t.Error("an engine that found no room is not told of it")
	}
}
