package latency

import (
	"math"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// slowBucket is what Bucket must return, by the bounds in seconds.
func slowBucket(ns int64) int {
	for i := range Buckets {
		if float64(ns)/1e9 <= Bound(i) {
			return i
		}
	}
	return Buckets
}

func TestBucket(t *testing.T) {
	for i := range Buckets {
		for _, ns := range []int64{boundNs[i] - 1, boundNs[i], boundNs[i] + 1} {
			if got, want := Bucket(ns), slowBucket(ns); got != want {
				t.Errorf("%d ns is in bucket %d, want %d", ns, got, want)
			}
		}
	}
	for _, ns := range []int64{math.MinInt64, -1, 0, 1, math.MaxInt64} {
		if got, want := Bucket(ns), slowBucket(ns); got != want {
			t.Errorf("%d ns is in bucket %d, want %d", ns, got, want)
		}
	}
}

func TestBucket_Any(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ns := rapid.Int64Range(-10, 100e9).Draw(t, "ns")
		if got, want := Bucket(ns), slowBucket(ns); got != want {
			t.Errorf("%d ns is in bucket %d, want %d", ns, got, want)
		}
	})
}

// Every fourth bound is a power of two, which classic buckets depend on.
func TestBound_Octaves(t *testing.T) {
	for i := 0; i < Buckets; i += 1 << Schema {
		if _, fraction := math.Modf(math.Log2(Bound(i))); fraction != 0 {
			t.Errorf("the bound of bucket %d is %v, no power of two", i, Bound(i))
		}
	}
	if Bound(Buckets-1) != 64 {
		t.Errorf("the last bound is %v s, want 64", Bound(Buckets-1))
	}
}

func TestHistogram(t *testing.T) {
	var h [2]Histogram
	var wg sync.WaitGroup
	for i := range h {
		wg.Go(func() {
			for range 1000 {
				h[i].Add(time.Microsecond)
				h[i].Add(2 * time.Second)
			}
		})
	}
	wg.Wait()
	h[0].Add(-time.Second)
	h[0].Add(time.Hour)
	var c Counts
	for i := range h {
		h[i].Load(&c)
	}
	if c.Count() != 4002 || c.Sum != 2000*(time.Microsecond+2*time.Second)+time.Hour {
		t.Errorf("%d durations of %v in all, want 4002 of %v", c.Count(), c.Sum, 2000*(time.Microsecond+2*time.Second)+time.Hour)
	}
	for bucket, want := range map[int]uint64{0: 1, slowBucket(1000): 2000, slowBucket(2e9): 2000, Buckets: 1} {
		if got := c.Buckets[bucket]; got != want {
			t.Errorf("bucket %d has %d, want %d", bucket, got, want)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	var h Histogram
	for b.Loop() {
		h.Add(5 * time.Microsecond)
	}
}
