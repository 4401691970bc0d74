package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A bench is one run of the program.
type bench struct {
	shop    shop
	rounds  int
	runTime time.Duration
	alone   bool // without peers
	work    *work
}

// An outcome is a measured row: results by server, one for each round.
type outcome struct {
	row     row
	results map[kind][]result
	err     error
	// runTime and machine are the length of a run and the place where it ran, if they
	// differ from the other rows'.
	runTime time.Duration
	machine string
}

// ratios are ours divided by the peer's, round by round; without a peer, ours.
func (o *outcome) ratios(t target) []float64 {
	ours := o.results[o.row.ours]
	out := make([]float64, len(ours))
	for i := range ours {
		out[i] = t.metric.of(ours[i])
		if t.peer != "" {
			out[i] /= t.metric.of(o.results[t.peer][i])
		}
	}
	return out
}

// median is the middle of values, which has at least one.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// typical is the median of one metric of a server.
func (o *outcome) typical(k kind, m metric) float64 {
	values := make([]float64, 0, len(o.results[k]))
	for _, r := range o.results[k] {
		values = append(values, m.of(r))
	}
	return median(values)
}

// measureRow starts the row's servers and measures them in turn.
func (b *bench) measureRow(r row) (o outcome) {
	o = outcome{row: r, results: make(map[kind][]result)}
	kinds := append([]kind{r.ours}, r.peers...)
	if b.alone {
		kinds = kinds[:1]
	}
	servers := make([]*process, 0, len(kinds))
	defer func() {
		for _, p := range servers {
			o.err = errors.Join(o.err, p.stop())
		}
	}()
	for i, k := range kinds {
		image := filepath.Join(b.shop.dir, fmt.Sprintf("%s-%d.img", r.name, i))
		if r.onFile {
			if o.err = makeImage(image, diskBytes); o.err != nil {
				return o
			}
			defer func() { _ = os.Remove(image) }()
		}
		p, err := b.shop.start(k, diskBytes, image)
		if err != nil {
			o.err = err
			return o
		}
		servers = append(servers, p)
		if o.err = fill(p, diskBytes); o.err != nil {
			return o
		}
	}
	for round := range b.rounds {
		for i := range servers {
			p := servers[(i+round)%len(servers)]
			res, err := runFio(p, r.load, diskBytes, b.runTime, round)
			if err != nil {
				o.err = err
				return o
			}
			o.results[p.kind] = append(o.results[p.kind], res)
			b.work.at(float64(round*len(servers)+i+1) / float64(b.rounds*len(servers)))
		}
		b.work.note("%s: round %d of %d: %s", r.name, round+1, b.rounds, o.lastRound())
	}
	return o
}

// lastRound describes the last round in words.
func (o *outcome) lastRound() string {
	var s strings.Builder
	for _, k := range append([]kind{o.row.ours}, o.row.peers...) {
		if n := len(o.results[k]); n > 0 {
			r := o.results[k][n-1]
			if r.Seconds != 0 {
				_, _ = fmt.Fprintf(&s, "  [%s %.2f s, %.2f s CPU]", k, r.Seconds, r.CPUSeconds)
				continue
			}
			_, _ = fmt.Fprintf(&s, "  [%s %.0f IOPS, %.1f us CPU, p50 %.0f us]", k, r.IOPS, r.CPUMicros, r.P50)
		}
	}
	return s.String()
}

// imageWriteBytes is the size of the writes that make an image. It decides how large the
// folios of the page cache are, and ext4 looks at every block of a folio before it writes
// one: in folios of a megabyte, a write of 4 KiB takes 30 us under the inode's lock, which
// slows all servers alike.
const imageWriteBytes = 4 * kib

// makeImage makes a file without holes whose pages are in the cache.
func makeImage(path string, sizeBytes int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	chunk := make([]byte, imageWriteBytes)
	for i := range chunk {
		chunk[i] = byte(i*7 + i>>8)
	}
	for range sizeBytes / imageWriteBytes {
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	// Write back now, not while servers are being measured.
	return f.Sync()
}
