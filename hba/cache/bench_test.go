package cache_test

import (
	"fmt"
	"testing"

	"github.com/vhbad/vhbad/hba/cache"
)

// benchBytes is what the benchmarks go round in: it fits into the cache.
const benchBytes = 32 << 20

var benchSizes = []int{512, 4 << 10, 64 << 10, 256 << 10}

func benchName(bytes int) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%dB", bytes)
	}
	return fmt.Sprintf("%dKiB", bytes>>10)
}

// round calls fn for one block of the area after the other.
func round(b *testing.B, bytes int, fn func(off int64)) {
	b.SetBytes(int64(bytes))
	off := int64(0)
	for b.Loop() {
		fn(off)
		if off += int64(bytes); off == benchBytes {
			off = 0
		}
	}
}

// BenchmarkTryWrite is the write that an engine makes: it stays in the cache. At the
// end of each round the cache is flushed, which counts.
func BenchmarkTryWrite(b *testing.B) {
	for _, bytes := range benchSizes {
		b.Run("size="+benchName(bytes), func(b *testing.B) {
			c := open(b, memory(b, benchBytes), cache.Config{})
			p := make([]byte, bytes)
			round(b, bytes, func(off int64) {
				if done, err := c.TryWriteAt(p, off); !done || err != nil {
					b.Fatalf("%v, %v", done, err)
				}
				if off+int64(bytes) == benchBytes {
					if err := c.Flush(); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkTryWriteCached is the same without the flushes: half of the cache
// becomes free at each round by a power cut, which does not count.
func BenchmarkTryWriteCached(b *testing.B) {
	for _, bytes := range benchSizes {
		b.Run("size="+benchName(bytes), func(b *testing.B) {
			c := open(b, memory(b, benchBytes), cache.Config{})
			p := make([]byte, bytes)
			round(b, bytes, func(off int64) {
				if off == 0 {
					b.StopTimer()
					cut(b, c, cache.CutOptions{Policy: cache.PolicyNone})
					b.StartTimer()
				}
				if done, err := c.TryWriteAt(p, off); !done || err != nil {
					b.Fatalf("%v, %v", done, err)
				}
			})
		})
	}
}

// BenchmarkTryRead reads what is in the cache.
func BenchmarkTryRead(b *testing.B) {
	for _, bytes := range benchSizes {
		b.Run("size="+benchName(bytes), func(b *testing.B) {
			c := open(b, memory(b, benchBytes), cache.Config{})
			p := make([]byte, bytes)
			for off := int64(0); off < benchBytes; off += int64(bytes) {
				put(b, c, off, 1, bytes)
			}
			round(b, bytes, func(off int64) {
				if done, err := c.TryReadAt(p, off); !done || err != nil {
					b.Fatalf("%v, %v", done, err)
				}
			})
		})
	}
}

// BenchmarkFlushAfterWrite writes one block and flushes it.
func BenchmarkFlushAfterWrite(b *testing.B) {
	for _, bytes := range benchSizes {
		b.Run("size="+benchName(bytes), func(b *testing.B) {
			c := open(b, memory(b, benchBytes), cache.Config{})
			p := make([]byte, bytes)
			round(b, bytes, func(off int64) {
				if done, err := c.TryWriteAt(p, off); !done || err != nil {
					b.Fatalf("%v, %v", done, err)
				}
				if err := c.Flush(); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}
