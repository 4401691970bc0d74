package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// copyBytes is the size of the image that is copied.
const copyBytes = gib

// copyRows are copies by nbdcopy, out of and into a file-backed disk of each server.
func copyRows() []row {
	kinds := []kind{vhbadFile, nbdkitFile, qemuFile, nbdServerFile}
	faster := make([]target, 0, len(kinds)-1)
	for _, k := range kinds[1:] {
		faster = append(faster, target{k, seconds, 1})
	}
	return []row{
		{name: "copy-out-1g", ours: kinds[0], peers: kinds[1:], targets: faster},
		{name: "copy-in-1g", ours: kinds[0], peers: kinds[1:], targets: faster},
	}
}

// measureCopies measures both.
func (b *bench) measureCopies() []outcome {
	rows := copyRows()
	down := outcome{row: rows[0], results: make(map[kind][]result)}
	up := outcome{row: rows[1], results: make(map[kind][]result)}
	err := b.copies(append([]kind{rows[0].ours}, rows[0].peers...), &down, &up)
	down.err, up.err = err, err
	return []outcome{down, up}
}

func (b *bench) copies(kinds []kind, down, up *outcome) (err error) {
	source, sink := filepath.Join(b.shop.dir, "source.img"), filepath.Join(b.shop.dir, "sink.img")
	if err := makeImage(source, copyBytes); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(source), os.Remove(sink)) }()
	if err := makeImage(sink, copyBytes); err != nil {
		return err
	}
	for round := range b.rounds {
		for i := range kinds {
			k := kinds[(i+round)%len(kinds)]
			// Each gets a server of its own: otherwise the image would be another
			// process's.
			image := filepath.Join(b.shop.dir, "copy.img")
			if err := makeImage(image, copyBytes); err != nil {
				return err
			}
			p, err := b.shop.start(k, copyBytes, image)
			if err != nil {
				return err
			}
			out, in, err := copyBoth(p, image, source, sink)
			if err == nil {
				down.results[k] = append(down.results[k], result{Seconds: out.Seconds()})
				up.results[k] = append(up.results[k], result{Seconds: in.Seconds()})
			}
			if err = errors.Join(err, p.stop(), os.Remove(image)); err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
			b.work.at(float64(round*len(kinds)+i+1) / float64(b.rounds*len(kinds)))
		}
		b.work.note("copies: round %d of %d", round+1, b.rounds)
	}
	return nil
}

// copyBoth copies what p serves, which is image, to sink, and source to p.
func copyBoth(p *process, image, source, sink string) (out, in time.Duration, err error) {
	if err := settle(image, sink); err != nil {
		return 0, 0, err
	}
	if out, err = nbdcopy(p.uri, sink); err != nil {
		return 0, 0, err
	}
	if err := settle(source, sink, image); err != nil {
		return 0, 0, err
	}
	in, err = nbdcopy(source, p.uri)
	return out, in, err
}

// settle brings the file to be read into the page cache completely, and leaves no data of
// the files to be written waiting for the disk.
func settle(from string, to ...string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, path := range to {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// callRows are system calls for one request.
func callRows() []row {
	var rows []row
	for _, d := range []struct {
		depth int
		limit float64
	}{{1, 3.5}, {32, 0.5}} {
		rows = append(rows, row{
			name: fmt.Sprintf("calls-read-4k-d%d", d.depth), ours: vhbadMemory, peers: []kind{nbdkitMemory},
			load:    load{rw: "randread", blockBytes: 4 * kib, depth: d.depth, connections: 1},
			targets: []target{{"", calls, d.limit}},
		})
	}
	return rows
}

// measureCalls counts system calls.
func (b *bench) measureCalls(r row) outcome {
	o := outcome{row: r, results: make(map[kind][]result)}
	for _, k := range append([]kind{r.ours}, r.peers...) {
		res, err := b.countCalls(k, r.load)
		if err != nil {
			o.err = err
			break
		}
		o.results[k] = []result{res}
	}
	return o
}

func (b *bench) countCalls(k kind, l load) (r result, err error) {
	p, err := b.shop.start(k, diskBytes, "")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := fill(p, diskBytes); err != nil {
		return r, err
	}
	const requests = 200_000
	var side fioSide
	total, err := systemCalls(p.pid(), func() (err error) {
		side, err = fio(p, l, diskBytes, fmt.Sprintf("--number_ios=%d", requests))
		return err
	})
	if err != nil {
		return r, err
	}
	r.Calls = float64(total) / float64(side.Total)
	b.work.note("%s depth %d: %.2f system calls per I/O", k, l.depth, r.Calls)
	return r, nil
}
