package disk

import (
	"sync/atomic"

	"github.com/vhbad/vhbad/nbd"
)

// Reads that look for holes.
const (
	// sparseMinBytes is the shortest read that asks the unit for holes. One more
	// command costs about as much as moving this many bytes.
	sparseMinBytes = 32 << 10
	// holeMinBytes is the shortest hole that a client is told of: a chunk of its
	// own, and a command more for the data behind it.
	holeMinBytes = 4 << 10
)

// learnData notes the extent of data around the read that the answer shows.
func (c *command) learnData() {
	g := c.s.d.geometry.Load()
	a := &c.status
	data := run{from: c.pos, to: c.pos}
	for data.to < c.end {
		r, ok := c.nextRun(g, data.to)
		if !ok || r.state&nbd.StateZero != 0 {
			break
		}
		data.from, data.to = min(data.from, r.from), r.to
	}
	a.next = 0
	c.s.known.learn(data.from, data.to, data.to >= c.end)
}

// skipHoles tells the client of holes at pos, and moves until to where the next
// one begins. A range that the answer does not cover is read: data are always right.
func (c *command) skipHoles(g *geometry) {
	for c.pos < c.end {
		r, ok := c.nextRun(g, c.pos)
		to := min(r.to, c.end)
		if !ok || !c.isHole(r, c.pos, to) {
			break
		}
		if !c.req.AddHole(int(c.pos-c.req.OffsetBytes), int(to-c.pos)) {
			c.until = c.end // it has heard of enough
			return
		}
		c.pos = to
	}
	c.until = c.pos
	for c.until < c.end {
		r, ok := c.nextRun(g, c.until)
		if !ok {
			c.until = c.end
			return
		}
		to := min(r.to, c.end)
		if c.until > c.pos && c.isHole(r, c.until, to) {
			return
		}
		c.until = to
	}
}

// isHole reports whether a run, as far as it goes from one offset to another,
// is worth telling as a hole.
func (c *command) isHole(r run, from, to uint64) bool {
	return r.state&nbd.StateZero != 0 && to-from >= holeMinBytes
}

// knownData lets reads skip asking for holes where there were none.
//
// It may be wrong, as it does not learn of discards by others, and readers may see half
// of a change. Neither does harm: reading what has become a hole gives zeros, which is
// right; only making up holes would be wrong. So it needs no lock. It forgets after a
// while, so that new holes are found eventually.
type knownData struct {
	// from and to are an extent in which there were only data.
	from, to atomic.Uint64
	// vouches is how many more reads the extent is good for.
	vouches atomic.Int32
	// fruitless counts questions in a row that found no hole; pass is how many more
	// reads skip the question because of that.
	fruitless, pass atomic.Int32
}

const (
	knownVouches = 1024
	// patience is how many fruitless questions in a row have no consequence; further
	// ones make questions rarer, down to one read in about maxPass.
	patience = 4
	maxPass  = 64
)

// worthAsking reports whether a read of a range should ask for holes.
func (k *knownData) worthAsking(from, to uint64) bool {
	if from >= k.from.Load() && to <= k.to.Load() {
		if n := k.vouches.Load(); n > 0 {
			k.vouches.Store(n - 1)
			return false
		}
	}
	if n := k.pass.Load(); n > 0 {
		k.pass.Store(n - 1)
		return false
	}
	return true
}

// learn notes an extent of data; fruitless: the question found no hole.
func (k *knownData) learn(from, to uint64, fruitless bool) {
	if from < to {
		k.from.Store(from)
		k.to.Store(to)
		k.vouches.Store(knownVouches)
	}
	if !fruitless {
		k.fruitless.Store(0)
		k.pass.Store(0)
		return
	}
	n := k.fruitless.Load() + 1
	if n > patience {
		k.pass.Store(min(int32(1)<<min(n-patience, 30), maxPass))
	}
	k.fruitless.Store(min(n, 32))
}

// forget is called when this session makes a hole.
func (k *knownData) forget() {
	if k.vouches.Load() != 0 {
		k.vouches.Store(0)
	}
	if k.pass.Load() != 0 {
		k.pass.Store(0)
	}
	if k.fruitless.Load() != 0 {
		k.fruitless.Store(0)
	}
}
