package cache

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
)

// Losing what was flushed. No correct drive does it, so a cache is prepared for it only
// if Config.CanLoseFlushed says that it may be asked to.

// An undo holds what sectors of the durable medium held at the last power cut, or when
// the cache was made: of the sectors written since, the first ones, as many as the cache
// has room for. It is guarded by Cache.outMu.
type undo map[int64][]byte

// remember keeps the n bytes at off, which are about to be overwritten; of long zeros,
// only the first bufferBytes. Bytes that cannot be read are not kept.
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

// A losable is a sector whose bytes were promised to be durable, and what it may hold
// instead: what it held at the last cut, and zeros. Either is nil if it would be no
// loss, as it was promised before and anything may be there since.
type losable struct {
	sector  int64
	instead [2][]byte
}

// loseFlushed takes back sectors, drawn by the seed, that were promised to be durable:
// by a coin, each holds what it held at the last cut, or zeros. It stops at the number
// that was asked for, or when all sectors that would show a loss are used.
//
// +checklocks:c.outMu
func (c *Cache) loseFlushed(k *cut) error {
	if k.o.LoseFlushed == 0 {
		return nil
	}
	candidates := c.losables(k)
	random := rand.NewPCG(k.o.Seed, streamFlushed)
	now := sectors{p: make([]byte, c.config.SectorBytes)}
	var lost []int64
	for left := len(candidates); left > 0 && len(lost) < k.o.LoseFlushed; left-- {
		at := below(random.Uint64(), left)
		sector, instead := candidates[at].sector, candidates[at].instead
		candidates[at] = candidates[left-1]
		if random.Uint64()>>63 != 0 {
			instead[0], instead[1] = instead[1], instead[0]
		}
		if err := c.readSectors(&now, sector, 1); err != nil {
			return err
		}
		p := instead[0]
		if p == nil || slices.Equal(p, now.p) {
			p = instead[1]
		}
		if p == nil || slices.Equal(p, now.p) {
			continue // it held nothing else, so no loss would show
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

// losables lists, in ascending order, the remembered sectors that have no pending
// versions and whose bytes a flush, or FUA, has promised.
//
// +checklocks:c.outMu
func (c *Cache) losables(k *cut) (out []losable) {
	zeros := make([]byte, c.config.SectorBytes)
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
		if len(fates) > 0 && fates[0].Sector == sector {
			continue // pending
		}
		can := losable{sector, [2][]byte{c.undo[sector], zeros}}
		all := wide.at(sector)
		for i, p := range can.instead {
			if k.account.rule(own, all, c.zeroSums[0], sum(p), true).act != ActLostFlushed {
				can.instead[i] = nil
			}
		}
		if can.instead[0] != nil || can.instead[1] != nil {
			out = append(out, can)
		}
	}
	return out
}
