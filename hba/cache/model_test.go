package cache_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
)

// A modelSector is what a correct drive may have of one sector after a power cut:
// what was durable last, and every version after it, oldest first. The last one
// is what reads see.
type modelSector []uint64

// A model is a drive with a volatile cache, in the words of the promises alone.
// A sector's content is a number, repeated.
type model []modelSector

func (m model) write(first, n int, content uint64) {
	for i := first; i < first+n; i++ {
		m[i] = append(m[i], content)
	}
}

// durable: what reads see of the sectors is durable.
func (m model) durable(first, n int) {
	for i := first; i < first+n; i++ {
		m[i] = modelSector{m.newest(i)}
	}
}

func (m model) newest(i int) uint64 { return m[i][len(m[i])-1] }

// sectorOf is a sector of that content.
func sectorOf(content uint64, sectorBytes int) []byte {
	p := make([]byte, 8)
	binary.LittleEndian.PutUint64(p, content)
	return bytes.Repeat(p, sectorBytes/8)
}

// contentOf is the number that a sector is made of.
func contentOf(p []byte) (content uint64, whole bool) {
	return binary.LittleEndian.Uint64(p), bytes.Equal(p, bytes.Repeat(p[:8], len(p)/8))
}

const modelSectors = 256

// A catalog numbers what sectors hold, if it is not a number repeated.
type catalog struct {
	bytes   map[uint64][]byte
	numbers map[string]uint64
}

func (c *catalog) add(content uint64, p []byte) {
	c.bytes[content], c.numbers[string(p)] = p, content
}

func (c *catalog) sector(content uint64, sectorBytes int) []byte {
	if p, ok := c.bytes[content]; ok {
		return bytes.Clone(p)
	}
	return sectorOf(content, sectorBytes)
}

func (c *catalog) content(p []byte) (content uint64, whole bool) {
	if content, ok := c.numbers[string(p)]; ok {
		return content, true
	}
	return contentOf(p)
}

// TestCache_Model compares a cache with the model over random calls and power
// cuts, of every eviction and policy.
func TestCache_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sectorBytes := rapid.SampledFrom([]int{512, 4096}).Draw(t, "sector")
		eviction := rapid.SampledFrom([]cache.Eviction{cache.EvictFIFO, cache.EvictRandom, cache.EvictNone}).Draw(t, "eviction")
		room := rapid.SampledFrom([]int64{128, 1 << 12}).Draw(t, "room in sectors")
		under, err := media.NewMemory(media.MemoryConfig{SizeBytes: modelSectors * int64(sectorBytes)})
		if err != nil {
			t.Fatal(err)
		}
		c, err := cache.New(under, cache.Config{
			SectorBytes: sectorBytes, SizeBytes: room * int64(sectorBytes), Eviction: eviction, Seed: rapid.Uint64().Draw(t, "seed"),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}()
		m := make(model, modelSectors)
		for i := range m {
			m[i] = modelSector{0}
		}
		evictions := func() [cache.EvictionReasons]uint64 { return c.Stats().Evictions }
		evicted := evictions() // when nothing was pending last
		next := uint64(0)
		contents := catalog{map[uint64][]byte{}, map[string]uint64{}}
		span := func() (first, n int, off, length int64) {
			first = rapid.IntRange(0, modelSectors-1).Draw(t, "first")
			n = min(rapid.IntRange(1, 48).Draw(t, "sectors"), modelSectors-first)
			return first, n, int64(first * sectorBytes), int64(n * sectorBytes)
		}
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		write := func(n int) []byte {
			next++
			return bytes.Repeat(sectorOf(next, sectorBytes), n)
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(*rapid.T) {
				first, n, off, _ := span()
				_, err := c.WriteAt(write(n), off)
				check(err)
				m.write(first, n, next)
			},
			"try write": func(*rapid.T) {
				first, n, off, _ := span()
				p := write(n)
				done, err := c.TryWriteAt(p, off)
				check(err)
				if done {
					m.write(first, n, next)
				}
			},
			"write through": func(*rapid.T) {
				first, n, off, _ := span()
				_, err := c.WriteAtFUA(write(n), off)
				check(err)
				m.write(first, n, next)
				m.durable(first, n)
			},
			"trim": func(*rapid.T) {
				first, n, off, length := span()
				check(c.Discard(off, length))
				m.write(first, n, 0)
			},
			"zero": func(*rapid.T) {
				first, n, off, length := span()
				check(c.Zero(off, length, rapid.Bool().Draw(t, "allocate")))
				m.write(first, n, 0)
			},
			"write a part": func(*rapid.T) {
				first, _, off, _ := span()
				from := rapid.IntRange(1, sectorBytes-1).Draw(t, "from")
				part := write(1)[from:]
				p := append(contents.sector(m.newest(first), sectorBytes)[:from], part...)
				if _, known := contents.content(p); known {
					return // the same as one that there was
				}
				contents.add(next, p)
				fua := rapid.Bool().Draw(t, "fua")
				var err error
				if fua {
					_, err = c.WriteAtFUA(part, off+int64(from))
				} else {
					_, err = c.WriteAt(part, off+int64(from))
				}
				check(err)
				m.write(first, 1, next)
				if fua {
					m.durable(first, 1)
				}
			},
			"compare and write": func(*rapid.T) {
				first, n, off, _ := span()
				var compare []byte
				for i := range n {
					compare = append(compare, contents.sector(m.newest(first+i), sectorBytes)...)
				}
				p := write(n)
				wrong := rapid.IntRange(-1, len(p)-1).Draw(t, "wrong byte")
				if wrong >= 0 {
					compare[wrong] ^= 1
				}
				i, err := c.CompareAndWriteAt(compare, p, off)
				check(err)
				if i != wrong {
					t.Fatalf("byte %d from sector %d differs, want %d", i, first, wrong)
				}
				if wrong < 0 {
					m.write(first, n, next)
				}
			},
			"resize": func(*rapid.T) {
				first := rapid.IntRange(1, modelSectors).Draw(t, "sectors left")
				check(c.Resize(int64(first * sectorBytes)))
				check(c.Resize(modelSectors * int64(sectorBytes)))
				for i := first; i < modelSectors; i++ {
					m[i] = modelSector{0}
				}
			},
			"flush": func(*rapid.T) {
				check(c.Flush())
				m.durable(0, modelSectors)
				evicted = evictions()
				if s := c.Stats(); s.PendingBytes != 0 {
					t.Fatalf("%d bytes are pending after a flush", s.PendingBytes)
				}
			},
			"cut": func(*rapid.T) {
				o := cache.CutOptions{
					Seed:      rapid.Uint64().Draw(t, "cut's seed"),
					Policy:    cache.Policy(rapid.IntRange(0, len(cache.PolicyNames())-1).Draw(t, "policy")),
					TearBytes: rapid.SampledFrom([]int{0, sectorBytes, 4096}).Draw(t, "tear"),
				}
				r, err := c.Cut(o)
				check(err)
				if r.Verdict.Class != cache.ClassLegal {
					t.Fatalf("verdict: %+v", r.Verdict)
				}
				if got := r.Sectors.Kept + r.Sectors.Lost; got != r.Sectors.Pending {
					t.Fatalf("%d sectors kept or lost of %d", got, r.Sectors.Pending)
				}
				for i := range m {
					p := make([]byte, sectorBytes)
					_, err := under.ReadAt(p, int64(i*sectorBytes))
					check(err)
					got, whole := contents.content(p)
					if !whole || !slices.Contains(m[i], got) {
						t.Fatalf("sector %d: %d (whole: %v), want one of %d", i, got, whole, m[i])
					}
					if o.Policy == cache.PolicyAll && o.TearBytes == 0 && got != m.newest(i) {
						t.Fatalf("sector %d: %d, all were to survive", i, got)
					}
					if o.Policy == cache.PolicyNone && evicted == evictions() && got != m[i][0] {
						t.Fatalf("sector %d: %d, nothing was to survive", i, got)
					}
					m[i] = modelSector{got}
				}
				evicted = evictions()
			},
			"": func(*rapid.T) {
				for i := range m {
					p := make([]byte, sectorBytes)
					_, err := c.ReadAt(p, int64(i*sectorBytes))
					check(err)
					if got, whole := contents.content(p); !whole || got != m.newest(i) {
						t.Fatalf("sector %d reads %d (whole: %v), want %d", i, got, whole, m.newest(i))
					}
				}
			},
		})
	})
}

// A history is what one connection did to one sector. Nobody else writes there.
type history struct {
	// acknowledged has, for version i (from 1; 0 is the zeros of the start), the
	// time when its write returned; 0 if it has not.
	acknowledged []uint64
}

// A pictured medium keeps what it held when it was flushed last without power: at
// the end of the cut, whatever comes after it.
type pictured struct {
	media.Media
	c       *cache.Cache
	picture atomic.Pointer[[]byte]
}

func (m *pictured) Flush() error {
	if m.c.Off() {
		p := make([]byte, m.Size())
		if _, err := m.ReadAt(p, 0); err != nil {
			return err
		}
		m.picture.Store(&p)
	}
	return m.Media.Flush()
}

// TestCache_Connections has several connections write, each to its own sectors,
// and flush for all, until the power is cut in the middle. Whatever was
// acknowledged before some answered flush began must be there.
func TestCache_Connections(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			const connections, sectors = 4, 32
			under := &pictured{Media: memory(t, connections*sectors*512)}
			c := open(t, under, cache.Config{SizeBytes: 64 << 10, Eviction: cache.Eviction(seed % 3), Seed: seed})
			under.c = c
			var clock atomic.Uint64
			var flushedMu sync.Mutex
			flushed := uint64(0) // when the latest answered flush began
			histories := make([]history, connections*sectors)
			var group sync.WaitGroup
			half := make(chan struct{}, connections)
			for k := range connections {
				group.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(k)))
					for i := 0; c.Life() == 0; i++ {
						if i == 200+k*20 {
							half <- struct{}{}
						}
						if r.IntN(12) == 0 {
							began := clock.Add(1)
							if err := c.Flush(); err != nil {
								if !errors.Is(err, media.ErrPowerLost) {
									t.Error(err)
								}
								continue
							}
							// An answer that came after the cut promises nothing about
							// what was before it.
							if c.Life() == 0 {
								flushedMu.Lock()
								flushed = max(flushed, began)
								flushedMu.Unlock()
							}
							continue
						}
						sector := k*sectors + r.IntN(sectors)
						h := &histories[sector]
						h.acknowledged = append(h.acknowledged, 0)
						fua := r.IntN(8) == 0
						p := sectorOf(uint64(len(h.acknowledged)), 512)
						var err error
						if fua {
							_, err = c.WriteAtFUA(p, int64(sector)*512)
						} else {
							_, err = c.WriteAt(p, int64(sector)*512)
						}
						switch {
						case err == nil && c.Life() == 0:
							h.acknowledged[len(h.acknowledged)-1] = clock.Add(1)
						case err != nil && !errors.Is(err, media.ErrPowerLost):
							t.Error(err)
						}
					}
				})
			}
			<-half
			r := cut(t, c, cache.CutOptions{Seed: seed, Policy: cache.Policy(seed % uint64(len(cache.PolicyNames())))})
			group.Wait()
			picture := under.picture.Load()
			if r.Verdict.Class != cache.ClassLegal {
				t.Errorf("verdict: %+v", r.Verdict)
			}
			for i := range histories {
				got, whole := contentOf((*picture)[i*512 : (i+1)*512])
				if !whole {
					t.Errorf("sector %d is torn", i)
				}
				for v, at := range histories[i].acknowledged {
					if at != 0 && at < flushed && got < uint64(v+1) {
						t.Errorf("sector %d has version %d; version %d was acknowledged at %d and flushed at %d",
							i, got, v+1, at, flushed)
					}
				}
			}
		})
	}
}

// script runs a fixed sequence of calls.
func script(tb testing.TB, c *cache.Cache) {
	tb.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	p := make([]byte, 16<<9)
	for range 3000 {
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		n := 1 + r.IntN(16)
		off := int64(r.IntN(2048-n)) << 9
		var err error
		switch r.IntN(40) {
		case 0:
			err = c.Flush()
		case 1:
			err = c.Discard(off, int64(n)<<9)
		case 2:
			err = c.Zero(off, int64(n)<<9, true)
		case 3:
			_, err = c.WriteAtFUA(p[:n<<9], off)
		default:
			_, err = c.WriteAt(p[:n<<9], off)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// TestCut_Golden: the same calls, seed and options give the same bytes, whatever
// the machine. A digest here changes only with a reason: old seeds no longer mean
// what they meant.
func TestCut_Golden(t *testing.T) {
	for _, tt := range []struct {
		config cache.Config
		o      cache.CutOptions
		want   string
	}{
		{cache.Config{Eviction: cache.EvictFIFO}, cache.CutOptions{Seed: 1}, "71896e2d492afe7c"},
		{cache.Config{Eviction: cache.EvictFIFO}, cache.CutOptions{Seed: 2}, "b6efbb56256704ef"},
		{cache.Config{Eviction: cache.EvictRandom, Seed: 5}, cache.CutOptions{Seed: 1, TearBytes: 512}, "a72c0d81d8bdc240"},
		{cache.Config{Eviction: cache.EvictRandom, Seed: 6}, cache.CutOptions{Seed: 1, TearBytes: 4096, Damage: cache.DamageGarbage}, "581c6f1b5d8a99f8"},
		{cache.Config{Eviction: cache.EvictNone}, cache.CutOptions{Seed: 1, Policy: cache.PolicyPrefix}, "f38f4cfeef692d2d"},
		{cache.Config{Eviction: cache.EvictNone}, cache.CutOptions{Seed: 1, Policy: cache.PolicyReverse}, "4acf2b522ba7f222"},
		{cache.Config{Eviction: cache.EvictNone}, cache.CutOptions{Seed: 1, Policy: cache.PolicyOneMissing, Damage: cache.DamageUnreadable}, "0dfd64b2fcd0a8c1"},
	} {
		name := fmt.Sprintf("%v/%v/%d/%d", tt.config.Eviction, tt.o.Policy, tt.o.Seed, tt.o.TearBytes)
		t.Run(name, func(t *testing.T) {
			m := memory(t, 1<<20)
			tt.config.SizeBytes = 256 << 10
			c := open(t, m, tt.config)
			script(t, c)
			cut(t, c, tt.o)
			p := make([]byte, 1<<20)
			if _, err := m.ReadAt(p, 0); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(p)
			if got := hex.EncodeToString(sum[:8]); got != tt.want {
				t.Errorf("image %s, want %s", got, tt.want)
			}
		})
	}
}
