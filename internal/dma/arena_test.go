package dma_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/vhbad/vhbad/internal/dma"
)

func newArena(tb testing.TB, sizeBytes int) *dma.Arena {
	tb.Helper()
	a, err := dma.NewArena(sizeBytes)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := a.Close(); err != nil {
			tb.Error(err)
		}
	})
	return a
}

func mustPanic(t *testing.T, what string, fn func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	fn()
}

func TestNewArena_BadSize(t *testing.T) {
	for _, n := range []int{0, -1, dma.MaxArenaBytes + 1, math.MaxInt, math.MinInt} {
		if a, err := dma.NewArena(n); err == nil {
			t.Errorf("NewArena(%d) = %d bytes, want an error", n, a.SizeBytes())
		}
	}
}

func TestBlockBytes(t *testing.T) {
	for _, tt := range []struct{ n, want int }{
		{0, 4096},
		{1, 4096},
		{4096, 4096},
		{4097, 8192},
		{8192, 8192},
		{8193, 16384},
		{1 << 20, 1 << 20},
		{1<<20 + 1, 2 << 20},
		{dma.MaxArenaBytes, dma.MaxArenaBytes},
	} {
		if got := dma.BlockBytes(tt.n); got != tt.want {
			t.Errorf("BlockBytes(%d) = %d, want %d", tt.n, got, tt.want)
		}
	}
}

func TestAlloc_Exhaustion(t *testing.T) {
	a := newArena(t, 4*dma.MinBlockBytes)
	var blocks [][]byte
	for range 4 {
		b := a.Alloc(dma.MinBlockBytes)
		if b == nil {
			t.Fatal("Alloc: nil with memory free")
		}
		blocks = append(blocks, b)
	}
	if b := a.Alloc(1); b != nil {
		t.Error("Alloc on a full arena: not nil")
	}
	for _, b := range blocks {
		a.Free(b)
	}
	for _, n := range []int{a.SizeBytes() + 1, math.MaxInt} {
		if b := a.Alloc(n); b != nil {
			t.Errorf("Alloc(%d) of a smaller arena: not nil", n)
		}
	}
	b := a.Alloc(a.SizeBytes())
	if b == nil {
		t.Fatal("freed blocks did not merge into one")
	}
	if got := a.Stats(); got.InUseBytes != a.SizeBytes() || got.PeakBytes != a.SizeBytes() {
		t.Errorf("Stats = %+v, want all in use", got)
	}
	a.Free(b)
}

func TestFree_NotABlock(t *testing.T) {
	a := newArena(t, 4*dma.MinBlockBytes)
	b := a.Alloc(2 * dma.MinBlockBytes)
	mustPanic(t, "Free inside a page", func() { a.Free(b[1:]) })
	mustPanic(t, "Free of a block's second page", func() { a.Free(b[dma.MinBlockBytes:]) })
	mustPanic(t, "Free of Go memory", func() { a.Free(make([]byte, dma.MinBlockBytes)) })
	mustPanic(t, "Free of nil", func() { a.Free(nil) })
	a.Free(b)
	mustPanic(t, "second Free", func() { a.Free(b) })
	mustPanic(t, "negative Alloc", func() { a.Alloc(-1) })
}

func TestClose_InUse(t *testing.T) {
	a := newArena(t, dma.MinBlockBytes)
	b := a.Alloc(1)
	if err := a.Close(); err == nil {
		t.Error("Close with a block in use: no error")
	}
	b[0] = 1 // still mapped
	a.Free(b)
}

// TestArena_Model compares the buddy allocator with a plain page map: blocks
// never overlap, are aligned to their size class, and Alloc fails only if no
// aligned run of free pages would do.
func TestArena_Model(t *testing.T) {
	const pages = 64
	rapid.Check(t, func(rt *rapid.T) {
		a, err := dma.NewArena(pages * dma.MinBlockBytes)
		if err != nil {
			rt.Fatal(err)
		}
		m := dma.NewIOMMU(a)
		a.Free(a.Alloc(pages * dma.MinBlockBytes))
		var used [pages]bool
		type block struct {
			b           []byte
			first, size int // pages
		}
		var live []block
		inUse, peak := 0, pages // the whole block above
		free := func(i int) {
			blk := live[i]
			a.Free(blk.b)
			for p := blk.first; p < blk.first+blk.size; p++ {
				used[p] = false
			}
			inUse -= blk.size
			live = slices.Delete(live, i, i+1)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"alloc": func(rt *rapid.T) {
				n := rapid.IntRange(0, 20*dma.MinBlockBytes).Draw(rt, "bytes")
				size := dma.BlockBytes(n) / dma.MinBlockBytes
				room := false
				for first := 0; first < pages; first += size {
					room = room || !slices.Contains(used[first:first+size], true)
				}
				b := a.Alloc(n)
				if (b != nil) != room {
					rt.Fatalf("Alloc(%d): got memory %v, model has room %v", n, b != nil, room)
				}
				if b == nil {
					return
				}
				if len(b) != n || cap(b) != size*dma.MinBlockBytes {
					rt.Fatalf("Alloc(%d): len %d cap %d", n, len(b), cap(b))
				}
				first := m.OffsetForTest(b) / dma.MinBlockBytes
				if first%size != 0 || m.OffsetForTest(b)%dma.MinBlockBytes != 0 {
					rt.Fatalf("block of %d pages starts at page %d", size, first)
				}
				for p := first; p < first+size; p++ {
					if used[p] {
						rt.Fatalf("page %d handed out twice", p)
					}
					used[p] = true
				}
				inUse += size
				peak = max(peak, inUse)
				live = append(live, block{b, first, size})
			},
			"free": func(rt *rapid.T) {
				if len(live) == 0 {
					rt.Skip("nothing to free")
				}
				free(rapid.IntRange(0, len(live)-1).Draw(rt, "block"))
			},
			"": func(rt *rapid.T) {
				want := dma.Stats{SizeBytes: pages * dma.MinBlockBytes, InUseBytes: inUse * dma.MinBlockBytes, PeakBytes: peak * dma.MinBlockBytes}
				if got := a.Stats(); got != want {
					rt.Fatalf("Stats = %+v, want %+v", got, want)
				}
			},
		})
		for len(live) > 0 {
			free(len(live) - 1)
		}
		if b := a.Alloc(pages * dma.MinBlockBytes); b == nil {
			rt.Fatal("everything freed, but not merged")
		} else {
			a.Free(b)
		}
		if err := a.Close(); err != nil {
			rt.Fatal(err)
		}
	})
}

func TestAllocWait_TooBig(t *testing.T) {
	a := newArena(t, dma.MinBlockBytes)
	if _, err := a.AllocWait(t.Context(), dma.MinBlockBytes+1); !errors.Is(err, dma.ErrTooBig) {
		t.Errorf("AllocWait: %v, want ErrTooBig", err)
	}
}

// TestAllocWait_Fair: a large request in line is not overtaken by small ones
// that would fit, neither by Alloc nor by AllocWait.
func TestAllocWait_Fair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, 4*dma.MinBlockBytes)
		held := [][]byte{a.Alloc(dma.MinBlockBytes), a.Alloc(dma.MinBlockBytes)}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		wait := func(name string, n int) {
			wg.Go(func() {
				b, err := a.AllocWait(context.Background(), n)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				a.Free(b)
			})
			synctest.Wait()
		}
		wait("large", 4*dma.MinBlockBytes)
		wait("small", dma.MinBlockBytes)
		if b := a.Alloc(1); b != nil {
			t.Error("Alloc overtook those in line")
		}
		if got := a.Stats().Waiters; got != 2 {
			t.Errorf("waiters = %d, want 2", got)
		}
		a.Free(held[0])
		synctest.Wait()
		if len(order) != 0 {
			t.Errorf("%v overtook the large request", order)
		}
		a.Free(held[1])
		wg.Wait()
		if want := []string{"large", "small"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}

// TestAllocWait_Cancel: whoever leaves the line lets those behind it go on.
func TestAllocWait_Cancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, 2*dma.MinBlockBytes)
		held := a.Alloc(dma.MinBlockBytes)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if b, err := a.AllocWait(ctx, 2*dma.MinBlockBytes); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled AllocWait: %d bytes, %v", len(b), err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			b, err := a.AllocWait(context.Background(), dma.MinBlockBytes)
			if err != nil {
				t.Error(err)
				return
			}
			a.Free(b)
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		a.Free(held)
		if got := a.Stats(); got.Waiters != 0 || got.InUseBytes != 0 {
			t.Errorf("Stats = %+v, want no waiter and nothing in use", got)
		}
	})
}

// TestAllocWait_Stress races grants against cancellations: no block may leak,
// and every block is its owner's alone.
func TestAllocWait_Stress(t *testing.T) {
	const seed = 1
	a := newArena(t, 16*dma.MinBlockBytes)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(g)))
			for range 2000 {
				ctx, cancel := context.WithCancel(context.Background())
				if rng.IntN(2) == 0 {
					go cancel()
				}
				b, err := a.AllocWait(ctx, 1+rng.IntN(8*dma.MinBlockBytes))
				if err == nil {
					for i := 0; i < len(b); i += 512 {
						b[i] = byte(g)
					}
					for i := 0; i < len(b); i += 512 {
						if b[i] != byte(g) {
							t.Errorf("seed %d: block shared: byte %d is %d, want %d", seed, i, b[i], g)
							break
						}
					}
					a.Free(b)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if got := a.Stats(); got.InUseBytes != 0 || got.Waiters != 0 {
		t.Errorf("seed %d: left behind: %+v", seed, got)
	}
}

func BenchmarkAllocFree(b *testing.B) {
	a := newArena(b, 1<<20)
	b.ReportAllocs()
	for b.Loop() {
		a.Free(a.Alloc(dma.MinBlockBytes))
	}
}

// TestArena_Reserve: large blocks leave an eighth of the arena to small ones,
// and while a large one is waited for, small ones have no more than that.
func TestArena_Reserve(t *testing.T) {
	const size, most = 1 << 20, 128 << 10
	a := newArena(t, size)
	var blocks [][]byte
	for {
		b := a.Alloc(most)
		if b == nil {
			break
		}
		blocks = append(blocks, b)
		if n := len(blocks) * most; a.Plenty() != (n < size/2) {
			t.Errorf("plenty with %d of %d bytes taken: %t", n, size, a.Plenty())
		}
	}
	if n := len(blocks) * most; n != size/8*7 {
		t.Errorf("large blocks took %d of %d bytes: want seven eighths", n, size)
	}
	if a.Scarce() {
		t.Error("an eighth is free, and memory is called scarce")
	}
	ctx, cancel := context.WithCancel(t.Context())
	granted := make(chan []byte)
	go func() {
		b, _ := a.AllocWait(ctx, most) // nil if cancelled
		granted <- b
	}()
	for a.Stats().Waiters == 0 {
		runtime.Gosched()
	}
	got := 0
	for b := a.Alloc(dma.SmallBlockBytes); b != nil; b = a.Alloc(dma.SmallBlockBytes) {
		blocks = append(blocks, b)
		got += len(b)
	}
	if got != size/8 {
		t.Errorf("small blocks took %d bytes beside a waiter: want %d", got, size/8)
	}
	if !a.Scarce() {
		t.Error("nothing is free, and memory is not called scarce")
	}
	a.Free(blocks[0])
	blocks = blocks[1:]
	if b := <-granted; b == nil {
		t.Error("the waiter got nothing")
	} else {
		a.Free(b)
	}
	cancel()
	for _, b := range blocks {
		a.Free(b)
	}
}
