package miniport

import (
	"fmt"

	"github.com/vhbad/vhbad/port"
)

// A tag is an index into a queue's table in the low tagIndexBits and a
// generation above them. The generation is never zero, so that zero is no tag.
//
// How many there are. A queue has at most its ring's entries in use; a magazine
// keeps up to magazineTags more from everybody else, whether its processor is
// busy or idle:
//
//	tags = ring entries + magazineTags × magazineProcessors
//
// So requests are turned away because a ring is full, never for lack of tags, however
// many other processors keep. With 4096 entries that is 131072 tags: tagIndexBits.
const (
	tagIndexBits  = 17
	tagIndexMask  = 1<<tagIndexBits - 1
	tagGeneration = 1 << tagIndexBits

	// magazineTags is more than one read of a socket usually brings, so that a processor
	// whose commands complete before the next ones arrive can use their tags again.
	magazineTags = 62
	// magazineProcessors is how many processors have magazines at most. Those with
	// higher numbers go to the pool for each request.
	magazineProcessors = port.DefaultMaxProcessors / 2
)

// A tagPool holds the tags of a queue that are neither in a magazine nor in use.
// It is reached through a port.Guarded only.
type tagPool struct {
	// free is a stack of tags that have been used before; its capacity is the
	// number of all tags.
	free []uint32
	// fresh is the lowest index that never left the pool. Tags from there on cost no
	// memory but their place.
	fresh, size uint32
}

func newTagPool(tags int) tagPool {
	return tagPool{free: make([]uint32, 0, tags), size: uint32(tags)}
}

// get takes a tag, or returns zero if there is none.
func (t *tagPool) get() uint32 {
	if n := len(t.free); n > 0 {
		tag := t.free[n-1]
		t.free = t.free[:n-1]
		return tag
	}
	if t.fresh == t.size {
		return 0
	}
	t.fresh++
	return t.fresh - 1 | tagGeneration
}

// put gives back a tag that has not been to the device.
func (t *tagPool) put(tag uint32) {
	if len(t.free) == cap(t.free) {
		panic(fmt.Sprintf("miniport: tag %#x given back to a full pool", tag))
	}
	t.free = append(t.free, tag)
}

// retire gives back a tag that has been to the device: under a new generation.
func (t *tagPool) retire(tag uint32) { t.put(nextGeneration(tag)) }

// nextGeneration is tag with its generation advanced, skipping zero.
func nextGeneration(tag uint32) uint32 {
	tag += tagGeneration
	if tag>>tagIndexBits == 0 {
		tag += tagGeneration
	}
	return tag
}

// A magazine is a processor's own supply of one queue's tags.
//
// Concurrency: used in BuildIo, StartIo and DPCs on its processor only, never in an
// interrupt handler, so that it needs no lock.
type magazine struct {
	n    uint32
	tags [magazineTags]uint32
	_    uint32 // up to the end of a cache line
}

// A refill asks for tags for m. It is the context of a SynchronizeAccess call.
type refill struct {
	q *queue
	m *magazine
}

// refillMagazine is the routine that BuildIo runs under SynchronizeAccess.
//
// Level: Device, every interrupt lock.
func refillMagazine(t port.SyncToken, r refill) bool {
	r.m.fill(&r.q.shared.Open(t).pool)
	return r.m.n > 0
}

// fill takes as many tags as there is room for, beginning with those that were given
// back last: their entries are in the processor's cache.
func (m *magazine) fill(pool *tagPool) {
	for m.n < magazineTags {
		tag := pool.get()
		if tag == 0 {
			return
		}
		m.tags[m.n] = tag
		m.n++
	}
}

// A single is the context for taking one tag into an SRB's extension, or giving it
// back, for a processor without a magazine.
type single struct {
	q *queue
	x *extension
}

// takeSingle runs under SynchronizeAccess.
func takeSingle(t port.SyncToken, s single) bool {
	s.x.command.Tag = s.q.shared.Open(t).pool.get()
	return s.x.command.Tag != 0
}

// putSingle runs under SynchronizeAccess.
func putSingle(t port.SyncToken, s single) bool {
	s.q.shared.Open(t).pool.put(s.x.command.Tag)
	return true
}

// takeTag puts a free tag of q into x's command. False: there is none.
//
// Level: Dispatch, any locks but the interrupt lock of a handler.
func (d *Driver) takeTag(p *port.Processor, q *queue, x *extension) bool {
	m := d.magazine(p, q)
	if m == nil {
		return port.SynchronizeAccess(d.a, p, takeSingle, single{q, x})
	}
	if m.n == 0 && !port.SynchronizeAccess(d.a, p, refillMagazine, refill{q, m}) {
		return false
	}
	m.n--
	x.command.Tag = m.tags[m.n]
	return true
}

// returnTag gives back x's tag, which has not been to the device.
//
// Level: as takeTag.
func (d *Driver) returnTag(p *port.Processor, q *queue, x *extension) {
	if m := d.magazine(p, q); m != nil && m.n < magazineTags {
		m.tags[m.n] = x.command.Tag
		m.n++
	} else {
		port.SynchronizeAccess(d.a, p, putSingle, single{q, x})
	}
	x.command.Tag = 0
}

func (d *Driver) magazine(p *port.Processor, q *queue) *magazine {
	n := p.Number()*len(d.queues) + q.index
	if n >= len(d.magazines) {
		return nil
	}
	return &d.magazines[n]
}
