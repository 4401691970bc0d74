package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var (
		vhbad   = flag.String("vhbad", "bin/vhbad", "the daemon to measure")
		rounds  = flag.Int("rounds", 5, "rounds of each row")
		runTime = flag.Duration("time", 3*time.Second, "length of one fio run")
		rows    = flag.String("rows", ".", "measure rows whose name matches this regular expression")
		doc     = flag.String("doc", "", "the document to write results into, docs/benchmarks.md; results of rows that are not measured now are kept from results.json in the directory of that name without .md, where plots go, too")
		alone   = flag.Bool("alone", false, "measure vhbad without its peers")
		asJSON  = flag.Bool("json", false, "print the results as JSON")
		serve   = flag.String("serve", "", "be a server: \"bare loop\", \"bare loop, simple\" or \"go-nbd\"")
		socket  = flag.String("socket", "", "for -serve: the unix socket")
		size    = flag.Int64("size", diskBytes, "for -serve: bytes of memory")
	)
	flag.Usage = func() {
		_, _ = fmt.Fprint(flag.CommandLine.Output(), `Measures vhbad beside other NBD servers, in interleaved rounds.

  make bench                                  everything, into docs/benchmarks.md
  make bench ROWS='4k-d1$'                    one row, into the document beside the others
  bench -vhbad bin/vhbad -rows '4k-d1$' -rounds 3   one row, on the terminal

Where others use the machine, chrt -r 10 before it keeps them away; the document says so.

`)
		flag.PrintDefaults()
	}
	flag.Parse()
	switch kind(*serve) {
	case "":
	case bareLoop:
		return serveBare(*socket, *size, true)
	case bareSimple:
		return serveBare(*socket, *size, false)
	case goNBD:
		return serveGoNBD(*socket, *size)
	default:
		return fmt.Errorf("-serve %q: want %q, %q or %q", *serve, bareLoop, bareSimple, goNBD)
	}
	match, err := regexp.Compile(*rows)
	if err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	if *alone && *doc != "" {
		return errors.New("-alone and -doc: a document without peers has no ratios")
	}
	if *rounds < 1 {
		return fmt.Errorf("-rounds %d: want at least 1", *rounds)
	}
	for _, tool := range []string{"fio", "nbdkit", "qemu-nbd", "nbd-server", "nbdcopy", "perf", *vhbad} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: `make bench` builds vhbad and installs the others (Debian: fio nbdkit qemu-utils nbd-server libnbd-bin linux-perf)", err)
		}
	}
	path, err := filepath.Abs(*vhbad)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vhbad-bench")
	if err != nil {
		return err
	}
	b := &bench{shop: shop{vhbad: path, dir: dir}, rounds: *rounds, runTime: *runTime, alone: *alone, out: os.Stderr}
	var now, all results
	err = errors.Join(b.measure(&now, match), os.RemoveAll(dir))
	all = now
	if *doc != "" {
		if all, err = update(resultsPath(*doc), &now, err); err != nil {
			return err
		}
	}
	r, judgeErr := judge(&now)
	err = errors.Join(err, judgeErr)
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		err = errors.Join(err, e.Encode(r))
	} else if !*alone {
		r.print()
	}
	if *doc == "" || err != nil {
		return err
	}
	if r, err = judge(&all); err != nil {
		return err
	}
	return errors.Join(r.plots(strings.TrimSuffix(*doc, ".md")), r.writeMarkdown(*doc))
}

// measure does every row that matches.
func (b *bench) measure(r *results, match *regexp.Regexp) error {
	for _, row := range fioRows() {
		if match.MatchString(row.name) {
			r.add(b, b.measureRow(row))
		}
	}
	if slices.ContainsFunc(copyRows(), func(row row) bool { return match.MatchString(row.name) }) {
		r.add(b, b.measureCopies()...)
	}
	for _, row := range callRows() {
		if match.MatchString(row.name) {
			r.add(b, b.measureCalls(row))
		}
	}
	var errs error
	if match.MatchString("idle") {
		each, busy, err := b.idle()
		errs = errors.Join(errs, err)
		if err == nil {
			r.Idle = &idleResult{Connections: idleConnections, BytesEach: each, Busy: busy}
		}
	}
	if match.MatchString("round-trip") {
		lines, err := roundTrip()
		errs = errors.Join(errs, err)
		r.RoundTrip = lines
	}
	if match.MatchString("growth") {
		points, err := b.growth()
		errs = errors.Join(errs, err)
		r.Growth = points
	}
	return errs
}

// roundTrip runs the benchmarks from submission to completion, and of the copy
// alone.
func roundTrip() ([]string, error) {
	out, err := exec.Command("go", "test", "-run", "^$", "-bench", "RoundTrip|Memcpy", "-benchmem", "-count", "5", "./miniport").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("go test -bench: %w: %s", err, out)
	}
	var lines []string
	for l := range strings.Lines(string(out)) {
		if strings.HasPrefix(l, "Benchmark") {
			lines = append(lines, strings.TrimRight(l, "\n"))
		}
	}
	return lines, nil
}

// plots draws everything that was measured, into dir.
func (r *report) plots(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := errors.Join(
		plotRows(filepath.Join(dir, "iops.svg"), "Requests per second, vhbad ÷ peer (more is better)", iops, r.Outcomes),
		plotRows(filepath.Join(dir, "cpu.svg"), "Processor time for one request, vhbad ÷ peer (less is better)", cpu, r.Outcomes),
	)
	for i := range r.Outcomes {
		if o := &r.Outcomes[i]; o.err == nil && (o.row.name == "read-4k-d1" || o.row.name == "read-4k-d32") {
			err = errors.Join(err, plotLatency(filepath.Join(dir, "latency-"+o.row.name+".svg"), o))
		}
	}
	for _, what := range []string{"disks", "connections", "depth", "size"} {
		err = errors.Join(err, plotGrowth(dir, what, r.Growth))
	}
	return err
}
