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

// Cut cuts the power: what is in progress or comes meanwhile fails, what is
// pending survives or not as o says, and the cache is empty. It returns when the
// durable medium holds the outcome and has been checked.
//
// Errors: options that cannot be, or an error of the durable medium; then the
// cache is empty all the same, and what the medium holds is legal but not what
// the seed decided. The report says so, too, and what had been pending.
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
	k, err := c.beginCut(o)
	if err != nil {
		return nil, err
	}
	k.decide(c.shift)
	err = c.apply(k)
	if err == nil {
		err = c.audit(k)
	}
	if err != nil {
		err = fmt.Errorf("cache: power cut of %s, seed %d: %w", c.config.Name, o.Seed, err)
		k.report.Error = err.Error()
	}
	c.endCut(k)
	return k.report, err
}

// beginCut takes the power away and what is pending with it.
//
// +checklocks:c.outMu
func (c *Cache) beginCut(o CutOptions) (*cut, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, &media.Error{Op: "power cut", Name: c.config.Name, Kind: media.ErrClosed}
	}
	k := &cut{o: o, store: c.store, image: sha256.New()}
	c.store = store{nextID: k.store.nextID}
	c.store.init(c.config.SectorBytes)
	c.off = true
	c.life++
	c.plain.Store(false) // everybody has to look
	k.report = &Report{
		Time: c.config.Now(), Seed: o.Seed, Policy: o.Policy, TearBytes: o.TearBytes, Damage: o.Damage,
		SectorBytes: c.config.SectorBytes, Flushes: []FlushRecord{}, Writes: []WriteReport{},
	}
	for i := max(c.record.flushes, recentFlushes) - recentFlushes + 1; i <= c.record.flushes; i++ {
		k.report.Flushes = append(k.report.Flushes, c.record.recent[i%recentFlushes])
	}
	return k, nil
}

// endCut gives the power back, to an empty cache. What came meanwhile has failed.
//
// +checklocks:c.outMu
func (c *Cache) endCut(k *cut) {
	c.owed.Store(nil) // who comes after the cut is not concerned
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.stats.Cuts++
	if k.report.Error == "" {
		for i := range k.fates {
			c.record.stats.CutSectors[k.fates[i].Outcome]++
		}
	}
	c.store.slabs = k.store.slabs
	c.off = false
	c.settleLocked()
}

// A cut is one power cut on its way. It belongs to the goroutine that cuts, so
// that nobody waits for mu while the durable medium works.
type cut struct {
	o      CutOptions
	store  store // what was pending
	trace  Trace
	fates  []Fate
	report *Report
	image  hash.Hash
	// base is what was durable, now is what is, of the sectors at hand.
	base, now sectors
}

// sectors are the bytes of some that follow each other. Those whose bit is set in
// bad cannot be read, and are zeros.
type sectors struct {
	p   []byte
	bad gaps
}

// readSectors fills x with n sectors from one on.
func (c *Cache) readSectors(x *sectors, sector int64, n int) error {
	x.bad = gaps{}
	p := x.p[:n<<c.shift]
	_, err := c.inner.ReadAt(p, sector<<c.shift)
	if !errors.Is(err, media.ErrMedium) {
		return err
	}
	for i := range n {
		one := p[i<<c.shift : (i+1)<<c.shift]
		_, err := c.inner.ReadAt(one, (sector+int64(i))<<c.shift)
		switch {
		case errors.Is(err, media.ErrMedium):
			clear(one)
			x.bad.add(i)
		case err != nil:
			return err
		}
	}
	return nil
}

// at is the i-th sector, or nil if it cannot be read.
func (c *Cache) at(x *sectors, i int) []byte {
	if x.bad.has(i) {
		return nil
	}
	return x.p[i<<c.shift : (i+1)<<c.shift]
}

// sortedFates are the fates in ascending order of sectors.
func sortedFates(m map[int64]*Fate) []Fate {
	out := make([]Fate, 0, len(m))
	for _, sector := range slices.Sorted(maps.Keys(m)) {
		out = append(out, *m[sector])
	}
	return out
}

// decide decides, and tells of the writes.
func (k *cut) decide(shift uint8) {
	s := &k.store
	k.trace = Trace{SectorBytes: 1 << shift, Writes: make([]TracedWrite, 0, len(s.pending))}
	for w := s.first; w != nil; w = w.after {
		x := TracedWrite{ID: w.id, Sectors: make([]int64, 0, w.versions)}
		for i := w.oldest; i != none; i = s.versions[i].next {
			x.Sectors = append(x.Sectors, s.versions[i].sector)
		}
		k.trace.Writes = append(k.trace.Writes, x)
		k.report.Writes = append(k.report.Writes, WriteReport{
			ID: w.id, Kind: w.kind, OffsetBytes: w.off, LengthBytes: w.n, FUA: w.fua,
			Acknowledged: w.acknowledged, Promised: w.promised != promiseNone, Epoch: w.epoch,
			AgeMillis: float64(k.report.Time.Sub(w.at).Microseconds()) / 1000,
		})
	}
	k.fates = Decide(&k.trace, k.o)
	k.tally()
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

// apply puts the fates on the durable medium, run by run, and checks them.
//
// +checklocks:c.outMu
func (c *Cache) apply(k *cut) error {
	perRun := bufferBytes >> c.shift
	k.base.p, k.now.p = make([]byte, bufferBytes), make([]byte, bufferBytes)
	for rest := k.fates; len(rest) > 0; {
		run := 1
		for run < len(rest) && run < perRun && rest[run].Sector == rest[0].Sector+int64(run) {
			run++
		}
		if err := c.applyRun(k, rest[:run]); err != nil {
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

// applyRun is apply for sectors that follow each other.
//
// +checklocks:c.outMu
func (c *Cache) applyRun(k *cut, run []Fate) error {
	first := run[0].Sector
	if err := c.readSectors(&k.base, first, len(run)); err != nil {
		return err
	}
	copy(k.now.p, k.base.p[:len(run)<<c.shift])
	for i := range run {
		k.compose(k.now.p[i<<c.shift:(i+1)<<c.shift], &run[i])
	}
	known := c.uncertain(first, run)
	for i := 0; i < len(run); {
		kind, changes := k.kind(&run[i], k.base.bad.has(i))
		j := i + 1
		for ; j < len(run); j++ {
			if otherKind, other := k.kind(&run[j], k.base.bad.has(j)); other != changes || otherKind != kind {
				break
			}
		}
		if changes {
			off, n := (first+int64(i))<<c.shift, int64(j-i)<<c.shift
			if err := c.store1(kind, k.now.p[i<<c.shift:j<<c.shift], off, n, false); err != nil {
				return err
			}
			c.heal(run[i:j])
		}
		i = j
	}
	if err := c.readSectors(&k.now, first, len(run)); err != nil {
		return err
	}
	c.judgeRun(k, run, known)
	return nil
}

// uncertain prepares for a run that may fail half way: nothing is known of its
// sectors, and those that are to be unreadable are. It returns what was known.
//
// +checklocks:c.outMu
func (c *Cache) uncertain(first int64, run []Fate) []remembered {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := make([]remembered, len(run))
	for i := range run {
		known[i] = c.record.take(first + int64(i))
		if run[i].Outcome == OutcomeUnreadable {
			if c.unreadable == nil {
				c.unreadable = make(map[int64]struct{})
			}
			c.unreadable[run[i].Sector] = struct{}{}
		}
	}
	return known
}

// heal notes that the sectors of the fates have been written.
//
// +checklocks:c.outMu
func (c *Cache) heal(run []Fate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range run {
		if run[i].Outcome != OutcomeUnreadable {
			delete(c.unreadable, run[i].Sector)
		}
	}
}

// judgeRun checks a run and remembers what is durable now.
//
// +checklocks:c.outMu
func (c *Cache) judgeRun(k *cut, run []Fate, known []remembered) {
	for i := range run {
		f, base, now := &run[i], c.at(&k.base, i), c.at(&k.now, i)
		c.judge(k, f, base, now, known[i])
		var number [8]byte
		binary.LittleEndian.PutUint64(number[:], uint64(f.Sector))
		k.image.Write(number[:])
		k.image.Write(now)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range run {
		now := c.at(&k.now, i)
		switch changed := len(run[i].Layers) > 0 || run[i].Outcome != OutcomeLost; {
		case changed && now != nil:
			c.record.remember(run[i].Sector, c.sum(now))
		case !changed && known[i].ok:
			c.record.remember(run[i].Sector, known[i].sum)
		}
	}
}

// compose makes of p, which is what is durable, what f says.
func (k *cut) compose(p []byte, f *Fate) {
	if f.Outcome == OutcomeGarbage || f.Outcome == OutcomeUnreadable {
		k.o.garbage(p, f.Sector)
		return
	}
	var content [4096]byte
	for _, l := range f.Layers {
		k.store.content(content[:], k.version(f.Sector, l.Write))
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

// version is the version of sector that the i-th write has.
func (k *cut) version(sector int64, write int) int32 {
	id := k.trace.Writes[write].ID
	for i := k.store.index[sector].newest; i != none; i = k.store.versions[i].older {
		if k.store.versions[i].write.id == id {
			return i
		}
	}
	panic(fmt.Sprintf("cache: write %d has no version of sector %d", id, sector))
}

// kind is what has to be done to the durable medium for f, if anything. A part of
// a sector that is bad, so that nobody knows the rest, does not change it.
func (k *cut) kind(f *Fate, bad bool) (kind Kind, changes bool) {
	switch {
	case f.Outcome == OutcomeGarbage || f.Outcome == OutcomeUnreadable:
		return KindWrite, true
	case len(f.Layers) == 0 || bad && f.Layers[0].Pieces != wholeSector:
		return KindWrite, false
	case len(f.Layers) > 1 || f.Layers[0].Pieces != wholeSector:
		return KindWrite, true
	}
	return k.store.versions[k.version(f.Sector, f.Layers[0].Write)].kind, true
}

// audit checks that the remembered durable sectors are what they were.
//
// +checklocks:c.outMu
func (c *Cache) audit(k *cut) error {
	numbers := c.remembered()
	for len(numbers) > 0 {
		run := 1
		for run < len(numbers) && (run+1)<<c.shift <= bufferBytes && numbers[run] == numbers[0]+int64(run) {
			run++
		}
		if err := c.readSectors(&k.now, numbers[0], run); err != nil {
			return err
		}
		c.auditRun(k, numbers[:run])
		numbers = numbers[run:]
	}
	return nil
}

// remembered are the sectors whose hashes the record has.
func (c *Cache) remembered() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	numbers := make([]int64, 0, c.record.known)
	for sector, h := range c.record.hashes {
		if h.ok {
			numbers = append(numbers, sector)
		}
	}
	slices.Sort(numbers)
	return numbers
}

// auditRun is audit for sectors that follow each other, which now has.
//
// +checklocks:c.outMu
func (c *Cache) auditRun(k *cut, numbers []int64) {
	sums := c.sumsOut(k.now.p[:len(numbers)<<c.shift])
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, sector := range numbers {
		k.report.Verdict.CheckedSectors++
		if k.now.bad.has(i) || c.record.hashes[sector].sum != sums[i] {
			k.report.Verdict.find(sector<<c.shift, ActLostFlushed, 0)
		}
	}
}
