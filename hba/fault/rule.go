package fault

import (
	"encoding/json"
	"errors"

	"github.com/vhbad/vhbad/internal/quantity"
)

// Size is a number of bytes as rules spell it.
type Size = quantity.Size

// Duration is a span of time as rules spell it.
type Duration = quantity.Duration

// A Rule says which commands meet a fault, and which fault.
type Rule struct {
	// Name tells rules apart; it is a label of metrics. It is 1 to 63 letters,
	// digits, dots, dashes and underscores.
	Name string `json:"name,omitempty" yaml:"name"`
	// Disk is the disk that the rule is about. Empty means every disk.
	Disk string `json:"disk,omitempty" yaml:"disk,omitempty"`
	// Match says which commands. The default is what users of a disk cause: reads,
	// writes, flushes and the like.
	Match Match `json:"match,omitzero" yaml:"match,omitempty"`
	// Action says what becomes of them.
	Action Action `json:"action" yaml:"action"`
	// Budget is how often the rule may fire. Zero means without limit, except for faults
	// of a whole disk, where it means once.
	Budget uint64 `json:"budget,omitempty" yaml:"budget,omitempty"`
	// Seed varies the rule's random choices.
	Seed uint64 `json:"seed,omitempty" yaml:"seed,omitempty"`
	// Hostile must be set for faults that a correct drive never shows.
	Hostile bool `json:"hostile,omitempty" yaml:"hostile,omitempty"`
}

// A Match says which commands a rule applies to. A command must meet everything that is
// given. Among those that match, Skip, Every and Probability choose, in this order.
type Match struct {
	// Op are kinds of commands, such as read or flush.
	Op Ops `json:"op,omitempty" yaml:"op,omitempty"`
	// FUA, if given, requires writes with that bit set, or clear.
	FUA *bool `json:"fua,omitempty" yaml:"fua,omitempty"`

	// Offset is where a range in bytes begins. A command matches if it touches the range.
	// Flushes have no range and touch none.
	Offset *Size `json:"offset,omitempty" yaml:"offset,omitempty"`
	// Length is that of the range in bytes. Without it the range extends to the end of the
	// disk.
	Length Size `json:"length,omitempty" yaml:"length,omitempty"`
	// LBA is where a range in logical blocks begins, as Offset is in bytes.
	LBA *uint64 `json:"lba,omitempty" yaml:"lba,omitempty"`
	// Blocks is the length of the range in logical blocks. Without it the range extends to
	// the end of the disk.
	Blocks uint64 `json:"blocks,omitempty" yaml:"blocks,omitempty"`
	// MinSize is how many bytes the command covers at least.
	MinSize Size `json:"min-size,omitempty" yaml:"min-size,omitempty"`
	// MaxSize is how many bytes the command covers at most.
	MaxSize Size `json:"max-size,omitempty" yaml:"max-size,omitempty"`

	// Connection is the number that the disk gave to the client's connection: the lowest
	// free one from 1 to 63. Further connections have none.
	Connection uint64 `json:"connection,omitempty" yaml:"connection,omitempty"`

	// Skip lets so many commands pass first.
	Skip uint64 `json:"skip,omitempty" yaml:"skip,omitempty"`
	// Every chooses the last of each group of so many.
	Every uint64 `json:"every,omitempty" yaml:"every,omitempty"`
	// Probability is from 0 to 1.
	Probability *float64 `json:"probability,omitempty" yaml:"probability,omitempty"`

	// Start is how long after it came into force the rule begins to match.
	Start Duration `json:"start,omitempty" yaml:"start,omitempty"`
	// For is how long the rule then matches.
	For Duration `json:"for,omitempty" yaml:"for,omitempty"`
	// Period is the time after which the rule matches again, for as long.
	Period Duration `json:"period,omitempty" yaml:"period,omitempty"`

	// AfterRule is another rule, which must have fired before.
	AfterRule string `json:"after-rule,omitempty" yaml:"after-rule,omitempty"`
	// AfterCount is how often AfterRule must have fired. The default is once.
	AfterCount uint64 `json:"after-count,omitempty" yaml:"after-count,omitempty"`
	// AtMark is a mark that must be set before the rule comes into force.
	AtMark string `json:"at-mark,omitempty" yaml:"at-mark,omitempty"`
}

// UnmarshalJSON takes a list or a single name.
func (o *Ops) UnmarshalJSON(b []byte) error {
	return o.unmarshal(func(v any) error { return json.Unmarshal(b, v) })
}

// UnmarshalYAML takes a list or a single name.
func (o *Ops) UnmarshalYAML(unmarshal func(any) error) error { return o.unmarshal(unmarshal) }

func (o *Ops) unmarshal(into func(any) error) error {
	var one string
	if into(&one) == nil {
		*o = Ops{one}
		return nil
	}
	var list []string
	if into(&list) != nil {
		return errors.New("op: want a kind of command or a list of them: " + oneOf(OpNames()))
	}
	*o = list
	return nil
}
