package disk

import "testing"

// Connections get the lowest free number; the 64th gets none.
func TestGroupSet(t *testing.T) {
	var g groupSet
	for want := range uint8(63) {
		if got := g.take(); got != want+1 {
			t.Fatalf("connection %d gets number %d", want+1, got)
		}
	}
	if got := g.take(); got != 0 {
		t.Errorf("one more gets number %d, want none", got)
	}
	g.give(0)
	for _, n := range []uint8{40, 7} {
		g.give(n)
	}
	for _, want := range []uint8{7, 40, 0} {
		if got := g.take(); got != want {
			t.Errorf("got number %d, want %d", got, want)
		}
	}
}
