package trace

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
)

// A Choice says what is to differ from the recording about a power cut.
type Choice struct {
	Seed      *uint64
	Policy    *cache.Policy
	TearBytes *int
	Damage    *cache.Damage
}

// Any reports whether anything is chosen.
func (c *Choice) Any() bool {
	return c.Seed != nil || c.Policy != nil || c.TearBytes != nil || c.Damage != nil
}

func (c *Choice) apply(o *cache.CutOptions) {
	if c.Seed != nil {
		o.Seed = *c.Seed
	}
	if c.Policy != nil {
		o.Policy = *c.Policy
	}
	if c.TearBytes != nil {
		o.TearBytes = *c.TearBytes
	}
	if c.Damage != nil {
		o.Damage = *c.Damage
	}
}

// Options say how far a replay goes. At most one of Until and Cut is set.
type Options struct {
	// Until is the number of the last record; all if zero. The power is cut there if
	// anything is chosen.
	Until uint64
	// Cut is the number of the recorded power cut at which the replay ends; they count
	// from 1. It is as recorded except for what is chosen.
	Cut    int
	Choice Choice
}

// A Result is the outcome of a replay.
type Result struct {
	// Records is how many records were replayed, Cuts how many recorded power cuts.
	Records uint64
	Cuts    int
	// Report is of the last power cut; nil if there was none.
	Report *cache.Report
	// UnreadableSectors hold garbage on the medium.
	UnreadableSectors int64
	// Doubt is why the medium may differ from the disk's; empty if it does not.
	Doubt string
	// Incomplete is why the disk did more than is in the trace; empty if it did not, or
	// if the replay ended before that.
	Incomplete string
}

// Replay repeats the steps of r on m, which holds what the disk held when the recording
// began, and has that size. Each recorded power cut on the way has to leave what it left
// on the disk.
//
// Errors: *FormatError; an impossible step, with its number; the medium's errors; Until
// or Cut beyond the end. What m holds then means nothing.
func Replay(r *Reader, m media.Media, o Options) (*Result, error) {
	h := r.Header()
	if m.Size() != h.DiskBytes {
		return nil, fmt.Errorf("trace: a medium of %d bytes for a disk of %d", m.Size(), h.DiskBytes)
	}
	if o.Until != 0 && o.Cut != 0 {
		return nil, errors.New("trace: up to a record or up to a power cut, not both")
	}
	again, err := cache.NewReplay(m, cache.ReplayConfig{Name: h.Disk, SectorBytes: h.SectorBytes, SizeBytes: h.CacheBytes})
	if err != nil {
		return nil, err
	}
	p := &player{r: r, again: again, o: o, result: &Result{}, at: h.Start}
	if err := p.play(); err != nil {
		return nil, err
	}
	if err := m.Flush(); err != nil {
		return nil, err
	}
	p.result.UnreadableSectors, p.result.Doubt = again.UnreadableSectors(), again.Inexact()
	return p.result, nil
}

// A player is a replay in progress.
type player struct {
	r      *Reader
	again  *cache.Replay
	o      Options
	result *Result
	at     time.Time
}

func (p *player) play() error {
	for {
		rec, err := p.r.Next()
		if errors.Is(err, io.EOF) {
			return p.ends()
		}
		if err != nil {
			return err
		}
		p.result.Records, p.at = rec.Number, rec.Time
		if rec.Kind == cache.StepCut {
			p.result.Cuts++
			if p.result.Cuts == p.o.Cut && p.o.Choice.Any() {
				return p.cut(rec.Cut)
			}
		}
		if err := p.again.Do(&rec.Step, rec.Time); err != nil {
			return fmt.Errorf("trace: record %d, %s: %w", rec.Number, rec.Kind, err)
		}
		p.result.Report = p.again.Report()
		if rec.Number == p.o.Until || rec.Kind == cache.StepImage && p.result.Cuts == p.o.Cut {
			return p.stop()
		}
	}
}

// ends handles the end of the file.
func (p *player) ends() error {
	complete, reason := p.r.End()
	switch {
	case p.o.Until != 0:
		return fmt.Errorf("trace: up to record %d, and the last is %d", p.o.Until, p.result.Records)
	case p.o.Cut > p.result.Cuts:
		return fmt.Errorf("trace: up to power cut %d, and there are %d", p.o.Cut, p.result.Cuts)
	case !complete:
		p.result.Incomplete = reason
	}
	return p.stop()
}

// stop ends the replay: if anything is chosen, it cuts the power there.
func (p *player) stop() error {
	if p.o.Cut != 0 || !p.o.Choice.Any() {
		return nil
	}
	return p.cut(cache.CutOptions{})
}

// cut cuts the power as chosen.
func (p *player) cut(o cache.CutOptions) (err error) {
	p.o.Choice.apply(&o)
	o.LoseFlushed = 0 // cache.Replay reports that it cannot repeat recorded ones; nobody has chosen this
	p.result.Report, err = p.again.Cut(o, p.at)
	return err
}
