package cache

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/vhbad/vhbad/hba/media"
)

// A Replay repeats what a cache has told its Recorder, on another medium that holds what
// the first one held when the recording began. It is a cache that takes its decisions
// from the steps: which writes become durable early, and when, depends on time and
// chance, but they are carried out by the same code. So a power cut anywhere in the
// steps leaves what it would have left on the first medium.
//
// Concurrency: one goroutine.
type Replay struct {
	c    *Cache
	now  time.Time
	seen uint64 // the latest write that was pending
	// cut is the report of a StepCut whose StepImage has not come yet; last is that of
	// the latest cut.
	cut     *Report
	last    *Report
	inexact string
	// unsure is where the first medium has failed and nobody has written since, in order
	// of the disk and without overlaps: there may be thousands, each failed flush tries all.
	unsure []unsure
}

// An unsure range of the first medium holds nobody knows what.
type unsure struct {
	from, to int64
	why      string
}

// ReplayConfig describes the cache that was recorded.
type ReplayConfig struct {
	Name        string
	SectorBytes int
	SizeBytes   int64 // of the cache
}

// NewReplay returns a replay on m, which remains the caller's. It uses as much memory as
// the cache did.
//
// Errors: of New.
func NewReplay(m media.Media, config ReplayConfig) (*Replay, error) {
	r := &Replay{}
	c, err := New(m, Config{
		Name: config.Name, SectorBytes: config.SectorBytes, SizeBytes: config.SizeBytes, Eviction: EvictNone,
		Now: func() time.Time { return r.now },
	})
	if err != nil {
		return nil, err
	}
	r.c = c
	return r, nil
}

// Inexact returns why the medium may differ from the first one; "" if it does not.
func (r *Replay) Inexact() string {
	if r.inexact == "" && len(r.unsure) > 0 {
		return r.unsure[0].why
	}
	return r.inexact
}

// UnreadableSectors is how many sectors cuts have made unreadable and nothing has
// rewritten since. The medium holds garbage there.
func (r *Replay) UnreadableSectors() int64 { return r.c.Stats().UnreadableSectors }

// Do performs a step that was recorded at the given time.
//
// Errors: the step cannot follow those before it, or does not fit into the cache or the
// medium, which means that steps are missing, or that the medium is not the one they
// began with; or the medium fails.
func (r *Replay) Do(s *Step, at time.Time) error {
	r.now = at
	if r.cut != nil && !s.Kind.duringCut() {
		return fmt.Errorf("%s in the middle of a power cut", s.Kind)
	}
	switch s.Kind {
	case StepWrite:
		return r.write(s)
	case StepDurable:
		return r.durable(s)
	case StepThrough:
		return r.through(s)
	case StepUnsure:
		if err := r.inside(s); err != nil {
			return err
		}
		r.unknown(s.OffsetBytes, s.OffsetBytes+s.LengthBytes)
	case StepFlushed:
		r.flushed(s)
	case StepLie:
		if err := r.inside(s); err != nil {
			return err
		}
		r.c.PromisedRange(s.OffsetBytes, s.LengthBytes)
	case StepCut:
		r.doubt(r.Inexact()) // what is unsure may have become what is left
		o := s.Cut
		if o.LoseFlushed > 0 { // no step records what was promised
			r.doubt("a power cut was to lose what had been flushed")
			o.LoseFlushed = 0
		}
		report, err := r.Cut(o, at)
		if err != nil {
			return err
		}
		r.cut = report
	case StepImage:
		return r.image(s)
	case StepBroke:
		r.c.broke(Act(s.Text))
	case StepLeave:
		return r.leave(s)
	case StepResize:
		if r.c.can.Resize == nil {
			return fmt.Errorf("the disk became %d bytes long, and this medium cannot", s.LengthBytes)
		}
		r.known(s.LengthBytes, math.MaxInt64)
		return r.c.Resize(s.LengthBytes)
	case StepAnswer:
		if s.Lie {
			r.c.broke(ActIgnoredFUA)
		}
	case StepFlush, StepMark, stepKinds:
	}
	return nil
}

// Cut cuts the power now, as Cache.Cut does. Its report is based on the pending writes
// alone: no step records what was promised about sectors that were durable by then.
func (r *Replay) Cut(o CutOptions, at time.Time) (report *Report, err error) {
	r.now = at
	report, err = r.c.Cut(o)
	r.last = report
	return report, err
}

// Report is that of the latest power cut, nil before the first.
func (r *Replay) Report() *Report { return r.last }

func (r *Replay) doubt(why string) {
	if r.inexact == "" {
		r.inexact = why
	}
}

// known ends the doubts about a range: it has been written, or is no more.
func (r *Replay) known(from, to int64) {
	first := sort.Search(len(r.unsure), func(i int) bool { return r.unsure[i].to > from })
	end := first
	var rest []unsure
	for ; end < len(r.unsure) && r.unsure[end].from < to; end++ {
		u := r.unsure[end]
		if u.from < from {
			rest = append(rest, unsure{u.from, from, u.why})
		}
		if to < u.to {
			rest = append(rest, unsure{to, u.to, u.why})
		}
	}
	r.unsure = slices.Replace(r.unsure, first, end, rest...)
}

// unknown begins a doubt about a range, in place of those there are.
func (r *Replay) unknown(from, to int64) {
	r.known(from, to) // by a retry, as a rule
	at := sort.Search(len(r.unsure), func(i int) bool { return r.unsure[i].from > from })
	r.unsure = slices.Insert(r.unsure, at, unsure{from, to, fmt.Sprintf("the medium failed to write %d bytes at %d", to-from, from)})
}

// inside refuses a range that no cache has.
func (r *Replay) inside(s *Step) error {
	mask := int64(r.c.config.SectorBytes) - 1
	if size := r.c.inner.Size(); s.OffsetBytes < 0 || s.LengthBytes <= 0 || s.OffsetBytes > size || s.LengthBytes > size-s.OffsetBytes {
		return fmt.Errorf("%s of %d bytes at %d, on a disk of %d", s.Kind, s.LengthBytes, s.OffsetBytes, size)
	}
	if (s.OffsetBytes|s.LengthBytes)&mask != 0 {
		return fmt.Errorf("%s of %d bytes at %d: no multiples of the sector, %d bytes", s.Kind, s.LengthBytes, s.OffsetBytes, mask+1)
	}
	return nil
}

// change returns the call that s records.
func (r *Replay) change(s *Step) (*change, error) {
	if err := r.inside(s); err != nil {
		return nil, err
	}
	x := &change{kind: s.Op, p: s.Data, off: s.OffsetBytes, n: s.LengthBytes, fua: s.FUA, lie: s.Lie}
	can := &r.c.can
	switch {
	case s.Write == 0:
		return nil, fmt.Errorf("%s without a number", s.Kind)
	case s.Op == KindWrite && int64(len(s.Data)) != s.LengthBytes:
		return nil, fmt.Errorf("write %d of %d bytes has %d", s.Write, s.LengthBytes, len(s.Data))
	case s.Op == KindTrim && can.Discard == nil, (s.Op == KindZero || s.Op == KindAllocate) && can.Zero == nil:
		return nil, fmt.Errorf("write %d is a %s, which this medium cannot", s.Write, s.Op)
	}
	return x, nil
}

// write makes s pending.
func (r *Replay) write(s *Step) error {
	x, err := r.change(s)
	if err != nil {
		return err
	}
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Write <= r.seen {
		return fmt.Errorf("write %d comes after write %d", s.Write, r.seen)
	}
	if need := s.LengthBytes >> c.shift; need > int64(c.room-c.store.used) {
		return fmt.Errorf("write %d of %d bytes is pending in a cache of %d that has room for %d",
			s.Write, s.LengthBytes, c.config.SizeBytes, int64(c.room-c.store.used)<<c.shift)
	}
	r.seen = s.Write
	c.store.nextID = s.Write
	c.insertLocked(x)
	return nil
}

// durable makes durable what a write has in the range.
func (r *Replay) durable(s *Step) error {
	if err := r.inside(s); err != nil {
		return err
	}
	c := r.c
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if err := r.pickOut(s); err != nil {
		return err
	}
	r.known(s.OffsetBytes, s.OffsetBytes+s.LengthBytes)
	return c.writeOut(nil)
}

// maxLeft is how many writes that have left are remembered, in addition to as many as
// are pending.
const maxLeft = 64

// leave chooses a write to become durable.
func (r *Replay) leave(s *Step) error {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := c.store.first; w != nil; w = w.after {
		if w.id == s.Write {
			if len(c.leaving) > 2*c.store.writes+maxLeft {
				c.trimLeavingLocked()
			}
			c.chooseOneLocked(w, EvictionRoom)
			return nil
		}
	}
	return fmt.Errorf("write %d is chosen to become durable, and is not pending", s.Write)
}

// pickOut picks what a write has in the range.
//
// +checklocks:r.c.outMu
func (r *Replay) pickOut(s *Step) error {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.picked = c.picked[:0]
	for i := range s.LengthBytes >> c.shift {
		sector := s.OffsetBytes>>c.shift + i
		v, _ := c.store.newest(sector)
		for v != none && c.store.versions[v].write.id != s.Write {
			v = c.store.versions[v].older
		}
		if v == none {
			return fmt.Errorf("write %d is durable at %d, and has not been pending there", s.Write, sector<<c.shift)
		}
		c.picked = append(c.picked, pick{sector, s.Write, v, c.store.versions[v].kind})
	}
	return nil
}

// through puts s on the medium.
func (r *Replay) through(s *Step) error {
	x, err := r.change(s)
	if err != nil {
		return err
	}
	c := r.c
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if _, err := c.changeMedium(x.kind, x.p, x.off, x.n, nil); err != nil {
		return err
	}
	r.known(x.off, x.off+x.n)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tookLocked(x, s.Write)
	return nil
}

// flushed records the promise that an answered flush is.
func (r *Replay) flushed(s *Step) {
	if s.Failed {
		return
	}
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Lie {
		c.record.broke(ActLyingFlush)
	}
	c.answeredLocked(&flush{before: s.Write, life: c.life, covered: s.Covered, lie: s.Lie})
}

// duringCut reports whether a step can come between StepCut and StepImage: calls that
// were in progress end, or are reported.
func (k StepKind) duringCut() bool {
	switch k {
	case StepImage, StepAnswer, StepFlushed, StepLie, StepMark, StepBroke:
		return true
	case StepWrite, StepDurable, StepThrough, StepUnsure, StepFlush, StepCut, StepResize, StepLeave, stepKinds:
	}
	return false
}

// image compares a cut with what it left the first time.
func (r *Replay) image(s *Step) error {
	report := r.cut
	r.cut = nil
	if report != nil {
		r.c.mu.Lock()
		r.c.takeActsLocked(report) // what was reported during the cut
		r.c.mu.Unlock()
	}
	switch {
	case report == nil:
		return fmt.Errorf("the outcome of a power cut, without one")
	case s.Failed:
		r.doubt("a power cut failed: " + s.Text)
	case s.Text != report.ImageSHA256 && r.inexact == "":
		return fmt.Errorf("a power cut left sectors with digest %s, and leaves %s here: the medium is not what the recording began with, or the trace is not of this version",
			s.Text, report.ImageSHA256)
	}
	return nil
}
