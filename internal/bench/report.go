package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A report is what goes into docs/benchmarks.md.
type report struct {
	*results
	Outcomes []outcome   `json:"-"`
	Verdicts []reportRow `json:"verdicts"`
}

// A reportRow is one target and its outcome.
type reportRow struct {
	Row      string  `json:"row"`
	Against  kind    `json:"against"`
	Metric   metric  `json:"metric"`
	Ratio    float64 `json:"ratio"`
	Least    float64 `json:"least"`
	Most     float64 `json:"most"`
	Rounds   int     `json:"rounds"`
	Target   float64 `json:"target"`
	Met      bool    `json:"met"`
	Ours     float64 `json:"ours"`
	Peers    float64 `json:"peers,omitempty"`
	Problem  string  `json:"problem,omitempty"`
	isAtMost bool
}

// judge compares the measurements with the targets.
func judge(all *results) (*report, error) {
	r := &report{results: all}
	rows := allRows()
	for i := range all.Rows {
		x := &all.Rows[i]
		at := slices.IndexFunc(rows, func(row row) bool { return row.name == x.Name })
		if at < 0 {
			return nil, fmt.Errorf("results of a row %q, which there is not", x.Name)
		}
		o := outcome{row: rows[at], results: x.Servers}
		if x.Problem != "" {
			o.err = errors.New(x.Problem)
		}
		r.Outcomes = append(r.Outcomes, o)
		for _, t := range o.row.targets {
			r.Verdicts = append(r.Verdicts, o.verdict(t))
		}
	}
	r.Verdicts = slices.Concat(r.Verdicts, costVerdicts(all.RoundTrip), scaleVerdicts(all.RoundTrip), all.Idle.verdicts())
	return r, nil
}

// judged returns rr with the verdict that ratios, of which there is at least one, give on
// its target.
func judged(rr reportRow, ratios []float64) reportRow {
	rr.isAtMost = !rr.Metric.better()
	rr.Ratio, rr.Least, rr.Most, rr.Rounds = median(ratios), slices.Min(ratios), slices.Max(ratios), len(ratios)
	rr.Met = target{rr.Against, rr.Metric, rr.Target}.met(rr.Ratio)
	return rr
}

// verdict compares one target with the measurements.
func (o *outcome) verdict(t target) reportRow {
	rr := reportRow{Row: o.row.name, Against: t.peer, Metric: t.metric, Target: t.limit, isAtMost: !t.metric.better()}
	switch {
	case o.err != nil:
		rr.Problem = o.err.Error()
		return rr
	case len(o.results[o.row.ours]) == 0 || t.peer != "" && len(o.results[t.peer]) != len(o.results[o.row.ours]):
		rr.Problem = "this peer was not there when the row was measured"
		return rr
	}
	rr.Ours = o.typical(o.row.ours, t.metric)
	if t.peer != "" {
		rr.Peers = o.typical(t.peer, t.metric)
	}
	return judged(rr, o.ratios(t))
}

// print shows the report on a terminal.
func (r *report) print() {
	for i := range r.Verdicts {
		_, _ = fmt.Println(&r.Verdicts[i])
	}
	for _, l := range r.RoundTrip {
		_, _ = fmt.Println(l)
	}
}

// String is a row for a terminal.
func (r *reportRow) String() string {
	if r.Problem != "" {
		return fmt.Sprintf("%-20s not measured: %s", r.Row, r.Problem)
	}
	sign, verdict := "≥", "met"
	if r.isAtMost {
		sign = "≤"
	}
	if !r.Met {
		verdict = "MISSED"
	}
	against := string(r.Against)
	if against == "" {
		against = "(itself)"
	}
	return fmt.Sprintf("%-20s %-16s %-22s %6.2f  [%.2f … %.2f]  want %s %.2f  %s", r.Row, against, r.Metric, r.Ratio, r.Least, r.Most, sign, r.Target, verdict)
}

// markdown returns docs/benchmarks.md without the text that people have written around it.
func (r *report) markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	met := 0
	for i := range r.Verdicts {
		if r.Verdicts[i].Met {
			met++
		}
	}
	line("%d of %d targets are met. Missed ones are marked; what limits them is said below the results.", met, len(r.Verdicts))
	line("")
	for _, m := range r.conditions() {
		line("- %s", m)
	}
	line("")
	line("| work | against | metric | vhbad | peer | result | least … most | rounds | target | |")
	line("|---|---|---|---:|---:|---:|---:|---:|---:|---|")
	for i := range r.Verdicts {
		x := &r.Verdicts[i]
		if x.Problem != "" {
			line("| %s | %s | %s | | | | | | | not measured: %s |", x.Row, x.Against, x.Metric, x.Problem)
			continue
		}
		sign, verdict, peers, against := "≥", "met", number(x.Peers), string(x.Against)
		if x.isAtMost {
			sign = "≤"
		}
		if !x.Met {
			verdict = "**missed**"
		}
		if against == "" {
			against, peers = "—", "—"
		}
		line("| %s | %s | %s | %s | %s | %.2f | %.2f … %.2f | %d | %s %.2f | %s |", x.Row, against, x.Metric, number(x.Ours), peers, x.Ratio, x.Least, x.Most, x.Rounds, sign, x.Target, verdict)
	}
	if len(r.RoundTrip) > 0 {
		line("")
		line("In process, no socket:")
		line("")
		line("| benchmark | ns for each request | least … most | allocations |")
		line("|---|---:|---:|---:|")
		for _, x := range byBenchmark(r.RoundTrip) {
			line("| %s | %.0f | %.0f … %.0f | %.0f |", x.name, median(x.ns), slices.Min(x.ns), slices.Max(x.ns), slices.Max(x.allocations))
		}
	}
	if len(r.Growth) > 0 {
		line("")
		line("| what grows | to | IOPS | least … most | CPU per I/O, µs | p50, µs | ready after, ms |")
		line("|---|---:|---:|---:|---:|---:|---:|")
		for _, p := range r.Growth {
			unit := ""
			if p.What == "size" {
				unit = " GiB"
			}
			line("| %s | %.0f%s | %.0f | %.0f … %.0f | %.1f | %.0f | %.0f |", p.What, p.N, unit, p.IOPS, p.LeastIOPS, p.MostIOPS, p.CPUMicros, p.P50, p.StartMS)
		}
	}
	return b.String()
}

// conditions lists the dates, machines and run lengths of the rows.
func (r *report) conditions() []string {
	var out []string
	for i := range r.Rows {
		x := &r.Rows[i]
		c := fmt.Sprintf("%s, runs of %s: %s", x.When.Format(time.DateOnly), x.RunTime, x.Machine)
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

func number(x float64) string {
	if x >= 1000 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// machine says what was measured on; where, unless empty, says where on that machine.
func machine(where string) string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	parts := []string{fmt.Sprintf("%d × %s", runtime.NumCPU(), model), "Go " + strings.TrimPrefix(runtime.Version(), "go")}
	for _, v := range [][]string{
		{"uname", "-sr"}, {"fio", "--version"}, {"nbdkit", "--version"}, {"qemu-nbd", "--version"}, {"nbdcopy", "--version"},
	} {
		out, err := exec.Command(v[0], v[1:]...).Output()
		if err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			parts = append(parts, first)
		}
	}
	parts = append(parts, policy())
	if where != "" {
		parts = append(parts, where)
	}
	return strings.Join(parts, "; ") + "."
}

// policy says how client and servers are scheduled. They inherit this process's scheduling.
func policy() string {
	a, err := unix.SchedGetAttr(0, 0)
	switch {
	case err != nil:
		return "scheduling policy unknown"
	case a.Policy == unix.SCHED_FIFO || a.Policy == unix.SCHED_RR:
		return fmt.Sprintf("client and servers at real-time priority %d", a.Priority)
	case a.Nice != 0:
		return fmt.Sprintf("client and servers at nice %d", a.Nice)
	}
	return "client and servers at ordinary priority"
}

// Between these marks, docs/benchmarks.md is written by this program.
const (
	markBegin = "<!-- written by make bench: begin -->"
	markEnd   = "<!-- written by make bench: end -->"
)

// writeMarkdown replaces the part of the document between the marks.
func (r *report) writeMarkdown(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(old), markBegin)
	_, tail, ok2 := strings.Cut(rest, markEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", path, markBegin, markEnd)
	}
	return os.WriteFile(path, []byte(head+markBegin+"\n\n"+r.markdown()+"\n"+markEnd+tail), 0o644)
}
