package fault

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/vhbad/vhbad/internal/quantity"
	"github.com/vhbad/vhbad/internal/scsi"
)

// Bounds of rules.
const (
	MaxNameBytes = 63
	// MaxRules is how many may be in force at once.
	MaxRules = 1024
	// MaxConnection is the highest connection number; it travels in the GROUP NUMBER
	// field of CDBs.
	MaxConnection = 63
	MaxLanes      = 4096
	MaxBits       = 4096
	// MaxAfter is beyond the end of any reply.
	MaxAfter = 1 * quantity.GiB
	// MinPeriod is how often a rule about OpTime may be asked.
	MinPeriod = Duration(time.Millisecond)
)

// oneOf lists the allowed names.
func oneOf(names []string) string { return strings.Join(names, ", ") }

// A named is a value that rules spell by name.
type named[T any] struct {
	name  string
	value T
}

// choose returns the value in table that the name given in a field stands for.
//
// Errors: there is no such name.
func choose[T any](field, name string, table []named[T]) (value T, err error) {
	names := make([]string, len(table))
	for i, x := range table {
		if names[i] = x.name; x.name == name {
			return x.value, nil
		}
	}
	return value, fmt.Errorf("%s %q: want %s", field, name, oneOf(names))
}

// statuses are SCSI statuses by name.
var statuses = []named[scsi.Status]{
	{"check-condition", scsi.StatusCheckCondition},
	{"condition-met", scsi.StatusConditionMet},
	{"busy", scsi.StatusBusy},
	{"reservation-conflict", scsi.StatusReservationConflict},
	{"task-set-full", scsi.StatusTaskSetFull},
	{"aca-active", scsi.StatusACAActive},
	{"task-aborted", scsi.StatusTaskAborted},
}

// errnos are the errors that clients can be made to see, with the sense data that the
// class driver turns into them. ESHUTDOWN means that the device is not there.
var errnos = []named[scsi.Sense]{
	{"EIO", scsi.Sense{Key: scsi.KeyHardwareError, Additional: scsi.InternalTargetFailure}},
	{"EPERM", scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.WriteProtected}},
	{"ENOSPC", scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.SpaceAllocationFailed}},
	{"EINVAL", scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInCDB}},
	{errnoShutdown, scsi.Sense{}},
}

const errnoShutdown = "ESHUTDOWN"

// parse is what the sense's words mean.
func (s *Sense) parse() (scsi.Sense, error) {
	out := scsi.Sense{Additional: scsi.Additional(uint16(s.ASC)<<8 | uint16(s.ASCQ))}
	if n, err := strconv.ParseUint(s.Key, 0, 8); err == nil && n < 16 {
		out.Key = scsi.SenseKey(n)
		return out, nil
	}
	var names []string
	for k := range scsi.SenseKey(16) {
		name := strings.ReplaceAll(strings.ToLower(k.String()), " ", "-")
		if strings.HasPrefix(name, "0x") {
			continue
		}
		if name == s.Key {
			out.Key = k
			return out, nil
		}
		names = append(names, name)
	}
	return out, fmt.Errorf("action.sense.key %q: want a number below 16, or %s", s.Key, oneOf(names))
}

// A RuleError is what is wrong with a rule.
type RuleError struct {
	Rule string // its name, as it was given
	Err  error
}

func (e *RuleError) Error() string { return fmt.Sprintf("fault %q: %v", e.Rule, e.Err) }

// Unwrap is the reason.
func (e *RuleError) Unwrap() error { return e.Err }

// Check fills in defaults and reports the first thing that is wrong with the rule by
// itself. NewSet checks whether the other rules, disks and ranges that it names exist.
func (r *Rule) Check() error {
	for _, check := range []func() error{r.checkName, r.checkKind, r.checkFields, r.checkMatch, r.checkAction} {
		if err := check(); err != nil {
			return &RuleError{Rule: r.Name, Err: err}
		}
	}
	return nil
}

func (r *Rule) checkName() error {
	valid := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
	}
	if n := len(r.Name); n == 0 || n > MaxNameBytes || strings.ContainsFunc(r.Name, func(c rune) bool { return !valid(c) }) {
		return fmt.Errorf("name %q: want 1 to %d letters, digits, dots, dashes and underscores", r.Name, MaxNameBytes)
	}
	return nil
}

func (r *Rule) checkKind() error {
	info, ok := infoOf(r.Action.Kind)
	if !ok {
		names := make([]string, len(kinds))
		for i := range kinds {
			names[i] = string(kinds[i].kind)
		}
		return fmt.Errorf("action.kind %q: want %s", r.Action.Kind, oneOf(names))
	}
	if info.once && r.Budget == 0 {
		r.Budget = 1
	}
	if info.hostile && !r.Hostile {
		return fmt.Errorf("action.kind %s is hostile: no correct drive does it; say `hostile: true` if that is meant", info.kind)
	}
	return nil
}

// fieldNames are the names of fields, by bit.
var fieldNames = [...]string{
	"status", "sense", "errno", "heal", "bits", "share", "shift-blocks", "keep", "at", "for", "period", "latency",
	"bytes-per-second or iops", "lanes", "silent", "size", "power", "after",
}

func (f field) names() (out []string) {
	for ; f != 0; f &= f - 1 {
		out = append(out, fieldNames[bits.TrailingZeros32(uint32(f))])
	}
	return out
}

// given returns the fields that are set in an action.
func (a *Action) given() (f field) {
	for _, g := range []struct {
		is  bool
		bit field
	}{
		{a.Status != "", fieldStatus},
		{a.Sense != nil, fieldSense},
		{a.Errno != "", fieldErrno},
		{a.Heal != nil, fieldHeal},
		{a.Bits != 0, fieldBits},
		{a.Share != nil, fieldShare},
		{a.ShiftBlocks != 0, fieldShift},
		{a.Keep != 0, fieldKeep},
		{a.At != "", fieldAt},
		{a.For != 0, fieldFor},
		{a.Period != 0, fieldPeriod},
		{a.Latency != nil, fieldLatency},
		{a.BytesPerSecond|a.Burst != 0 || a.IOPS|a.BurstIOs != 0, fieldRate},
		{a.Lanes != 0, fieldLanes},
		{a.Silent, fieldSilent},
		{a.Size != 0, fieldSize},
		{a.Power != nil, fieldPower},
		{a.After != nil, fieldAfter},
	} {
		if g.is {
			f |= g.bit
		}
	}
	return f
}

func (r *Rule) checkFields() error {
	info, _ := infoOf(r.Action.Kind)
	given := r.Action.given()
	if extra := given &^ (info.needs | info.optional); extra != 0 {
		takes := append(info.needs.names(), info.optional.names()...)
		if len(takes) == 0 {
			takes = []string{"none"}
		}
		return fmt.Errorf("action.%s does not belong to %s: its fields are %s", extra.names()[0], info.kind, oneOf(takes))
	}
	if missing := info.needs &^ given; missing != 0 {
		return fmt.Errorf("action.%s is missing: %s needs it", missing.names()[0], info.kind)
	}
	return nil
}

func (r *Rule) checkMatch() error {
	m := &r.Match
	info, _ := infoOf(r.Action.Kind)
	ops, err := m.Op.set()
	switch {
	case err != nil:
		return fmt.Errorf("match.op %w", err)
	case ops&^info.allowed != 0:
		return fmt.Errorf("match.op %s: %s is for %s only", ops&^info.allowed, info.kind, info.allowed)
	case m.Offset != nil && m.LBA != nil:
		return errors.New("match.offset and match.lba: want one of them, bytes or blocks")
	case m.Length != 0 && m.Offset == nil:
		return errors.New("match.length without match.offset: want both")
	case m.Blocks != 0 && m.LBA == nil:
		return errors.New("match.blocks without match.lba: want both")
	case m.hasRange() && ops != 0 && ops&opsRanged == 0:
		return fmt.Errorf("match.op %s has no range of blocks: want none of offset, length, lba and blocks", ops)
	case m.LBA != nil && *m.LBA > math.MaxUint64-m.Blocks:
		return fmt.Errorf("match.lba %d and match.blocks %d are beyond any disk", *m.LBA, m.Blocks)
	case m.MaxSize != 0 && m.MinSize > m.MaxSize:
		return fmt.Errorf("match.min-size %s is more than match.max-size %s", m.MinSize, m.MaxSize)
	case m.Connection > MaxConnection:
		return fmt.Errorf("match.connection %d: want 1 to %d", m.Connection, MaxConnection)
	case m.Probability != nil && !(*m.Probability >= 0 && *m.Probability <= 1):
		return fmt.Errorf("match.probability %v: want 0 to 1", *m.Probability)
	case m.Period != 0 && (m.For == 0 || m.For > m.Period):
		return fmt.Errorf("match.period %s: want a match.for of at most that, not %s", m.Period, m.For)
	case ops&OpTime != 0 && m.Period != 0 && m.Period < MinPeriod:
		return fmt.Errorf("match.period %s with match.op time: want at least %s", m.Period, MinPeriod)
	case max(m.Start, m.For, m.Period) > MaxTime:
		return fmt.Errorf("match.start, match.for and match.period: want at most %s", MaxTime)
	case m.AfterCount != 0 && m.AfterRule == "":
		return errors.New("match.after-count without match.after-rule: want both")
	case m.AfterRule != "" && m.AfterRule == r.Name:
		return errors.New("match.after-rule is the rule itself: it would never come into force")
	case ops&OpMark != 0 && m.AtMark == "":
		return errors.New("match.op mark without match.at-mark: want the mark's text")
	case len(m.AtMark) > 255:
		return fmt.Errorf("match.at-mark of %d bytes: want at most 255", len(m.AtMark))
	case info.ranged && !m.hasRange():
		return fmt.Errorf("match.offset or match.lba is missing: %s keeps something for each block of its range", info.kind)
	}
	if info.stage != stageCommand && (m.hasRange() || m.FUA != nil || m.MinSize != 0 || m.MaxSize != 0 || m.Connection != 0) {
		return fmt.Errorf("match: %s has no range, size, FUA or connection: %s takes none of them", stageNames[info.stage], info.kind)
	}
	return nil
}

// stageNames say what a rule of a stage is about.
var stageNames = [...]string{"a command", "an abort or reset", "a handshake"}

func (m *Match) hasRange() bool { return m.Offset != nil || m.LBA != nil }

func (r *Rule) checkAction() error {
	a := &r.Action
	if a.For > MaxTime || a.Period > MaxTime {
		return fmt.Errorf("action.for and action.period: want at most %s", MaxTime)
	}
	if a.Share != nil && !(*a.Share > 0 && *a.Share <= 1) {
		return fmt.Errorf("action.share %v: want more than 0 and at most 1", *a.Share)
	}
	if a.Bits > MaxBits {
		return fmt.Errorf("action.bits %d: want at most %d", a.Bits, MaxBits)
	}
	if a.After != nil && (*a.After < 0 || *a.After > MaxAfter) {
		return fmt.Errorf("action.after %s: want 0 to %s, bytes of the reply", *a.After, MaxAfter)
	}
	if a.At != "" && a.At != PlaceBefore && a.At != PlaceAfter {
		return fmt.Errorf("action.at %q: want %s or %s", a.At, PlaceBefore, PlaceAfter)
	}
	if a.Sense != nil {
		if _, err := a.Sense.parse(); err != nil {
			return err
		}
	}
	if a.Latency != nil {
		if err := a.Latency.check(); err != nil {
			return fmt.Errorf("action.%w", err)
		}
	}
	if a.Power != nil {
		if err := a.Power.check(); err != nil {
			return fmt.Errorf("action.%w", err)
		}
	}
	// Only those that have more to check.
	//exhaustive:ignore
	switch a.Kind {
	case KindStatus:
		return a.checkStatus()
	case KindErrno:
		_, err := choose("action.errno", a.Errno, errnos)
		return err
	case KindMediumError:
		if a.heals() && !r.Match.hasRange() {
			return errors.New("match.offset or match.lba is missing: which blocks are bad? (or say `heal: false`, for every read that matches)")
		}
		if !a.heals() && a.Share != nil {
			return errors.New("action.share needs `heal: true` and a range: without, use match.probability")
		}
	case KindStall:
		if a.For >= a.Period {
			return fmt.Errorf("action.for %s: want less than action.period, %s", a.For, a.Period)
		}
	case KindQueue:
		if a.Lanes < 1 || a.Lanes > MaxLanes {
			return fmt.Errorf("action.lanes %d: want 1 to %d", a.Lanes, MaxLanes)
		}
	case KindRate:
		if a.BytesPerSecond == 0 && a.IOPS == 0 {
			return errors.New("action.bytes-per-second or action.iops is missing")
		}
		if a.BytesPerSecond == 0 && a.Burst != 0 {
			return fmt.Errorf("action.burst %s without action.bytes-per-second: want both, or action.burst-ios for action.iops", a.Burst)
		}
		if a.IOPS == 0 && a.BurstIOs != 0 {
			return fmt.Errorf("action.burst-ios %d without action.iops: want both, or action.burst for action.bytes-per-second", a.BurstIOs)
		}
	}
	return nil
}

func (a *Action) checkStatus() error {
	if a.Status == "" && a.Sense == nil {
		return errors.New("action.status or action.sense is missing")
	}
	if a.Status == "" {
		a.Status = "check-condition"
	}
	status, err := choose("action.status", a.Status, statuses)
	if err == nil && (status == scsi.StatusCheckCondition) != (a.Sense != nil) {
		err = fmt.Errorf("action.status %s: want action.sense with check-condition, and with nothing else", a.Status)
	}
	return err
}

// heals reports whether writes repair.
func (a *Action) heals() bool { return a.Heal == nil || *a.Heal }
