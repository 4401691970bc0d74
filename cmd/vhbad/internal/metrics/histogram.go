package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/vhbad/vhbad/nbd"
)

// Exponents of two of the first and last classic bucket's bound in seconds:
// 7.6 µs to 16 s. The native buckets have no such ends.
const (
	minClassicExponent = -17
	maxClassicExponent = 4
)

// perOctave is how many native buckets make a classic one.
const perOctave = 1 << nbd.LatencySchema

// latency is a histogram with classic and native buckets at once, which
// prometheus.NewConst… does not offer.
type latency struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair
	stats  *nbd.OpStats
}

var _ prometheus.Metric = (*latency)(nil)

// Desc implements prometheus.Metric.
func (l *latency) Desc() *prometheus.Desc { return l.desc }

// Write implements prometheus.Metric.
func (l *latency) Write(out *dto.Metric) error {
	out.Label = l.labels
	out.Histogram = latencyHistogram(l.stats)
	return nil
}

func latencyHistogram(s *nbd.OpStats) *dto.Histogram {
	h := &dto.Histogram{
		SampleSum:     new(s.LatencySum.Seconds()),
		Schema:        new(int32(nbd.LatencySchema)),
		ZeroThreshold: new(float64),
		ZeroCount:     new(uint64),
	}
	// Native buckets: runs of those that are not empty, each as the difference
	// from the one before.
	var total, last uint64
	next := 0 // index that a bucket would need to continue the last span
	for i, n := range s.Latency {
		total += n
		if n == 0 {
			continue
		}
		index := nbd.LatencyMinIndex + i
		if len(h.PositiveSpan) == 0 || index != next {
			h.PositiveSpan = append(h.PositiveSpan, &dto.BucketSpan{Offset: new(int32(index - next)), Length: new(uint32)})
		}
		*h.PositiveSpan[len(h.PositiveSpan)-1].Length++
		h.PositiveDelta = append(h.PositiveDelta, int64(n-last))
		last, next = n, index+1
	}
	if len(h.PositiveSpan) == 0 {
		h.PositiveSpan = []*dto.BucketSpan{{Offset: new(int32), Length: new(uint32)}} // empty, and native all the same
	}
	h.SampleCount = new(total)
	// Classic buckets: cumulative counts at every whole power of two.
	var sum uint64
	i := 0
	for exponent := minClassicExponent; exponent <= maxClassicExponent; exponent++ {
		end := exponent*perOctave - nbd.LatencyMinIndex
		for ; i <= end; i++ {
			sum += s.Latency[i]
		}
		h.Bucket = append(h.Bucket, &dto.Bucket{CumulativeCount: new(sum), UpperBound: new(nbd.LatencyBound(end))})
	}
	return h
}
