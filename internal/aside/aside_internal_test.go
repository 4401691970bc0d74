package aside

import (
	"testing"
	"time"
)

// TestDebt: a long turn of others is followed by four times as long without.
func TestDebt(t *testing.T) {
	const from = 5 * time.Millisecond
	for _, tt := range []struct{ took, until time.Duration }{
		{0, 0},
		{time.Millisecond, 0},
		{2 * time.Millisecond, from + 10*time.Millisecond},
	} {
		var d debt
		d.add(from, from+tt.took)
		if got := time.Duration(d.untilNs.Load()); got != tt.until {
			t.Errorf("after %v nobody steps aside until %v, want %v", tt.took, got, tt.until)
		}
		if d.paid(tt.until-1) || !d.paid(tt.until) {
			t.Errorf("after %v somebody steps aside too early or too late", tt.took)
		}
	}
}

// TestStep: nobody steps aside in debt.
func TestStep(t *testing.T) {
	defer owed.untilNs.Store(0)
	owed.untilNs.Store(int64(time.Since(epoch) + time.Hour))
	if Step() {
		t.Error("it steps aside in debt")
	}
	owed.untilNs.Store(0)
	if !Step() {
		t.Error("it does not step aside, and nothing is owed")
	}
}
