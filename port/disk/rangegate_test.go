package disk

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

func gateCommand(g *rangeGate, from, to uint64) *command {
	s := &session{d: &Disk{}}
	g.register(&s.fast)
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

// From many goroutines, a holder of a block alone is alone, and nobody is
// forgotten.
func TestRangeGate_Stress(t *testing.T) {
	const workers, rounds, blocks = 6, 3000, 8
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var g rangeGate
	var shared, exclusive [blocks]atomic.Int32
	var wg sync.WaitGroup
	let := make([]chan struct{}, workers)
	byCommand := map[*command]int{}
	commands := make([]*command, workers)
	for i := range workers {
		let[i] = make(chan struct{}, 1)
		commands[i] = gateCommand(&g, 0, 0)
		byCommand[commands[i]] = i
	}
	wake := func(granted []*command) {
		for _, c := range granted {
			let[byCommand[c]] <- struct{}{}
		}
	}
	for i := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			c := commands[i]
			for range rounds {
				b := rng.IntN(blocks)
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
				wake(list(g.leave(c)))
			}
		})
	}
	wg.Wait()
	if len(g.running) != 0 || len(g.waiting) != 0 || g.exclusive.Load() != 0 {
		t.Errorf("left over: %d running, %d waiting, %d exclusive", len(g.running), len(g.waiting), g.exclusive.Load())
	}
}
