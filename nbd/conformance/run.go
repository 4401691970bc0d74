package conformance

import (
	"context"
	"fmt"
	"testing"
)

// Check runs every row against each target and returns the results. The targets
// are exports of one server: the worst of a row's verdicts counts.
//
// Errors: a target that cannot be tested at all, and why.
func Check(ctx context.Context, targets ...Target) (*Report, error) {
	rows := Rows()
	report := &Report{Results: make([]Result, len(rows))}
	for i := range rows {
		report.Results[i] = Result{
			Name: rows[i].Name, Cites: rows[i].cites(), Level: rows[i].Level.String(), Rule: rows[i].Rule,
			Verdict: NotApplicable,
		}
	}
	for i := range targets {
		t := &targets[i]
		x := &probe{ctx: ctx, target: t}
		if o := x.run(discover); o.verdict.Bad() {
			return nil, fmt.Errorf("%s: %s: %s", t.Name, o.verdict, o.detail)
		}
		report.Targets = append(report.Targets, t.Name+": "+x.f.String())
		for j := range rows {
			report.Results[j].add(rows[j].run(ctx, t, x.f), len(targets) > 1, t.Name)
		}
	}
	return report, nil
}

// run runs one row against one target.
func (r *Row) run(ctx context.Context, t *Target, f *features) outcome {
	if r.needs != nil {
		if what, ok := r.needs(f); !ok {
			return outcome{NotApplicable, "needs " + what}
		}
	}
	x := &probe{ctx: ctx, target: t, f: f}
	return x.run(r.check)
}

// add takes in the outcome of one run.
func (r *Result) add(o outcome, several bool, target string) {
	first := r.Verdict == NotApplicable && r.Detail == ""
	if !o.verdict.worse(r.Verdict) && !first {
		return
	}
	r.Verdict, r.Detail = o.verdict, o.detail
	if several && o.verdict.Bad() {
		r.Detail += " [" + target + "]"
	}
}

// Run checks one target in a subtest for each row, and fails those whose rule is
// broken. It returns the names of the rows that were applicable.
func Run(t *testing.T, target Target) (applied []string) {
	t.Helper()
	x := &probe{ctx: t.Context(), target: &target}
	if o := x.run(discover); o.verdict.Bad() {
		t.Fatalf("%s: %s", o.verdict, o.detail)
	}
	t.Logf("%s: %v", target.Name, x.f)
	for _, row := range Rows() {
		t.Run(row.Name, func(t *testing.T) {
			o := row.run(t.Context(), &target, x.f)
			if o.verdict != NotApplicable {
				applied = append(applied, row.Name)
			}
			if o.verdict.Bad() {
				t.Errorf("%s: %s\n%s (%s): %s", o.verdict, o.detail, row.Level, row.cites(), row.Rule)
			}
		})
	}
	if len(applied) == 0 {
		t.Errorf("no row applies to %s", target.Name)
	}
	t.Logf("%d of %d rows apply", len(applied), len(Rows()))
	return applied
}
