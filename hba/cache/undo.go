package cache

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
)

// Losing what was flushed. No correct drive does it, so a cache is ready for it only if
// Config.CanLoseFlushed says that it may be asked to.

// An undo is what sectors of the durable medium held when the power was cut last, or
// the cache was made: of those that have been written since, the first ones, as many
// as the cache has room for. It is guarded by Cache.outMu.
type undo map[int64][]byte

// remember keeps what n bytes at off hold, which are to be overwritten: of long zeros,
// the first bufferBytes. What cannot be read is not kept.
//
// +checklocks:c.outMu
func (c *Cache) remember(off, n int64) {
	if c.undo == nil {
		return
	}
	first, count := off>>c.shift, int(min(n, bufferBytes)>>c.shift)
	count = min(count, c.room-len(c.undo))
	for i := 0; i < count; {
		j := i
		for j < count && c.undo[first+int64(j)] == nil {
			j++
		}
		if i == j {
			i++
			continue
		}
		old := sectors{p: make([]byte, (j-i)<<c.shift)}
		if err := c.readSectors(&old, first+int64(i), j-i); err == nil {
			for k := range j - i {
				if p := c.at(&old, k); p != nil {
					c.undo[first+int64(i+k)] = p
				}
			}
		}
		i = j
	}
}

// checkLoss refuses to lose what is not remembered.
func (c *Cache) checkLoss(o *CutOptions) error {
	if o.LoseFlushed > 0 && !c.config.CanLoseFlushed {
		return fmt.Errorf("cache: power cut of %s: it is not to lose what was flushed", c.config.Name)
	}
	return nil
}

// loseFlushed takes sectors back, drawn by the seed, that were promised to be durable:
// by a coin each holds what it held at the last cut, or zeros. It ends with as many as
// were asked for, or all that would show it.
//
// +checklocks:c.outMu
func (c *Cache) loseFlushed(k *cut) error {
	if k.o.LoseFlushed == 0 {
		return nil
	}
	candidates := c.promisedOut(k)
	random := rand.NewPCG(k.o.Seed, streamFlushed)
	now, zeros := sectors{p: make([]byte, c.config.SectorBytes)}, make([]byte, c.config.SectorBytes)
	var lost []int64
	for left := len(candidates); left > 0 && len(lost) < k.o.LoseFlushed; left-- {
		at := below(random.Uint64(), left)
		sector := candidates[at]
		candidates[at] = candidates[left-1]
		old := [2][]byte{c.undo[sector], zeros}
		if random.Uint64()>>63 != 0 {
			old[0], old[1] = old[1], old[0]
		}
		if err := c.readSectors(&now, sector, 1); err != nil {
			return err
		}
		p := old[0]
		if slices.Equal(p, now.p) {
			p = old[1]
		}
		if slices.Equal(p, now.p) {
			continue // it held nothing else, so nothing can be missing
		}
		if _, err := c.inner.WriteAt(p, sector<<c.shift); err != nil {
			return err
		}
		var number [8]byte
		binary.LittleEndian.PutUint64(number[:], uint64(sector))
		k.image.Write(number[:])
		k.image.Write(p)
		lost = append(lost, sector)
	}
	if len(lost) == 0 {
		return nil
	}
	k.report.Sectors.LostFlushed = len(lost)
	c.mu.Lock()
	defer c.mu.Unlock()
	for range lost {
		c.record.broke(ActLostFlushed)
	}
	return nil
}

// promisedOut lists the remembered sectors that nothing is pending for and whose
// bytes a flush, or FUA, has promised, in ascending order.
//
// +checklocks:c.outMu
func (c *Cache) promisedOut(k *cut) (out []int64) {
	var known []int64
	for sector := range c.undo {
		known = append(known, sector)
	}
	slices.Sort(known)
	claims, wide := k.account.claims(c.shift), k.account.wide()
	fates := k.fates
	for _, sector := range known {
		for len(claims) > 0 && claims[0].sector < sector {
			claims = claims[1:]
		}
		for len(fates) > 0 && fates[0].Sector < sector {
			fates = fates[1:]
		}
		own := claims
		for i := range own {
			if own[i].sector != sector {
				own = own[:i]
				break
			}
		}
		pending := len(fates) > 0 && fates[0].Sector == sector
		// What breaks if nothing is there is what was promised.
		if r := k.account.rule(own, wide.at(sector), c.zeroSums[0], 0, false); r.act == ActLostFlushed && !pending {
			out = append(out, sector)
		}
	}
	return out
}
