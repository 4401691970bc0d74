package metrics

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/latency"
	"github.com/vhbad/vhbad/nbd"
)

// A span is the range of the classic buckets, as the exponents of two of the first and the
// last bound in seconds. The native buckets have no such limits.
type span struct {
	first, last int
	bounds      []float64
}

var (
	requestSpan = newSpan(-17, 4) // 7.6 µs to 16 s
	stageSpan   = newSpan(-23, 4) // 119 ns to 16 s
	lockSpan    = newSpan(-24, 0) // 60 ns to 1 s
)

func newSpan(first, last int) span {
	s := span{first: first, last: last}
	for exponent := first; exponent <= last; exponent++ {
		s.bounds = append(s.bounds, math.Ldexp(1, exponent))
	}
	return s
}

// perOctave is how many native buckets there are for each classic one.
const perOctave = 1 << latency.Schema

// distribution is a histogram with classic and native buckets at once, which
// prometheus.NewConst… does not offer.
type distribution struct {
	desc      *prometheus.Desc
	labels    []*dto.LabelPair
	histogram *dto.Histogram
}

var _ prometheus.Metric = (*distribution)(nil)

// Desc implements prometheus.Metric.
func (d *distribution) Desc() *prometheus.Desc { return d.desc }

// Write implements prometheus.Metric.
func (d *distribution) Write(out *dto.Metric) error {
	out.Label = d.labels
	out.Histogram = d.histogram
	return nil
}

func (s sink) distribution(d *prometheus.Desc, h *dto.Histogram, labels ...string) {
	s <- &distribution{d, prometheus.MakeLabelPairs(d, labels), h}
}

func requestHistogram(s *nbd.OpStats) *dto.Histogram {
	return durations(s.LatencySum.Seconds(), s.Latency[:], nbd.LatencyMinIndex, requestSpan)
}

func countsHistogram(c *latency.Counts, classic span) *dto.Histogram {
	return durations(c.Sum.Seconds(), c.Buckets[:], latency.MinIndex, classic)
}

// durations makes a histogram from counts by bucket. The first bucket has the native index
// minIndex; the last has no upper bound.
func durations(sum float64, counts []uint64, minIndex int, classic span) *dto.Histogram {
	h := &dto.Histogram{
		SampleSum:     new(sum),
		Schema:        new(int32(latency.Schema)),
		ZeroThreshold: new(float64),
		ZeroCount:     new(uint64),
	}
	// Native buckets: runs of buckets that are not empty, each count as the difference from
	// the one before.
	var total, last uint64
	next := 0 // the index of a bucket that would continue the last span
	for i, n := range counts {
		total += n
		if n == 0 {
			continue
		}
		index := minIndex + i
		if len(h.PositiveSpan) == 0 || index != next {
			h.PositiveSpan = append(h.PositiveSpan, &dto.BucketSpan{Offset: new(int32(index - next)), Length: new(uint32)})
		}
		*h.PositiveSpan[len(h.PositiveSpan)-1].Length++
		h.PositiveDelta = append(h.PositiveDelta, int64(n-last))
		last, next = n, index+1
	}
	if len(h.PositiveSpan) == 0 {
		h.PositiveSpan = []*dto.BucketSpan{{Offset: new(int32), Length: new(uint32)}} // empty, but still native
	}
	h.SampleCount = new(total)
	// Classic buckets: cumulative counts at every whole power of two.
	// There are thousands of them in a scrape of many exports, so those of one
	// histogram are allocated together.
	var below uint64
	i := 0
	buckets, cumulative := make([]dto.Bucket, len(classic.bounds)), make([]uint64, len(classic.bounds))
	h.Bucket = make([]*dto.Bucket, len(classic.bounds))
	for b := range buckets {
		for end := (classic.first+b)*perOctave - minIndex; i <= end; i++ {
			below += counts[i]
		}
		cumulative[b] = below
		buckets[b].CumulativeCount, buckets[b].UpperBound = &cumulative[b], &classic.bounds[b]
		h.Bucket[b] = &buckets[b]
	}
	return h
}

// batches makes a histogram of how many completions each interrupt reported.
func batches(queues []hba.QueueStats) *dto.Histogram {
	var counts [hba.BatchBuckets]uint64
	var completions uint64
	for i := range queues {
		completions += queues[i].Completions
		for b, n := range queues[i].Batches {
			counts[b] += n
		}
	}
	h := &dto.Histogram{SampleSum: new(float64(completions))}
	var below uint64
	for b, n := range counts {
		below += n
		if b < len(counts)-1 { // the last has no bound
			h.Bucket = append(h.Bucket, &dto.Bucket{CumulativeCount: new(below), UpperBound: new(float64(uint(1) << b))})
		}
	}
	h.SampleCount = new(below)
	return h
}
