package daemon

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestFaults_Triggers: a rule cuts the power at the Nth write, flush or FUA, at a block,
// at a mark, after a time, after another rule, and before or after what set it off is
// done: between a flush's arrival and its reply, that is. All commands before that are
// answered, that one is not, and what was durable then is what is left.
func TestFaults_Triggers(t *testing.T) {
	// A step writes block and fill, or does what it says.
	type step struct {
		block   int
		fill    byte
		fua     bool
		flush   bool
		mark    string
		advance time.Duration
	}
	w := func(block int, fill byte) step { return step{block: block, fill: fill} }
	fua := func(block int, fill byte) step { return step{block: block, fill: fill, fua: true} }
	flush := step{flush: true}
	mark := func(text string) step { return step{mark: text} }
	after := func(d time.Duration) step { return step{advance: d} }
	op := func(name string) fault.Ops { return fault.Ops{name} }
	sec := fault.Duration(time.Second)

	thirdWrite := []step{w(0, 2), w(1, 3), w(2, 4)}
	thirdFlush := []step{w(0, 2), flush, w(1, 3), flush, w(2, 4), flush}
	thirdFUA := []step{fua(0, 2), w(1, 3), fua(2, 4), w(3, 5), fua(4, 6)}
	const before, done = fault.PlaceBefore, fault.PlaceAfter
	for _, tt := range []struct {
		name  string
		match fault.Match
		at    fault.Place
		// steps: the last is what sets it off.
		steps []step
		// pending are the blocks that the report has, left the first five.
		pending []int
		left    [5]byte
	}{
		{"write", fault.Match{Op: op("write")}, before, []step{w(0, 2)}, nil, [5]byte{1, 1, 1, 1, 1}},
		{"third write", fault.Match{Op: op("write"), Skip: 2}, before, thirdWrite, []int{0, 1}, [5]byte{1, 1, 1, 1, 1}},
		{"third write, done", fault.Match{Op: op("write"), Skip: 2}, done, thirdWrite, []int{0, 1, 2}, [5]byte{1, 1, 1, 1, 1}},
		{"every third write", fault.Match{Op: op("write"), Every: 3}, before, thirdWrite, []int{0, 1}, [5]byte{1, 1, 1, 1, 1}},
		{"third flush", fault.Match{Op: op("flush"), Skip: 2}, before, thirdFlush, []int{2}, [5]byte{2, 3, 1, 1, 1}},
		{"third flush, done", fault.Match{Op: op("flush"), Skip: 2}, done, thirdFlush, nil, [5]byte{2, 3, 4, 1, 1}},
		{"third FUA", fault.Match{Op: op("write"), FUA: new(true), Skip: 2}, before, thirdFUA, []int{1, 3}, [5]byte{2, 1, 4, 1, 1}},
		{"third FUA, done", fault.Match{Op: op("write"), FUA: new(true), Skip: 2}, done, thirdFUA, []int{1, 3}, [5]byte{2, 1, 4, 1, 6}},
		{"third without FUA", fault.Match{Op: op("write"), FUA: new(false), Skip: 2}, before, append(slices.Clone(thirdFUA), w(0, 7)), []int{1, 3}, [5]byte{2, 1, 4, 1, 6}},
		{"block", fault.Match{Op: op("write"), LBA: new(uint64(2)), Blocks: 1}, before, thirdWrite, []int{0, 1}, [5]byte{1, 1, 1, 1, 1}},
		{"block, the second time", fault.Match{Op: op("write"), LBA: new(uint64(2)), Blocks: 1, Skip: 1}, done, []step{w(2, 2), flush, w(1, 3), w(2, 4)}, []int{1, 2}, [5]byte{1, 1, 2, 1, 1}},
		{"mark", fault.Match{Op: op("mark"), AtMark: "here"}, before, []step{w(0, 2), mark("there"), w(1, 3), mark("here")}, []int{0, 1}, [5]byte{1, 1, 1, 1, 1}},
		{"flush after a mark", fault.Match{Op: op("flush"), AtMark: "here"}, before, []step{w(0, 2), flush, mark("here"), w(1, 3), flush}, []int{1}, [5]byte{2, 1, 1, 1, 1}},
		{"time", fault.Match{Op: op("time"), Start: 5 * sec}, before, []step{w(0, 2), after(4999 * time.Millisecond), w(1, 3), after(time.Millisecond)}, []int{0, 1}, [5]byte{1, 1, 1, 1, 1}},
		{"write after a time", fault.Match{Op: op("write"), Start: 5 * sec}, before, []step{w(0, 2), after(4999 * time.Millisecond), w(1, 3), after(time.Millisecond), w(2, 4)}, []int{0, 1}, [5]byte{1, 1, 1, 1, 1}},
		{"flush after another rule's second", fault.Match{Op: op("flush"), AfterRule: "first", AfterCount: 2}, before, []step{w(0, 2), flush, w(1, 3), flush}, []int{1}, [5]byte{2, 1, 1, 1, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := startFaulty(t, nil, "db=memory:1MiB,cache=writeback")
			c := f.dial(t, "db")
			wantErrno(t, c, writeCmd(0, 5, 1), nbd.OK)
			wantErrno(t, c, flushCmd, nbd.OK)
			f.put(t, client.FaultRule{ // less than a nanosecond is none
				Name: "first", Disk: "db", Match: fault.Match{Op: op("write")}, Action: fault.Action{Kind: fault.KindReorder, For: 1},
			})
			f.put(t, client.FaultRule{Name: "cut", Disk: "db", Match: tt.match, Action: fault.Action{
				Kind: fault.KindPowerCut, At: tt.at, Power: &fault.PowerCut{Policy: "none", Seed: 7},
			}})
			on := f.follow(t, client.EventPowerOn)
			for i, s := range tt.steps {
				var cmd nbdtest.Command
				switch {
				case s.mark != "":
					if _, err := f.api.SetMark(t.Context(), s.mark); err != nil {
						t.Fatal(err)
					}
				case s.advance != 0:
					f.clock.Advance(s.advance)
				case s.flush:
					cmd = flushCmd
				default:
					cmd = writeCmd(s.block, 1, s.fill)
					if s.fua {
						cmd.Flags = nbdtest.FlagFUA
					}
				}
				isCommand := s.mark == "" && s.advance == 0
				if isCommand {
					if err := c.Send(cmd); err != nil {
						t.Fatal(err)
					}
				}
				if i == len(tt.steps)-1 {
					if r, err := c.Receive(); err == nil {
						t.Fatalf("step %d of %d, %s: answered with %v, want the power to go", i+1, len(tt.steps), cmd, r.Errno)
					}
				} else if isCommand {
					if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
						t.Fatalf("step %d of %d, %s: %v, %v", i+1, len(tt.steps), cmd, r.Errno, err)
					}
				}
			}
			on.want(client.EventPowerOn, "db")
			power, err := f.api.Power(t.Context(), "db")
			if err != nil || len(power.Reports) != 1 {
				t.Fatalf("%+v, %v: want one report", power, err)
			}
			r := &power.Reports[0]
			if r.Trigger != "rule cut" || r.Class != "legal" || r.Seed != 7 || r.Policy != "none" {
				t.Errorf("report: trigger %q, %s, seed %d, policy %s", r.Trigger, r.Class, r.Seed, r.Policy)
			}
			var pending []int
			for i := range r.Writes {
				pending = append(pending, int(r.Writes[i].OffsetBytes/512))
			}
			if !slices.Equal(pending, tt.pending) {
				t.Errorf("pending blocks %v, want %v", pending, tt.pending)
			}
			got, err := f.dial(t, "db").Do(readCmd(0, 5))
			if err != nil || got.Errno != nbd.OK {
				t.Fatal(got.Errno, err)
			}
			var left [5]byte
			for i := range left {
				left[i] = got.Data[i*512]
			}
			if diff := cmp.Diff(tt.left, left); diff != "" {
				t.Errorf("blocks that are left: -want +got\n%s", diff)
			}
		})
	}
}
