package attach

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// orphan attaches /dev/nbd0 by a process that ends.
func orphan(t *testing.T, connections int) *keeping {
	t.Helper()
	p := newKeeping(t)
	a, err := p.hold(deadline(t), p.options(connections))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	p.runs = func(int) bool { return false }
	return p
}

// poll asks again and again until ok says yes.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := deadline(t)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not so in time: %s", what)
		}
	}
}

// await waits until the driver has so many connections that have not ended.
func (p *keeping) await(t *testing.T, connections int) {
	t.Helper()
	poll(t, "all connections", func() bool { return p.alive() == connections })
}

// awaitAsk waits until something was asked over netlink.
func (p *keeping) awaitAsk(t *testing.T, ask string) {
	t.Helper()
	poll(t, ask, func() bool { return slices.Contains(p.asks(), ask) })
}

// beBlind has the driver overlook for some requests that connections ended.
func (k *fakeKernel) beBlind(requests int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.blind = requests
}

// takeOver keeps the device of an orphan.
func (p *keeping) takeOver(t *testing.T, connections int) *multicast {
	t.Helper()
	news := newMulticast(p.fakeKernel)
	a, err := p.hold(deadline(t), p.options(connections))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Device{
		Path: p.path(0), Export: "d", SizeBytes: 1 << 20, BlockBytes: 512, Connections: connections, BackendID: p.String(),
	}); a.Device != want || !a.TakenOver {
		t.Errorf("took over %v: %+v, want %+v", a.TakenOver, a.Device, want)
	}
	p.keep(t, a)
	return news
}

func TestHold_TakesOver(t *testing.T) {
	p := orphan(t, 3)
	died := p.takeOver(t, 3).wait()
	if !slices.Contains(p.asks(), "reconfigure 0 4=60 8=60") {
		t.Errorf("netlink: %q, want the timeouts set", p.asks())
	}
	// One ends, then the others; then those that replaced them.
	p.drop(1)
	died(0)
	p.log.waitFor(t, "msg=reconnected", 1)
	p.await(t, 3)
	for range 2 {
		p.drop(-1)
		died(0)
		p.await(t, 3)
	}
}

// Connections that ended before anybody took over are replaced without a LINK_DEAD.
func TestHold_TakesOverDead(t *testing.T) {
	p := orphan(t, 2)
	p.drop(-1)
	p.takeOver(t, 2)
	p.log.waitFor(t, "msg=reconnected", 1)
	p.await(t, 2)
}

func TestHold_TakesOverDriverNoticesLate(t *testing.T) {
	p := orphan(t, 2)
	died := p.takeOver(t, 2).wait()
	p.awaitAsk(t, "reconfigure 0 sockets=2") // the look at the beginning
	p.beBlind(2)
	p.drop(-1)
	died(0)
	p.log.waitFor(t, "msg=reconnected", 1)
	p.await(t, 2)
}

func TestHold_Others(t *testing.T) {
	t.Run("the process is there", func(t *testing.T) {
		p := orphan(t, 1)
		p.runs = func(int) bool { return true }
		if _, err := p.hold(deadline(t), p.options(1)); !errors.Is(err, ErrBusy) {
			t.Errorf("%v, want ErrBusy", err)
		}
	})
	t.Run("another backend", func(t *testing.T) {
		p := orphan(t, 1)
		o := p.options(1)
		o.BackendID = "another"
		if _, err := p.hold(deadline(t), o); !errors.Is(err, ErrBusy) {
			t.Errorf("%v, want ErrBusy", err)
		}
	})
	t.Run("disconnected by force, and mounted", func(t *testing.T) {
		p := orphan(t, 1)
		p.beLazy()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := p.detach(ctx, "nbd0", true); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if _, err := p.hold(deadline(t), p.options(1)); err == nil || !strings.Contains(err.Error(), "take over") {
			t.Errorf("%v, want that it cannot be taken over", err)
		}
	})
	t.Run("no multicast", func(t *testing.T) {
		p := orphan(t, 1)
		a, err := p.hold(deadline(t), p.options(1))
		if err != nil {
			t.Fatal(err)
		}
		p.keep(t, a)
		if err := <-p.ended; err == nil || !strings.Contains(err.Error(), "does not tell of dead connections") {
			t.Errorf("Keep: %v, want that it cannot know", err)
		}
	})
}
