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

	"github.com/vhbad/vhbad/internal/guest"
)

func main() {
	if err := run(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	if guestMain() {
		return nil
	}
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
  make bench ROWS='^guest-'                   rows of a guest kernel's /dev/nbd0
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
	for _, tool := range []string{"fio", "nbdkit", "qemu-nbd", "nbd-server", "nbdcopy", "perf", guest.Kernel, "nbd-client", "mkfs.ext4", *vhbad} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: `make bench` builds vhbad and installs the others (Debian: fio nbdkit qemu-utils nbd-server libnbd-bin linux-perf user-mode-linux nbd-client e2fsprogs)", err)
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
	b := &bench{shop: shop{vhbad: path, dir: dir}, rounds: *rounds, runTime: *runTime, alone: *alone}
	var now, all results
	parts := b.parts(match)
	if len(parts) == 0 {
		return errors.Join(fmt.Errorf("-rows %q: no row's name matches; see the first column of docs/benchmarks.md, and growth", *rows), os.RemoveAll(dir))
	}
	err = errors.Join(b.measure(&now, parts), os.RemoveAll(dir))
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

// A part is what one step of a run measures: rows, or something that has no rows.
type part struct {
	name  string
	guess time.Duration // how long it takes
	run   func(r *results) error
}

// parts returns what a run measures, in order: all parts whose names match.
func (b *bench) parts(match *regexp.Regexp) []part {
	var out []part
	// What starting a server and a round of it cost beyond the measured runs, from
	// experience.
	const start, gap = 2 * time.Second, 400 * time.Millisecond
	rounds := time.Duration(b.rounds)
	for _, row := range slices.Concat(fioRows(), simpleRows()) {
		if match.MatchString(row.name) {
			servers := time.Duration(1 + len(row.peers))
			out = append(out, part{row.name, servers * (start + rounds*(b.runTime+gap)), func(r *results) error {
				r.add(b, b.measureRow(row))
				return nil
			}})
		}
	}
	if rows := matching(copyRows(), match); len(rows) > 0 {
		out = append(out, part{"copies", 5*time.Second + rounds*20*time.Second, func(r *results) error {
			r.add(b, b.measureCopies()...)
			return nil
		}})
	}
	for _, row := range matching(callRows(), match) {
		out = append(out, part{row.name, 15 * time.Second, func(r *results) error {
			r.add(b, b.measureCalls(row))
			return nil
		}})
	}
	if rows := matching(guestRows(), match); len(rows) > 0 {
		run := time.Duration(len(rows)) * (10*time.Second + 2*rounds*(guestRunTime+time.Second))
		out = append(out, part{"guest", 5*time.Second + run, func(r *results) error {
			r.add(b, b.measureGuest(rows)...)
			return nil
		}})
	}
	if match.MatchString(idleRow) {
		out = append(out, part{idleRow, idleSettle + idleTime + time.Second, func(r *results) error {
			each, busy, err := b.idle()
			if err == nil {
				r.Idle = &idleResult{Connections: idleConnections, BytesEach: each, Busy: busy, Seconds: idleTime.Seconds()}
			}
			return err
		}})
	}
	if match.MatchString(costRow) || match.MatchString(scaleRow) {
		out = append(out, part{"round-trip", inProcessRounds * 15 * time.Second, func(r *results) (err error) {
			r.RoundTrip, err = b.roundTrip()
			return err
		}})
	}
	if match.MatchString("growth") {
		sizes := 0
		for _, s := range growthSeries() {
			sizes += len(s.sizes)
		}
		out = append(out, part{"growth", time.Duration(sizes) * (start + growthRounds*(growthRunTime+gap)), func(r *results) (err error) {
			r.Growth, err = b.growth()
			return err
		}})
	}
	return out
}

func matching(rows []row, match *regexp.Regexp) []row {
	return slices.DeleteFunc(rows, func(r row) bool { return !match.MatchString(r.name) })
}

// measure measures every part. One that fails does not keep the others from being measured.
func (b *bench) measure(r *results, parts []part) (err error) {
	total := time.Duration(0)
	for i := range parts {
		total += parts[i].guess
	}
	b.work = newWork(os.Stderr, total)
	for i := range parts {
		b.work.begin(parts[i].name, parts[i].guess)
		if e := parts[i].run(r); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", parts[i].name, e))
		}
	}
	b.work.end(err)
	return err
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
