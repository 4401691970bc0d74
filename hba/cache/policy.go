package cache

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"strings"
)

// A Policy says which pending writes a power cut lets survive.
type Policy uint8

// Policies. Writes are in order of their arrival.
const (
	PolicySubset     Policy = iota // each by a coin
	PolicyNone                     // none: exactly what was flushed
	PolicyAll                      // all
	PolicyPrefix                   // the first k
	PolicyReverse                  // the last k: the drive wrote backwards
	PolicyOneMissing               // all but one
)

var policyNames = [...]string{"subset", "none", "all", "prefix", "reverse", "one-missing"}

// PolicyNames are all policies, as ParsePolicy takes them.
func PolicyNames() []string { return policyNames[:] }

// String is the policy's name.
func (p Policy) String() string { return policyNames[p] }

// MarshalText implements encoding.TextMarshaler.
func (p Policy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Policy) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePolicy(string(b))
	return err
}

// ParsePolicy reads a policy's name.
func ParsePolicy(s string) (Policy, error) {
	for i, name := range policyNames {
		if s == name {
			return Policy(i), nil
		}
	}
	return 0, fmt.Errorf("policy %q: want one of %s", s, strings.Join(policyNames[:], ", "))
}

// A Damage says what becomes of the place that was being written when the power failed.
type Damage uint8

// Damages.
const (
	DamageOld        Damage = iota // it is as it was, or as it was to be
	DamageGarbage                  // other bytes than anybody wrote
	DamageUnreadable               // reads fail until it is written again
)

var damageNames = [...]string{"old", "garbage", "unreadable"}

// String is old, garbage or unreadable.
func (d Damage) String() string { return damageNames[d] }

// MarshalText implements encoding.TextMarshaler.
func (d Damage) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Damage) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDamage(string(b))
	return err
}

// ParseDamage reads old, garbage or unreadable.
func ParseDamage(s string) (Damage, error) {
	for i, name := range damageNames {
		if s == name {
			return Damage(i), nil
		}
	}
	return 0, fmt.Errorf("damage %q: want one of %s", s, strings.Join(damageNames[:], ", "))
}

// CutOptions say how a power cut decides.
type CutOptions struct {
	Seed   uint64
	Policy Policy
	// TearBytes is 0, 512 or 4096: half of the writes that survive and are longer do so
	// only in pieces of that length, by a coin for each piece. Pieces shorter than a
	// sector tear the sector.
	TearBytes int
	Damage    Damage
	// LoseFlushed is how many sectors, drawn by the seed, lose what a flush or FUA has
	// promised since the last cut: by a coin each, they hold what they held at that cut,
	// or zeros. Hostile, and possible only with Config.CanLoseFlushed.
	LoseFlushed int
}

// Check reports what is wrong with o.
func (o *CutOptions) Check() error {
	if int(o.Policy) >= len(policyNames) {
		return fmt.Errorf("cache: policy %d is not known", o.Policy)
	}
	if int(o.Damage) >= len(damageNames) {
		return fmt.Errorf("cache: damage %d is not known", o.Damage)
	}
	if o.TearBytes != 0 && o.TearBytes != 512 && o.TearBytes != 4096 {
		return fmt.Errorf("cache: tear at %d bytes: want 0 for none, 512 or 4096", o.TearBytes)
	}
	if o.LoseFlushed < 0 {
		return fmt.Errorf("cache: %d flushed sectors to lose: want 0 or more", o.LoseFlushed)
	}
	return nil
}

// A Trace is the input of a power cut's decisions.
type Trace struct {
	SectorBytes int
	// Writes are the pending writes in order of arrival.
	Writes []TracedWrite
}

// A TracedWrite is a write that is not durable in all of its sectors.
type TracedWrite struct {
	ID uint64
	// Sectors are those in which it is pending, in ascending order.
	Sectors []int64
}

// An Outcome is what became of a sector with pending versions.
type Outcome uint8

// Outcomes.
const (
	OutcomeKept       Outcome = iota // it has its newest version
	OutcomeLost                      // it has an older one, or what was durable
	OutcomeTorn                      // it has parts of several
	OutcomeGarbage                   // DamageGarbage
	OutcomeUnreadable                // DamageUnreadable
	outcomes
)

// Outcomes is how many there are.
const Outcomes = int(outcomes)

// String is the outcome's name.
func (o Outcome) String() string {
	return [...]string{"kept", "lost", "torn", "garbage", "unreadable"}[o]
}

// A Layer is a version laid on top of what a sector holds.
type Layer struct {
	Write int // index in Trace.Writes
	// Pieces has a bit for each TearBytes of the sector that the version covers; all
	// bits: the whole sector.
	Pieces uint64
}

const wholeSector = ^uint64(0)

// A Fate is what a sector holds after the cut: the durable medium's bytes, with
// the layers on them, lowest first.
type Fate struct {
	Sector  int64
	Layers  []Layer
	Newest  int // index of its newest pending write
	Outcome Outcome
}

// Streams of random numbers, so that one choice does not affect the others: each is the
// sequence of PCG with the seed and one of these. A sector's garbage is the sequence of
// PCG with the seed and streamGarbage plus the sector's number.
const (
	streamPolicy   = 1
	streamTear     = 2
	streamDamage   = 3
	streamEviction = 4
	streamFlushed  = 5
	streamGarbage  = 1 << 32
)

// below turns a random number into one from 0 to n-1.
func below(random uint64, n int) int {
	hi, _ := bits.Mul64(random, uint64(n))
	return int(hi)
}

// survivors says for each of n writes whether the policy lets it survive.
func (o *CutOptions) survivors(n int) []bool {
	random := rand.NewPCG(o.Seed, streamPolicy)
	kept := make([]bool, n)
	from, to := 0, 0
	switch o.Policy {
	case PolicySubset:
		for i := range kept {
			kept[i] = random.Uint64()>>63 != 0
		}
	case PolicyNone:
	case PolicyAll:
		to = n
	case PolicyPrefix:
		to = below(random.Uint64(), n+1)
	case PolicyReverse:
		from, to = below(random.Uint64(), n+1), n
	case PolicyOneMissing:
		to = n
	}
	for i := from; i < to; i++ {
		kept[i] = true
	}
	if o.Policy == PolicyOneMissing && n > 0 {
		kept[below(random.Uint64(), n)] = false
	}
	return kept
}

// Decide says what each sector of t holds after a power cut, in ascending order
// of the sectors. It depends on its arguments alone.
func Decide(t *Trace, o CutOptions) []Fate {
	fates := make(map[int64]*Fate)
	tear := rand.NewPCG(o.Seed, streamTear)
	for i, survives := range o.survivors(len(t.Writes)) {
		w := &t.Writes[i]
		torn := survives && o.TearBytes != 0 && len(w.Sectors)*t.SectorBytes > o.TearBytes && tear.Uint64()>>63 != 0
		pieces := wholeSector
		for j, sector := range w.Sectors {
			f := fates[sector]
			if f == nil {
				f = &Fate{Sector: sector}
				fates[sector] = f
			}
			f.Newest = i
			if !survives {
				continue
			}
			if torn {
				pieces = o.pieces(tear, t.SectorBytes, w.Sectors, j, pieces)
			}
			f.put(i, pieces)
		}
	}
	sorted := sortedFates(fates)
	for i := range sorted {
		sorted[i].settle()
	}
	o.damage(t, sorted)
	return sorted
}

// pieces draws which pieces of the j-th sector of a torn write survive. before is the
// result for the sector before it.
func (o *CutOptions) pieces(random *rand.PCG, sectorBytes int, sectors []int64, j int, before uint64) uint64 {
	perSector := sectorBytes / o.TearBytes
	if perSector <= 1 {
		perPiece := int64(o.TearBytes / sectorBytes)
		if j > 0 && sectors[j]/perPiece == sectors[j-1]/perPiece {
			return before
		}
		if random.Uint64()>>63 != 0 {
			return wholeSector
		}
		return 0
	}
	mask := random.Uint64() >> (64 - perSector)
	if mask == 1<<perSector-1 {
		return wholeSector
	}
	return mask
}

// put lays write i on the sector.
func (f *Fate) put(i int, pieces uint64) {
	switch pieces {
	case 0:
	case wholeSector:
		f.Layers = append(f.Layers[:0], Layer{i, pieces})
	default:
		f.Layers = append(f.Layers, Layer{i, pieces})
	}
}

func (f *Fate) settle() {
	switch n := len(f.Layers); {
	case n == 0:
		f.Outcome = OutcomeLost
	case f.Layers[n-1].Pieces != wholeSector:
		f.Outcome = OutcomeTorn
	case f.Layers[n-1].Write == f.Newest:
		f.Outcome = OutcomeKept
	default:
		f.Outcome = OutcomeLost
	}
}

// damage harms the sector that was being written: a pending one, drawn by the seed. If
// tears are longer than a sector, so is the damaged range.
func (o *CutOptions) damage(t *Trace, fates []Fate) {
	if o.Damage == DamageOld || len(fates) == 0 {
		return
	}
	outcome := OutcomeGarbage
	if o.Damage == DamageUnreadable {
		outcome = OutcomeUnreadable
	}
	perPiece := max(int64(o.TearBytes/t.SectorBytes), 1)
	hit := fates[below(rand.NewPCG(o.Seed, streamDamage).Uint64(), len(fates))].Sector / perPiece
	for i := range fates {
		if fates[i].Sector/perPiece == hit {
			fates[i].Outcome, fates[i].Layers = outcome, nil
		}
	}
}

// garbage fills p with bytes that nobody wrote.
func (o *CutOptions) garbage(p []byte, sector int64) {
	random := rand.NewPCG(o.Seed, streamGarbage+uint64(sector))
	for i := 0; i < len(p); i += 8 {
		x := random.Uint64()
		for j := range 8 {
			p[i+j] = byte(x >> (8 * j))
		}
	}
}
