package media

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxWarmChunks bounds the memory that waits to be taken again: 64 MiB.
	maxWarmChunks = 64 << 20 / chunkBytes
	// coolTime is how long chunks stay at least, and half of how long they stay at most.
	coolTime = 5 * time.Second
)

// A chunk is a piece of a slab.
type chunk [chunkBytes]byte

// A pool hands out chunks from slabs outside the Go heap, which it maps as needed and
// keeps until it is closed. The memory of released chunks goes back to the operating
// system: after some seconds, so that a program that alternates between discarding and
// writing, such as mkfs, gets the same memory again; at once if much is released.
//
// Concurrency: any goroutine. coolMu comes before mu, which is a leaf.
type pool struct {
	limit int64        // chunks; 0 means none; set before use
	used  atomic.Int64 // chunks handed out; changes under mu

	// coolMu is held while chunks of warm are given back, so that close unmaps none
	// of them meanwhile.
	coolMu sync.Mutex

	mu sync.Mutex
	// free are chunks of zeros.
	// +checklocks:mu
	free []*chunk
	// warm are chunks as they were released, the oldest first. Together with those
	// handed out they are within limit, as they are taken first. The chunks that cool is
	// emptying, up to 64, count as neither: so 4 MiB more than limit may be resident
	// while the operating system takes them back.
	// +checklocks:mu
	warm []*chunk
	// unused is how many of warm have not been needed since they were last checked.
	// +checklocks:mu
	unused int
	// timer runs cool; nil if warm is empty.
	// +checklocks:mu
	timer *time.Timer
	// +checklocks:mu
	fresh []byte // the rest of the newest slab
	// +checklocks:mu
	slabs [][]byte
}

var errLimit = errors.New("memory limit reached")

// room reports whether n more chunks stay below the limit.
func (p *pool) room(n int64) bool { return p.limit == 0 || p.used.Load()+n <= p.limit }

// take returns a chunk: of zeros, unless it is warm.
func (p *pool) take() (c *chunk, warm bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.room(1) {
		return nil, false, errLimit
	}
	if n := len(p.warm); n > 0 {
		c = p.warm[n-1]
		p.warm = p.warm[:n-1]
		p.unused = min(p.unused, n-1)
		p.used.Add(1)
		return c, true, nil
	}
	if n := len(p.free); n > 0 {
		c = p.free[n-1]
		p.free[n-1] = nil
		p.free = p.free[:n-1]
		p.used.Add(1)
		return c, false, nil
	}
	if len(p.fresh) == 0 {
		slab, err := mapSlab()
		if err != nil {
			return nil, false, fmt.Errorf("map %d bytes: %w", slabBytes, err)
		}
		p.slabs = append(p.slabs, slab)
		p.fresh = slab
	}
	c = (*chunk)(p.fresh)
	p.fresh = p.fresh[chunkBytes:]
	p.used.Add(1)
	return c, false, nil
}

// A releaseBatch collects chunks that are being released, so that neighbours go back in
// one system call.
type releaseBatch struct {
	chunks [64]*chunk
	n      int
}

// add reports whether the batch is now full.
func (b *releaseBatch) add(c *chunk) (full bool) {
	b.chunks[b.n] = c
	b.n++
	return b.n == len(b.chunks)
}

// release takes back the chunks of b, which only the caller could reach, and empties b.
func (p *pool) release(b *releaseBatch) {
	if b.n == 0 {
		return
	}
	chunks := b.chunks[:b.n]
	p.mu.Lock()
	n := min(len(chunks), maxWarmChunks-len(p.warm))
	p.warm = append(p.warm, chunks[:n]...)
	p.used.Add(-int64(n))
	if p.timer == nil && n > 0 {
		p.timer = time.AfterFunc(coolTime, p.cool)
	}
	p.mu.Unlock()
	if chunks = chunks[n:]; len(chunks) > 0 {
		p.empty(chunks, int64(len(chunks)))
	}
	*b = releaseBatch{}
}

// replace is release for chunks whose pages somebody may still look at: they get new
// pages.
func (p *pool) replace(b *releaseBatch) {
	if b.n > 0 {
		p.empty(b.chunks[:b.n], int64(b.n))
		*b = releaseBatch{}
	}
}

// cool gives back the chunks that have been warm for coolTime without being needed.
func (p *pool) cool() {
	p.coolMu.Lock()
	defer p.coolMu.Unlock()
	for {
		var b releaseBatch
		p.mu.Lock()
		b.n = copy(b.chunks[:], p.warm[:p.unused])
		p.warm = slices.Delete(p.warm, 0, b.n)
		p.unused -= b.n
		if b.n == 0 {
			p.restLocked()
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		p.empty(b.chunks[:b.n], 0)
	}
}

// restLocked schedules cool again, if there is reason to.
//
// +checklocks:p.mu
func (p *pool) restLocked() {
	p.unused = len(p.warm)
	switch {
	case p.timer == nil: // closed
	case p.unused == 0:
		p.timer, p.warm = nil, nil
	default:
		p.timer.Reset(coolTime)
	}
}

// empty gives the memory of chunks, of which used still count as handed out, back to
// the operating system.
func (p *pool) empty(chunks []*chunk, used int64) {
	for i := 0; i < len(chunks); {
		run := 1
		for i+run < len(chunks) && adjacent(chunks[i+run-1], chunks[i+run]) {
			run++
		}
		emptyRun(chunks[i], run)
		i += run
	}
	p.mu.Lock()
	p.free = append(p.free, chunks...)
	p.used.Add(-used)
	p.mu.Unlock()
}

// close unmaps every slab. No chunk may be in use any more.
func (p *pool) close() error {
	p.coolMu.Lock()
	defer p.coolMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop() // if it has run already, it finds nothing
		p.timer = nil
	}
	var errs []error
	for _, s := range p.slabs {
		errs = append(errs, unmapSlab(s))
	}
	p.slabs, p.free, p.fresh, p.warm, p.unused = nil, nil, nil, nil, 0
	p.used.Store(0)
	return errors.Join(errs...)
}
