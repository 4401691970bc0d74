package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

const (
	plotWidth  = 9 * vg.Inch
	plotHeight = 4 * vg.Inch
)

// plotRows draws one metric of all fio rows, ours divided by each peer's.
func plotRows(path, title string, m metric, outcomes []outcome) error {
	p := plot.New()
	p.Title.Text = title
	p.Y.Label.Text = "vhbad ÷ peer"
	p.Legend.Top = true
	var names []string
	byPeer := make(map[kind]plotter.Values)
	for i := range outcomes {
		o := &outcomes[i]
		if o.err != nil || o.row.ours == vhbadVerify || o.row.load.rw == "" || o.typical(o.row.ours, iops) == 0 {
			continue
		}
		names = append(names, o.row.name)
		for _, k := range []kind{nbdkitMemory, nbdkitSimple, nbdkitFile, qemuFile, bareLoop, bareSimple, goNBD} {
			v := 0.0
			if slices.Contains(o.row.peers, k) {
				v = median(o.ratios(target{peer: k, metric: m}))
			}
			byPeer[k] = append(byPeer[k], v)
		}
	}
	if len(names) == 0 {
		return nil
	}
	width := vg.Points(6)
	for i, k := range slices.Sorted(maps.Keys(byPeer)) {
		bars, err := plotter.NewBarChart(byPeer[k], width)
		if err != nil {
			return err
		}
		bars.LineStyle.Width = 0
		bars.Color = plotutil.Color(i)
		bars.Offset = vg.Length(i-len(byPeer)/2) * width
		p.Add(bars)
		p.Legend.Add(string(k), bars)
	}
	one := plotter.NewFunction(func(float64) float64 { return 1 })
	one.Dashes = []vg.Length{vg.Points(3), vg.Points(3)}
	p.Add(one)
	p.NominalX(names...)
	p.X.Tick.Label.Rotation = 0.4
	p.X.Tick.Label.XAlign = -1
	return p.Save(plotWidth, plotHeight, path)
}

// plotLatency draws the latency distribution of one row: microseconds over percentiles.
func plotLatency(path string, o *outcome) error {
	p := plot.New()
	p.Title.Text = "Latency of " + o.row.name + " (median over the rounds)"
	p.X.Label.Text = "percentile"
	p.Y.Label.Text = "µs"
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	for i, k := range append([]kind{o.row.ours}, o.row.peers...) {
		var line plotter.XYs
		byPercentile := make(map[float64][]float64)
		for _, r := range o.results[k] {
			for text, us := range r.Percentiles {
				x, err := strconv.ParseFloat(text, 64)
				if err != nil {
					return fmt.Errorf("percentile %q: %w", text, err)
				}
				byPercentile[x] = append(byPercentile[x], us)
			}
		}
		for _, x := range slices.Sorted(maps.Keys(byPercentile)) {
			line = append(line, plotter.XY{X: x, Y: max(median(byPercentile[x]), 0.1)})
		}
		if len(line) == 0 {
			continue
		}
		l, err := plotter.NewLine(line)
		if err != nil {
			return err
		}
		l.Color = plotutil.Color(i)
		l.Width = vg.Points(1.5)
		p.Add(l)
		p.Legend.Add(string(k), l)
	}
	return p.Save(plotWidth, plotHeight, path)
}

// plotGrowth draws IOPS and processor time over one thing that grows.
func plotGrowth(dir, what string, points []point) error {
	for _, y := range []struct {
		name, label string
		of          func(point) float64
	}{
		{"iops", "IOPS", func(p point) float64 { return p.IOPS }},
		{"cpu", "server CPU per I/O, µs", func(p point) float64 { return p.CPUMicros }},
	} {
		p := plot.New()
		p.Title.Text = "4 KiB random read over " + what
		p.X.Label.Text, p.Y.Label.Text = what, y.label
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		p.Y.Min = 0
		var line plotter.XYs
		for _, pt := range points {
			if pt.What == what {
				line = append(line, plotter.XY{X: pt.N, Y: y.of(pt)})
				p.Y.Max = max(p.Y.Max, 1.2*y.of(pt))
			}
		}
		if len(line) == 0 {
			return nil
		}
		l, dots, err := plotter.NewLinePoints(line)
		if err != nil {
			return err
		}
		p.Add(l, dots)
		if err := p.Save(plotWidth/2, plotHeight, filepath.Join(dir, fmt.Sprintf("growth-%s-%s.svg", what, y.name))); err != nil {
			return err
		}
	}
	return nil
}
