package socket

import (
	"testing"
)

// TestClaim: one processor is left, and with one alone only one connection takes
// it.
func TestClaim(t *testing.T) {
	for _, tt := range []struct {
		processors, open int32
		want             int
	}{{1, 1, 1}, {1, 2, 0}, {2, 1, 1}, {2, 9, 1}, {4, 9, 3}} {
		var p poller
		p.processors.Store(tt.processors)
		p.open.Store(tt.open)
		got := 0
		for range tt.open {
			if p.claim() {
				got++
			}
		}
		if got != tt.want {
			t.Errorf("%d processors, %d connections: %d may block, want %d", tt.processors, tt.open, got, tt.want)
		}
		if tt.want > 0 {
			p.giveUp()
			if !p.claim() {
				t.Errorf("%d processors, %d connections: what was given up cannot be had", tt.processors, tt.open)
			}
		}
	}
}
