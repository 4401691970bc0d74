package media

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// A chunk is a piece of a slab. Chunks in the pool are all zeros.
type chunk [chunkBytes]byte

// A pool hands out chunks from slabs outside the Go heap, which it maps as they
// are needed and keeps until it is closed. What a released chunk held goes back
// to the operating system at once.
//
// Concurrency: any goroutine. mu is a leaf.
type pool struct {
	limit int64        // chunks; 0 means none; set before use
	used  atomic.Int64 // chunks handed out; changes under mu

	mu sync.Mutex
	// +checklocks:mu
	free []*chunk
	// +checklocks:mu
	fresh []byte // the rest of the newest slab
	// +checklocks:mu
	slabs [][]byte
}

var errLimit = errors.New("memory limit reached")

// room reports whether n more chunks stay below the limit.
func (p *pool) room(n int64) bool { return p.limit == 0 || p.used.Load()+n <= p.limit }

// take returns a chunk of zeros.
func (p *pool) take() (*chunk, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.room(1) {
		return nil, errLimit
	}
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free[n-1] = nil
		p.free = p.free[:n-1]
		p.used.Add(1)
		return c, nil
	}
	if len(p.fresh) == 0 {
		slab, err := mapSlab()
		if err != nil {
			return nil, fmt.Errorf("map %d bytes: %w", slabBytes, err)
		}
		p.slabs = append(p.slabs, slab)
		p.fresh = slab
	}
	c := (*chunk)(p.fresh)
	p.fresh = p.fresh[chunkBytes:]
	p.used.Add(1)
	return c, nil
}

// A releaseBatch collects chunks on their way back, so that neighbours go back
// in one system call.
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

// release takes back the chunks of b, which the caller alone could reach, and
// empties b.
func (p *pool) release(b *releaseBatch) {
	if b.n == 0 {
		return
	}
	chunks := b.chunks[:b.n]
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
	p.used.Add(-int64(len(chunks)))
	p.mu.Unlock()
	*b = releaseBatch{}
}

// close unmaps every slab. No chunk may be in use any more.
func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, s := range p.slabs {
		errs = append(errs, unmapSlab(s))
	}
	p.slabs, p.free, p.fresh = nil, nil, nil
	p.used.Store(0)
	return errors.Join(errs...)
}
