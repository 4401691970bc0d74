package interleave

import (
	"flag"
	"os"
	"strconv"
	"testing"
)

var replay = flag.String("interleave.replay", "", "run the scenarios that -run selects with this `schedule` only, as a failure printed it")

// Environment variables that make Explore search for longer.
const (
	// SeedsVariable says how many random schedules to try for each scenario, in
	// place of Search.Seeds.
	SeedsVariable = "VHBAD_INTERLEAVE_SEEDS"
	// PreemptionsVariable says how many preemptions to allow in the exhaustive
	// part, on top of Search.Preemptions. Each makes it some 20 times longer.
	PreemptionsVariable = "VHBAD_INTERLEAVE_PREEMPTIONS"
)

// Explore searches scenario for a schedule that fails, and fails the test with
// it; with -interleave.replay it runs that schedule instead.
func Explore(tb testing.TB, s Search, scenario func(*Run)) {
	tb.Helper()
	if *replay != "" {
		f, err := Replay(scenario, *replay)
		switch {
		case err != nil:
			tb.Fatal(err)
		case f != nil:
			tb.Fatalf("%s: %v", failureMark, f)
		}
		return
	}
	s.Seeds = countFrom(tb, SeedsVariable, s.Seeds)
	s.Preemptions += countFrom(tb, PreemptionsVariable, 0)
	f, runs := s.Find(scenario)
	if f != nil {
		tb.Fatalf("%s: %v\nreplay it with -run '^%s$' -interleave.replay=%s", failureMark, f, tb.Name(), f.Schedule)
	}
	tb.Logf("%d schedules", runs)
}

// countFrom reads a count from the environment.
func countFrom(tb testing.TB, variable string, unset int) int {
	tb.Helper()
	v := os.Getenv(variable)
	if v == "" {
		return unset
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		tb.Fatalf("%s=%q: want a number, 0 or more", variable, v)
	}
	return n
}

// failureMark is how Mutants tells a schedule that failed from other failures.
const failureMark = "a schedule fails"
