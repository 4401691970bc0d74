package cache

import (
	"errors"
	"math/bits"

	"github.com/vhbad/vhbad/hba/media"
)

// lookSectors is how many sectors are looked up under mu at a time.
const lookSectors = 4096

// A gaps says which of lookSectors sectors the cache does not have.
type gaps [lookSectors / 64]uint64

func (g *gaps) has(i int) bool { return g[i/64]>>(i%64)&1 != 0 }

func (g *gaps) add(i int) { g[i/64] |= 1 << (i % 64) }

// addAll adds the sectors from i to before n.
func (g *gaps) addAll(i, n int) {
	for i < n {
		end := min(i&^63+64, n)
		g[i/64] |= ^uint64(0) >> (64 - (end - i)) << (i % 64)
		i = end
	}
}

// next is the first run of gaps from i on, up to n.
func (g *gaps) next(i, n int) (from, to int) {
	from = g.scan(i, n, 0)
	return from, g.scan(from, n, ^uint64(0))
}

// scan is the first i from there on whose bit, after xor with flip, is set.
func (g *gaps) scan(i, n int, flip uint64) int {
	for i < n {
		if word := (g[i/64] ^ flip) >> (i % 64); word != 0 {
			return min(i+bits.TrailingZeros64(word), n)
		}
		i = i&^63 + 64
	}
	return n
}

// ReadAt implements media.Media.
func (c *Cache) ReadAt(p []byte, off int64) (int, error) {
	if c.plain.Load() {
		return c.inner.ReadAt(p, off)
	}
	n, _, err := c.read(p, off, c.inner.ReadAt)
	return n, err
}

// TryReadAt implements media.NonBlockingReader.
func (c *Cache) TryReadAt(p []byte, off int64) (bool, error) {
	if c.plain.Load() {
		return c.can.TryRead.TryReadAt(p, off)
	}
	_, done, err := c.read(p, off, func(p []byte, off int64) (int, error) {
		done, err := c.can.TryRead.TryReadAt(p, off)
		if !done {
			return 0, errWouldBlock
		}
		return len(p), err
	})
	return done, err
}

// read fills p from the cache and, by below, from the durable medium.
//
// Sectors that the cache does not have are read after mu is released. That is right: a
// version leaves the cache only when it, or a newer one, is on the durable medium.
func (c *Cache) read(p []byte, off int64, below func([]byte, int64) (int, error)) (n int, done bool, err error) {
	for first := true; first || n < len(p); first = false {
		var missing gaps
		part, failure, err := c.look(p[n:], off+int64(n), &missing)
		if err != nil {
			return n, true, err
		}
		count, lead := c.span(off+int64(n), len(part))
		for i := 0; ; {
			from, to := missing.next(i, count)
			if from >= count {
				break
			}
			a, b := max(from<<c.shift-lead, 0), min(to<<c.shift-lead, len(part))
			if m, err := below(part[a:b], off+int64(n+a)); err != nil {
				return n + a + m, !errors.Is(err, errWouldBlock), notBlocking(err)
			}
			i = to
		}
		n += len(part)
		if failure != nil {
			return n, true, failure
		}
		if len(part) == 0 {
			break
		}
	}
	return n, true, nil
}

// span returns how many sectors n bytes from off touch, and how many bytes of the first
// one come before off.
func (c *Cache) span(off int64, n int) (sectors, lead int) {
	lead = int(off & (1<<c.shift - 1))
	return (lead + n + 1<<c.shift - 1) >> c.shift, lead
}

// look copies what the cache has of p into it and marks what it does not have. It stops
// after the first lookSectors sectors of p, or at the first unreadable one, which
// failure reports.
func (c *Cache) look(p []byte, off int64, missing *gaps) (part []byte, failure, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refuseLocked("read", off, int64(len(p))); err != nil {
		return nil, nil, err
	}
	count, lead := c.span(off, len(p))
	count = min(count, lookSectors)
	part = p[:min(len(p), count<<c.shift-lead)]
	sector := off >> c.shift
	s := &c.store
	for i := 0; i < count; {
		to := min(i+1<<groupShift-placeOf(sector+int64(i)), count)
		if s.group(sector+int64(i)) == nil && len(c.unreadable) == 0 {
			missing.addAll(i, to)
			i = to
			continue
		}
		for ; i < to; i++ {
			from := i<<c.shift - lead
			v, pending := s.newest(sector + int64(i))
			switch {
			case !pending:
				if _, bad := c.unreadable[sector+int64(i)]; bad {
					at := max(from, 0)
					return p[:at], &media.Error{
						Op: "read", Name: c.config.Name, OffsetBytes: off + int64(at), LengthBytes: int64(len(p) - at),
						Kind: media.ErrMedium, Err: errDamaged,
					}, nil
				}
				missing.add(i)
			case s.versions[v].kind == KindWrite:
				copy(part[max(from, 0):], s.data(v)[max(-from, 0):])
			default:
				clear(part[max(from, 0):min(from+s.sectorBytes, len(part))])
			}
		}
	}
	return part, nil, nil
}

// ExtentAt implements media.ExtentLister. Pending bytes are data, even zeros.
//
// The cache is asked first, as in read and for the same reason.
func (c *Cache) ExtentAt(off int64) (media.Extent, error) {
	if c.plain.Load() {
		return c.can.Extents.ExtentAt(off)
	}
	limit, pending, err := c.pendingAt(off)
	if err != nil {
		return media.Extent{}, err
	}
	if pending {
		return media.Extent{OffsetBytes: off, LengthBytes: limit - off, Data: true}, nil
	}
	e, err := c.can.Extents.ExtentAt(off)
	if err == nil && !e.Data { // a pending write makes a hole data
		e.LengthBytes = min(e.End(), limit) - off
	}
	return e, err
}

// pendingAt reports whether something is pending at off, and up to where, as far as it
// has looked, that does not change.
func (c *Cache) pendingAt(off int64) (limit int64, pending bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refuseLocked("extent", off, 1); err != nil {
		return 0, false, err
	}
	sector, end := off>>c.shift, c.inner.Size()>>c.shift
	if _, pending := c.store.newest(sector); !pending {
		return c.store.nextPending(sector, end) << c.shift, false, nil
	}
	next := sector + 1
	for end = min(end, sector+maxScanSteps); next < end; {
		if _, pending := c.store.newest(next); !pending {
			break
		}
		next++
	}
	return next << c.shift, true, nil
}
