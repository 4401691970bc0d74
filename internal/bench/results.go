package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// results is what was measured, as stored in results.json: rows may be measured one by one,
// on different days, and the document shows them all.
type results struct {
	Rows      []rowResults `json:"rows"`
	Growth    []point      `json:"growth,omitempty"`
	Idle      *idleResult  `json:"idle,omitempty"`
	RoundTrip []string     `json:"round_trip,omitempty"`
}

// rowResults are the results of one row: by server, one for each round.
type rowResults struct {
	Name    string            `json:"name"`
	When    time.Time         `json:"when"`
	RunTime time.Duration     `json:"run_time_ns"`
	Machine string            `json:"machine"`
	Servers map[kind][]result `json:"servers,omitempty"`
	Problem string            `json:"problem,omitempty"`
}

type idleResult struct {
	Connections int           `json:"connections"`
	BytesEach   int64         `json:"bytes_each"`
	Busy        time.Duration `json:"busy_ns"`
	Seconds     float64       `json:"seconds"` // while they were busy for Busy
}

// add appends outcomes.
func (r *results) add(b *bench, outcomes ...outcome) {
	for i := range outcomes {
		o := &outcomes[i]
		x := rowResults{
			Name: o.row.name, When: time.Now().UTC().Truncate(time.Second), RunTime: cmp.Or(o.runTime, b.runTime), Machine: machine(o.machine),
			Servers: o.results,
		}
		if o.err != nil {
			x.Problem, x.Servers = o.err.Error(), nil
		}
		r.Rows = append(r.Rows, x)
	}
}

func resultsPath(doc string) string {
	return filepath.Join(strings.TrimSuffix(doc, ".md"), "results.json")
}

// update puts the new results into the file and returns all of them, in the order of the
// table; rows that are no longer in the table are dropped. A failure is no reason to forget
// what was measured before.
func update(path string, latest *results, failed error) (all results, err error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return all, errors.Join(failed, err)
	}
	if err == nil {
		if err := json.Unmarshal(b, &all); err != nil {
			return all, errors.Join(failed, fmt.Errorf("%s: %w", path, err))
		}
	}
	var rows []rowResults
	for _, row := range allRows() {
		named := func(x rowResults) bool { return x.Name == row.name }
		i, j := slices.IndexFunc(latest.Rows, named), slices.IndexFunc(all.Rows, named)
		switch {
		case i >= 0 && (latest.Rows[i].Problem == "" || j < 0):
			rows = append(rows, latest.Rows[i])
		case j >= 0:
			rows = append(rows, all.Rows[j])
		}
	}
	all.Rows = rows
	if len(latest.Growth) > 0 {
		all.Growth = latest.Growth
	}
	if latest.Idle != nil {
		all.Idle = latest.Idle
	}
	if len(latest.RoundTrip) > 0 {
		all.RoundTrip = latest.RoundTrip
	}
	if b, err = json.MarshalIndent(&all, "", " "); err != nil {
		return all, errors.Join(failed, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return all, errors.Join(failed, err)
	}
	return all, errors.Join(failed, os.WriteFile(path, append(b, '\n'), 0o644))
}
