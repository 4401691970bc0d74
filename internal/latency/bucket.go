package latency

import (
	"math"
	"math/bits"
)

const (
	// Schema is the native schema of the buckets: 2^Schema of them to the octave.
	Schema = 2
	// MinIndex is the native index of bucket 0, whose upper bound is
	// 2^(MinIndex/4) s, 14.9 ns.
	MinIndex = -26 << Schema
	// Buckets is the number of bounded buckets; the last bound is 64 s.
	Buckets = 32<<Schema + 1
)

// Bound returns the upper bound, inclusive, of a bucket in seconds.
func Bound(bucket int) float64 {
	return math.Exp2(float64(MinIndex+bucket) / (1 << Schema))
}

// boundNs holds Bound in nanoseconds, rounded down. A duration is a whole number of
// them, so it falls into the same bucket.
var boundNs = func() (b [Buckets]int64) {
	for i := range b {
		b[i] = int64(Bound(i) * 1e9)
	}
	return b
}()

// Bucket returns the bucket of a duration of ns, or Buckets if that is beyond all bounds.
func Bucket(ns int64) int {
	if ns <= boundNs[0] {
		return 0
	}
	// A second is 2^29.897 ns. So the bucket that a power of two falls into is four
	// times its exponent, less 15, and what is below the next power is at most four
	// further.
	i := max(1, (bits.Len64(uint64(ns))-1)<<Schema-15)
	for i < Buckets && boundNs[i] < ns {
		i++
	}
	return min(i, Buckets)
}
