package nbd

import "testing"

func TestLatencyBucket(t *testing.T) {
	for i := range LatencyBuckets {
		b := int64(LatencyBound(i) * 1e9)
		if got := latencyBucket(b); got != i {
			t.Errorf("%d ns, a bound, falls into bucket %d, want %d", b, got, i)
		}
		if got := latencyBucket(b + 1); got != i+1 {
			t.Errorf("%d ns falls into bucket %d, want %d", b+1, got, i+1)
		}
	}
	for ns, want := range map[int64]int{-1: 0, 0: 0, 1: 0, 1 << 60: LatencyBuckets} {
		if got := latencyBucket(ns); got != want {
			t.Errorf("%d ns falls into bucket %d, want %d", ns, got, want)
		}
	}
}
