package main

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// roundTripLines are two rounds of all that the rows below need.
var roundTripLines = []string{
	"BenchmarkRoundTrip/op=read/size=4KiB/batch=32/processors=1-2 \t 100\t 200.0 ns/op\t 20480.00 MB/s\t 0 B/op\t 0 allocs/op",
	"BenchmarkRoundTrip/op=read/size=4KiB/batch=32/processors=2-2 \t 100\t 125.0 ns/op\t 32768.00 MB/s\t 0 B/op\t 0 allocs/op",
	"BenchmarkMemcpy/size=4KiB/processors=1-2 \t 100\t 80.0 ns/op\t 51200.00 MB/s\t 0 B/op\t 0 allocs/op",
	"BenchmarkMemcpy/size=4KiB/processors=2-2 \t 100\t 40.0 ns/op\t 102400.00 MB/s\t 0 B/op\t 0 allocs/op",
	"BenchmarkRoundTrip/op=read/size=4KiB/batch=32/processors=1-2 \t 100\t 400.0 ns/op\t 10240.00 MB/s\t 0 B/op\t 0 allocs/op",
	"BenchmarkRoundTrip/op=read/size=4KiB/batch=32/processors=2-2 \t 100\t 200.0 ns/op\t 20480.00 MB/s\t 0 B/op\t 0 allocs/op",
	"BenchmarkMemcpy/size=4KiB/processors=1-2 \t 100\t 90.0 ns/op\t 45511.00 MB/s\t 0 B/op\t 0 allocs/op",
	"BenchmarkMemcpy/size=4KiB/processors=2-2 \t 100\t 60.0 ns/op\t 68266.00 MB/s\t 0 B/op\t 0 allocs/op",
	"PASS",
}

// The cost of a read beyond a copy is taken within a round.
func TestCostVerdicts(t *testing.T) {
	got := costVerdicts(roundTripLines)
	if len(got) != 2 {
		t.Fatalf("%d verdicts, want 2", len(got))
	}
	if g := got[0]; g.Ratio != 215 || g.Least != 120 || g.Most != 310 || g.Ours != 300 || g.Peers != 85 || !g.Met || !g.isAtMost {
		t.Errorf("cost %+v", g)
	}
	if g := got[1]; g.Ratio != 0 || !g.Met {
		t.Errorf("allocations %+v", g)
	}
	slow := slices.Concat(roundTripLines, roundTripLines[4:], roundTripLines[4:])
	if got := costVerdicts(slow); got[0].Met {
		t.Errorf("310 ns more: %+v", got[0])
	}
	leaky := strings.Split(strings.ReplaceAll(strings.Join(roundTripLines, "|"), "0 allocs", "1 allocs"), "|")
	if got := costVerdicts(leaky); got[1].Met {
		t.Errorf("an allocation for each request: %+v", got[1])
	}
	if got := costVerdicts(roundTripLines[:1]); len(got) != 0 {
		t.Errorf("verdicts without a copy: %+v", got)
	}
}

// Idle connections are judged by what each holds, and by the share of a processor that all
// of them take.
func TestIdleVerdicts(t *testing.T) {
	for _, c := range []struct {
		bytes  int64
		busy   time.Duration
		memory bool
		still  bool
	}{
		{64 * kib, 20 * time.Millisecond, true, true},
		{64*kib + 1, 21 * time.Millisecond, false, false},
	} {
		got := (&idleResult{Connections: idleConnections, BytesEach: c.bytes, Busy: c.busy, Seconds: 10}).verdicts()
		if len(got) != 2 || got[0].Met != c.memory || got[1].Met != c.still {
			t.Errorf("%d bytes, %v in 10 s: %+v", c.bytes, c.busy, got)
		}
	}
	if got := (*idleResult)(nil).verdicts(); got != nil {
		t.Errorf("verdicts of nothing: %+v", got)
	}
}

// Rounds of all benchmarks come one after the other; each benchmark's are gathered,
// and the gain of two processors over one is taken within a round.
func TestScaleVerdicts(t *testing.T) {
	lines := roundTripLines
	by := byBenchmark(lines)
	if len(by) != 4 || by[0].name != scaleWork+"/processors=1" || len(by[0].ns) != 2 || len(by[0].allocations) != 2 || by[0].allocations[0] != 0 {
		t.Fatalf("benchmarks %+v", by)
	}
	got := scaleVerdicts(lines)
	if len(got) != 2 {
		t.Fatalf("%d verdicts, want 2", len(got))
	}
	// Alone 1.6 and 2.0; beside copies, which make 2.0 and 1.5, 0.8 and 1.33.
	for i, want := range []reportRow{
		{Ratio: 1.8, Least: 1.6, Most: 2, Ours: 1.8, Peers: 0, Met: true, Rounds: 2},
		{Ratio: (0.8 + 2/1.5) / 2, Least: 0.8, Most: 2 / 1.5, Ours: 1.8, Peers: 1.75, Met: true, Rounds: 2},
	} {
		g := got[i]
		near := func(a, b float64) bool { return math.Abs(a-b) < 1e-9 }
		if !near(g.Ratio, want.Ratio) || !near(g.Least, want.Least) || !near(g.Most, want.Most) || !near(g.Ours, want.Ours) || !near(g.Peers, want.Peers) ||
			g.Met != want.Met || g.Rounds != want.Rounds || g.isAtMost {
			t.Errorf("verdict %d: %+v, want %+v", i, g, want)
		}
	}
	if got := scaleVerdicts(lines[:1]); len(got) != 0 {
		t.Errorf("verdicts of one processor alone: %+v", got)
	}
}
