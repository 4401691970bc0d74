package cache_test

import (
	"fmt"
	"testing"
	"time"

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

// BenchmarkTryWriteMeetsFlush is the longest that a write takes while a flush, honest or
// not, deals with many pending ones.
func BenchmarkTryWriteMeetsFlush(b *testing.B) {
	const writes, bytes = 100_000, 4 << 10
	for name, lies := range map[string]bool{"honest": false, "lie": true} {
		b.Run(name, func(b *testing.B) {
			c := open(b, memory(b, writes*bytes), cache.Config{SizeBytes: 2 * writes * bytes})
			p := make([]byte, bytes)
			longest := time.Duration(0)
			write := func(off int64) {
				began := time.Now()
				if _, err := c.TryWriteAt(p, off); err != nil { // in the end there may be no room
					b.Error(err)
				}
				longest = max(longest, time.Since(began))
			}
			for b.Loop() {
				b.StopTimer()
				c.LieAboutFlush(false)
				if err := c.Flush(); err != nil {
					b.Fatal(err)
				}
				for i := range int64(writes) {
					write(i * bytes)
				}
				c.LieAboutFlush(lies)
				longest = 0
				flushed := make(chan error)
				b.StartTimer()
				go func() { flushed <- c.Flush() }()
				for waiting := true; waiting; {
					select {
					case err := <-flushed:
						if err != nil {
							b.Fatal(err)
						}
						waiting = false
					default:
						write(0)
					}
				}
				b.ReportMetric(float64(longest.Microseconds()), "longest-us")
			}
		})
	}
}

// BenchmarkChoose is the longest that a write takes while a cache goes on being full: the
// one that comes to the high-water mark chooses what leaves.
func BenchmarkChoose(b *testing.B) {
	const sizeBytes, bytes = 256 << 20, 4 << 10
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictRandom} {
		b.Run(eviction.String(), func(b *testing.B) {
			c := open(b, memory(b, sizeBytes), cache.Config{SizeBytes: sizeBytes, Eviction: eviction})
			p := make([]byte, bytes)
			off := int64(0)
			for b.Loop() {
				chosen, longest := c.Stats().Evictions[cache.EvictionRoom], time.Duration(0)
				for c.Stats().Evictions[cache.EvictionRoom] == chosen {
					began := time.Now()
					if _, err := c.TryWriteAt(p, off); err != nil {
						b.Fatal(err)
					}
					longest = max(longest, time.Since(began))
					off = (off + 37*bytes) % sizeBytes
				}
				b.ReportMetric(float64(longest.Microseconds()), "longest-us")
				b.ReportMetric(float64(c.Stats().Evictions[cache.EvictionRoom]-chosen), "writes")
				b.StopTimer()
				c.Settle()
				b.StartTimer()
			}
		})
	}
}
