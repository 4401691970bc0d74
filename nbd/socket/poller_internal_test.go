package socket

import (
	"sync"
	"testing"
	"time"
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

// TestClaim_NeverTooMany: who asks in vain takes nothing, not for a moment: one that
// has the right would give it up.
func TestClaim_NeverTooMany(t *testing.T) {
	var p poller
	p.processors.Store(2)
	p.open.Store(3)
	if !p.claim() {
		t.Fatal("nobody has it, and it cannot be had")
	}
	var asking sync.WaitGroup
	for range 2 {
		asking.Go(func() {
			for range 100_000 {
				if p.claim() {
					t.Error("two may block on two processors")
					return
				}
			}
		})
	}
	for range 100_000 {
		if p.tooMany() {
			t.Error("too many have the right, and there is but one")
			break
		}
	}
	asking.Wait()
}

// TestCrowded: one that waits to receive leaves its processor to others; one that
// waits to send has none.
func TestCrowded(t *testing.T) {
	for _, tt := range []struct {
		processors, open, waiting int32
		want                      bool
	}{{2, 1, 0, false}, {2, 2, 0, true}, {2, 3, 2, false}, {2, 9, 7, true}, {1, 1, 0, true}, {1, 1, 1, false}} {
		var p poller
		p.processors.Store(tt.processors)
		p.open.Store(tt.open)
		p.waiting.Store(tt.waiting)
		if got := p.crowded(); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestBlock_GivenUp: a connection that may block no more does not.
func TestBlock_GivenUp(t *testing.T) {
	c := &Conn{mayBlock: true}
	old := polling.processors.Load()
	defer polling.processors.Store(old)
	polling.processors.Store(2)
	polling.blocking.Add(2)
	if c.block() {
		t.Error("two of two processors are waited with")
	}
	if n := polling.blocking.Load(); n != 1 {
		t.Errorf("%d hold the right, want the other one", n)
	}
	polling.giveUp()
	if !c.block() {
		t.Error("nobody waits, and it may not")
	}
	polling.giveUp()
}

// TestStepAside: a long turn of others is followed by four times as long without.
func TestStepAside(t *testing.T) {
	var p poller
	const from = 5 * time.Millisecond
	for _, tt := range []struct{ took, until time.Duration }{
		{0, 0},
		{time.Millisecond, 0},
		{2 * time.Millisecond, from + 10*time.Millisecond},
	} {
		p.stayUntilNs.Store(0)
		p.stepped(from, from+tt.took)
		if got := time.Duration(p.stayUntilNs.Load()); got != tt.until {
			t.Errorf("after %v nobody steps aside until %v, want %v", tt.took, got, tt.until)
		}
	}
	if p.mayStepAside(from+10*time.Millisecond-1) || !p.mayStepAside(from+10*time.Millisecond) {
		t.Error("somebody steps aside too early or too late")
	}
}
