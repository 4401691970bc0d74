package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"

	"github.com/vhbad/vhbad/hba/media"
)

// Cut cuts the power: what is in progress fails, what is pending survives or not
// as o says, and the cache is empty. It returns when the durable medium holds the
// outcome and has been checked.
//
// Errors: options that cannot be, or an error of the durable medium; then the
// cache is empty all the same, and what the medium holds is legal but not what
// the seed decided.
//
// Concurrency: any goroutine, but not from inside of a call of the durable medium.
func (c *Cache) Cut(o CutOptions) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	c.cutting.Add(1)
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.cutting.Add(-1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, &media.Error{Op: "power cut", Name: c.config.Name, Kind: media.ErrClosed}
	}
	k := c.newCutLocked(o)
	err := c.applyLocked(k)
	if err == nil {
		err = c.auditLocked(k)
	}
	c.record.stats.Cuts++
	for i := range k.fates {
		c.record.stats.CutSectors[k.fates[i].Outcome]++
	}
	c.store.init(c.config.SectorBytes)
	c.life++
	c.settleLocked()
	if err != nil {
		return nil, fmt.Errorf("cache: power cut of %s, seed %d: %w", c.config.Name, o.Seed, err)
	}
	return k.report, nil
}

// A cut is one power cut on its way.
type cut struct {
	o      CutOptions
	trace  Trace
	fates  []Fate
	report *Report
	image  hash.Hash
	// base is what was durable, now is what is, of the sectors at hand.
	base, now []byte
}

// sortedFates are the fates in ascending order of sectors.
func sortedFates(m map[int64]*Fate) []Fate {
	out := make([]Fate, 0, len(m))
	for _, sector := range slices.Sorted(maps.Keys(m)) {
		out = append(out, *m[sector])
	}
	return out
}

// newCutLocked decides, and begins the report.
//
// +checklocks:c.mu
func (c *Cache) newCutLocked(o CutOptions) *cut {
	k := &cut{o: o, trace: c.traceLocked(), image: sha256.New()}
	k.fates = Decide(&k.trace, o)
	k.report = &Report{
		Time: c.config.Now(), Seed: o.Seed, Policy: o.Policy, TearBytes: o.TearBytes, Damage: o.Damage,
		SectorBytes: c.config.SectorBytes, Flushes: []FlushRecord{}, Writes: []WriteReport{},
	}
	for i := max(c.record.flushes, recentFlushes) - recentFlushes + 1; i <= c.record.flushes; i++ {
		k.report.Flushes = append(k.report.Flushes, c.record.recent[i%recentFlushes])
	}
	for w := c.store.first; w != nil; w = w.after {
		k.report.Writes = append(k.report.Writes, WriteReport{
			ID: w.id, Kind: w.kind, OffsetBytes: w.off, LengthBytes: w.n, FUA: w.fua,
			Acknowledged: w.acknowledged, Promised: w.promised != promiseNone, Epoch: w.epoch,
			AgeMillis: float64(k.report.Time.Sub(w.at).Microseconds()) / 1000,
		})
	}
	k.tally()
	return k
}

// traceLocked is what is pending.
//
// +checklocks:c.mu
func (c *Cache) traceLocked() Trace {
	t := Trace{SectorBytes: c.config.SectorBytes, Writes: make([]TracedWrite, 0, len(c.store.pending))}
	for w := c.store.first; w != nil; w = w.after {
		x := TracedWrite{ID: w.id, Sectors: make([]int64, 0, w.versions)}
		for i := w.oldest; i != none; i = c.store.versions[i].next {
			x.Sectors = append(x.Sectors, c.store.versions[i].sector)
		}
		t.Writes = append(t.Writes, x)
	}
	return t
}

// tally fills in what the fates say about writes.
func (k *cut) tally() {
	r := k.report
	for i := range k.fates {
		r.Sectors.add(k.fates[i].Outcome)
	}
	for i := range k.trace.Writes {
		w := &r.Writes[i]
		for _, sector := range k.trace.Writes[i].Sectors {
			at, _ := slices.BinarySearchFunc(k.fates, sector, func(f Fate, s int64) int { return int(min(max(f.Sector-s, -1), 1)) })
			k.fates[at].tally(w, i)
		}
		w.settle()
	}
	if omit := len(r.Writes) - maxReportWrites; omit > 0 {
		r.Writes, r.WritesOmitted = slices.Clone(r.Writes[omit:]), omit
	}
}

// tally counts the sector for write i.
func (f *Fate) tally(w *WriteReport, i int) {
	if f.Outcome == OutcomeGarbage || f.Outcome == OutcomeUnreadable {
		w.Damaged++
		return
	}
	for _, l := range slices.Backward(f.Layers) {
		switch {
		case l.Pieces != wholeSector:
			if l.Write == i {
				w.Damaged++
				return
			}
		case l.Write == i:
			if f.Outcome == OutcomeTorn {
				w.Damaged++
			} else {
				w.Kept++
			}
			return
		case l.Write > i:
			w.Overwritten++
			return
		}
	}
	w.Lost++
}

// applyLocked puts the fates on the durable medium, run by run, and checks them.
//
// +checklocks:c.outMu
// +checklocks:c.mu
func (c *Cache) applyLocked(k *cut) error {
	perRun := bufferBytes >> c.shift
	k.base, k.now = make([]byte, bufferBytes), make([]byte, bufferBytes)
	for rest := k.fates; len(rest) > 0; {
		run := 1
		for run < len(rest) && run < perRun && rest[run].Sector == rest[0].Sector+int64(run) {
			run++
		}
		if err := c.applyRunLocked(k, rest[:run]); err != nil {
			return err
		}
		rest = rest[run:]
	}
	if err := c.inner.Flush(); err != nil {
		return err
	}
	k.report.ImageSHA256 = hex.EncodeToString(k.image.Sum(nil))
	return nil
}

// applyRunLocked is applyLocked for sectors that follow each other.
//
// +checklocks:c.outMu
// +checklocks:c.mu
func (c *Cache) applyRunLocked(k *cut, run []Fate) error {
	off, n := run[0].Sector<<c.shift, len(run)<<c.shift
	base, now := k.base[:n], k.now[:n]
	if _, err := c.inner.ReadAt(base, off); err != nil {
		return err
	}
	copy(now, base)
	for i := range run {
		c.composeLocked(k, now[i<<c.shift:(i+1)<<c.shift], &run[i])
	}
	for i := 0; i < len(run); {
		kind, changes := c.kindLocked(k, &run[i])
		j := i + 1
		for ; j < len(run); j++ {
			if otherKind, other := c.kindLocked(k, &run[j]); other != changes || otherKind != kind {
				break
			}
		}
		if changes {
			if err := c.store1(kind, now[i<<c.shift:j<<c.shift], off+int64(i)<<c.shift, int64(j-i)<<c.shift, false); err != nil {
				return err
			}
		}
		i = j
	}
	if _, err := c.inner.ReadAt(now, off); err != nil {
		return err
	}
	for i := range run {
		p := now[i<<c.shift : (i+1)<<c.shift]
		c.judgeLocked(k, &run[i], base[i<<c.shift:(i+1)<<c.shift], p)
		c.markLocked(k, &run[i], p)
	}
	return nil
}

// composeLocked makes of p, which is what is durable, what f says.
//
// +checklocks:c.mu
func (c *Cache) composeLocked(k *cut, p []byte, f *Fate) {
	if f.Outcome == OutcomeGarbage || f.Outcome == OutcomeUnreadable {
		k.o.garbage(p, f.Sector)
		return
	}
	var content [4096]byte
	for _, l := range f.Layers {
		v := c.versionLocked(f.Sector, k.trace.Writes[l.Write].ID)
		c.store.content(content[:], v)
		if l.Pieces == wholeSector {
			copy(p, content[:])
			continue
		}
		for i := 0; i<<9 < len(p); i++ { // pieces shorter than a sector are of 512 bytes
			if l.Pieces>>i&1 != 0 {
				copy(p[i<<9:(i+1)<<9], content[i<<9:])
			}
		}
	}
}

// versionLocked is the version of sector that write id has.
//
// +checklocks:c.mu
func (c *Cache) versionLocked(sector int64, id uint64) int32 {
	for i := c.store.index[sector].newest; i != none; i = c.store.versions[i].older {
		if c.store.versions[i].write.id == id {
			return i
		}
	}
	panic(fmt.Sprintf("cache: write %d has no version of sector %d", id, sector))
}

// kindLocked is what has to be done to the durable medium for f, if anything.
//
// +checklocks:c.mu
func (c *Cache) kindLocked(k *cut, f *Fate) (kind Kind, changes bool) {
	switch {
	case f.Outcome == OutcomeGarbage || f.Outcome == OutcomeUnreadable:
		return KindWrite, true
	case len(f.Layers) == 0:
		return KindWrite, false
	case len(f.Layers) > 1 || f.Layers[0].Pieces != wholeSector:
		return KindWrite, true
	}
	return c.store.versions[c.versionLocked(f.Sector, k.trace.Writes[f.Layers[0].Write].ID)].kind, true
}

// markLocked notes what is durable now.
//
// +checklocks:c.mu
func (c *Cache) markLocked(k *cut, f *Fate, p []byte) {
	var number [8]byte
	binary.LittleEndian.PutUint64(number[:], uint64(f.Sector))
	k.image.Write(number[:])
	k.image.Write(p)
	switch {
	case f.Outcome == OutcomeUnreadable:
		if c.unreadable == nil {
			c.unreadable = make(map[int64]struct{})
		}
		c.unreadable[f.Sector] = struct{}{}
	case len(f.Layers) > 0 || f.Outcome == OutcomeGarbage:
		delete(c.unreadable, f.Sector)
	}
	if len(f.Layers) > 0 || f.Outcome != OutcomeLost {
		c.record.durable(f.Sector, p)
	}
}

// auditLocked checks that the remembered durable sectors are what they were.
//
// +checklocks:c.mu
func (c *Cache) auditLocked(k *cut) error {
	sectors := slices.Sorted(maps.Keys(c.record.hashes))
	for len(sectors) > 0 {
		run := 1
		for run < len(sectors) && (run+1)<<c.shift <= bufferBytes && sectors[run] == sectors[0]+int64(run) {
			run++
		}
		p := k.base[:run<<c.shift]
		if _, err := c.inner.ReadAt(p, sectors[0]<<c.shift); err != nil && !errors.Is(err, media.ErrMedium) {
			return err
		}
		for i, sector := range sectors[:run] {
			k.report.Verdict.CheckedSectors++
			if !c.record.matches(sector, p[i<<c.shift:(i+1)<<c.shift]) {
				k.report.Verdict.find(sector<<c.shift, ActLostFlushed, 0)
			}
		}
		sectors = sectors[run:]
	}
	return nil
}
