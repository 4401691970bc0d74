package fault

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// A Distribution is a shape of times.
type Distribution string

// Distributions.
const (
	Fixed     Distribution = "fixed"     // Mean, always
	Normal    Distribution = "normal"    // around Mean with Deviation, never negative
	LogNormal Distribution = "lognormal" // Median, stretched by Sigma: a long tail, as disks have
	Bimodal   Distribution = "bimodal"   // Low, or with HighShare High: now and then much longer
	Table     Distribution = "table"     // measured quantiles, with straight lines between
)

// A Latency is a distribution of times. Without a Distribution it is fixed.
type Latency struct {
	Distribution Distribution `json:"distribution,omitempty" yaml:"distribution,omitempty"`
	// Mean is for fixed and normal.
	Mean Duration `json:"mean,omitempty" yaml:"mean,omitempty"`
	// Deviation is for normal.
	Deviation Duration `json:"deviation,omitempty" yaml:"deviation,omitempty"`
	// Median is for lognormal.
	Median Duration `json:"median,omitempty" yaml:"median,omitempty"`
	// Sigma is for lognormal: the logarithm's standard deviation.
	Sigma float64 `json:"sigma,omitempty" yaml:"sigma,omitempty"`
	// Low is the usual time, for bimodal.
	Low Duration `json:"low,omitempty" yaml:"low,omitempty"`
	// High is the time of the slow ones, for bimodal.
	High Duration `json:"high,omitempty" yaml:"high,omitempty"`
	// HighShare is the share of the slow ones, from 0 to 1, for bimodal.
	HighShare float64 `json:"high-share,omitempty" yaml:"high-share,omitempty"`
	// Table are quantiles in ascending order.
	Table []Quantile `json:"table,omitempty" yaml:"table,omitempty"`
	// Max cuts longer times off; zero means a day.
	Max Duration `json:"max,omitempty" yaml:"max,omitempty"`
}

// A Quantile says that a share of At, from 0 to 1, takes Latency at the most.
type Quantile struct {
	At      float64  `json:"at" yaml:"at"`
	Latency Duration `json:"latency" yaml:"latency"`
}

// MaxTime bounds every time that a rule holds a command.
const MaxTime = Duration(24 * time.Hour)

// check names what is wrong.
func (l *Latency) check() error {
	if l.Distribution == "" {
		l.Distribution = Fixed
	}
	takes := map[Distribution][]string{
		Fixed: {"mean"}, Normal: {"mean", "deviation"}, LogNormal: {"median", "sigma"},
		Bimodal: {"low", "high", "high-share"}, Table: {"table"},
	}
	wanted, ok := takes[l.Distribution]
	if !ok {
		return fmt.Errorf("latency.distribution %q: want %s", l.Distribution, oneOf([]string{"fixed", "normal", "lognormal", "bimodal", "table"}))
	}
	for _, p := range []struct {
		name  string
		given bool
	}{
		{"mean", l.Mean != 0},
		{"deviation", l.Deviation != 0},
		{"median", l.Median != 0},
		{"sigma", l.Sigma != 0},
		{"low", l.Low != 0},
		{"high", l.High != 0},
		{"high-share", l.HighShare != 0},
		{"table", len(l.Table) != 0},
	} {
		// The share of the high ones may be zero.
		if want := slices.Contains(wanted, p.name); want != p.given && (p.given || p.name != "high-share") {
			return fmt.Errorf("latency.%s: distribution %s takes %s, and no more or less", p.name, l.Distribution, oneOf(wanted))
		}
	}
	switch {
	case l.Sigma < 0 || l.Sigma > 10 || math.IsNaN(l.Sigma):
		return fmt.Errorf("latency.sigma %v: want more than 0 and at most 10", l.Sigma)
	case l.HighShare < 0 || l.HighShare > 1 || math.IsNaN(l.HighShare):
		return fmt.Errorf("latency.high-share %v: want 0 to 1", l.HighShare)
	}
	for i, q := range l.Table {
		if !(q.At >= 0 && q.At <= 1) || i > 0 && (q.At <= l.Table[i-1].At || q.Latency < l.Table[i-1].Latency) {
			return fmt.Errorf("latency.table[%d] {at: %v, latency: %s}: want quantiles from 0 to 1, each more than the one before, and latencies likewise", i, q.At, q.Latency)
		}
	}
	for _, d := range append([]Duration{l.Mean, l.Deviation, l.Median, l.Low, l.High, l.Max}, lastOf(l.Table)) {
		if d > MaxTime {
			return fmt.Errorf("latency of %s: want at most %s", d, MaxTime)
		}
	}
	return nil
}

func lastOf(table []Quantile) Duration {
	if len(table) == 0 {
		return 0
	}
	return table[len(table)-1].Latency
}

// draw is a time from the distribution.
func (l *Latency) draw(c *chance) time.Duration {
	var d float64
	switch l.Distribution {
	case Normal:
		d = float64(l.Mean) + float64(l.Deviation)*c.normal()
	case LogNormal:
		d = float64(l.Median) * math.Exp(l.Sigma*c.normal())
	case Bimodal:
		d = float64(l.Low)
		if c.unit() < l.HighShare {
			d = float64(l.High)
		}
	case Table:
		d = l.quantile(c.unit())
	case Fixed:
		d = float64(l.Mean)
	}
	most := l.Max
	if most == 0 {
		most = MaxTime
	}
	return time.Duration(min(max(d, 0), float64(most)))
}

// quantile interpolates in the table. Below the first entry the line starts from zero,
// beyond the last it is flat.
func (l *Latency) quantile(u float64) float64 {
	at, from := 0.0, 0.0
	for _, q := range l.Table {
		if u < q.At {
			return from + (float64(q.Latency)-from)*(u-at)/(q.At-at)
		}
		at, from = q.At, float64(q.Latency)
	}
	return from
}
