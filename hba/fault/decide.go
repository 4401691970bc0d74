package fault

import (
	"math"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// An End is how a command that is not executed ends.
type End uint8

// Ends.
const (
	EndNot      End = iota // it is executed
	EndStatus              // Status, and Sense with CHECK CONDITION
	EndNoDevice            // as if there were no unit
	EndDone                // GOOD, as if it had been executed
)

// maxFired is how many faults can come together in one command. Rules beyond that do not
// fire.
const maxFired = 8

// A Decision is what is to become of one command. Its zero value means nothing unusual.
type Decision struct {
	// fired are the n faults that the command met, and entries are theirs.
	fired   [maxFired]*Fault
	entries [maxFired]*entry
	n       int

	// Before execution: wait for Delay; then be held by HoldBefore, for at most
	// HoldBeforeFor if that is not zero.
	Delay         time.Duration
	HoldBefore    *Fault
	HoldBeforeFor time.Duration

	// End replaces execution. Status and Sense belong to EndStatus; with any other End,
	// they take the place of GOOD, or CONDITION MET, if they are not zero.
	End    End
	Status scsi.Status
	Sense  scsi.Sense

	// As it is executed.
	NoFUA    bool
	Redirect bool // to the blocks from Target on
	Target   uint64
	Short    bool // to the first Keep blocks
	Keep     uint64
	// overwrites is set if rules look at what a write overwrites; see Keepers.
	overwrites *Plan

	// flips is how many bits to flip in what was read. stales and rots say that some of
	// the entries have earlier versions of blocks, or rotten blocks.
	flips        uint32
	flip         chance
	stales, rots bool

	// Before the answer: wait for DelayAfter, then be held by HoldAfter, likewise.
	DelayAfter   time.Duration
	HoldAfter    *Fault
	HoldAfterFor time.Duration

	// CutReply makes the reply to the client break off and its connection end. The rule
	// says where.
	CutReply *Fault
	// BadCookie makes the reply carry a cookie that is not the request's.
	BadCookie bool

	// With Lost the command is never answered, with Mistagged only under another tag.
	Lost, Mistagged *Fault
	// With Late the command is answered once more, LateFor after what ended it; with
	// LateDMA it transfers its data then instead.
	Late    *Fault
	LateFor time.Duration
	LateDMA bool
	// With DMAAfter it transfers its data once more, DMAAfterFor after its answer.
	DMAAfter    *Fault
	DMAAfterFor time.Duration
	// With Duplicate it is answered twice.
	Duplicate *Fault
	// With NoInterrupt it is answered without an interrupt.
	NoInterrupt *Fault

	// With RingFull its ring appears full for RingFullFor from now on.
	RingFull    *Fault
	RingFullFor time.Duration

	// ResetFails: an abort or reset is refused, or with Silent not answered.
	ResetFails *Fault
	Silent     bool

	// Triggers are the faults that happen to the unit as a whole.
	Triggers  [maxFired]*Fault
	NTriggers int
}

// Fired are the faults that the command met.
func (d *Decision) Fired() []*Fault { return d.fired[:d.n] }

// LeaveOut counts that f, one of the faults that the command met, was left out for want
// of room.
func (d *Decision) LeaveOut(f *Fault) {
	for i, fired := range d.Fired() {
		if fired == f {
			f.leftOut.Add(1)
			d.entries[i].counts.leftOut.Add(1)
		}
	}
}

// Decide decides what is to become of a command that arrives at now. False: nothing
// unusual, and d has no meaning.
//
// Concurrency: any goroutine.
func (p *Plan) Decide(c *Command, now time.Duration, d *Decision) bool {
	if (p.ops|p.watched)&c.Op == 0 {
		return false
	}
	*d = Decision{}
	for i := range p.entries {
		e := &p.entries[i]
		if d.n == maxFired || !p.matches(e, c, now) || !e.fault.rule.Match.hasSize(p.bytes(c)) {
			continue
		}
		chance, fires := e.fault.choose()
		if !fires {
			continue
		}
		d.fired[d.n], d.entries[d.n] = e.fault, e
		d.n++
		e.counts.fired.Add(1)
		p.add(d, e, c, chance, now)
		p.tell(e.fault, c, now)
	}
	p.watch(c, d)
	return d.n > 0 || d.overwrites != nil
}

// matches checks everything in Match that does not depend on how many have matched
// before.
func (p *Plan) matches(e *entry, c *Command, now time.Duration) bool {
	f := e.fault
	m := &f.rule.Match
	switch {
	case f.ops&c.Op == 0,
		m.Connection != 0 && m.Connection != uint64(c.Connection),
		m.FUA != nil && (c.Op&(OpWrite|OpRead|OpCompareWrite) == 0 || *m.FUA != c.FUA),
		c.Op == OpMark && c.Mark != m.AtMark,
		c.Op == OpTime && c.Timer != f,
		!f.inWindow(now),
		e.after != nil && e.after.fired.Load() < max(1, m.AfterCount):
		return false
	}
	if m.hasRange() && c.Op&opsEvents == 0 && (!c.Ranged || e.in.overlap(c.span()).empty()) {
		return false
	}
	// Some kinds apply to certain blocks, or only to commands that they would change.
	//exhaustive:ignore
	switch f.rule.Action.Kind {
	case KindMediumError:
		_, bad := e.firstBad(c.span())
		return bad || e.bad == nil
	case KindRot:
		_, bad := e.firstBad(c.span())
		return bad
	case KindIgnoreFUA:
		return c.FUA
	case KindShortTransfer:
		return p.keep(&f.rule.Action, c) < c.Blocks
	}
	return true
}

// hasSize reports whether m wants a command of n bytes.
func (m *Match) hasSize(n int64) bool {
	return n >= int64(m.MinSize) && (m.MaxSize == 0 || n <= int64(m.MaxSize))
}

// bytes is how many bytes the command covers, at most those of the unit.
func (p *Plan) bytes(c *Command) int64 {
	n := c.Blocks
	if c.Op == OpTrim && c.Trimmed != 0 {
		n = c.Trimmed
	}
	return int64(min(n, p.unit.Blocks) * uint64(p.unit.BlockBytes))
}

// moves is how many bytes the command is going to move: the unit refuses what is not all
// on it.
func (p *Plan) moves(c *Command) int64 {
	if c.Ranged && (c.LBA > p.unit.Blocks || c.Blocks > p.unit.Blocks-c.LBA) {
		return 0
	}
	return p.bytes(c)
}

// firstBad is the first block of s that is bad or rotten.
func (e *entry) firstBad(s span) (lba uint64, ok bool) {
	if e.bad != nil {
		return e.bad.first(s)
	}
	s = s.overlap(e.in)
	return s.first, !s.empty()
}

// add puts the effect of a fault into the decision. Where two faults set the same thing,
// the first wins; times and bits add up, and the longest full ring counts.
func (p *Plan) add(d *Decision, e *entry, c *Command, chance chance, now time.Duration) {
	f := e.fault
	a := &f.rule.Action
	switch a.Kind {
	case KindStatus, KindErrno, KindMediumError, KindBusy, KindTaskSetFull, KindNotReady, KindUnitAttention, KindWriteProtect:
		p.end(d, e, c)
	case KindShortTransfer:
		if !d.Short {
			d.Short, d.Keep = true, p.keep(a, c)
		}
	case KindHang:
		d.hold(PlaceBefore, f, a.For)
	case KindGate:
		d.hold(a.At, f, a.For)
	case KindLatency:
		if delay := a.Latency.draw(&chance); a.At == PlaceAfter {
			d.DelayAfter += delay
		} else {
			d.Delay += delay
		}
	case KindStall:
		d.Delay += stall(a, now-time.Duration(f.armed.Load()))
	case KindRate:
		d.Delay += f.pacer.rate(a, p.moves(c), now)
	case KindQueue:
		d.Delay += f.pacer.serve(a.Latency.draw(&chance), now)
	case KindReorder:
		d.DelayAfter += time.Duration(chance.unit() * float64(a.For))
	case KindResetFails:
		if d.ResetFails == nil {
			d.ResetFails, d.Silent = f, a.Silent
		}
	case KindUnplug, KindCapacity, KindPowerCut, KindDisconnect:
		d.Triggers[d.NTriggers] = f
		d.NTriggers++
		d.hold(a.At, f, 0) // whoever carries it out lets the command go on
	case KindCutReply:
		d.CutReply = first(d.CutReply, f)
	case KindBadCookie:
		d.BadCookie = true
	case KindSlowHandshake:
		d.Delay += time.Duration(a.For)
	case KindFlip:
		if d.flips == 0 {
			d.flip = chance
		}
		d.flips += max(1, a.Bits)
	case KindRot:
		d.rots = true
	case KindStaleRead:
		d.stales = true
	case KindLostWrite, KindLieAboutFlush:
		if d.End == EndNot {
			d.End = EndDone
		}
	case KindMisdirected:
		if !d.Redirect {
			d.Target, d.Redirect = p.astray(c, a.ShiftBlocks, &chance)
		}
	case KindIgnoreFUA:
		d.NoFUA = true
	case KindLostCompletion:
		d.Lost = first(d.Lost, f)
	case KindMistagged:
		d.Mistagged = first(d.Mistagged, f)
	case KindLateCompletion, KindDMAAfterReset:
		d.hold(PlaceBefore, f, 0)
		if d.Late == nil {
			d.Late, d.LateFor, d.LateDMA = f, time.Duration(a.For), a.Kind == KindDMAAfterReset
		}
	case KindDMAAfterCompletion:
		if d.DMAAfter == nil {
			d.DMAAfter, d.DMAAfterFor = f, time.Duration(a.For)
		}
	case KindRingFull:
		if d.RingFull == nil || time.Duration(a.For) > d.RingFullFor {
			d.RingFull, d.RingFullFor = f, time.Duration(a.For)
		}
	case KindDuplicate:
		d.Duplicate = first(d.Duplicate, f)
	case KindLostInterrupt:
		d.NoInterrupt = first(d.NoInterrupt, f)
	}
}

// first is has, or f if there is none.
func first(has, f *Fault) *Fault {
	if has != nil {
		return has
	}
	return f
}

// hold makes f hold the command at a place, for at most the given time if that is not
// zero, unless another fault holds it there.
func (d *Decision) hold(at Place, f *Fault, most Duration) {
	by, span := &d.HoldBefore, &d.HoldBeforeFor
	if at == PlaceAfter {
		by, span = &d.HoldAfter, &d.HoldAfterFor
	}
	if *by == nil {
		*by, *span = f, time.Duration(most)
	}
}

// keep is how many blocks of a command are left: as many as the action says, or half.
func (p *Plan) keep(a *Action, c *Command) uint64 {
	if a.Keep == 0 {
		return c.Blocks / 2
	}
	return uint64(a.Keep) / uint64(p.unit.BlockBytes)
}

// end makes the command end as the fault says.
func (p *Plan) end(d *Decision, e *entry, c *Command) {
	f := e.fault
	if d.End != EndNot && d.End != EndDone || d.Status != scsi.StatusGood {
		return
	}
	if f.end != EndNot {
		d.End = f.end
	}
	d.Status, d.Sense = f.status, f.sense
	a := &f.rule.Action
	if a.Kind == KindMediumError {
		if c.Op&opsWriting != 0 {
			d.Sense.Additional = scsi.WriteError
		}
		d.Sense.Information, d.Sense.InformationValid = c.LBA, true
		if lba, ok := e.firstBad(c.span()); ok {
			d.Sense.Information = lba
		}
	}
	if a.Sense != nil && a.Sense.LBA && c.Ranged {
		d.Sense.Information, d.Sense.InformationValid = c.LBA, true
	}
}

// astray returns where a write goes instead: always inside the unit, never where it
// should. ok says whether there is such a place.
func (p *Plan) astray(c *Command, shift int64, chance *chance) (lba uint64, ok bool) {
	if c.Blocks == 0 || c.Blocks >= p.unit.Blocks || c.LBA > p.unit.Blocks-c.Blocks {
		return 0, false
	}
	places := p.unit.Blocks - c.Blocks + 1
	by := uint64(shift) % places
	if shift < 0 {
		by = (places - uint64(-shift)%places) % places
	}
	if by == 0 {
		by = 1 + chance.below(places-1)
	}
	return (c.LBA + by) % places, true
}

// watch looks for rules that are affected by a write although they do not match it: it
// repairs their blocks, or they keep earlier versions.
func (p *Plan) watch(c *Command, d *Decision) {
	if p.watched&c.Op == 0 || !c.Ranged || d.End != EndNot {
		return
	}
	written := d.written(c)
	for i := range p.entries {
		e := &p.entries[i]
		if e.versions != nil && !e.in.overlap(written).empty() {
			d.overwrites = p
			return
		}
		if e.bad != nil && e.watches() {
			if _, bad := e.bad.first(written); bad {
				d.overwrites = p
				return
			}
		}
	}
}

// written are the blocks that c writes, or of an UNMAP those from its first to its last.
func (d *Decision) written(c *Command) span {
	s := c.span()
	if d.Redirect {
		s = span{d.Target, d.Target + c.Blocks}
	}
	if d.Short {
		s.end = s.first + d.Keep
	}
	return s
}

// tell reports that f has fired, if a report is due.
func (p *Plan) tell(f *Fault, c *Command, now time.Duration) {
	if p.set.onFire == nil {
		return
	}
	f.untold.Add(1)
	last := f.told.Load()
	if last != math.MinInt64 && now-time.Duration(last) < TellEvery || !f.told.CompareAndSwap(last, int64(now)) {
		return
	}
	p.set.onFire(Firing{Fault: f, Disk: p.unit.Disk, Command: *c, Times: f.untold.Swap(0), First: last == math.MinInt64})
}
