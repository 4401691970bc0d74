package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/hba/media"
)

func flush(tb testing.TB, c *cache.Cache) {
	tb.Helper()
	if err := c.Flush(); err != nil {
		tb.Fatal(err)
	}
}

// TestLedger_ConvictsTheCache: a cache that loses what it has promised is found out
// by the check, whatever its own lists say. Nothing is found if it does right.
func TestLedger_ConvictsTheCache(t *testing.T) {
	honest := func(c *cache.Cache) error { return c.Flush() }
	trim := func(c *cache.Cache) error { return c.Discard(1024, 512) }
	again := func(c *cache.Cache) error {
		_, err := c.WriteAt(bytes.Repeat([]byte{3}, 512), 1024)
		return err
	}
	evictDropping := func(c *cache.Cache) error {
		c.EvictDropping()
		return nil
	}
	for name, tt := range map[string]struct {
		right, wrong []func(c *cache.Cache) error
		write        uint64 // the one that is lost
	}{
		"drops a write when it evicts": {
			right: []func(*cache.Cache) error{honest},
			wrong: []func(*cache.Cache) error{evictDropping, honest},
			write: 2,
		},
		"drops a trim when it evicts": {
			right: []func(*cache.Cache) error{honest, trim, honest},
			wrong: []func(*cache.Cache) error{honest, trim, evictDropping, honest},
			write: 3,
		},
		"skips a sector in a flush": {
			right: []func(*cache.Cache) error{honest},
			wrong: []func(*cache.Cache) error{func(c *cache.Cache) error { return c.FlushSkipping(2) }},
			write: 2,
		},
		"writes an older version over a newer one": {
			right: []func(*cache.Cache) error{again, honest},
			wrong: []func(*cache.Cache) error{again, func(c *cache.Cache) error { return c.FlushBackwards(2) }},
			write: 3,
		},
	} {
		for policy := range cache.PolicyNames() {
			t.Run(fmt.Sprintf("%s/%v", name, cache.Policy(policy)), func(t *testing.T) {
				verdict := func(calls []func(*cache.Cache) error) cache.Verdict {
					c := open(t, memory(t, 1<<20), cache.Config{})
					put(t, c, 0, 1, 8192)
					flush(t, c)
					put(t, c, 1024, 2, 512)
					for _, do := range calls {
						if err := do(c); err != nil {
							t.Fatal(err)
						}
					}
					put(t, c, 0, 9, 512) // so that something is pending
					return cut(t, c, cache.CutOptions{Seed: 1, Policy: cache.Policy(policy)}).Verdict
				}
				if v := verdict(tt.right); v.Class != cache.ClassLegal || v.CheckedSectors != 16 {
					t.Errorf("a cache that does right: %+v", v)
				}
				want := []cache.Finding{{OffsetBytes: 1024, Act: cache.ActLostFlushed, Write: tt.write}}
				if v := verdict(tt.wrong); v.Class != cache.ClassHostile || !slices.Equal(v.Findings, want) {
					t.Errorf("a cache that does wrong: %+v, want %+v", v, want)
				}
			})
		}
	}
}

// A promised sector is what callers know of one.
type promisedSector struct {
	may   []uint64 // what it may hold after a power cut
	known bool     // a write of it was promised: before, anything may be there
}

// TestLedger_Model holds the verdict against the promises alone, over random calls
// and power cuts, and changes of the durable medium behind the cache's back: it is
// legal if and only if each sector holds what it may.
func TestLedger_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const sectors = 24
		under, err := media.NewMemory(media.MemoryConfig{SizeBytes: sectors * 512})
		if err != nil {
			t.Fatal(err)
		}
		c, err := cache.New(under, cache.Config{
			SizeBytes: cache.MinSizeBytes, Eviction: rapid.SampledFrom([]cache.Eviction{cache.EvictFIFO, cache.EvictRandom, cache.EvictNone}).Draw(t, "eviction"),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}()
		small := rapid.Bool().Draw(t, "small")
		if small {
			c.ShrinkLedger(8, 32)
		}
		m := make([]promisedSector, sectors)
		for i := range m {
			m[i].may = []uint64{0}
		}
		next := uint64(0)
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		span := func() (first, n int) {
			first = rapid.IntRange(0, sectors-1).Draw(t, "first")
			return first, min(rapid.IntRange(1, 8).Draw(t, "sectors"), sectors-first)
		}
		wrote := func(first, n int, content uint64, durable bool) {
			for i := first; i < first+n; i++ {
				m[i].may = append(m[i].may, content)
				if durable {
					m[i] = promisedSector{[]uint64{content}, true}
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(*rapid.T) {
				first, n := span()
				next++
				_, err := c.WriteAt(bytes.Repeat(sectorOf(next, 512), n), int64(first)*512)
				check(err)
				wrote(first, n, next, false)
			},
			"write through": func(*rapid.T) {
				first, n := span()
				next++
				_, err := c.WriteAtFUA(bytes.Repeat(sectorOf(next, 512), n), int64(first)*512)
				check(err)
				wrote(first, n, next, true)
			},
			"compare and write": func(*rapid.T) {
				first, _ := span()
				old := make([]byte, 512)
				_, err := c.ReadAt(old, int64(first)*512)
				check(err)
				next++
				wrong := rapid.Bool().Draw(t, "wrong")
				if wrong {
					old[511] ^= 1
				}
				_, err = c.CompareAndWriteAt(old, sectorOf(next, 512), int64(first)*512)
				check(err)
				if !wrong {
					wrote(first, 1, next, false)
				}
			},
			"trim": func(*rapid.T) {
				first, n := span()
				check(c.Discard(int64(first)*512, int64(n)*512))
				wrote(first, n, 0, false)
			},
			"flush": func(*rapid.T) {
				check(c.Flush())
				for i := range m {
					if k := len(m[i].may); k > 1 {
						m[i] = promisedSector{m[i].may[k-1:], true}
					}
				}
			},
			"change the medium": func(*rapid.T) {
				first, _ := span()
				content := rapid.Uint64Range(0, next+1).Draw(t, "content")
				_, err := under.WriteAt(sectorOf(content, 512), int64(first)*512)
				check(err)
			},
			"cut": func(*rapid.T) {
				r, err := c.Cut(cache.CutOptions{
					Seed:   rapid.Uint64().Draw(t, "cut's seed"),
					Policy: cache.Policy(rapid.IntRange(0, len(cache.PolicyNames())-1).Draw(t, "policy")),
				})
				check(err)
				lost := 0
				for i := range m {
					p := make([]byte, 512)
					_, err := under.ReadAt(p, int64(i*512))
					check(err)
					got, _ := contentOf(p)
					if m[i].known && !slices.Contains(m[i].may, got) {
						lost++
					}
					// What was not written since a cut need not be known.
					m[i] = promisedSector{[]uint64{got}, m[i].known || len(m[i].may) > 1}
				}
				if n := r.Verdict.Acts[cache.ActLostFlushed]; n > lost || n < lost && !small || len(r.Verdict.Acts) > 1 {
					t.Fatalf("verdict: %+v, want %d sectors lost", r.Verdict, lost)
				}
			},
		})
	})
}

// TestLedger_SharedSectors has connections write to the same sectors, so that their
// order is known to nobody, and cuts the power again and again. That must be legal.
func TestLedger_SharedSectors(t *testing.T) {
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictRandom, cache.EvictNone} {
		for _, small := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/small=%v", eviction, small), func(t *testing.T) {
				const sectors = 192 // more than have room in the cache
				c := open(t, memory(t, sectors*512), cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: eviction})
				if small {
					c.ShrinkLedger(16, 64)
				}
				stop := make(chan struct{})
				flushed := make(chan struct{}, 8) // of the users, and not yet counted
				var group sync.WaitGroup
				for k := range uint64(4) {
					group.Go(func() {
						r := rand.New(rand.NewPCG(k, 0))
						p := make([]byte, 8*512)
						for i := uint64(0); ; i++ {
							select {
							case <-stop:
								return
							default:
							}
							n := 1 + r.IntN(8)
							off := int64(r.IntN(sectors-n)) * 512
							copy(p, bytes.Repeat(sectorOf(k<<32|i, 512), n))
							var err error
							switch r.IntN(12) {
							case 0:
								if err = c.Flush(); err == nil {
									select {
									case flushed <- struct{}{}:
									default:
									}
								}
							case 1:
								_, err = c.WriteAtFUA(p[:n*512], off)
							case 2:
								err = c.Discard(off, int64(n)*512)
							case 3:
								_, err = c.CompareAndWriteAt(make([]byte, 512), p[:512], off)
							default:
								if done, err := c.TryWriteAt(p[:n*512], off); !done && err == nil {
									_, _ = c.WriteAt(p[:n*512], off)
								}
							}
							if err != nil && !errors.Is(err, media.ErrPowerLost) {
								t.Error(err)
							}
						}
					})
				}
				checked := 0
				for i := range uint64(60) {
					for len(flushed) > 0 {
						<-flushed // since the last cut, or before
					}
					for range 2 {
						<-flushed
					}
					r := cut(t, c, cache.CutOptions{Seed: i, Policy: cache.Policy(i % uint64(len(cache.PolicyNames())))})
					if r.Verdict.Class != cache.ClassLegal {
						t.Errorf("cut %d: %+v", i, r.Verdict)
					}
					checked += r.Verdict.CheckedSectors - r.Sectors.Pending
				}
				close(stop)
				group.Wait()
				if checked == 0 && !small {
					t.Error("no sector was checked but those that were pending")
				}
			})
		}
	}
}

// TestLedger_PromisesOfFailures: a write or flush that fails promises nothing, and
// what it may have left behind is legal.
func TestLedger_PromisesOfFailures(t *testing.T) {
	t.Run("write", func(t *testing.T) {
		m := &failing{Media: memory(t, 1<<20)}
		c := open(t, m, cache.Config{})
		put(t, c, 0, 1, 512)
		flush(t, c)
		m.write = media.ErrNoSpace
		if _, err := c.WriteAtFUA(bytes.Repeat([]byte{2}, 512), 0); !errors.Is(err, media.ErrNoSpace) {
			t.Fatalf("write: %v", err)
		}
		m.write = nil
		for _, b := range []byte{1, 2, 7} {
			put(t, m, 0, b, 512)
			want := map[cache.Act]int{}
			if b == 7 {
				want[cache.ActLostFlushed] = 1
			}
			if r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); r.Verdict.Acts[cache.ActLostFlushed] != want[cache.ActLostFlushed] {
				t.Errorf("%d is there: %+v", b, r.Verdict)
			}
			// As before.
			put(t, c, 0, 1, 512)
			flush(t, c)
			m.write = media.ErrNoSpace
			if _, err := c.WriteAtFUA(bytes.Repeat([]byte{2}, 512), 0); !errors.Is(err, media.ErrNoSpace) {
				t.Fatalf("write: %v", err)
			}
			m.write = nil
		}
	})
	t.Run("flush of the medium", func(t *testing.T) {
		m := &forgetful{Media: memory(t, 1<<20)}
		c := open(t, m, cache.Config{})
		put(t, c, 0, 1, 1024)
		flush(t, c)
		put(t, c, 0, 2, 512)
		m.lost = media.ErrMedium
		if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
			t.Fatalf("flush: %v", err)
		}
		put(t, m, 0, 1, 512) // the medium has lost the write, and said so
		flush(t, c)          // which promises nothing of it
		if r := cut(t, c, cache.CutOptions{}); r.Verdict.Class != cache.ClassLegal || r.Verdict.CheckedSectors != 2 {
			t.Errorf("verdict: %+v", r.Verdict)
		}
		put(t, m, 512, 3, 512)
		if r := cut(t, c, cache.CutOptions{}); r.Verdict.Acts[cache.ActLostFlushed] != 1 {
			t.Errorf("verdict: %+v, want the sector that was promised before", r.Verdict)
		}
	})
}

// TestLedger_Lies: what a flush or FUA lied about is found where the cache has no
// list of it any more.
func TestLedger_Lies(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(c *cache.Cache) error
		act  cache.Act
	}{
		{"flush", func(c *cache.Cache) error {
			c.LieAboutFlush(true)
			return c.Flush()
		}, cache.ActLyingFlush},
		{"flush answered above", func(c *cache.Cache) error {
			c.PromisedAll()
			return nil
		}, cache.ActLyingFlush},
		{"FUA answered above", func(c *cache.Cache) error {
			c.PromisedRange(0, 512)
			return nil
		}, cache.ActIgnoredFUA},
		{"FUA", func(c *cache.Cache) error {
			c.IgnoreFUA(true)
			_, err := c.WriteAtFUA(bytes.Repeat([]byte{2}, 512), 0)
			return err
		}, cache.ActIgnoredFUA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, memory(t, 1<<20), cache.Config{})
			put(t, c, 0, 1, 512)
			flush(t, c)
			put(t, c, 0, 2, 512)
			if err := tt.do(c); err != nil {
				t.Fatal(err)
			}
			for c.Stats().PendingBytes > 0 {
				c.EvictDropping()
			}
			r := cut(t, c, cache.CutOptions{Policy: cache.PolicyAll})
			if r.Verdict.Acts[tt.act] != 1 || len(r.Verdict.Acts) != 1 {
				t.Errorf("verdict: %+v, want %v", r.Verdict, tt.act)
			}
			if r = cut(t, c, cache.CutOptions{}); r.Verdict.Class != cache.ClassLegal {
				t.Errorf("the next cut: %+v", r.Verdict)
			}
		})
	}
}

// TestLedger_InFlight: what was under way when the power went may be there or not,
// even if its entry had to go for others.
func TestLedger_InFlight(t *testing.T) {
	for _, small := range []bool{false, true} {
		t.Run(fmt.Sprintf("small=%v", small), func(t *testing.T) {
			slow := hbatest.NewMedia(memory(t, 1<<20), hbatest.MediaConfig{})
			c := open(t, slow, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictNone})
			if small {
				c.ShrinkLedger(4, 1<<10)
			}
			put(t, c, 0, 1, 512)
			flush(t, c)
			slow.Hold()
			var group sync.WaitGroup
			group.Go(func() { // it reaches the medium, and is not answered before the cut
				if _, err := c.WriteAtFUA(bytes.Repeat([]byte{2}, 512), 0); err != nil && !errors.Is(err, media.ErrPowerLost) {
					t.Error(err)
				}
			})
			slow.WaitHeld(1)
			for i := range int64(8) {
				if done, err := c.TryWriteAt(make([]byte, 512), 4096+i*512); !done || err != nil {
					t.Fatalf("%v, %v", done, err)
				}
			}
			var r *cache.Report
			group.Go(func() { r = cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}) })
			for !c.Cutting() {
				slow.WaitHeld(1)
			}
			slow.Release()
			group.Wait()
			if r.Verdict.Class != cache.ClassLegal {
				t.Errorf("verdict: %+v", r.Verdict)
			}
			put(t, c, 0, 3, 512)
			flush(t, c)
			put(t, slow, 0, 2, 512) // it is older than what is durable
			if r = cut(t, c, cache.CutOptions{}); r.Verdict.Acts[cache.ActLostFlushed] != 1 {
				t.Errorf("verdict: %+v, want a sector lost", r.Verdict)
			}
		})
	}
}

// TestLedger_LongZeros: zeros that are too many to be entered one by one cover what
// was there, and their first sectors are checked.
func TestLedger_LongZeros(t *testing.T) {
	m := memory(t, 16<<20)
	c := open(t, m, cache.Config{})
	put(t, c, 0, 1, 512)
	put(t, c, 8<<20, 1, 512)
	flush(t, c)
	if err := c.Discard(0, 16<<20); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	if r := cut(t, c, cache.CutOptions{}); r.Verdict.Class != cache.ClassLegal || r.Verdict.CheckedSectors != 4096+1 {
		t.Errorf("verdict: %+v", r.Verdict)
	}
	if err := c.Discard(0, 16<<20); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	put(t, m, 0, 1, 512)
	put(t, m, 1<<20, 1, 512)
	put(t, m, 8<<20, 1, 512)
	if r := cut(t, c, cache.CutOptions{}); r.Verdict.Acts[cache.ActLostFlushed] != 3 {
		t.Errorf("verdict: %+v, want three sectors that are not zeros", r.Verdict)
	}
}

// TestLedger_PartsOfSectors are not known, and the sector is again when it has been
// written whole.
func TestLedger_PartsOfSectors(t *testing.T) {
	m := memory(t, 1<<20)
	c := open(t, m, cache.Config{})
	put(t, c, 0, 1, 1024)
	flush(t, c)
	put(t, c, 100, 2, 100)
	flush(t, c)
	if r := cut(t, c, cache.CutOptions{}); r.Verdict.Class != cache.ClassLegal || r.Verdict.CheckedSectors != 1 {
		t.Errorf("verdict: %+v", r.Verdict)
	}
	put(t, c, 0, 3, 512)
	flush(t, c)
	put(t, m, 0, 1, 512)
	if r := cut(t, c, cache.CutOptions{}); r.Verdict.Acts[cache.ActLostFlushed] != 1 {
		t.Errorf("verdict: %+v, want a sector lost", r.Verdict)
	}
}

// TestLedger_Resize: nobody knows what was beyond an end that came nearer.
func TestLedger_Resize(t *testing.T) {
	c := open(t, memory(t, 1<<20), cache.Config{})
	put(t, c, 0, 1, 8192)
	flush(t, c)
	for _, size := range []int64{4096, 1 << 20} {
		if err := c.Resize(size); err != nil {
			t.Fatal(err)
		}
		if r := cut(t, c, cache.CutOptions{}); r.Verdict.Class != cache.ClassLegal || r.Verdict.CheckedSectors != 8 {
			t.Errorf("%d bytes: %+v", size, r.Verdict)
		}
	}
}

// A measured medium has something done, once, when its size has been asked for.
type measured struct {
	*media.Memory
	asked func()
}

func (m *measured) Size() int64 {
	size := m.Memory.Size()
	if fn := m.asked; fn != nil {
		m.asked = nil
		fn()
	}
	return size
}

// TestLedger_GrowsMeanwhile: a write may come when the disk has no such sectors, and be done
// when it has. What it has overwritten has not been lost.
func TestLedger_GrowsMeanwhile(t *testing.T) {
	for name, write := range map[string]func(c *cache.Cache, p []byte) error{
		"write": func(c *cache.Cache, p []byte) error {
			_, err := c.WriteAt(p, 4096)
			return err
		},
		"write with FUA": func(c *cache.Cache, p []byte) error {
			_, err := c.WriteAtFUA(p, 4096)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := &measured{Memory: memory(t, 4096).(*media.Memory)}
			c := open(t, m, cache.Config{})
			m.asked = func() {
				if err := c.Resize(8192); err != nil {
					t.Fatal(err)
				}
				put(t, c, 4096, 1, 512)
				flush(t, c)
			}
			if err := write(c, bytes.Repeat([]byte{2}, 512)); err != nil {
				t.Fatal(err)
			}
			flush(t, c)
			if r := cut(t, c, cache.CutOptions{}); r.Verdict.Class != cache.ClassLegal || at(t, m, 4096) != 2 {
				t.Errorf("verdict: %+v, of a sector that holds %d", r.Verdict, at(t, m, 4096))
			}
		})
	}
}
