package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// A point is the cost when one thing has grown to N, as medians of growthRounds rounds.
type point struct {
	What      string  `json:"what"` // "disks", "connections", "depth", "size"
	N         float64 `json:"n"`    // how many, or GiB
	IOPS      float64 `json:"iops"`
	LeastIOPS float64 `json:"least_iops"`
	MostIOPS  float64 `json:"most_iops"`
	CPUMicros float64 `json:"cpu_us"`
	P50       float64 `json:"p50_us"`
	StartMS   float64 `json:"start_ms"` // until the server listens
}

const (
	growthRounds = 3
	// growthRunTime bounds a run of fio.
	growthRunTime = 1500 * time.Millisecond
)

// A size is one step of something that grows: how to start the server and which load to put
// on it.
type size struct {
	n         float64
	load      load
	sizeBytes int64
	extra     []string
}

// A series is all the steps of one thing; they are measured in turn.
type series struct {
	what  string
	sizes []size
}

func growthSeries() []series {
	l := load{rw: "randread", blockBytes: 4 * kib, depth: 32, connections: 1}
	all := []series{{what: "disks"}, {what: "connections"}, {what: "depth"}, {what: "size"}}
	disks, connections, depth, gibs := &all[0], &all[1], &all[2], &all[3]
	for _, n := range []int{1, 16, 256} {
		var more []string
		for i := 1; i < n; i++ {
			more = append(more, "--disk", fmt.Sprintf("more%d=memory:1GiB", i))
		}
		disks.sizes = append(disks.sizes, size{float64(n), l, diskBytes, more})
	}
	for _, n := range []int{1, 4, 16, 64, 256} {
		l := l
		l.depth, l.connections = 8, n
		connections.sizes = append(connections.sizes, size{float64(n), l, diskBytes, []string{"--connections", "300", "--memory", "1GiB"}})
	}
	for _, n := range []int{1, 4, 16, 64, 256, 1024} {
		l := l
		l.depth = n
		depth.sizes = append(depth.sizes, size{float64(n), l, diskBytes, []string{"--requests", "1024"}})
	}
	for _, n := range []int64{1, 64, 1024, 64 * 1024} {
		gibs.sizes = append(gibs.sizes, size{float64(n), l, n * gib, nil})
	}
	return all
}

// growth measures the cost of a 4 KiB read while one thing grows at a time.
func (b *bench) growth() ([]point, error) {
	var out []point
	all := growthSeries()
	for i := range all {
		points, err := b.measureSeries(&all[i], func(share float64) {
			b.work.at((float64(i) + share) / float64(len(all)))
		})
		if err != nil {
			return out, fmt.Errorf("%s: %w", all[i].what, err)
		}
		out = append(out, points...)
	}
	return out, nil
}

// measureSeries starts a server for each size and measures them in turn.
func (b *bench) measureSeries(s *series, at func(share float64)) (points []point, err error) {
	var servers []*process
	defer func() {
		for _, p := range servers {
			err = errors.Join(err, p.stop())
		}
	}()
	results := make([][]result, len(s.sizes))
	points = make([]point, len(s.sizes))
	for i, z := range s.sizes {
		b.shop.extra = z.extra
		begin := time.Now()
		p, err := b.shop.start(vhbadMemory, z.sizeBytes, "")
		b.shop.extra = nil
		if err != nil {
			return nil, err
		}
		points[i] = point{What: s.what, N: z.n, StartMS: float64(time.Since(begin).Milliseconds())}
		servers = append(servers, p)
		if err := fill(p, min(z.sizeBytes, diskBytes)); err != nil {
			return nil, err
		}
	}
	for round := range growthRounds {
		for i := range servers {
			k := (i + round) % len(servers)
			z := &s.sizes[k]
			r, err := runFio(servers[k], z.load, min(z.sizeBytes, diskBytes), min(b.runTime, growthRunTime), round)
			if err != nil {
				return nil, err
			}
			results[k] = append(results[k], r)
			at(float64(round*len(servers)+i+1) / float64(growthRounds*len(servers)))
			b.work.note("growth: %s %.0f, round %d of %d: %.0f IOPS, %.1f us CPU", s.what, z.n, round+1, growthRounds, r.IOPS, r.CPUMicros)
		}
	}
	for k := range points {
		values := func(of func(*result) float64) (out []float64) {
			for i := range results[k] {
				out = append(out, of(&results[k][i]))
			}
			return out
		}
		p, rates := &points[k], values(func(r *result) float64 { return r.IOPS })
		p.IOPS, p.LeastIOPS, p.MostIOPS = median(rates), slices.Min(rates), slices.Max(rates)
		p.CPUMicros = median(values(func(r *result) float64 { return r.CPUMicros }))
		p.P50 = median(values(func(r *result) float64 { return r.P50 }))
	}
	return points, nil
}
