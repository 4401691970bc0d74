package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// inProcessRounds is how often each benchmark of package testing runs, and
// inProcessTime for how long.
const (
	inProcessRounds = 5
	inProcessTime   = "300ms"
)

// roundTrip runs the benchmarks of the way from submission to completion, and of the copy
// alone, all of them in each round.
func (b *bench) roundTrip() ([]string, error) {
	program := filepath.Join(b.shop.dir, "miniport.test")
	if err := command("go", "test", "-c", "-o", program, "./miniport"); err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(program) }()
	var lines []string
	for round := range inProcessRounds {
		cmd := exec.Command(program, "-test.run", "^$", "-test.bench", "RoundTrip|Memcpy", "-test.benchmem", "-test.benchtime", inProcessTime)
		cmd.Dir = "miniport"
		out, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
		}
		for l := range strings.Lines(string(out)) {
			if strings.HasPrefix(l, "Benchmark") {
				lines = append(lines, strings.TrimRight(l, "\n"))
			}
		}
		b.work.at(float64(round+1) / inProcessRounds)
		b.work.note("in process: round %d of %d", round+1, inProcessRounds)
	}
	return lines, nil
}

// A goBenchmark is the runs of one benchmark of package testing.
type goBenchmark struct {
	name            string
	ns, allocations []float64 // for each request, run by run
}

// byBenchmark groups the lines that benchmarks printed by name, in the order of the first
// round.
func byBenchmark(lines []string) []goBenchmark {
	var out []goBenchmark
	at := make(map[string]int)
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) < 4 {
			continue
		}
		ns, nsErr := strconv.ParseFloat(f[2], 64)
		allocations, err := strconv.ParseFloat(f[len(f)-2], 64)
		if nsErr != nil || err != nil {
			continue
		}
		name := strings.TrimPrefix(f[0], "Benchmark")
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			name = name[:i] // the number of processors
		}
		i, ok := at[name]
		if !ok {
			i = len(out)
			at[name] = i
			out = append(out, goBenchmark{name: name})
		}
		out[i].ns = append(out[i].ns, ns)
		out[i].allocations = append(out[i].allocations, allocations)
	}
	return out
}

// The row that says what a second processor brings: how many times as many requests two
// connections make, each on a core of its own, as one connection does. Copying as many
// bytes, which depends on nobody else, on one and on two processors in the same round shows
// how much the machine can give.
const (
	scaleRow = "two-processors-4k"

	scaleWork = "RoundTrip/op=read/size=4KiB/batch=32"
	scaleCopy = "Memcpy/size=4KiB"
	copyAlone = kind("copy alone")

	scaleTarget = 1.8
	// scaleCopyTarget is the same for a machine on which a copy makes twice as many.
	scaleCopyTarget = scaleTarget / 2
)

// The row that says what the whole road costs: how many nanoseconds more a read takes
// than a copy of as many bytes in the same round.
const (
	costRow    = "round-trip-4k"
	costTarget = 250
)

// costVerdicts compares a read with a copy.
func costVerdicts(lines []string) []reportRow {
	by := byBenchmark(lines)
	ours, copies := find(by, scaleWork+"/processors=1"), find(by, scaleCopy+"/processors=1")
	if len(ours.ns) == 0 || len(copies.ns) != len(ours.ns) {
		return nil
	}
	costs := make([]float64, len(ours.ns))
	for i := range costs {
		costs[i] = ours.ns[i] - copies.ns[i]
	}
	return []reportRow{
		judged(reportRow{Row: costRow, Against: copyAlone, Metric: more, Target: costTarget, Ours: median(ours.ns), Peers: median(copies.ns)}, costs),
		judged(reportRow{Row: costRow, Metric: allocs, Ours: median(ours.allocations)}, ours.allocations),
	}
}

// scaleVerdicts compares one processor with two.
func scaleVerdicts(lines []string) []reportRow {
	by := byBenchmark(lines)
	gains := func(name string) (out []float64) {
		one, two := find(by, name+"/processors=1"), find(by, name+"/processors=2")
		for i := range min(len(one.ns), len(two.ns)) {
			out = append(out, one.ns[i]/two.ns[i])
		}
		return out
	}
	ours, copies := gains(scaleWork), gains(scaleCopy)
	if len(ours) == 0 {
		return nil
	}
	out := []reportRow{judged(reportRow{Row: scaleRow, Metric: scale, Target: scaleTarget, Ours: median(ours)}, ours)}
	if len(copies) != len(ours) {
		return out
	}
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / copies[i]
	}
	return append(out, judged(reportRow{Row: scaleRow, Against: copyAlone, Metric: scale, Target: scaleCopyTarget, Ours: median(ours), Peers: median(copies)}, ratios))
}

// find returns the runs of one benchmark, none if it did not run.
func find(by []goBenchmark, name string) goBenchmark {
	if i := slices.IndexFunc(by, func(x goBenchmark) bool { return x.name == name }); i >= 0 {
		return by[i]
	}
	return goBenchmark{}
}
