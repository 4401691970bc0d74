package interleave

import (
	"flag"
	"os"
	"strconv"
	"testing"
)

var replay = flag.String("interleave.replay", "", "run the scenarios that -run selects with this `schedule` only, as a failure printed it")

// SeedsVariable is the environment variable that says how many random schedules
// Explore tries for each scenario, in place of Search.Seeds.
const SeedsVariable = "VHBAD_INTERLEAVE_SEEDS"

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
	if v := os.Getenv(SeedsVariable); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			tb.Fatalf("%s=%q: want a number of schedules, 0 or more", SeedsVariable, v)
		}
		s.Seeds = n
	}
	f, runs := s.Find(scenario)
	if f != nil {
		tb.Fatalf("%s: %v\nreplay it with -run '^%s$' -interleave.replay=%s", failureMark, f, tb.Name(), f.Schedule)
	}
	tb.Logf("%d schedules", runs)
}

// failureMark is how Mutants tells a schedule that failed from other failures.
const failureMark = "a schedule fails"
