package fault

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/vhbad/vhbad/internal/scsi"
)

const blockBytes = 512

var units = []Unit{
	{Disk: "a", BlockBytes: blockBytes, Blocks: 1 << 16, PowerSwitch: true},
	{Disk: "b", Lun: 1, BlockBytes: 4096, Blocks: 1 << 10},
}

// newSet compiles rules, all of them allowed.
func newSet(t testing.TB, rules ...Rule) *Set {
	t.Helper()
	s, err := NewSet(Config{Rules: rules, Units: units, Hostile: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func read(lba, blocks uint64) Command {
	return Command{Op: OpRead, LBA: lba, Blocks: blocks, Ranged: true}
}

func write(lba, blocks uint64) Command {
	return Command{Op: OpWrite, LBA: lba, Blocks: blocks, Ranged: true}
}

var busy = Action{Kind: KindBusy}

// fires asks a set's first plan n times and tells which times it fired.
func fires(s *Set, c Command, n int) (out []int) {
	for i := range n {
		var d Decision
		if s.Plans()[0].Decide(&c, 0, &d) && d.End != EndNot {
			out = append(out, i)
		}
	}
	return out
}

func TestDecide_Choice(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule Rule
		want []int
	}{
		{"all", Rule{}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
		{"skip", Rule{Match: Match{Skip: 7}}, []int{7, 8, 9}},
		{"every", Rule{Match: Match{Every: 3}}, []int{2, 5, 8}},
		{"skip and every", Rule{Match: Match{Skip: 1, Every: 4}}, []int{4, 8}},
		{"budget", Rule{Budget: 2}, []int{0, 1}},
		{"all of them", Rule{Match: Match{Skip: 1, Every: 2}, Budget: 3}, []int{2, 4, 6}},
		{"never", Rule{Match: Match{Probability: new(0.0)}}, nil},
		{"always", Rule{Match: Match{Probability: new(1.0)}, Budget: 1}, []int{0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.rule.Name, tt.rule.Action = "r", busy
			if got := fires(newSet(t, tt.rule), read(0, 1), 10); !slices.Equal(got, tt.want) {
				t.Errorf("fires on %v, want %v", got, tt.want)
			}
		})
	}
}

func TestDecide_Match(t *testing.T) {
	fua := write(8, 8)
	fua.FUA = true
	third := read(8, 8)
	third.Connection = 3
	flush := Command{Op: OpFlush}
	for _, tt := range []struct {
		name  string
		match Match
		yes   []Command
		no    []Command
	}{
		{"users' commands by default", Match{}, []Command{read(0, 1), write(0, 1), flush}, []Command{{Op: OpInquiry}, {Op: OpVerify}}},
		{"op", Match{Op: Ops{"read", "flush"}}, []Command{read(0, 1), flush}, []Command{write(0, 1)}},
		{"any", Match{Op: Ops{"any"}}, []Command{{Op: OpInquiry}, flush, {Op: OpOther}}, []Command{{Op: OpResetLun}, {Op: OpTime}}},
		{"bytes", Match{Offset: new(Size(4096)), Length: 4096}, []Command{read(8, 1), read(15, 1), read(0, 9), write(0, 100)}, []Command{read(7, 1), read(16, 1), read(0, 8), flush}},
		{"blocks", Match{LBA: new(uint64(8)), Blocks: 1}, []Command{read(8, 1)}, []Command{read(9, 1), read(7, 1)}},
		{"to the end", Match{LBA: new(uint64(8))}, []Command{read(60000, 1)}, []Command{read(7, 1)}},
		{"odd bytes", Match{Offset: new(Size(4095)), Length: 2}, []Command{read(7, 1), read(8, 1)}, []Command{read(6, 1), read(9, 1)}},
		{"size", Match{MinSize: 1024, MaxSize: 2048}, []Command{read(0, 2), read(0, 4)}, []Command{read(0, 1), read(0, 5)}},
		{"fua", Match{FUA: new(true)}, []Command{fua}, []Command{write(8, 8), flush}},
		{"no fua", Match{FUA: new(false)}, []Command{write(8, 8)}, []Command{fua, flush}},
		{"connection", Match{Connection: 3}, []Command{third}, []Command{read(8, 8)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSet(t, Rule{Name: "r", Match: tt.match, Action: busy})
			for _, c := range tt.yes {
				if fires(s, c, 1) == nil {
					t.Errorf("%+v does not match", c)
				}
			}
			for _, c := range tt.no {
				if fires(s, c, 1) != nil {
					t.Errorf("%+v matches", c)
				}
			}
		})
	}
}

func TestDecide_Disk(t *testing.T) {
	s := newSet(t, Rule{Name: "r", Disk: "b", Match: Match{Offset: new(Size(4096)), Length: 4096}, Action: busy})
	c := read(1, 1)
	var d Decision
	if s.Plans()[0].Decide(&c, 0, &d) {
		t.Error("a rule of disk b fires on disk a")
	}
	if !s.Plans()[1].Decide(&c, 0, &d) {
		t.Error("bytes 4096 to 8191 are not block 1 of a disk with blocks of 4096 bytes")
	}
}

// A command that has met as many faults as can come together meets no more, and is none of
// the matches of the rules behind; a rule for every disk numbers the matches of all.
func TestDecide_Numbers(t *testing.T) {
	var rules []Rule
	for i := range 10 {
		rules = append(rules, Rule{Name: fmt.Sprint("r", i), Match: Match{Every: uint64(1 + i%2)}, Action: busy})
	}
	s := newSet(t, rules[:4]...)
	for n := range 4 {
		c := read(0, 1)
		var d Decision
		s.Plans()[n%2].Decide(&c, 0, &d)
	}
	for i, f := range s.Faults() {
		want := Stats{Matched: 4, Fired: 4}
		if i%2 == 1 {
			want.Fired = 2
		}
		if got := f.Stats(); got != want {
			t.Errorf("rule %d: %+v, want %+v", i, got, want)
		}
	}
	for i := range rules {
		rules[i].Match.Every = 0
	}
	s = newSet(t, rules...)
	c := read(0, 1)
	var d Decision
	s.Plans()[0].Decide(&c, 0, &d)
	for i, f := range s.Faults() {
		if got, want := f.Stats().Matched, uint64(1); (i < 8) != (got == want) {
			t.Errorf("rule %d has matched %d of one command, want only the first eight to", i, got)
		}
	}
}

func TestDecide_Window(t *testing.T) {
	sec := func(n int) Duration { return Duration(time.Duration(n) * time.Second) }
	for _, tt := range []struct {
		match Match
		want  []int // seconds at which it fires
	}{
		{Match{Start: sec(3)}, []int{3, 4, 5, 6, 7, 8, 9}},
		{Match{For: sec(2)}, []int{0, 1}},
		{Match{Start: sec(2), For: sec(3)}, []int{2, 3, 4}},
		{Match{Start: sec(1), For: sec(1), Period: sec(4)}, []int{1, 5, 9}},
	} {
		const base = time.Hour
		s, err := NewSet(Config{Rules: []Rule{{Name: "r", Match: tt.match, Action: busy}}, Units: units, Now: base})
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for i := range 10 {
			var d Decision
			c := read(0, 1)
			now := base + time.Duration(i)*time.Second
			decided := s.Plans()[0].Decide(&c, now, &d)
			if decided {
				got = append(got, i)
			}
			if state := s.State(s.Fault("r"), now); (state == StateArmed) != decided {
				t.Errorf("%+v after %d s: state %s, and it fires: %v", tt.match, i, state, decided)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%+v: fires after %v s, want %v", tt.match, got, tt.want)
		}
	}
}

func TestDecide_AfterRule(t *testing.T) {
	s := newSet(t,
		Rule{Name: "second", Match: Match{Op: Ops{"read"}, AfterRule: "first", AfterCount: 2}, Action: busy},
		Rule{Name: "first", Match: Match{Op: Ops{"write"}}, Action: busy},
	)
	if got := s.State(s.Fault("second"), 0); got != StateWaiting {
		t.Errorf("state %s before the first rule has fired, want waiting", got)
	}
	for i, want := range []bool{false, false, true, true} {
		if got := fires(s, read(0, 1), 1) != nil; got != want {
			t.Errorf("after %d firings of the first rule the second fires: %v, want %v", i, got, want)
		}
		fires(s, write(0, 1), 1)
	}
}

func TestDecide_Mark(t *testing.T) {
	s := newSet(t,
		Rule{Name: "io", Match: Match{AtMark: "here"}, Action: busy},
		Rule{Name: "cut", Match: Match{Op: Ops{"mark"}, AtMark: "here"}, Action: Action{Kind: KindPowerCut}},
	)
	if fires(s, read(0, 1), 1) != nil {
		t.Error("fires before its mark")
	}
	if n := s.Mark("elsewhere", 0); n != 0 {
		t.Errorf("another mark concerns %d rules", n)
	}
	c := Command{Op: OpMark, Mark: "here"}
	var d Decision
	if !s.Plans()[0].Decide(&c, 0, &d) || d.NTriggers != 1 || d.Triggers[0].Rule().Name != "cut" {
		t.Errorf("the mark triggers %d faults, want the one", d.NTriggers)
	}
	if n := s.Mark("here", 0); n != 2 {
		t.Errorf("the mark concerns %d rules, want 2", n)
	}
	if fires(s, read(0, 1), 1) == nil {
		t.Error("does not fire after its mark")
	}
}

// The same seed, name and number of the match make the same decision, whatever
// else happens; another seed or name make others.
func TestDecide_Deterministic(t *testing.T) {
	rule := func(name string, seed uint64) Rule {
		return Rule{Name: name, Seed: seed, Match: Match{Op: Ops{"read"}, Probability: new(0.3)}, Action: Action{
			Kind: KindLatency, Latency: &Latency{Distribution: LogNormal, Median: Duration(time.Millisecond), Sigma: 1},
		}}
	}
	run := func(r Rule, others ...Rule) (delays []time.Duration) {
		s := newSet(t, append(others, r)...)
		for i := range 1000 {
			c, w := read(uint64(i), 1), write(uint64(i), 8)
			var d Decision
			s.Plans()[0].Decide(&w, time.Duration(i), &d)
			d = Decision{}
			s.Plans()[0].Decide(&c, time.Duration(i), &d)
			delays = append(delays, d.Delay)
		}
		return delays
	}
	first := run(rule("r", 1))
	if !slices.Equal(first, run(rule("r", 1), Rule{Name: "other", Match: Match{Op: Ops{"write"}}, Action: busy})) {
		t.Error("the same rule and commands, beside another rule: other delays")
	}
	if n := len(slices.DeleteFunc(slices.Clone(first), func(d time.Duration) bool { return d == 0 })); n < 250 || n > 350 {
		t.Errorf("%d of 1000 are delayed at probability 0.3", n)
	}
	if slices.Equal(first, run(rule("r", 2))) || slices.Equal(first, run(rule("s", 1))) {
		t.Error("another seed or name makes the same delays")
	}
	// Concurrent callers get each decision once.
	s := newSet(t, rule("r", 1))
	var mu sync.Mutex
	var got []time.Duration
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for range 250 {
				c := read(0, 1)
				var d Decision
				s.Plans()[0].Decide(&c, 0, &d)
				mu.Lock()
				got = append(got, d.Delay)
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	slices.Sort(got)
	want := slices.Sorted(slices.Values(first))
	if !slices.Equal(got, want) {
		t.Error("four callers get other decisions than one")
	}
}

func TestNewSet_CarriesOver(t *testing.T) {
	keep := Rule{Name: "keep", Match: Match{Op: Ops{"read"}}, Action: busy, Budget: 5}
	change := Rule{Name: "change", Match: Match{Op: Ops{"flush"}}, Action: busy, Budget: 5}
	bad := Rule{Name: "bad", Disk: "a", Match: Match{LBA: new(uint64(100)), Blocks: 8}, Action: Action{Kind: KindMediumError}}
	s := newSet(t, keep, change, bad)
	fires(s, read(0, 1), 3)
	fires(s, Command{Op: OpFlush}, 3)
	done(s, write(100, 4))
	change.Budget = 6
	next, err := NewSet(Config{Rules: []Rule{bad, keep, change}, Units: units, Old: s})
	if err != nil {
		t.Fatal(err)
	}
	if next.Fault("keep") != s.Fault("keep") || next.Fault("keep").Stats().Fired != 3 {
		t.Error("a rule that has not changed starts anew")
	}
	if got := next.Fault("change").Stats(); next.Fault("change") == s.Fault("change") || got.Fired != 0 {
		t.Errorf("a rule that has changed goes on: %+v", got)
	}
	c := read(100, 8)
	if lba := firstBad(t, next, c); lba != 104 {
		t.Errorf("the first bad block is %d: want 104, as those before were written", lba)
	}
}

// TestNewSet_ToTheEnd: a rule about all from some block on is about what a disk that has
// grown has there, too, and goes on counting.
func TestNewSet_ToTheEnd(t *testing.T) {
	rules := []Rule{
		{Name: "end", Disk: "a", Match: Match{LBA: new(uint64(100))}, Action: busy, Budget: 3},
		{Name: "bytes", Disk: "a", Match: Match{Offset: new(Size(0)), Length: 1 << 40}, Action: Action{Kind: KindLatency, Latency: &Latency{Mean: 1}}},
	}
	s := newSet(t, rules...)
	fires(s, read(100, 1), 1)
	grown := slices.Clone(units)
	grown[0].Blocks *= 2
	next, err := NewSet(Config{Rules: rules, Units: grown, Old: s})
	if err != nil {
		t.Fatal(err)
	}
	if got := fires(next, read(grown[0].Blocks-1, 1), 3); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("fires on %v of what the disk has grown by, want what was left of the budget", got)
	}
	if n := next.Fault("bytes").Stats().Matched; n != 4 {
		t.Errorf("the other has matched %d times, want 4", n)
	}
	var tally Tally
	for _, i := range tally.Injections(func() *Set { return next }) {
		if want := map[string]uint64{"end": 3, "bytes": 4}[i.Rule]; i.Times != want {
			t.Errorf("%+v, want %d times", i, want)
		}
	}
}

func firstBad(t *testing.T, s *Set, c Command) uint64 {
	t.Helper()
	var d Decision
	if !s.Plans()[0].Decide(&c, 0, &d) || d.Sense.Key != scsi.KeyMediumError || !d.Sense.InformationValid {
		return math.MaxUint64
	}
	return d.Sense.Information
}

// done has the rules of the first unit look at c, and at what it has written.
func done(s *Set, c Command) {
	var d Decision
	if s.Plans()[0].Decide(&c, 0, &d); d.Overwrites() {
		d.Heal(&c, c.LBA, c.Blocks)
	}
}

// A write that has been decided on need not be executed, nor succeed, so it repairs
// nothing yet; and what it has to repair does not depend on others.
func TestMediumError_HealsWhatIsDone(t *testing.T) {
	s := newSet(t, Rule{Name: "bad", Match: Match{LBA: new(uint64(100)), Blocks: 10}, Action: Action{Kind: KindMediumError}})
	c := write(100, 4)
	var d Decision
	if !s.Plans()[0].Decide(&c, 0, &d) || !d.Overwrites() {
		t.Fatal("a write of bad blocks passes by")
	}
	if got := firstBad(t, s, read(100, 10)); got != 100 {
		t.Errorf("the first bad block is %d before the write is executed, want 100", got)
	}
	d.Heal(&c, 100, 1) // as of an UNMAP with gaps
	d.Heal(&c, 103, 5)
	for block, bad := range map[uint64]bool{100: false, 101: true, 102: true, 103: false, 104: true} {
		if got := firstBad(t, s, read(block, 1)) == block; got != bad {
			t.Errorf("block %d is bad: %t, want %t", block, got, bad)
		}
	}
	done(s, c)
	d = Decision{}
	if s.Plans()[0].Decide(&c, 0, &d) {
		t.Error("a write of good blocks does not pass by")
	}
}

func TestMediumError_Heals(t *testing.T) {
	s := newSet(t, Rule{Name: "bad", Match: Match{LBA: new(uint64(100)), Blocks: 10}, Action: Action{Kind: KindMediumError}})
	for _, step := range []struct {
		write Command
		want  uint64
	}{
		{Command{}, 100},
		{write(99, 2), 101},
		{write(105, 1), 101},
		{Command{Op: OpTrim, LBA: 101, Blocks: 4, Ranged: true}, 106},
		{write(0, 1000), math.MaxUint64},
	} {
		done(s, step.write)
		if got := firstBad(t, s, read(90, 100)); got != step.want {
			t.Errorf("after %+v the first bad block is %d, want %d", step.write, got, step.want)
		}
	}
	if got := firstBad(t, s, read(100, 10)); got != math.MaxUint64 {
		t.Errorf("block %d is bad after all were written", got)
	}
}

// TestMediumError_HealsWhatIsWritten: a write that is cut short repairs no block that it
// does not come to.
func TestMediumError_HealsWhatIsWritten(t *testing.T) {
	at := Match{LBA: new(uint64(100)), Blocks: 10}
	for _, tt := range []struct {
		name string
		keep Size
		want uint64
	}{
		{"two of four blocks", 2 * blockBytes, 102},
		{"half of them", 0, 102},
		{"less than one", 1, 100},
		{"more than there are", 1 << 20, 104},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSet(t,
				Rule{Name: "bad", Match: at, Action: Action{Kind: KindMediumError}},
				Rule{Name: "short", Match: Match{Op: Ops{"write"}}, Action: Action{Kind: KindShortTransfer, Keep: tt.keep}})
			var d Decision
			c := write(100, 4)
			if s.Plans()[0].Decide(&c, 0, &d); d.Short != (tt.want != 104) {
				t.Fatalf("the write is cut short: %t", d.Short)
			}
			if d.Overwrites() {
				d.Heal(&c, c.LBA, c.Blocks)
			}
			if got := firstBad(t, s, read(100, 10)); got != tt.want {
				t.Errorf("the first bad block is %d, want %d", got, tt.want)
			}
		})
	}
}

// A command that is no longer than what is kept of it meets no short transfer, and uses up
// no budget.
func TestShortTransfer_OnlyWhatIsLonger(t *testing.T) {
	for _, tt := range []struct {
		keep   Size
		blocks uint64
		fires  bool
		left   uint64
	}{
		{0, 0, false, 0},
		{0, 1, true, 0},
		{0, 5, true, 2},
		{1, 1, true, 0},
		{2 * blockBytes, 1, false, 0},
		{2 * blockBytes, 2, false, 0},
		{3*blockBytes - 1, 3, true, 2},
		{2 * blockBytes, 3, true, 2},
	} {
		s := newSet(t, Rule{Name: "short", Budget: 1, Action: Action{Kind: KindShortTransfer, Keep: tt.keep}})
		c := read(0, tt.blocks)
		var d Decision
		if got := s.Plans()[0].Decide(&c, 0, &d); got != tt.fires || d.Short != tt.fires || d.Keep != tt.left {
			t.Errorf("keep %s of %d blocks: fires %t, keeps %d; want %t, %d", tt.keep, tt.blocks, got, d.Keep, tt.fires, tt.left)
		}
		if st := s.Faults()[0].Stats(); (st.Matched == 1) != tt.fires || (st.Fired == 1) != tt.fires {
			t.Errorf("keep %s of %d blocks: %+v", tt.keep, tt.blocks, st)
		}
	}
}

func TestMediumError_Share(t *testing.T) {
	s := newSet(t, Rule{Name: "bad", Match: Match{LBA: new(uint64(0))}, Action: Action{Kind: KindMediumError, Share: new(0.1)}})
	var bad []uint64
	for b := range uint64(10000) {
		if firstBad(t, s, read(b, 1)) == b {
			bad = append(bad, b)
		}
	}
	if n := len(bad); n < 850 || n > 1150 {
		t.Errorf("%d of 10000 blocks are bad at a share of 0.1", n)
	}
	for _, b := range bad {
		if firstBad(t, s, read(b, 1)) != b {
			t.Fatalf("block %d was bad, and is no more", b)
		}
	}
}

func TestCorrupt(t *testing.T) {
	at := Match{LBA: new(uint64(10)), Blocks: 10}
	differing := func(a, b []byte) (n int) {
		for i := range a {
			for x := a[i] ^ b[i]; x != 0; x &= x - 1 {
				n++
			}
		}
		return n
	}
	// see reads 20 blocks, cut into odd segments.
	see := func(s *Set, disk []byte) []byte {
		c := read(5, 20)
		var d Decision
		data := bytes.Clone(disk[5*blockBytes : 25*blockBytes])
		if s.Plans()[0].Decide(&c, 0, &d) && d.Corrupts() {
			d.Corrupt(&c, blockBytes, [][]byte{data[:700], data[700:703], data[703:]})
		}
		return data
	}
	disk := make([]byte, 100*blockBytes)
	clean := disk[5*blockBytes : 25*blockBytes]
	t.Run("flip", func(t *testing.T) {
		s := newSet(t, Rule{Name: "r", Hostile: true, Action: Action{Kind: KindFlip, Bits: 3}})
		a, b := see(s, disk), see(s, disk)
		if n := differing(a, clean); n != 3 && n != 1 {
			t.Errorf("%d bits flipped, want 3", n)
		}
		if bytes.Equal(a, b) {
			t.Error("the same bits flip each time")
		}
	})
	t.Run("rot", func(t *testing.T) {
		s := newSet(t, Rule{Name: "r", Hostile: true, Match: at, Action: Action{Kind: KindRot}})
		a, b := see(s, disk), see(s, disk)
		if n := differing(a, clean); n != 10 || !bytes.Equal(a, b) {
			t.Errorf("%d bits are rotten, want 10, and the same each time", n)
		}
		if !bytes.Equal(a[:5*blockBytes], clean[:5*blockBytes]) || !bytes.Equal(a[15*blockBytes:], clean[15*blockBytes:]) {
			t.Error("there is rot out of range")
		}
		done(s, write(10, 9))
		if n := differing(see(s, disk), clean); n != 1 {
			t.Errorf("%d bits are rotten after all blocks but one were written", n)
		}
	})
	t.Run("rot by two rules", func(t *testing.T) {
		s := newSet(t,
			Rule{Name: "r", Hostile: true, Match: at, Action: Action{Kind: KindRot}},
			Rule{Name: "q", Hostile: true, Match: Match{LBA: new(uint64(22)), Blocks: 10}, Action: Action{Kind: KindRot}})
		if n := differing(see(s, disk), clean); n != 13 {
			t.Errorf("%d bits are rotten, want those of both rules, 13", n)
		}
	})
	t.Run("stale", func(t *testing.T) {
		s := newSet(t, Rule{Name: "r", Hostile: true, Match: at, Action: Action{Kind: KindStaleRead}})
		if !bytes.Equal(see(s, disk), clean) {
			t.Error("there is an earlier version without a write")
		}
		c := write(8, 4)
		var d Decision
		if !s.Plans()[0].Decide(&c, 0, &d) || len(d.Keepers(&c)) != 1 {
			t.Fatal("a write into the range keeps nothing")
		}
		kept := d.Keepers(&c)[0]
		lba, blocks, ok := d.Clip(kept, &c)
		if lba != 10 || blocks != 2 || !ok {
			t.Errorf("the earlier version of %d blocks from %d is wanted, want 2 from 10", blocks, lba)
		}
		kept.Keep(8, bytes.Repeat([]byte{0xee}, 4*blockBytes))
		got := see(s, disk)
		want := bytes.Clone(clean)
		copy(want[5*blockBytes:], bytes.Repeat([]byte{0xee}, 2*blockBytes))
		if !bytes.Equal(got, want) {
			t.Error("the earlier versions are not what is read")
		}
	})
}

// Each bit that flips is another one: none flips back.
func TestCorrupt_FlipsEachBitOnce(t *testing.T) {
	const blocks = 20000
	all := Match{LBA: new(uint64(0)), Blocks: blocks}
	// see returns how many bits of each block are wrong.
	see := func(s *Set, blocks uint64) []int {
		c := read(0, blocks)
		var d Decision
		data := make([]byte, blocks*blockBytes)
		if s.Plans()[0].Decide(&c, 0, &d) {
			d.Corrupt(&c, blockBytes, [][]byte{data[:100], data[100:]})
		}
		wrong := make([]int, blocks)
		for i, b := range data {
			wrong[i/blockBytes] += bits.OnesCount8(b)
		}
		return wrong
	}
	rot := newSet(t, Rule{Name: "r", Hostile: true, Match: all, Action: Action{Kind: KindRot, Bits: 2}})
	for b, n := range see(rot, blocks) {
		if n != 2 {
			t.Errorf("%d bits of block %d are rotten, want 2", n, b)
		}
	}
	for _, tt := range []struct{ bits, want int }{
		{100, 100},
		{blockBytes * 8 / 2, blockBytes * 8},
		{blockBytes * 8, blockBytes * 8}, // twice as many as there are
	} {
		some := Action{Kind: KindFlip, Bits: uint32(tt.bits)}
		rules := []Rule{{Name: "r", Hostile: true, Action: some}}
		if tt.bits != tt.want || tt.bits == blockBytes*8 {
			rules = append(rules, Rule{Name: "q", Hostile: true, Action: some})
		}
		if n := see(newSet(t, rules...), 1)[0]; n != tt.want {
			t.Errorf("%d rules flip %d bits each, and %d are wrong, want %d", len(rules), tt.bits, n, tt.want)
		}
	}
}

// TestDecide_TheFirstDecides: of two rules that say the same of a command, the first has it.
func TestDecide_TheFirstDecides(t *testing.T) {
	for name, tt := range map[string]struct {
		one, two Action
		c        Command
		got      func(*Decision) any
	}{
		"lost":      {Action{Kind: KindLostCompletion}, Action{Kind: KindLostCompletion}, read(0, 1), func(d *Decision) any { return d.Lost.rule.Name }},
		"mistagged": {Action{Kind: KindMistagged}, Action{Kind: KindMistagged}, read(0, 1), func(d *Decision) any { return d.Mistagged.rule.Name }},
		"duplicate": {Action{Kind: KindDuplicate}, Action{Kind: KindDuplicate}, read(0, 1), func(d *Decision) any { return d.Duplicate.rule.Name }},
		"interrupt": {Action{Kind: KindLostInterrupt}, Action{Kind: KindLostInterrupt}, read(0, 1), func(d *Decision) any { return d.NoInterrupt.rule.Name }},
		"late": {
			Action{Kind: KindLateCompletion, For: Duration(time.Second)},
			Action{Kind: KindDMAAfterReset, For: Duration(time.Minute)},
			read(0, 1),
			func(d *Decision) any { return [...]any{d.Late.rule.Name, d.LateFor, d.LateDMA} },
		},
		"dma": {
			Action{Kind: KindDMAAfterCompletion, For: Duration(time.Second)},
			Action{Kind: KindDMAAfterCompletion, For: Duration(time.Minute)},
			read(0, 1),
			func(d *Decision) any { return [...]any{d.DMAAfter.rule.Name, d.DMAAfterFor} },
		},
		"short":       {Action{Kind: KindShortTransfer, Keep: 512}, Action{Kind: KindShortTransfer, Keep: 1024}, write(0, 8), func(d *Decision) any { return d.Keep }},
		"misdirected": {Action{Kind: KindMisdirected, ShiftBlocks: 8}, Action{Kind: KindMisdirected, ShiftBlocks: 16}, write(0, 8), func(d *Decision) any { return d.Target }},
		"flip":        {Action{Kind: KindFlip, Bits: 1}, Action{Kind: KindFlip, Bits: 2}, read(0, 8), func(d *Decision) any { return d.flip }},
	} {
		t.Run(name, func(t *testing.T) {
			rules := []Rule{{Name: "one", Hostile: true, Action: tt.one}, {Name: "two", Hostile: true, Action: tt.two}}
			s, alone := newSet(t, rules...), newSet(t, rules[0])
			var d, want Decision
			if !s.Plans()[0].Decide(&tt.c, 0, &d) || !alone.Plans()[0].Decide(&tt.c, 0, &want) || d.n != 2 {
				t.Fatalf("%d rules fire", d.n)
			}
			if is, wanted := tt.got(&d), tt.got(&want); is != wanted {
				t.Errorf("%+v, want %+v", is, wanted)
			}
		})
	}
}

// A misdirected write lands on the unit, whole, and not where it should.
func TestMisdirected_StaysOnUnit(t *testing.T) {
	const seed = 7
	r := rand.New(rand.NewPCG(seed, 0))
	for _, shift := range []int64{0, 1, -1, 8, -8, 1 << 40, math.MinInt64, math.MaxInt64} {
		s := newSet(t, Rule{Name: "r", Hostile: true, Action: Action{Kind: KindMisdirected, ShiftBlocks: shift}})
		for range 2000 {
			blocks := 1 + r.Uint64N(200)
			c := write(r.Uint64N(units[0].Blocks-blocks+1), blocks)
			var d Decision
			if !s.Plans()[0].Decide(&c, 0, &d) || !d.Redirect {
				t.Fatalf("seed %d, shift %d: %+v goes where it should", seed, shift, c)
			}
			if d.Target == c.LBA || d.Target > units[0].Blocks-blocks {
				t.Fatalf("seed %d, shift %d: %+v goes to %d", seed, shift, c, d.Target)
			}
		}
	}
	s := newSet(t, Rule{Name: "r", Hostile: true, Action: Action{Kind: KindMisdirected, ShiftBlocks: 8}})
	c := write(100, 4)
	var d Decision
	s.Plans()[0].Decide(&c, 0, &d)
	if d.Target != 108 {
		t.Errorf("a shift of 8 takes block 100 to %d", d.Target)
	}
}

func TestLatency_Distributions(t *testing.T) {
	const ms = Duration(time.Millisecond)
	for _, tt := range []struct {
		latency        Latency
		p10, p50, p99  time.Duration // that the quantiles have to be near
		allowedPercent int64
	}{
		{Latency{Mean: 5 * ms}, 5e6, 5e6, 5e6, 0},
		{Latency{Distribution: Normal, Mean: 10 * ms, Deviation: ms}, 8.72e6, 10e6, 12.33e6, 2},
		{Latency{Distribution: LogNormal, Median: ms, Sigma: 1}, 0.278e6, 1e6, 10.24e6, 10},
		{Latency{Distribution: LogNormal, Median: ms, Sigma: 1, Max: 2 * ms}, 0.278e6, 1e6, 2e6, 10},
		{Latency{Distribution: Bimodal, Low: ms, High: 100 * ms, HighShare: 0.05}, 1e6, 1e6, 100e6, 0},
		{Latency{Distribution: Table, Table: []Quantile{{0.5, ms}, {0.9, 2 * ms}, {1, 10 * ms}}}, 0.2e6, 1e6, 9.2e6, 5},
	} {
		if err := tt.latency.check(); err != nil {
			t.Errorf("%+v: %v", tt.latency, err)
		}
		var got []time.Duration
		for k := range uint64(20000) {
			c := chanceOf(1, k)
			got = append(got, tt.latency.draw(&c))
		}
		slices.Sort(got)
		for _, q := range []struct {
			share float64
			want  time.Duration
		}{{0.1, tt.p10}, {0.5, tt.p50}, {0.99, tt.p99}} {
			g := got[int(q.share*float64(len(got)))]
			if diff := (g - q.want).Abs(); int64(diff)*100 > int64(q.want)*tt.allowedPercent {
				t.Errorf("%+v: %v quantile is %s, want %s", tt.latency, q.share, g, q.want)
			}
		}
	}
}

func TestRate(t *testing.T) {
	s := newSet(t, Rule{Name: "r", Action: Action{Kind: KindRate, BytesPerSecond: 1 << 20, Burst: 1 << 20, IOPS: 1000, BurstIOs: 10000}})
	ask := func(c Command, now time.Duration) time.Duration {
		var d Decision
		s.Plans()[0].Decide(&c, now, &d)
		return d.Delay
	}
	now := time.Duration(0) // a bucket is full at the beginning of all time, too
	if got := ask(write(0, 2048), now); got != 0 {
		t.Errorf("the burst waits %s", got)
	}
	if got := ask(write(0, 2048), now); got != time.Second {
		t.Errorf("a MiB more at 1 MiB/s waits %s, want 1s", got)
	}
	if got := ask(write(0, 2048), now+time.Second); got != time.Second {
		t.Errorf("another after a second waits %s, want 1s", got)
	}
	if got := ask(write(0, 2048), now+time.Minute); got != 0 {
		t.Errorf("after a minute's rest a MiB waits %s: the burst has come back", got)
	}
	// A thousand flushes each second, ten thousand at once.
	for range 10000 {
		ask(Command{Op: OpFlush}, now+time.Hour)
	}
	if got := ask(Command{Op: OpFlush}, now+time.Hour); got != time.Millisecond {
		t.Errorf("command 10001 waits %s, want 1ms", got)
	}
}

// unmapOf describes an UNMAP of ranges, each given by its first block and how many.
func unmapOf(ranges ...uint64) Command {
	list := make([]byte, scsi.UnmapHeaderBytes+len(ranges)/2*scsi.UnmapDescriptorBytes)
	scsi.PutUnmapHeader(list, len(ranges)/2)
	for i := 0; i < len(ranges); i += 2 {
		scsi.PutUnmapDescriptor(list[scsi.UnmapHeaderBytes+i/2*scsi.UnmapDescriptorBytes:], ranges[i], uint32(ranges[i+1]))
	}
	c := Command{Op: OpTrim}
	c.AddUnmap(list)
	return c
}

// The size of an UNMAP is that of its blocks, not of what lies between them, and what is
// beyond the end of the disk makes it no smaller, and takes nothing from a cap.
func TestDecide_SizeOfUnmap(t *testing.T) {
	const far = 1 << 63 / blockBytes // bytes of which are no int64
	last := units[0].Blocks - 1
	for _, tt := range []struct {
		name    string
		ranges  []uint64
		matches bool
		want    time.Duration
	}{
		{"8 blocks", []uint64{0, 8}, true, 8 * time.Second},
		{"8 blocks in two places", []uint64{0, 4, last - 3, 4}, true, 8 * time.Second},
		{"2 blocks far apart", []uint64{0, 1, last, 1}, false, 2 * time.Second},
		{"some far beyond the end", []uint64{0, 8, far, 8}, true, 0},
		{"some twice as far", []uint64{0, 8, 2*far - 8, 8}, true, 0},
		{"some at the end of all numbers", []uint64{0, 8, math.MaxUint64 - 1, 8}, true, 0},
		{"only some there", []uint64{math.MaxUint64 - 7, 8}, false, 0},
		{"too many", []uint64{0, math.MaxUint32, 0, math.MaxUint32}, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := unmapOf(tt.ranges...)
			var d Decision
			s := newSet(t, Rule{Name: "r", Match: Match{MinSize: 8 * blockBytes}, Action: busy})
			if got := s.Plans()[0].Decide(&c, 0, &d); got != tt.matches {
				t.Errorf("a rule about 8 blocks and more matches: %t, want %t", got, tt.matches)
			}
			s = newSet(t, Rule{Name: "r", Action: Action{Kind: KindRate, BytesPerSecond: blockBytes}})
			d = Decision{}
			if s.Plans()[0].Decide(&c, 0, &d); d.Delay != tt.want {
				t.Errorf("at a block a second it waits %s, want %s", d.Delay, tt.want)
			}
		})
	}
}

// However slow it is and however much waits, nothing is held for longer than MaxTime.
func TestPace_MaxTime(t *testing.T) {
	for _, a := range []Action{
		{Kind: KindRate, BytesPerSecond: 1},
		{Kind: KindRate, BytesPerSecond: 1, Burst: 1 << 40, IOPS: 1},
		{Kind: KindQueue, Lanes: 1, Latency: &Latency{Mean: MaxTime}},
	} {
		s := newSet(t, Rule{Name: "r", Action: a})
		last := time.Duration(0)
		for i := range 100_000 {
			var d Decision
			c := write(0, 65536)
			if s.Plans()[0].Decide(&c, time.Second, &d); d.Delay < last || d.Delay > time.Duration(MaxTime) {
				t.Fatalf("%+v: command %d waits %s, the one before %s: want at least that and at most %s", a, i, d.Delay, last, MaxTime)
			}
			last = d.Delay
		}
		if last != time.Duration(MaxTime) {
			t.Errorf("%+v: the last of many waits %s, want %s", a, last, MaxTime)
		}
	}
}

func TestQueue(t *testing.T) {
	s := newSet(t, Rule{Name: "r", Action: Action{Kind: KindQueue, Lanes: 2, Latency: &Latency{Mean: Duration(time.Millisecond)}}})
	for i, want := range []time.Duration{1, 1, 2, 2, 3} {
		var d Decision
		c := read(0, 1)
		s.Plans()[0].Decide(&c, time.Second, &d)
		if d.Delay != want*time.Millisecond {
			t.Errorf("command %d of 5 at once takes %s in two lanes of 1 ms, want %d ms", i, d.Delay, want)
		}
	}
}

func TestStall(t *testing.T) {
	s := newSet(t, Rule{Name: "r", Action: Action{Kind: KindStall, Period: Duration(time.Second), For: Duration(200 * time.Millisecond)}})
	for at, want := range map[time.Duration]time.Duration{
		0: 200 * time.Millisecond, 150 * time.Millisecond: 50 * time.Millisecond, 200 * time.Millisecond: 0,
		999 * time.Millisecond: 0, 1001 * time.Millisecond: 199 * time.Millisecond,
	} {
		var d Decision
		c := read(0, 1)
		s.Plans()[0].Decide(&c, at, &d)
		if d.Delay != want {
			t.Errorf("after %s: held for %s, want %s", at, d.Delay, want)
		}
	}
}

func TestOnFire_AtMostOnceInTellEvery(t *testing.T) {
	var told []Firing
	s, err := NewSet(Config{
		Rules: []Rule{{Name: "r", Action: busy}}, Units: units,
		OnFire: func(f Firing) { told = append(told, f) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		c := read(uint64(i), 1)
		s.Plans()[0].Decide(&c, time.Duration(i)*time.Millisecond, new(Decision))
	}
	if len(told) != 10 {
		t.Fatalf("%d firings of a second are told, want 10", len(told))
	}
	if f := told[3]; f.Times != 100 || f.First || f.Disk != "a" || f.Command.LBA != 300 || f.Fault.Rule().Name != "r" {
		t.Errorf("the fourth is %+v", f)
	}
}

func TestDescribe(t *testing.T) {
	var cdb [scsi.CDBMaxBytes]byte
	scsi.PutWrite16(&cdb, 1000, 8, true, false)
	cdb[14] = 5
	if got, want := Describe(&cdb), (Command{Op: OpWrite, LBA: 1000, Blocks: 8, Ranged: true, FUA: true, Connection: 5}); got != want {
		t.Errorf("WRITE(16) is %+v, want %+v", got, want)
	}
	scsi.PutSynchronizeCache16(&cdb, 0, 0, false)
	if got, want := Describe(&cdb), (Command{Op: OpFlush}); got != want {
		t.Errorf("SYNCHRONIZE CACHE is %+v, want %+v", got, want)
	}
	scsi.PutGetLBAStatus(&cdb, 1, 100)
	if got := Describe(&cdb); got.Op != OpStatus {
		t.Errorf("GET LBA STATUS is %+v", got)
	}
	list := make([]byte, 8+2*16)
	scsi.PutUnmapHeader(list, 2)
	scsi.PutUnmapDescriptor(list[8:], 100, 8)
	scsi.PutUnmapDescriptor(list[24:], 50, 1)
	scsi.PutUnmap(&cdb, false, uint16(len(list)))
	c := Describe(&cdb)
	c.AddUnmap(list)
	if want := (Command{Op: OpTrim, LBA: 50, Blocks: 58, Trimmed: 9, Ranged: true}); c != want {
		t.Errorf("UNMAP is %+v, want %+v", c, want)
	}
	for n := range len(list) {
		c := Describe(&cdb)
		c.AddUnmap(list[:n]) // no panic
	}
}

// Every command that a unit takes is of a kind of its own; only what no disk has is another.
func TestOpOf_KnowsWhatUnitsTake(t *testing.T) {
	want := map[scsi.Opcode]Op{
		scsi.OpTestUnitReady: OpReady, scsi.OpRequestSense: OpSense, scsi.OpInquiry: OpInquiry, scsi.OpReportLUNs: OpLuns,
		scsi.OpModeSense6: OpMode, scsi.OpModeSense10: OpMode, scsi.OpModeSelect6: OpMode, scsi.OpModeSelect10: OpMode,
		scsi.OpStartStopUnit: OpStartStop, scsi.OpReadCapacity10: OpCapacity,
		scsi.OpRead6: OpRead, scsi.OpRead10: OpRead, scsi.OpRead12: OpRead, scsi.OpRead16: OpRead,
		scsi.OpWrite6: OpWrite, scsi.OpWrite10: OpWrite, scsi.OpWrite12: OpWrite, scsi.OpWrite16: OpWrite,
		scsi.OpVerify10: OpVerify, scsi.OpVerify12: OpVerify, scsi.OpVerify16: OpVerify,
		scsi.OpPreFetch10: OpCache, scsi.OpPreFetch16: OpCache,
		scsi.OpSynchronizeCache10: OpFlush, scsi.OpSynchronizeCache16: OpFlush,
		scsi.OpWriteSame10: OpZero, scsi.OpWriteSame16: OpZero, scsi.OpUnmap: OpTrim, scsi.OpCompareAndWrite: OpCompareWrite,
	}
	for code := range 256 {
		cdb := [scsi.CDBMaxBytes]byte{byte(code)}
		op, known := want[scsi.Opcode(code)]
		if !known {
			op = OpOther
		}
		if got := OpOf(&cdb); got != op {
			t.Errorf("%v is of kind %v, want %v", scsi.Opcode(code), got, op)
		}
	}
	for action, op := range map[scsi.ServiceAction]Op{scsi.ActionReadCapacity16: OpCapacity, scsi.ActionGetLBAStatus: OpStatus, 0x1f: OpOther} {
		cdb := [scsi.CDBMaxBytes]byte{byte(scsi.OpServiceActionIn16), byte(action)}
		if got := OpOf(&cdb); got != op {
			t.Errorf("SERVICE ACTION IN of action %#x is of kind %v, want %v", uint8(action), got, op)
		}
	}
}

// A PRE-FETCH of 0 blocks is about all up to the end.
func TestPlan_Describe(t *testing.T) {
	bad := Match{LBA: new(uint64(100)), Blocks: 50, Op: Ops{"cache"}}
	s := newSet(t, Rule{Name: "r", Match: bad, Action: Action{Kind: KindMediumError}})
	p := s.Plans()[0]
	for _, tt := range []struct {
		lba    uint64
		blocks uint32
		want   uint64 // the bad block that it meets; 0 is none
	}{
		{0, 0, 100},
		{110, 0, 110},
		{150, 0, 0},
		{p.Unit().Blocks, 0, 0},
		{1 << 60, 0, 0},
		{0, 100, 0},
		{0, 101, 100},
	} {
		var cdb [scsi.CDBMaxBytes]byte
		scsi.PutPreFetch16(&cdb, tt.lba, tt.blocks, false)
		c := p.Describe(&cdb)
		var d Decision
		if got := p.Decide(&c, 0, &d); got != (tt.want != 0) || got && d.Sense.Information != tt.want {
			t.Errorf("a PRE-FETCH of %d blocks from %d on: %t, at block %d; want block %d", tt.blocks, tt.lba, got, d.Sense.Information, tt.want)
		}
	}
	// Of other commands 0 blocks are none.
	var cdb [scsi.CDBMaxBytes]byte
	scsi.PutRead16(&cdb, 100, 0, false, false)
	if c := p.Describe(&cdb); c.Blocks != 0 {
		t.Errorf("a READ of no blocks is %+v", c)
	}
}

// good has a rule of every kind.
func good() []Rule {
	lba := Match{LBA: new(uint64(8)), Blocks: 8}
	fixed := &Latency{Mean: 1}
	actions := map[Kind]Action{
		KindStatus: {Sense: &Sense{Key: "medium-error", ASC: 0x11}}, KindErrno: {Errno: "ENOSPC"}, KindLatency: {Latency: fixed},
		KindStall: {For: 1, Period: 2}, KindRate: {IOPS: 1}, KindQueue: {Lanes: 1, Latency: fixed}, KindReorder: {For: 1},
		KindCapacity: {Size: 4096}, KindSlowHandshake: {For: 1}, KindRingFull: {For: 1},
	}
	var out []Rule
	for _, k := range Kinds() {
		a := actions[k.Kind]
		a.Kind = k.Kind
		r := Rule{Name: string(k.Kind), Action: a, Hostile: k.Hostile}
		if info, _ := infoOf(k.Kind); info.ranged || k.Kind == KindMediumError {
			r.Match = lba
		}
		out = append(out, r)
	}
	return out
}

func TestCheck_EveryKind(t *testing.T) {
	newSet(t, good()...)
	for _, r := range good() {
		if !r.Hostile {
			continue
		}
		if _, err := NewSet(Config{Rules: []Rule{r}, Units: units}); err == nil || !strings.Contains(err.Error(), "--hostile") {
			t.Errorf("%s without leave: error %v, want one that names --hostile", r.Name, err)
		}
		r.Hostile = false
		if err := r.Check(); err == nil || !strings.Contains(err.Error(), "hostile: true") {
			t.Errorf("%s without its word: error %v, want one that says what to write", r.Name, err)
		}
	}
}

func TestCheck_Bad(t *testing.T) {
	for text, want := range map[string]string{
		`name: ""`:                            `name "": want 1 to 63`,
		`name: "a b"`:                         `name "a b"`,
		`action: {kind: explode}`:             `action.kind "explode": want status, errno, medium-error`,
		`match: {op: eat}`:                    `match.op "eat": want read, write, flush`,
		`match: {op: [read, reset-lun]}`:      `match.op reset-lun: busy is for`,
		`match: {offset: 0, lba: 0}`:          "one of them",
		`match: {length: 4096}`:               "match.length without match.offset",
		`match: {blocks: 1}`:                  "match.blocks without match.lba",
		`match: {op: flush, lba: 1}`:          "match.op flush has no range",
		`match: {min-size: 2K, max-size: 1K}`: "match.min-size 2KiB is more than match.max-size 1KiB",
		`match: {connection: 64}`:             "match.connection 64: want 1 to 63",
		`match: {probability: 1.5}`:           "match.probability 1.5: want 0 to 1",
		`match: {probability: .nan}`:          "match.probability NaN: want 0 to 1",
		`match: {period: 1s}`:                 "match.period 1s: want a match.for",
		`match: {start: 25h}`:                 "at most 24h0m0s",
		`{match: {op: time, for: 1ns, period: 999us}, action: {kind: power-cut}}`: "match.period 999µs with match.op time: want at least 1ms",
		`match: {after-count: 2}`:                                                       "match.after-count without match.after-rule",
		`match: {after-rule: r}`:                                                        "the rule itself",
		`match: {after-rule: q}`:                                                        `match.after-rule "q": no rule has this name`,
		`disk: c`:                                                                       `disk "c": there is none`,
		`match: {lba: 65536}`:                                                           `begins at block 65536, and disk "a" has 65536 blocks`,
		`action: {kind: busy, errno: EIO}`:                                              "action.errno does not belong to busy: its fields are none",
		`action: {kind: errno}`:                                                         "action.errno is missing",
		`action: {kind: errno, errno: ENOENT}`:                                          `action.errno "ENOENT": want EIO, EPERM, ENOSPC, EINVAL, ESHUTDOWN`,
		`action: {kind: status}`:                                                        "action.status or action.sense is missing",
		`action: {kind: status, status: good}`:                                          `action.status "good": want check-condition`,
		`action: {kind: status, status: check-condition}`:                               "want action.sense with check-condition",
		`action: {kind: status, sense: {key: lazy}}`:                                    `action.sense.key "lazy": want a number below 16, or no-sense`,
		`action: {kind: medium-error}`:                                                  "which blocks are bad",
		`action: {kind: latency}`:                                                       "action.latency is missing",
		`action: {kind: latency, latency: {distribution: gauss}}`:                       `action.latency.distribution "gauss": want fixed, normal`,
		`action: {kind: latency, latency: {mean: 1ms, sigma: 2}}`:                       "action.latency.sigma: distribution fixed takes mean",
		`action: {kind: latency, latency: {distribution: normal, mean: 1ms}}`:           "action.latency.deviation: distribution normal takes mean, deviation",
		`action: {kind: latency, latency: {mean: 48h}}`:                                 "at most 24h",
		`action: {kind: latency, at: never, latency: {mean: 1s}}`:                       `action.at "never": want before or after`,
		`action: {kind: latency, latency: {distribution: table, table: [{at: 2}]}}`:     "want quantiles from 0 to 1",
		`action: {kind: stall, for: 2s, period: 1s}`:                                    "action.for 2s: want less than action.period, 1s",
		`action: {kind: rate, burst: 1M}`:                                               "action.bytes-per-second or action.iops is missing",
		`action: {kind: rate, iops: 1, burst: 1M}`:                                      "action.burst 1MiB without action.bytes-per-second: want both",
		`action: {kind: rate, bytes-per-second: 1M, burst-ios: 2}`:                      "action.burst-ios 2 without action.iops: want both",
		`match: {connection: 300}`:                                                      "match.connection 300: want 1 to 63",
		`{disk: b, match: {lba: 1024}}`:                                                 `begins at block 1024, and disk "b" has 1024 blocks of 4096 bytes`,
		`{disk: a, action: {kind: capacity, size: 32M}}`:                                `action.size 32MiB: the disk is too small: disk "a" has 32MiB: want less`,
		`action: {kind: capacity, size: 4G}`:                                            `action.size 4GiB: the disk is too small: disk "a" has 32MiB: want less`,
		`{disk: a, action: {kind: capacity, size: 100}}`:                                `action.size 100: want a multiple of the block of disk "a", 512 bytes`,
		`action: {kind: queue, lanes: 5000, latency: {mean: 1ms}}`:                      "action.lanes 5000: want 1 to 4096",
		`{hostile: true, action: {kind: stale-read}}`:                                   "match.offset or match.lba is missing: stale-read keeps",
		`{hostile: true, action: {kind: rot, share: 0}, match: {lba: 1}}`:               "action.share 0: want more than 0",
		`{disk: b, hostile: true, action: {kind: lie-about-flush}, match: {op: write}}`: "match.op write: lie-about-flush is for flush only",
		`action: {kind: power-cut, power: {policy: bogus}}`:                             `action.power.policy "bogus": want subset, none, all`,
		`action: {kind: power-cut, power: {tear: "7"}}`:                                 `action.power.tear "7": want none, 512, 4096`,
		`action: {kind: power-cut, power: {damage: lots}}`:                              `action.power.damage "lots": want old, garbage, unreadable`,
		`action: {kind: power-cut, power: {off-for: 48h}}`:                              "action.power.off-for 48h0m0s: want at most 1h0m0s",
		`action: {kind: cut-reply, after: 2G}`:                                          "action.after 2GiB: want 0 to 1GiB, bytes of the reply",
		`action: {kind: slow-handshake}`:                                                "action.for is missing: slow-handshake needs it",
		`{action: {kind: slow-handshake, for: 1s}, match: {op: read}}`:                  "match.op read: slow-handshake is for handshake only",
		`{action: {kind: slow-handshake, for: 1s}, match: {offset: 0}}`:                 "match: a handshake has no range, size, FUA or connection: slow-handshake takes none of them",
		`{action: {kind: hang}, match: {op: handshake}}`:                                "match.op handshake: hang is for",
		`action: {kind: bad-cookie}`:                                                    "action.kind bad-cookie is hostile",
		`action: {kind: cut-reply, at: before}`:                                         "action.at does not belong to cut-reply: its fields are after",
		`action: {kind: busy, after: 0}`:                                                "action.after does not belong to busy",
		`{action: {kind: cut-reply}, match: {op: reset-lun}}`:                           "match.op reset-lun: cut-reply is for read,write,flush",
		`{action: {kind: reset-fails}, match: {lba: 1}}`:                                "match: an abort or reset has no range",
	} {
		r := Rule{Name: "r", Action: busy}
		if strings.Contains(text, "kind:") {
			r.Action = Action{}
		}
		if err := yaml.Unmarshal([]byte(text), &r); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		_, err := NewSet(Config{Rules: []Rule{r}, Units: units, Hostile: true})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), fmt.Sprintf("fault %q: ", r.Name)) {
			t.Errorf("%s: error %v, want one with %s", text, err, want)
		}
	}
	if _, err := NewSet(Config{Rules: []Rule{{Name: "r", Disk: "b", Action: Action{Kind: KindPowerCut}}}, Units: units}); err == nil || !strings.Contains(err.Error(), "cache=writeback") {
		t.Errorf("a power cut without a switch: error %v", err)
	}
	if _, err := NewSet(Config{Rules: []Rule{{Name: "r", Action: busy}, {Name: "r", Action: busy}}, Units: units}); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Errorf("two rules of one name: error %v", err)
	}
	circle := []Rule{
		{Name: "z", Action: busy, Match: Match{AfterRule: "a"}},
		{Name: "a", Action: busy, Match: Match{AfterRule: "b"}},
		{Name: "b", Action: busy, Match: Match{AfterRule: "a"}},
	}
	if i, err := CheckRules(circle, nil, false); i != 1 || err == nil || !strings.Contains(err.Error(), `fault "a": match.after-rule "b": that waits for this rule in turn`) {
		t.Errorf("rules that wait for each other: error %v, of number %d", err, i)
	}
	if _, err := NewSet(Config{Rules: make([]Rule, MaxRules+1)}); err == nil || !strings.Contains(err.Error(), "at most 1024") {
		t.Errorf("too many rules: error %v", err)
	}
}

func TestCheckRules_Disks(t *testing.T) {
	rules := []Rule{{Name: "r", Disk: "x", Action: Action{Kind: KindBusy}}}
	for want, disks := range map[string][]string{
		`fault "r": disk "x": there is none of this name: want a, b, or none for every disk`: {"a", "b"},
		`fault "r": disk "x": there are no disks: want none, for every disk that comes`:      nil,
	} {
		if _, err := CheckRules(rules, disks, false); err == nil || err.Error() != want {
			t.Errorf("with disks %q: got %v\nwant %s", disks, err, want)
		}
	}
	if _, err := CheckRules(rules, []string{"x"}, false); err != nil {
		t.Error(err)
	}
}

// A rule for every disk concerns those that have its blocks. A disk without them is no
// error, as long as there is another.
func TestNewSet_SmallDisk(t *testing.T) {
	s := newSet(t,
		Rule{Name: "far", Match: Match{LBA: new(uint64(2000))}, Action: busy}, // disk b has 1024 blocks
		Rule{Name: "less", Match: Match{Op: Ops{"write"}}, Action: Action{Kind: KindCapacity, Size: 16 << 20}},
	)
	for i, want := range []int{2, 0} {
		if got := s.plans[i].entries; len(got) != want {
			t.Errorf("%d rules concern disk %s, want %d", len(got), units[i].Disk, want)
		}
	}
	if fires(s, read(2000, 1), 1) == nil {
		t.Error("the disk that has the blocks meets no fault")
	}
}

// One shape in YAML and JSON: what one says, the other reads.
func TestRule_YAMLAndJSON(t *testing.T) {
	const text = `
name: slow-tail
disk: a
match:
  op: [read, write]
  offset: 1MiB
  length: 64KiB
  every: 10
  probability: 0.5
  start: 5s
  after-rule: other
action:
  kind: latency
  latency: {distribution: bimodal, low: 1ms, high: 200ms, high-share: 0.01}
budget: 3
seed: 42
`
	want := Rule{
		Name: "slow-tail", Disk: "a", Budget: 3, Seed: 42,
		Match: Match{
			Op: Ops{"read", "write"}, Offset: new(Size(1 << 20)), Length: 64 << 10, Every: 10, Probability: new(0.5),
			Start: Duration(5 * time.Second), AfterRule: "other",
		},
		Action: Action{Kind: KindLatency, Latency: &Latency{
			Distribution: Bimodal, Low: Duration(time.Millisecond), High: Duration(200 * time.Millisecond), HighShare: 0.01,
		}},
	}
	var fromYAML, fromJSON Rule
	if err := yaml.Unmarshal([]byte(text), &fromYAML); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, fromYAML); diff != "" {
		t.Errorf("from YAML: -want +got\n%s", diff)
	}
	b, err := json.Marshal(&want)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &fromJSON); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, fromJSON); diff != "" {
		t.Errorf("from JSON %s: -want +got\n%s", b, diff)
	}
	for _, r := range good() {
		b, err := json.Marshal(&r)
		if err != nil {
			t.Fatal(err)
		}
		var back, yamlBack Rule
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		y, err := yaml.Marshal(&r)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(y, &yamlBack); err != nil {
			t.Fatalf("%s: %v", y, err)
		}
		if diff := cmp.Diff(r, back) + cmp.Diff(r, yamlBack); diff != "" {
			t.Errorf("%s comes back otherwise:\n%s", b, diff)
		}
	}
	if err := json.Unmarshal([]byte(`{"match": {"op": "read", "offset": 4096}}`), &fromJSON); err != nil || *fromJSON.Match.Offset != 4096 {
		t.Errorf("a single op and a plain number: %+v, %v", fromJSON.Match, err)
	}
	if err := json.Unmarshal([]byte(`{"match": {"op": 5}}`), &fromJSON); err == nil || !strings.Contains(err.Error(), "op: want") {
		t.Errorf("op 5: error %v", err)
	}
}

// What a decision costs allocates nothing, however many rules there are.
func TestDecide_NoAllocs(t *testing.T) {
	s := newSet(t,
		Rule{Name: "a", Action: Action{Kind: KindLatency, Latency: &Latency{Distribution: Normal, Mean: 1000, Deviation: 10}}},
		Rule{Name: "b", Match: Match{Probability: new(0.5)}, Action: busy},
		Rule{Name: "c", Action: Action{Kind: KindRate, IOPS: 1000}},
	)
	var d Decision
	c := write(0, 8)
	if n := testing.AllocsPerRun(1000, func() { s.Plans()[0].Decide(&c, 0, &d) }); n != 0 {
		t.Errorf("%v allocations for a decision, want 0", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 10} {
		for _, match := range []bool{false, true} {
			b.Run(fmt.Sprintf("rules=%d/fires=%v", n, match), func(b *testing.B) {
				var rules []Rule
				for i := range n {
					rules = append(rules, Rule{Name: fmt.Sprint(i), Match: Match{LBA: new(uint64(8)), Blocks: 8}, Action: busy})
				}
				s := newSet(b, rules...)
				c := read(100, 8)
				if match {
					c = read(8, 8)
				}
				var d Decision
				b.ReportAllocs()
				for b.Loop() {
					s.Plans()[0].Decide(&c, 0, &d)
				}
			})
		}
	}
}
