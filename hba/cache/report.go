package cache

import (
	"fmt"
	"time"
)

// A Class says what kind of drive would leave such an image behind.
type Class uint8

// Classes, in order of gravity.
const (
	// ClassLegal: a correct drive with a volatile cache.
	ClassLegal Class = iota
	// ClassDamaged: a drive that kept its promises but damaged the sector that it was
	// writing, as requested by TearBytes or Damage.
	ClassDamaged
	// ClassHostile: a drive that broke a promise, because LieAboutFlush, IgnoreFUA or an
	// act reported to its media.Promiser made it, or because something below did.
	ClassHostile
	classes
)

// Classes is how many there are.
const Classes = int(classes)

// String is legal, damaged or hostile.
func (c Class) String() string { return [...]string{"legal", "damaged", "hostile"}[c] }

// MarshalText implements encoding.TextMarshaler.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Class) UnmarshalText(b []byte) error {
	for i := range classes {
		if i.String() == string(b) {
			*c = i
			return nil
		}
	}
	return fmt.Errorf("class %q: want legal, damaged or hostile", b)
}

// An Act is something that a correct drive would not have done.
type Act string

// Acts.
const (
	ActTornSector  Act = "torn-sector"
	ActGarbage     Act = "garbage"
	ActUnreadable  Act = "unreadable"
	ActLyingFlush  Act = "lying-flush"
	ActIgnoredFUA  Act = "ignored-fua"
	ActLostWrite   Act = "lost-write"   // answered, and never done
	ActMisdirected Act = "misdirected"  // done elsewhere, or for elsewhere
	ActLostFlushed Act = "lost-flushed" // what was durable is gone: below the cache, or by its fault
	ActDefect      Act = "defect"       // none of the above explains it: the cache is wrong
)

// Class returns the class of an image in which the act shows.
func (a Act) Class() Class {
	switch a {
	case ActTornSector, ActGarbage, ActUnreadable:
		return ClassDamaged
	case ActLyingFlush, ActIgnoredFUA, ActLostWrite, ActMisdirected, ActLostFlushed, ActDefect:
	}
	return ClassHostile
}

// maxFindings is how many sectors that are not legal a report names.
const maxFindings = 64

// maxReportWrites is how many writes a report lists.
const maxReportWrites = 4096

// A Report says what a power cut did.
type Report struct {
	// Time is when the power went off.
	Time      time.Time `json:"time"`
	Seed      uint64    `json:"seed"`
	Policy    Policy    `json:"policy"`
	TearBytes int       `json:"tear_bytes"`
	Damage    Damage    `json:"damage"`
	// LoseFlushed is how many sectors were to lose what was promised about them.
	LoseFlushed int `json:"lose_flushed,omitempty"`
	// SectorBytes is the unit of Sectors.
	SectorBytes int         `json:"sector_bytes"`
	Sectors     SectorTally `json:"sectors"`
	// Class is the class of the drive: hostile if it has done anything hostile since the
	// last cut, seen or not; otherwise that of the image, in Verdict.
	Class Class `json:"class"`
	// Hostile counts commands since the last cut by what no correct drive does to them,
	// whether or not it shows in the image.
	Hostile map[Act]uint64 `json:"hostile,omitempty"`
	// Verdict is the class of the image, as the check after the cut found it.
	Verdict Verdict `json:"verdict"`
	// ImageSHA256 is a digest of the pending sectors' numbers and bytes after the cut.
	// The same trace and options give the same digest.
	ImageSHA256 string `json:"image_sha256"`
	// Error says that the durable medium failed: it does not hold what the seed decided,
	// and has not been checked. The rest of the report is what was intended.
	Error string `json:"error,omitempty"`
	// Flushes are the last answered ones before the cut, oldest first.
	Flushes []FlushRecord `json:"flushes"`
	// Writes are the writes that were pending, in order of arrival: the latest 4096.
	Writes        []WriteReport `json:"writes"`
	WritesOmitted int           `json:"writes_omitted,omitempty"`
}

// settle determines the class.
func (r *Report) settle() {
	r.Class = r.Verdict.Class
	if len(r.Hostile) > 0 {
		r.Class = ClassHostile
	}
}

// A SectorTally counts the sectors with pending versions.
type SectorTally struct {
	Pending    int `json:"pending"`
	Kept       int `json:"kept"`
	Lost       int `json:"lost"`
	Torn       int `json:"torn"`
	Garbage    int `json:"garbage"`
	Unreadable int `json:"unreadable"`
	// LostFlushed counts sectors without pending versions: CutOptions.LoseFlushed took
	// them.
	LostFlushed int `json:"lost_flushed,omitempty"`
}

func (t *SectorTally) add(o Outcome) {
	t.Pending++
	switch o {
	case OutcomeKept:
		t.Kept++
	case OutcomeLost:
		t.Lost++
	case OutcomeTorn:
		t.Torn++
	case OutcomeGarbage:
		t.Garbage++
	case OutcomeUnreadable:
		t.Unreadable++
	case outcomes:
	}
}

// A Verdict is what the check after a cut found.
type Verdict struct {
	Class Class `json:"class"`
	// CheckedSectors counts the pending sectors and those for which a write was
	// promised, as far as the ledger goes back.
	CheckedSectors int `json:"checked_sectors"`
	// Acts counts sectors by what a correct drive would not have done to them.
	Acts map[Act]int `json:"acts,omitempty"`
	// Findings name the first of those sectors.
	Findings []Finding `json:"findings,omitempty"`
}

// A Finding is a sector that a correct drive would not have left in this state.
type Finding struct {
	OffsetBytes int64 `json:"offset_bytes"`
	Act         Act   `json:"act"`
	// Write is the write that was promised to be durable there; 0 if none was.
	Write uint64 `json:"write,omitempty"`
}

func (v *Verdict) find(off int64, act Act, id uint64) {
	if v.Acts == nil {
		v.Acts = make(map[Act]int)
	}
	v.Acts[act]++
	v.Class = max(v.Class, act.Class())
	if len(v.Findings) < maxFindings {
		v.Findings = append(v.Findings, Finding{off, act, id})
	}
}

// count is how many acts of all kinds there are.
func (v *Verdict) count() (n int) {
	for _, of := range v.Acts {
		n += of
	}
	return n
}

// A WriteReport is what became of one pending write. Sectors of it that had become
// durable before are not counted.
type WriteReport struct {
	ID          uint64 `json:"id"`
	Kind        Kind   `json:"kind"`
	OffsetBytes int64  `json:"offset_bytes"`
	LengthBytes int64  `json:"length_bytes"`
	FUA         bool   `json:"fua,omitempty"`
	// Acknowledged: its writer had been told that it was done, or could have been.
	Acknowledged bool `json:"acknowledged"`
	// Promised: its writer had been told that it was durable, which was a lie.
	Promised bool `json:"promised,omitempty"`
	// Epoch is how many flushes had been answered before it.
	Epoch     uint64  `json:"epoch"`
	AgeMillis float64 `json:"age_ms"`
	Fate      string  `json:"fate"` // kept, lost, torn or overwritten
	// Sectors of it by what became of them: overwritten ones hold a later write.
	Kept        int `json:"sectors_kept"`
	Lost        int `json:"sectors_lost"`
	Overwritten int `json:"sectors_overwritten"`
	Damaged     int `json:"sectors_damaged"`
}

// settle determines the word for the counts.
func (w *WriteReport) settle() {
	switch {
	case w.Damaged > 0 || w.Kept > 0 && w.Lost > 0:
		w.Fate = "torn"
	case w.Lost > 0:
		w.Fate = "lost"
	case w.Kept > 0:
		w.Fate = "kept"
	default:
		w.Fate = "overwritten"
	}
}
