package aside

import (
	"testing"
	"time"
)

// TestStep: a long turn of others is followed by four times as long without.
func TestStep(t *testing.T) {
	const from = 5 * time.Millisecond
	for _, tt := range []struct{ took, until time.Duration }{
		{0, 0},
		{time.Millisecond, 0},
		{2 * time.Millisecond, from + 10*time.Millisecond},
		{time.Hour, from + time.Hour + 4*time.Second},
	} {
		now, turns := from, 0
		s := stepper{now: func() time.Duration { return now }}
		s.yield = func() {
			now += tt.took
			turns++
		}
		if !s.step() || turns != 1 {
			t.Errorf("nothing is owed, and there were %d turns", turns)
		}
		if got := time.Duration(s.paidNs.Load()); got != tt.until {
			t.Errorf("after %v nobody steps aside until %v, want %v", tt.took, got, tt.until)
		}
		now = tt.until - 1
		if s.step() || turns != 1 {
			t.Errorf("after %v somebody steps aside too early", tt.took)
		}
		now = tt.until
		if !s.step() || turns != 2 {
			t.Errorf("after %v nobody steps aside when that is paid for", tt.took)
		}
	}
}

// TestStep_Most: of turns at the same time the one that costs most is paid for.
func TestStep_Most(t *testing.T) {
	var now time.Duration
	s := stepper{now: func() time.Duration { return now }}
	s.yield = func() {
		now += 2 * time.Millisecond
		s.paidNs.Store(int64(time.Hour)) // by another
	}
	s.step()
	if got := time.Duration(s.paidNs.Load()); got != time.Hour {
		t.Errorf("nobody steps aside until %v, want %v", got, time.Hour)
	}
}

// TestStep_Process: the process's clock goes on, and its debts count.
func TestStep_Process(t *testing.T) {
	defer process.paidNs.Store(0)
	before := process.now()
	process.paidNs.Store(0)
	if !Step() {
		t.Error("nothing is owed, and it does not step aside")
	}
	if process.now() <= before {
		t.Error("the clock stands still")
	}
	process.paidNs.Store(int64(process.now() + time.Hour))
	if Step() {
		t.Error("it steps aside in debt")
	}
}
