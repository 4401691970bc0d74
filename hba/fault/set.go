package fault

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync/atomic"
	"time"
)

// A Unit is a logical unit as rules see it.
type Unit struct {
	Disk        string
	Target, Lun uint8
	BlockBytes  uint32
	Blocks      uint64
	// PowerSwitch says that somebody can cut its power.
	PowerSwitch bool
}

// Config says what a Set is made of.
type Config struct {
	// Rules, in the order in which they decide.
	Rules []Rule
	Units []Unit
	// Hostile allows hostile rules.
	Hostile bool
	// Now is the time on the clock that Decide will be given.
	Now time.Duration
	// Old is the previous Set: rules that have not changed keep their state.
	Old *Set
	// OnFire is called when faults fire, for each rule at most once in TellEvery. It
	// must not block: it runs on the device's data path. It may be nil.
	OnFire func(Firing)
}

// TellEvery is the least time between two reported firings of one rule.
const TellEvery = 100 * time.Millisecond

// A Firing is a command that met a fault.
type Firing struct {
	Fault   *Fault
	Disk    string
	Command Command
	// Times counts this firing and those since the last reported one. First: no firing
	// has been reported before.
	Times uint64
	First bool
}

// A Set is all rules in force on a device.
type Set struct {
	faults []*Fault
	byName map[string]*Fault
	plans  []*Plan // by unit of Config
	bus    *Plan
	onFire func(Firing)
	now    time.Duration // of Config
}

// A Plan is what the rules in force mean for one unit, or for the adapter as a
// whole.
type Plan struct {
	set     *Set
	unit    Unit
	ops     Op // of any entry
	watched Op // that entries look at without being about them
	entries []entry
}

// An entry is a fault as it applies to one unit. Its state is carried over to the next
// Set together with the fault.
type entry struct {
	fault    *Fault
	after    *Fault // has to have fired before, or nil
	in       span
	bad      *badBlocks // nil: all that the rule is about
	versions *Versions
	counts   *counts
}

// counts are what an entry counts, on its unit.
type counts struct{ fired, leftOut atomic.Uint64 }

// NewSet compiles rules. It changes them as Check does.
//
// Errors name the rule, the field and what is allowed.
func NewSet(c Config) (*Set, error) {
	disks := make([]string, len(c.Units))
	for i := range c.Units {
		disks[i] = c.Units[i].Disk
	}
	if _, err := CheckRules(c.Rules, disks, c.Hostile); err != nil {
		return nil, err
	}
	for i := range c.Rules {
		r := &c.Rules[i]
		cuts := func(u Unit) bool { return u.PowerSwitch && (r.Disk == "" || r.Disk == u.Disk) }
		if r.Action.Kind == KindPowerCut && !slices.ContainsFunc(c.Units, cuts) {
			return nil, &RuleError{Rule: r.Name, Err: errors.New("action.kind power-cut: the disk has no write cache, so it would lose nothing: serve it with cache=writeback")}
		}
	}
	s := &Set{byName: make(map[string]*Fault, len(c.Rules)), onFire: c.OnFire, now: c.Now}
	for i := range c.Rules {
		r := &c.Rules[i]
		f := c.Old.Fault(r.Name)
		if f == nil || !reflect.DeepEqual(f.rule, *r) {
			f = newFault(*r, c.Now)
		}
		s.faults = append(s.faults, f)
		s.byName[r.Name] = f
	}
	elsewhere := make(map[*Fault]error) // rules for every disk that do not fit one of them
	for _, u := range c.Units {
		p, err := s.plan(u, c.Old, func(f *Fault) bool { return f.rule.Disk == "" || f.rule.Disk == u.Disk }, elsewhere)
		if err != nil {
			return nil, err
		}
		s.plans = append(s.plans, p)
	}
	for _, f := range s.faults {
		if err := elsewhere[f]; err != nil && !slices.ContainsFunc(s.plans, func(p *Plan) bool { return p.concerns(f) }) {
			return nil, err
		}
	}
	var err error
	s.bus, err = s.plan(Unit{}, c.Old, func(f *Fault) bool { return f.ops&OpResetBus != 0 }, elsewhere)
	return s, err
}

// CheckRules runs Check on each rule, and checks whether the rules go together and with
// the disks of these names. It returns the index of the rule that is wrong.
func CheckRules(rules []Rule, disks []string, hostile bool) (index int, err error) {
	if len(rules) > MaxRules {
		return MaxRules, fmt.Errorf("%d faults: want at most %d", len(rules), MaxRules)
	}
	taken := make(map[string]bool, len(rules))
	for i := range rules {
		r := &rules[i]
		if err := r.Check(); err != nil {
			return i, err
		}
		switch {
		case taken[r.Name]:
			err = fmt.Errorf("name %q is taken: want each rule its own", r.Name)
		case r.Hostile && !hostile:
			err = ErrHostile
		case r.Disk != "" && len(disks) == 0:
			err = fmt.Errorf("disk %q: there are no disks: want none, for every disk that comes", r.Disk)
		case r.Disk != "" && !slices.Contains(disks, r.Disk):
			err = fmt.Errorf("disk %q: there is none of this name: want %s, or none for every disk", r.Disk, oneOf(disks))
		}
		if err != nil {
			return i, &RuleError{Rule: r.Name, Err: err}
		}
		taken[r.Name] = true
	}
	return checkOrder(rules)
}

// checkOrder checks that every rule named by AfterRule exists, and that no rules wait
// for each other in a circle. It returns the index of the rule that is wrong.
func checkOrder(rules []Rule) (index int, err error) {
	after := make(map[string]string, len(rules))
	for i := range rules {
		after[rules[i].Name] = rules[i].Match.AfterRule
	}
	for i := range rules {
		name := rules[i].Match.AfterRule
		if _, ok := after[name]; name != "" && !ok {
			return i, &RuleError{Rule: rules[i].Name, Err: fmt.Errorf("match.after-rule %q: no rule has this name", name)}
		}
	}
	for i := range rules {
		name := rules[i].Name
		next := after[name]
		for n := 0; next != "" && n < len(rules); n++ { // it may come into a circle of others
			if next == name {
				return i, &RuleError{Rule: name, Err: fmt.Errorf("match.after-rule %q: that waits for this rule in turn: none of them would ever come into force", after[name])}
			}
			next = after[next]
		}
	}
	return 0, nil
}

// ErrHostile means that a hostile rule is not allowed.
var ErrHostile = errors.New("the rule is hostile, and hostile rules are not allowed: start the daemon with --hostile (or `hostile: true` in its configuration) if data may be lost")

// errTooSmall means that a disk lacks the blocks that a rule covers.
var errTooSmall = errors.New("the disk is too small")

// plan compiles the rules for a unit. A rule for every disk that covers blocks which
// this unit does not have goes into elsewhere instead.
func (s *Set) plan(u Unit, old *Set, concerns func(*Fault) bool, elsewhere map[*Fault]error) (*Plan, error) {
	p := &Plan{set: s, unit: u}
	for _, f := range s.faults {
		if !concerns(f) || f.info.kind == KindPowerCut && !u.PowerSwitch {
			continue
		}
		e, err := old.carryOver(u, f)
		if f.rule.Disk == "" && errors.Is(err, errTooSmall) {
			if elsewhere[f] == nil {
				elsewhere[f] = err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		e.after = s.byName[f.rule.Match.AfterRule]
		p.entries = append(p.entries, e)
		p.ops |= f.ops
		if e.watches() {
			p.watched |= opsWriting
		}
	}
	return p, nil
}

// carryOver returns the entry that a fault has in s for a unit, or else a new one.
func (s *Set) carryOver(u Unit, f *Fault) (entry, error) {
	was := s.entry(u, f)
	if was == nil {
		e, err := newEntry(u, f)
		if err != nil {
			err = &RuleError{Rule: f.rule.Name, Err: err}
		}
		return e, err
	}
	e := *was
	if f.rule.Match.hasRange() && e.bad == nil && e.versions == nil {
		if in, err := f.rule.Match.blocks(u); err == nil { // an open range ends where the unit now ends
			e.in = in
		}
	}
	return e, nil
}

// concerns reports whether f is one of the plan's faults.
func (p *Plan) concerns(f *Fault) bool {
	return slices.ContainsFunc(p.entries, func(e entry) bool { return e.fault == f })
}

// watches reports whether writes change what the entry keeps.
func (e *entry) watches() bool {
	return e.versions != nil || e.bad != nil && e.fault.rule.Action.heals()
}

// newEntry prepares the state of a fault for a unit.
func newEntry(u Unit, f *Fault) (entry, error) {
	e := entry{fault: f, in: span{0, ^uint64(0)}, counts: new(counts)}
	m := &f.rule.Match
	if m.hasRange() {
		var err error
		if e.in, err = m.blocks(u); err != nil {
			return e, err
		}
	}
	// The other kinds have no state.
	//exhaustive:ignore
	switch f.rule.Action.Kind {
	case KindMediumError, KindRot:
		a := &f.rule.Action
		if !m.hasRange() || !a.heals() && a.Share == nil {
			break
		}
		if n := e.in.end - e.in.first; n > MaxMarked {
			return e, fmt.Errorf("a range of %d blocks on disk %q: %s takes at most %d", n, u.Disk, f.info.kind, MaxMarked)
		}
		share := 1.0
		if a.Share != nil {
			share = *a.Share
		}
		e.bad = newBadBlocks(e.in, f.seed, share)
	case KindStaleRead:
		if n := e.in.end - e.in.first; n > uint64(MaxKept)/uint64(u.BlockBytes) {
			return e, fmt.Errorf("a range of %d blocks on disk %q: %s keeps a copy and takes at most %s", n, u.Disk, f.info.kind, MaxKept)
		}
		e.versions = newVersions(e.in, int(u.BlockBytes))
	case KindCapacity:
		size, block := uint64(f.rule.Action.Size), uint64(u.BlockBytes)
		if size%block != 0 {
			return e, fmt.Errorf("action.size %s: want a multiple of the block of disk %q, %d bytes", f.rule.Action.Size, u.Disk, block)
		}
		if size/block >= u.Blocks {
			return e, fmt.Errorf("action.size %s: %w: disk %q has %s: want less", f.rule.Action.Size, errTooSmall, u.Disk, Size(u.Blocks*block))
		}
	}
	return e, nil
}

// blocks is the range of m on a unit. It ends where the unit does.
func (m *Match) blocks(u Unit) (span, error) {
	s := span{end: u.Blocks}
	if m.LBA != nil {
		s.first = *m.LBA
		if m.Blocks != 0 {
			s.end = min(s.end, s.first+m.Blocks)
		}
	} else {
		size := uint64(u.BlockBytes)
		s.first = uint64(*m.Offset) / size
		if m.Length != 0 {
			s.end = min(s.end, (uint64(*m.Offset)+uint64(m.Length)+size-1)/size)
		}
	}
	if s.empty() {
		return s, fmt.Errorf("the range begins at block %d, and disk %q has %d blocks of %d bytes: %w: want a range that begins before its end", s.first, u.Disk, u.Blocks, u.BlockBytes, errTooSmall)
	}
	return s, nil
}

// entry returns the state of a fault for a unit; nil if there is none.
func (s *Set) entry(u Unit, f *Fault) *entry {
	if s == nil {
		return nil
	}
	for _, p := range append(slices.Clip(s.plans), s.bus) {
		was := p.unit
		if was.Blocks = u.Blocks; was != u { // a disk that has grown is the same disk
			continue
		}
		for i := range p.entries {
			if p.entries[i].fault == f {
				return &p.entries[i]
			}
		}
	}
	return nil
}

// Faults are the rules in force, in their order.
func (s *Set) Faults() []*Fault {
	if s == nil {
		return nil
	}
	return s.faults
}

// Fault returns the fault whose rule has the given name, or nil.
func (s *Set) Fault(name string) *Fault {
	if s == nil {
		return nil
	}
	return s.byName[name]
}

// Rules are the rules in force, as Config.Rules takes them.
func (s *Set) Rules() []Rule {
	var out []Rule
	for _, f := range s.Faults() {
		out = append(out, f.rule)
	}
	return out
}

// Plans are those of the units, in the order of Config.Units.
func (s *Set) Plans() []*Plan {
	if s == nil {
		return nil
	}
	return s.plans
}

// Bus is the plan for resets of the whole adapter.
func (s *Set) Bus() *Plan { return s.bus }

// Unit is what the plan is for.
func (p *Plan) Unit() Unit { return p.unit }

// Mark puts rules that wait for a mark into force, and returns how many.
func (s *Set) Mark(text string, now time.Duration) int {
	n := 0
	for _, f := range s.Faults() {
		if f.rule.Match.AtMark == text && text != "" {
			f.arm(now)
			n++
		}
	}
	return n
}

// follows reports whether the rule that f waits for has fired often enough.
func (s *Set) follows(f *Fault) bool {
	after := s.byName[f.rule.Match.AfterRule]
	return after == nil || after.fired.Load() >= max(1, f.rule.Match.AfterCount)
}

// A Start is when, on the clock of Decide, a rule about OpTime wants to be asked, and as of
// which time: a unit that has come after At was not there then.
type Start struct {
	Fault    *Fault
	At, AsOf time.Duration
}

// Starts returns the start times of rules that are in force and have not fired yet or
// fire repeatedly.
func (p *Plan) Starts() (out []Start) {
	for i := range p.entries {
		f := p.entries[i].fault
		if armed := f.armed.Load(); f.ops&OpTime != 0 && armed != notArmed && (f.fired.Load() == 0 || f.rule.Match.Period != 0) {
			at := time.Duration(armed) + time.Duration(f.rule.Match.Start)
			out = append(out, Start{f, at, max(at, p.set.now)})
		}
	}
	return out
}
