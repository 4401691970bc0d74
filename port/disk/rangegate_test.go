package disk

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

func gateCommand(g *rangeGate, from, to uint64) *command {
	s := &session{d: &Disk{}}
	g.register(s)
	return &command{s: s, lockFrom: from, lockTo: to}
}

// list collects what the gate has granted.
func list(granted *command) (all []*command) {
	for c := granted; c != nil; {
		next := c.nextGranted
		c.nextGranted = nil
		all = append(all, c)
		c = next
	}
	return all
}

// A partial write waits for whole-block writes that came before it, and holds
// back those that overlap and come after.
func TestRangeGate_ExclusiveWaitsForFast(t *testing.T) {
	var g rangeGate
	early, part := gateCommand(&g, 0, 512), gateCommand(&g, 0, 512)
	if !g.enterFast(&early.s.fast) {
		t.Fatal("the fast way is closed with no partial write about")
	}
	early.hold = holdFast
	if got := list(g.enterSlow(part, holdExclusive)); len(got) != 0 {
		t.Fatal("a partial write ran beside a write that it may have missed")
	}
	late, far := gateCommand(&g, 0, 4096), gateCommand(&g, 8192, 8704)
	for _, c := range []*command{late, far} {
		if g.enterFast(&c.s.fast) {
			t.Fatal("the fast way is open with a partial write about")
		}
	}
	if got := list(g.enterSlow(far, holdShared)); !slices.Contains(got, far) {
		t.Error("a write elsewhere was held back")
	}
	if got := list(g.enterSlow(late, holdShared)); len(got) != 0 {
		t.Error("a write of the same block overtook the partial one")
	}
	if got := list(g.leave(early)); !slices.Contains(got, part) || slices.Contains(got, late) {
		t.Errorf("after the early write: %d granted, want the partial one alone", len(got))
	}
	if got := list(g.leave(part)); !slices.Contains(got, late) {
		t.Error("the late write was forgotten")
	}
	list(g.leave(late))
	list(g.leave(far))
	if !g.enterFast(&late.s.fast) {
		t.Error("the fast way stays closed")
	}
}

// From many goroutines, a holder of a block alone is alone, nobody begins to write a block
// where a client that has gone has a write under way, and nobody is forgotten.
func TestRangeGate_Stress(t *testing.T) {
	const workers, rounds, blocks = 6, 3000, 8
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var g rangeGate
	var shared, exclusive [blocks]atomic.Int32
	var wg sync.WaitGroup
	// fences counts the fences; gone is the number of the one around a block, or 0.
	var fencesMu sync.Mutex
	var fences atomic.Int64
	var gone [blocks]atomic.Int64
	let := make([]chan struct{}, workers)
	for i := range workers {
		let[i] = make(chan struct{}, 1)
	}
	wake := func(granted []*command) {
		for _, c := range granted {
			let[c.slot] <- struct{}{}
		}
	}
	// leaveBehind has the client of c go while c writes b.
	leaveBehind := func(c *command, b int) {
		fencesMu.Lock()
		g.fence(c.s)
		if gone[b].CompareAndSwap(0, fences.Load()+1) {
			fences.Add(1)
		}
		fencesMu.Unlock()
		wake(list(g.narrowFence(c.s, []span{{c.lockFrom, c.lockTo}})))
	}
	for i := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			c := gateCommand(&g, 0, 0)
			for range rounds {
				if c.s.fence.narrow {
					g.unregister(c.s)
					c = gateCommand(&g, 0, 0)
				}
				c.slot = i
				b := rng.IntN(blocks)
				before := fences.Load()
				c.lockFrom, c.lockTo = uint64(b), uint64(b+1)
				alone := rng.IntN(4) == 0
				switch {
				case alone:
					wake(list(g.enterSlow(c, holdExclusive)))
					<-let[i]
				case g.enterFast(&c.s.fast):
					c.hold = holdFast
				default:
					wake(list(g.enterSlow(c, holdShared)))
					<-let[i]
				}
				if alone {
					if exclusive[b].Add(1) != 1 || shared[b].Load() != 0 {
						t.Error("a partial write is not alone")
					}
					exclusive[b].Add(-1)
				} else {
					shared[b].Add(1)
					if exclusive[b].Load() != 0 {
						t.Error("a write runs beside a partial one")
					}
					shared[b].Add(-1)
				}
				if n := gone[b].Load(); n != 0 && n <= before {
					t.Error("a write began where one of a client that had gone was under way")
				}
				if rng.IntN(8) == 0 {
					leaveBehind(c, b)
					runtime.Gosched()
					gone[b].Store(0)
				}
				wake(list(g.leave(c)))
			}
		})
	}
	wg.Wait()
	if len(g.running) != 0 || len(g.waiting) != 0 || len(g.fenced) != 0 || g.exclusive.Load() != 0 {
		t.Errorf("left over: %d running, %d waiting, %d fences, %d exclusive", len(g.running), len(g.waiting), len(g.fenced), g.exclusive.Load())
	}
}

// A session whose client has gone keeps others out of where it may have writes under way,
// until they are over, and nowhere else once it begins no more.
func TestRangeGate_Fence(t *testing.T) {
	var g rangeGate
	gone, same, far := gateCommand(&g, 0, 512), gateCommand(&g, 0, 4096), gateCommand(&g, 8192, 8704)
	if !g.enterFast(&gone.s.fast) {
		t.Fatal("the fast way is closed with no fence about")
	}
	gone.hold = holdFast
	g.fence(gone.s)
	for _, c := range []*command{same, far} {
		if g.enterFast(&c.s.fast) {
			t.Fatal("the fast way is open with a fence about")
		}
		if got := list(g.enterSlow(c, holdShared)); len(got) != 0 {
			t.Error("a write passed a fence that is still open to both sides")
		}
	}
	if got := list(g.narrowFence(gone.s, []span{{0, 512}})); !slices.Equal(got, []*command{far}) {
		t.Errorf("%d granted by the narrow fence, want the write elsewhere alone", len(got))
	}
	if got := list(g.leave(gone)); !slices.Equal(got, []*command{same}) {
		t.Errorf("%d granted when the last write was over, want the one of the same block", len(got))
	}
	list(g.leave(same))
	list(g.leave(far))
	if !g.enterFast(&far.s.fast) {
		t.Error("the fast way stays closed")
	}
	far.hold = holdFast
	list(g.leave(far))
	// A session without a write has no fence.
	g.narrowFence(far.s, []span{{0, 512}})
	g.fence(far.s)
	if !g.enterFast(&same.s.fast) {
		t.Error("the fast way is closed by a session that has nothing under way")
	}
}

// What a lost session has under way is not waited for, whatever it is and whoever comes.
func TestRangeGate_Lost(t *testing.T) {
	for _, tt := range []struct{ gone, same hold }{
		{holdFast, holdShared}, {holdFast, holdExclusive}, {holdExclusive, holdShared}, {holdExclusive, holdExclusive},
	} {
		var g rangeGate
		gone, same := gateCommand(&g, 0, 512), gateCommand(&g, 0, 4096)
		if tt.gone == holdFast {
			g.enterFast(&gone.s.fast)
			gone.hold = holdFast
		} else {
			list(g.enterSlow(gone, tt.gone))
		}
		g.fence(gone.s)
		if got := list(g.enterSlow(same, tt.same)); len(got) != 0 {
			t.Errorf("%+v: a write passed a fence", tt)
		}
		if got := list(g.lose()); !slices.Equal(got, []*command{same}) {
			t.Errorf("%+v: %d granted when what is behind the fence was lost, want the write that waited", tt, len(got))
		}
		list(g.leave(same))
		list(g.leave(gone))
		if !g.enterFast(&same.s.fast) {
			t.Errorf("%+v: the fast way stays closed", tt)
		}
		if len(g.fenced) != 0 || g.exclusive.Load() != 0 {
			t.Errorf("%+v: left over: %d fences, %d exclusive", tt, len(g.fenced), g.exclusive.Load())
		}
	}
}

// A fence elsewhere changes nothing about the order of others.
func TestRangeGate_OrderBesideFence(t *testing.T) {
	var g rangeGate
	gone, running := gateCommand(&g, 0, 512), gateCommand(&g, 8192, 8704)
	long, short := gateCommand(&g, 8192, 12288), gateCommand(&g, 9216, 9728)
	list(g.enterSlow(gone, holdShared))
	g.fence(gone.s)
	list(g.narrowFence(gone.s, []span{{0, 512}}))
	for _, x := range []struct {
		c    *command
		hold hold
		want []*command
	}{{running, holdShared, []*command{running}}, {long, holdExclusive, nil}, {short, holdShared, nil}} {
		if got := list(g.enterSlow(x.c, x.hold)); !slices.Equal(got, x.want) {
			t.Errorf("write of %d to %d: %d granted, want %d", x.c.lockFrom, x.c.lockTo, len(got), len(x.want))
		}
	}
	for _, x := range []struct{ c, want *command }{{running, long}, {long, short}} {
		if got := list(g.leave(x.c)); !slices.Equal(got, []*command{x.want}) {
			t.Errorf("%d granted, want the next one in line", len(got))
		}
	}
}

// Writes of sessions that are both gone do not wait for each other in a circle, whatever
// waits for what when their clients go.
func TestRangeGate_FencesInTurn(t *testing.T) {
	var g rangeGate
	first, second, alive := gateCommand(&g, 0, 512), gateCommand(&g, 0, 512), gateCommand(&g, 0, 512)
	g.fence(first.s)
	list(g.enterSlow(second, holdExclusive)) // waits for whatever the first may begin
	list(g.enterSlow(alive, holdExclusive))  // waits for both
	g.fence(second.s)
	if got := list(g.enterSlow(first, holdExclusive)); !slices.Equal(got, []*command{first}) {
		t.Fatalf("%d granted, want the write that the first session has yet begun", len(got))
	}
	for _, c := range []*command{second, first} {
		if got := list(g.narrowFence(c.s, []span{{0, 512}})); len(got) != 0 {
			t.Errorf("%d granted with a write under way", len(got))
		}
	}
	if got := list(g.leave(first)); !slices.Equal(got, []*command{second}) {
		t.Errorf("%d granted by the first session's end, want the second's write", len(got))
	}
	if got := list(g.leave(second)); !slices.Equal(got, []*command{alive}) {
		t.Errorf("%d granted by the second session's end, want the live one's", len(got))
	}
	list(g.leave(alive))
	if len(g.fenced) != 0 || g.exclusive.Load() != 0 {
		t.Errorf("left over: %d fences, %d exclusive", len(g.fenced), g.exclusive.Load())
	}
}
