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

// PowerOff takes the power away: calls fail from now on until PowerOn, those in progress
// as soon as they can, and pending writes stay as they are for Lose.
//
// Concurrency: any goroutine.
func (c *Cache) PowerOff() {
	c.cutting.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = true         // even if it is closed: closing may fail yet
	c.plain.Store(false) // everybody has to look
}

// PowerOn gives the power back.
//
// Concurrency: any goroutine.
func (c *Cache) PowerOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = false
	c.cutting.Store(false)
	c.settleLocked()
}

// Cut is PowerOff, Lose and PowerOn; only one Cut runs at a time.
//
// Concurrency: as for Lose, but not concurrently with those three.
func (c *Cache) Cut(o CutOptions) (*Report, error) {
	c.cutMu.Lock()
	defer c.cutMu.Unlock()
	defer c.PowerOn()
	return c.Lose(o)
}

// Lose decides which pending writes survive, as o says, and empties the cache, whose
// power is off from now on if it was not. It returns when the durable medium holds the
// outcome and has been checked. Until PowerOn nothing is written there.
//
// A call made before but not yet at work goes on when the power is back, and what
// PromisedAll and the like report for a command from before counts for the next cut. To
// avoid both, call PowerOff, wait until there are no such calls, and then call Lose.
//
// Errors: impossible options, or an error of the durable medium. In the latter case the
// cache is empty all the same, and what the medium holds is legal but not what the seed
// decided; the report says so, too, and what had been pending. If no report is returned,
// nothing is lost.
//
// Concurrency: any goroutine, but not from within a call of the durable medium.
func (c *Cache) Lose(o CutOptions) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := c.checkLoss(&o); err != nil {
		return nil, err
	}
	c.cutting.Store(true)
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.endLeaving()
	k, err := c.beginCut(o)
	if err != nil {
		return nil, err
	}
	k.account = c.ledger.powerGoes() // now that nothing can come into the cache any more
	k.decide(c.shift)
	var open *opening
	if err = c.apply(k); err == nil {
		open, err = c.audit(k)
	}
	if err != nil {
		open = k.unsure()
		err = fmt.Errorf("cache: power cut of %s, seed %d: %w", c.config.Name, o.Seed, err)
		k.report.Error = err.Error()
	}
	c.ledger.reopen(k.account, open, err == nil)
	c.endCut(k)
	return k.report, err
}

// beginCut takes what is pending.
//
// +checklocks:c.outMu
func (c *Cache) beginCut(o CutOptions) (*cut, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, &media.Error{Op: "power cut", Name: c.config.Name, Kind: media.ErrClosed}
	}
	k := &cut{o: o, store: c.store, image: sha256.New(), found: make(map[int64]struct{})}
	c.store = store{nextID: k.store.nextID}
	c.store.init(c.config.SectorBytes)
	c.life++
	c.recordStep(Step{Kind: StepCut, Cut: o})
	k.report = &Report{
		Time: c.config.Now(), Seed: o.Seed, Policy: o.Policy, TearBytes: o.TearBytes, Damage: o.Damage, LoseFlushed: o.LoseFlushed,
		SectorBytes: c.config.SectorBytes, Flushes: []FlushRecord{}, Writes: []WriteReport{},
	}
	for i := max(c.record.flushes, recentFlushes) - recentFlushes + 1; i <= c.record.flushes; i++ {
		k.report.Flushes = append(k.report.Flushes, c.record.recent[i%recentFlushes])
	}
	return k, nil
}

// endCut completes the report, including what was reported meanwhile about commands that
// had been executed.
//
// +checklocks:c.outMu
func (c *Cache) endCut(k *cut) {
	if c.undo != nil {
		c.undo = make(undo)
	}
	c.syncMu.Lock()
	c.owed = nil // calls after the cut are not concerned
	c.syncMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	image := Step{Kind: StepImage, Text: k.report.ImageSHA256}
	if k.report.Error != "" {
		image.Failed, image.Text = true, k.report.Error
	}
	c.recordStep(image)
	c.takeActsLocked(k.report)
	c.record.stats.Cuts++
	if k.report.Error == "" {
		for i := range k.fates {
			c.record.stats.CutSectors[k.report.Class][k.fates[i].Outcome]++
		}
	}
	c.store.slabs = k.store.slabs
}

// A cut is one power cut in progress. It belongs to the goroutine that cuts, so that
// nobody waits for mu while the durable medium works.
type cut struct {
	o      CutOptions
	store  store // what was pending
	trace  Trace
	fates  []Fate
	report *Report
	image  hash.Hash
	// For the sectors at hand, base is what was durable and now is what is.
	base, now sectors
	// account is what callers had been told. found are the sectors about which judge has
	// found something; rest are the fates that audit has not reached.
	account *account
	found   map[int64]struct{}
	rest    []Fate
}

// sectors are the bytes of consecutive sectors. Those whose bit is set in bad cannot be
// read, and are zeros.
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

// decide decides the fates, and fills in what they say about writes.
func (k *cut) decide(shift uint8) {
	s := &k.store
	k.trace = Trace{SectorBytes: 1 << shift, Writes: make([]TracedWrite, 0, s.writes)}
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
	k.rest = k.fates
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
	if err := c.loseFlushed(k); err != nil {
		return err
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
	c.uncertain(run)
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
			if _, err := c.changeMedium(kind, k.now.p[i<<c.shift:j<<c.shift], off, n, nil); err != nil {
				return err
			}
			c.heal(run[i:j])
		}
		i = j
	}
	if err := c.readSectors(&k.now, first, len(run)); err != nil {
		return err
	}
	c.judgeRun(k, run)
	return nil
}

// uncertain prepares for a run that may fail half way: it marks the sectors that are to
// become unreadable as such.
//
// +checklocks:c.outMu
func (c *Cache) uncertain(run []Fate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range run {
		if run[i].Outcome == OutcomeUnreadable {
			if c.unreadable == nil {
				c.unreadable = make(map[int64]struct{})
			}
			c.unreadable[run[i].Sector] = struct{}{}
		}
	}
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

// judgeRun checks a run.
//
// +checklocks:c.outMu
func (c *Cache) judgeRun(k *cut, run []Fate) {
	for i := range run {
		f, base, now := &run[i], c.at(&k.base, i), c.at(&k.now, i)
		found := k.report.Verdict.count()
		c.judge(k, f, base, now)
		if k.report.Verdict.count() != found {
			k.found[f.Sector] = struct{}{}
		}
		var number [8]byte
		binary.LittleEndian.PutUint64(number[:], uint64(f.Sector))
		k.image.Write(number[:])
		k.image.Write(now)
	}
}

// compose turns p, which is what is durable, into what f says.
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
	i, _ := k.store.newest(sector)
	for ; i != none; i = k.store.versions[i].older {
		if k.store.versions[i].write.id == id {
			return i
		}
	}
	panic(fmt.Sprintf("cache: write %d has no version of sector %d", id, sector))
}

// kind returns what has to be done to the durable medium for f, if anything. A part of a
// sector does not change one that is bad, as nobody knows the rest of it.
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

// audit compares the durable medium with what callers were told, and returns what is
// known of it from now on.
//
// +checklocks:c.outMu
func (c *Cache) audit(k *cut) (*opening, error) {
	claims, wide, open := k.account.claims(c.shift), k.account.wide(), new(opening)
	zero := c.zeroSums[0]
	end := c.inner.Size() >> c.shift
	for len(claims) > 0 && claims[0].sector < end {
		first, n := claims[0].sector, 0
		rest := claims
		for n < bufferBytes>>c.shift && len(rest) > 0 && rest[0].sector == first+int64(n) && first+int64(n) < end {
			rest = rest[ofOne(rest):]
			n++
		}
		if err := c.readSectors(&k.now, first, n); err != nil {
			return nil, err
		}
		for i := range n {
			sector, own := first+int64(i), claims[:ofOne(claims)]
			claims = claims[len(own):]
			p := c.at(&k.now, i)
			hash := sum(p)
			k.hold(sector, c.shift, k.account.rule(own, wide.at(sector), zero, hash, p != nil))
			open.add(sector, hash, p != nil)
		}
	}
	return open, nil
}

// ofOne is how many claims are of the same sector as the first.
func ofOne(claims []claim) int {
	n := 1
	for n < len(claims) && claims[n].sector == claims[0].sector {
		n++
	}
	return n
}

// hold puts the ruling about a sector into the report, unless judge has found something
// there. It must be called in ascending order of sectors.
func (k *cut) hold(sector int64, shift uint8, r ruling) {
	for len(k.rest) > 0 && k.rest[0].Sector < sector {
		k.rest = k.rest[1:]
	}
	pending := len(k.rest) > 0 && k.rest[0].Sector == sector
	v := &k.report.Verdict
	if r.checked && !pending {
		v.CheckedSectors++
	}
	if r.act == "" {
		return
	}
	if _, found := k.found[sector]; !found {
		v.find(sector<<shift, r.act, r.write)
	}
}

// unsure returns an opening that knows nothing of the sectors that a failed cut was to
// change.
func (k *cut) unsure() *opening {
	open := new(opening)
	for i := range k.fates {
		open.add(k.fates[i].Sector, 0, false)
	}
	return open
}
