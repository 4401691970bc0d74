package daemon

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// ruleOf is a rule as a configuration has it.
func ruleOf(t *testing.T, text string) fault.Rule {
	t.Helper()
	f, err := config.Parse("rule", []byte("faults: ["+text+"]"))
	if err != nil || len(f.Faults) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	return f.Faults[0]
}

// bothWays runs a test with a rule that comes by the configuration, and with one that
// comes by the API. The rule is in force at time 0 of the clock in both.
func bothWays(t *testing.T, text string, run func(t *testing.T, f *faulty)) {
	t.Helper()
	rules := []fault.Rule{ruleOf(t, `{name: first, disk: db, match: {op: flush}, action: {kind: reorder, for: 1ns}}`), ruleOf(t, text)}
	disks := []string{"db=memory:1MiB", "other=memory:1MiB"}
	t.Run("configuration", func(t *testing.T) {
		run(t, startFaulty(t, func(s *settings) { s.Faults = rules }, disks...))
	})
	t.Run("API", func(t *testing.T) {
		f := startFaulty(t, nil, disks...)
		for _, r := range rules {
			f.put(t, r)
		}
		run(t, f)
	})
}

// TestFaults_Match: each field of a match, as a configuration and as the API has it,
// chooses the commands of real clients that it should. What is chosen ends with ENOSPC.
// The first reorders by less than a nanosecond, to be a rule that flushes meet and that
// does nothing.
func TestFaults_Match(t *testing.T) {
	// A step is a command, of the second client with two, that the rule meets with bad;
	// or a mark; or time that passes.
	type step struct {
		cmd     nbdtest.Command
		two     bool
		bad     bool
		mark    string
		advance time.Duration
	}
	good := func(cmd nbdtest.Command) step { return step{cmd: cmd} }
	bad := func(cmd nbdtest.Command) step { return step{cmd: cmd, bad: true} }
	pass := func(d time.Duration) step { return step{advance: d} }
	read, write := readCmd(0, 1), writeCmd(0, 1, 0)
	fua := write
	fua.Flags = nbdtest.FlagFUA
	ranged := func(typ uint16) nbdtest.Command { return nbdtest.Command{Type: typ, Length: 512} }
	trim, zero, cached := ranged(nbdtest.CmdTrim), ranged(nbdtest.CmdWriteZeroes), ranged(nbdtest.CmdCache)

	seen := map[string]bool{}
	for _, tt := range []struct {
		match string
		steps []step
	}{
		{"op: read", []step{bad(read), good(write), good(flushCmd), good(trim), good(zero), good(cached)}},
		{"op: write", []step{good(read), bad(write), good(flushCmd), good(trim), good(zero), good(cached)}},
		{"op: flush", []step{good(read), good(write), bad(flushCmd), good(trim), good(zero), good(cached)}},
		{"op: trim", []step{good(read), good(write), good(flushCmd), bad(trim), good(zero), good(cached)}},
		{"op: zero", []step{good(read), good(write), good(flushCmd), good(trim), bad(zero), good(cached)}},
		{"op: cache", []step{good(read), good(write), good(flushCmd), good(trim), good(zero), bad(cached)}},
		{"op: [read, flush]", []step{bad(read), good(write), bad(flushCmd), good(trim)}},
		{"op: io", []step{bad(read), bad(write), bad(flushCmd), bad(trim), bad(zero), bad(cached)}},
		{"fua: true", []step{good(write), bad(fua), good(read), good(flushCmd)}},
		{"op: write, fua: false", []step{bad(write), good(fua)}},
		{"offset: 4KiB, length: 1KiB", []step{good(readCmd(7, 1)), bad(readCmd(8, 1)), bad(readCmd(9, 1)), good(readCmd(10, 1)), bad(readCmd(0, 9)), bad(writeCmd(9, 8, 0)), good(flushCmd)}},
		{"offset: 512KiB", []step{good(readCmd(1023, 1)), bad(readCmd(1023, 2)), bad(readCmd(2047, 1))}},
		{"lba: 8, blocks: 2", []step{good(readCmd(7, 1)), bad(readCmd(8, 1)), bad(readCmd(9, 1)), good(readCmd(10, 1)), bad(readCmd(0, 9))}},
		{"lba: 2047", []step{good(readCmd(2046, 1)), bad(readCmd(2047, 1))}},
		{"min-size: 1KiB, max-size: 2KiB", []step{good(readCmd(0, 1)), bad(readCmd(0, 2)), bad(readCmd(0, 4)), good(readCmd(0, 5))}},
		{"connection: 2", []step{good(read), {cmd: read, two: true, bad: true}, good(write), {cmd: flushCmd, two: true, bad: true}}},
		{"op: read, skip: 2", []step{good(read), good(flushCmd), good(read), bad(read), bad(read)}},
		{"op: read, every: 3", []step{good(read), good(read), bad(read), good(read), good(read), bad(read)}},
		{"op: read, skip: 1, every: 2", []step{good(read), good(read), bad(read), good(read), bad(read)}},
		{"probability: 0", []step{good(read), good(read), good(read)}},
		{"probability: 1", []step{bad(read), bad(read), bad(read)}},
		{"start: 2s", []step{good(read), pass(1999 * time.Millisecond), good(read), pass(time.Millisecond), bad(read), pass(time.Hour), bad(read)}},
		{"for: 2s", []step{bad(read), pass(1999 * time.Millisecond), bad(read), pass(time.Millisecond), good(read), pass(time.Hour), good(read)}},
		{"start: 1s, for: 1s, period: 4s", []step{good(read), pass(time.Second), bad(read), pass(time.Second), good(read), pass(3 * time.Second), bad(read), pass(time.Second), good(read)}},
		{"op: read, after-rule: first", []step{good(read), good(flushCmd), bad(read)}},
		{"op: read, after-rule: first, after-count: 3", []step{good(read), good(flushCmd), good(flushCmd), good(read), good(flushCmd), bad(read)}},
		{"at-mark: here", []step{good(read), {mark: "there"}, good(read), {mark: "here"}, bad(read)}},
		{"at-mark: here, start: 1s", []step{pass(time.Hour), {mark: "here"}, good(read), pass(time.Second), bad(read)}},
	} {
		for field := range strings.SplitSeq(tt.match, ", ") {
			name, _, _ := strings.Cut(field, ":")
			seen[name] = true
		}
		t.Run(tt.match, func(t *testing.T) {
			bothWays(t, "{name: r, disk: db, match: {"+tt.match+"}, action: {kind: errno, errno: ENOSPC}}", func(t *testing.T, f *faulty) {
				one, two, other := f.dial(t, "db"), f.dial(t, "db"), f.dial(t, "other")
				for _, s := range tt.steps {
					switch {
					case s.mark != "":
						if _, err := f.api.SetMark(t.Context(), s.mark); err != nil {
							t.Fatal(err)
						}
					case s.advance != 0:
						f.clock.Advance(s.advance)
					default:
						c, want := one, nbd.OK
						if s.two {
							c = two
						}
						if s.bad {
							want = nbd.ENOSPC
						}
						wantErrno(t, c, s.cmd, want)
						wantErrno(t, other, s.cmd, nbd.OK)
					}
				}
			})
		})
	}
	for f := range reflect.TypeFor[fault.Match]().Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); !seen[name] {
			t.Errorf("no row has %s", name)
		}
	}
}

// TestFaults_Probability: about as many commands fail as the rule says, the same ones
// for the same seed, and others for another.
func TestFaults_Probability(t *testing.T) {
	const n = 400
	run := func(seed uint64) (failed []int) {
		f := startFaulty(t, nil, "db=memory:1MiB")
		f.put(t, ruleOf(t, fmt.Sprintf("{name: r, match: {op: read, probability: 0.25}, action: {kind: errno, errno: EIO}, seed: %d}", seed)))
		c := f.dial(t, "db")
		for i := range n {
			r, err := c.Do(readCmd(i, 1))
			if err != nil {
				t.Fatal(err)
			}
			if r.Errno == nbd.EIO {
				failed = append(failed, i)
			}
		}
		return failed
	}
	seven := run(7)
	if len(seven) < n/4-50 || len(seven) > n/4+50 {
		t.Errorf("%d of %d fail, want about a quarter", len(seven), n)
	}
	if again := run(7); !slices.Equal(again, seven) {
		t.Errorf("the same seed: %v fail, and then %v", seven, again)
	}
	if slices.Equal(run(8), seven) {
		t.Error("another seed has the same commands fail")
	}
}

// TestFaults_ConnectionNumber: a rule about a connection follows the number, which is
// the lowest that is free on its disk, and not the client.
func TestFaults_ConnectionNumber(t *testing.T) {
	f := startFaulty(t, nil, "db=memory:1MiB", "other=memory:1MiB")
	other := f.dial(t, "other") // has number 1 on its own disk
	one, two, three := f.dial(t, "db"), f.dial(t, "db"), f.dial(t, "db")
	for _, c := range []*nbdtest.Client{one, two, three} { // each has its number before it is answered
		wantErrno(t, c, readCmd(0, 1), nbd.OK)
	}
	f.put(t, client.FaultRule{Name: "r", Disk: "db", Match: fault.Match{Connection: 2}, Action: fault.Action{Kind: fault.KindErrno, Errno: "EIO"}})
	for c, want := range map[*nbdtest.Client]nbd.Errno{one: nbd.OK, two: nbd.EIO, three: nbd.OK, other: nbd.OK} {
		wantErrno(t, c, readCmd(0, 1), want)
	}
	var numbers []int
	for _, c := range f.d.Status().Connections {
		if c.Export == "db" {
			numbers = append(numbers, c.Number)
		}
	}
	if slices.Sort(numbers); !slices.Equal(numbers, []int{1, 2, 3}) {
		t.Errorf("status has the numbers %v, want 1 to 3", numbers)
	}
	closed := f.follow(t, client.EventConnectionClosed)
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	closed.want(client.EventConnectionClosed, "db")
	wantErrno(t, three, readCmd(0, 1), nbd.OK)
	wantErrno(t, f.dial(t, "db"), readCmd(0, 1), nbd.EIO)
}
