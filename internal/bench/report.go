package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A report is everything that goes into docs/benchmarks.md.
type report struct {
	When     time.Time     `json:"when"`
	Rounds   int           `json:"rounds"`
	RunTime  time.Duration `json:"run_time_ns"`
	Outcomes []outcome     `json:"-"`
	Rows     []reportRow   `json:"rows"`
	Growth   []point       `json:"growth,omitempty"`
	Idle     *reportIdle   `json:"idle,omitempty"`
	Round    []string      `json:"round_trip,omitempty"`
}

// A reportRow is one target and what came of it.
type reportRow struct {
	Row      string  `json:"row"`
	Against  kind    `json:"against"`
	Metric   metric  `json:"metric"`
	Ratio    float64 `json:"ratio"`
	Least    float64 `json:"least"`
	Most     float64 `json:"most"`
	Target   float64 `json:"target"`
	Met      bool    `json:"met"`
	Ours     float64 `json:"ours"`
	Peers    float64 `json:"peers,omitempty"`
	Problem  string  `json:"problem,omitempty"`
	isAtMost bool
}

type reportIdle struct {
	Connections int           `json:"connections"`
	BytesEach   int64         `json:"bytes_each"`
	Busy        time.Duration `json:"busy_ns"`
}

// judge compares what was measured with what was aimed at.
func (r *report) judge() {
	for i := range r.Outcomes {
		o := &r.Outcomes[i]
		for _, t := range o.row.targets {
			rr := reportRow{Row: o.row.name, Against: t.peer, Metric: t.metric, Target: t.limit, isAtMost: !t.metric.better()}
			if o.err != nil {
				rr.Problem = o.err.Error()
			} else {
				ratios := o.ratios(t)
				rr.Ratio, rr.Least, rr.Most = median(ratios), slices.Min(ratios), slices.Max(ratios)
				rr.Met = t.met(rr.Ratio)
				rr.Ours = o.typical(o.row.ours, t.metric)
				if t.peer != "" {
					rr.Peers = o.typical(t.peer, t.metric)
				}
			}
			r.Rows = append(r.Rows, rr)
		}
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

// markdown is docs/benchmarks.md but for what people have written around it.
func (r *report) markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	line("Measured %s, %d rounds of %s each.", r.When.Format("2006-01-02"), r.Rounds, r.RunTime)
	line("")
	line("%s", machine())
	line("")
	line("| work | against | metric | vhbad | peer | ratio | least … most | target | |")
	line("|---|---|---|---:|---:|---:|---:|---:|---|")
	for i := range r.Rows {
		x := &r.Rows[i]
		if x.Problem != "" {
			line("| %s | %s | %s | | | | | | not measured: %s |", x.Row, x.Against, x.Metric, x.Problem)
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
		line("| %s | %s | %s | %s | %s | %.2f | %.2f … %.2f | %s %.2f | %s |", x.Row, against, x.Metric, number(x.Ours), peers, x.Ratio, x.Least, x.Most, sign, x.Target, verdict)
	}
	if r.Idle != nil {
		line("")
		line("%d idle connections: %.1f KiB of memory each; %s of processor time in %s.", r.Idle.Connections, float64(r.Idle.BytesEach)/kib, r.Idle.Busy, idleTime)
	}
	if len(r.Round) > 0 {
		line("")
		line("In process, no socket:")
		line("")
		line("```")
		for _, l := range r.Round {
			line("%s", l)
		}
		line("```")
	}
	if len(r.Growth) > 0 {
		line("")
		line("| what grows | to | IOPS | CPU per I/O, µs | p50, µs | ready after, ms |")
		line("|---|---:|---:|---:|---:|---:|")
		for _, p := range r.Growth {
			unit := ""
			if p.What == "size" {
				unit = " GiB"
			}
			line("| %s | %.0f%s | %.0f | %.1f | %.0f | %.0f |", p.What, p.N, unit, p.IOPS, p.CPUMicros, p.P50, p.StartMS)
		}
	}
	return b.String()
}

func number(x float64) string {
	if x >= 1000 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// machine says what was measured on.
func machine() string {
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
	return strings.Join(parts, "; ") + "."
}

// Marks between which docs/benchmarks.md is written by this program.
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
