package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/hba/media"
)

// A dawdler is a medium that takes no write while it is held, and fails those that come
// while it refuses.
type dawdler struct {
	media.Media
	mu   sync.Mutex
	free sync.Cond
	// +checklocks:mu
	held bool
	// +checklocks:mu
	refuses bool
}

func newDawdler(m media.Media) *dawdler {
	d := &dawdler{Media: m}
	d.free.L = &d.mu
	return d
}

func (d *dawdler) hold(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = on
	d.free.Broadcast()
}

func (d *dawdler) refuse(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuses = on
}

func (d *dawdler) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	for d.held {
		d.free.Wait()
	}
	refuses := d.refuses
	d.mu.Unlock()
	if refuses {
		return 0, media.ErrMedium
	}
	return d.Media.WriteAt(p, off)
}

// TestBackground_DecidesByWhatComes: what becomes durable early does not depend on how
// far the medium has come: the same calls leave the same image, and the same sectors
// pending, on one that is fast and on one that stands still whenever it may.
func TestBackground_DecidesByWhatComes(t *testing.T) {
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictRandom} {
		for seed := range uint64(8) {
			t.Run(fmt.Sprintf("%v/%d", eviction, seed), func(t *testing.T) {
				run := func(lazy bool) (image []byte, r *cache.Report) {
					m := newDawdler(memory(t, 1<<20))
					c := open(t, m, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: eviction, Seed: seed})
					random, pace := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
					for i := range 600 {
						n := 1 + random.IntN(16)
						off := int64(random.IntN(2048-n)) * 512
						kind := random.IntN(60)
						// A flush waits for the medium, and so does who needs the room, and a
						// comparison: which finds, if that has failed, all that was to leave.
						room := c.Stats().PendingBytes+int64(n)*512 <= cache.MinSizeBytes
						m.refuse(lazy && kind > 1 && kind < 8)
						m.hold(lazy && room && kind > 7 && pace.IntN(4) > 0)
						switch kind {
						case 0:
							flush(t, c)
						case 1:
							if _, err := c.WriteAtFUA(bytes.Repeat([]byte{byte(i)}, n*512), off); err != nil {
								t.Fatal(err)
							}
						case 2, 3, 4, 5, 6, 7:
							c.Settle()
							m.refuse(false)
							other := append([]byte{1}, make([]byte, n*512-1)...) // than any sector here
							if at, err := c.CompareAndWriteAt(other, other, off); err != nil || at < 0 {
								t.Fatalf("compare and write: %d, %v, want a mismatch", at, err)
							}
						default:
							put(t, c, off, byte(i), n*512)
						}
						if !lazy {
							c.Settle()
						}
					}
					m.hold(false)
					r = cut(t, c, cache.CutOptions{Seed: seed})
					image = make([]byte, 1<<20)
					if _, err := m.ReadAt(image, 0); err != nil {
						t.Fatal(err)
					}
					return image, r
				}
				fast, a := run(false)
				slow, b := run(true)
				if a.Sectors != b.Sectors || a.ImageSHA256 != b.ImageSHA256 || !bytes.Equal(fast, slow) {
					t.Errorf("sectors %+v on a fast medium, %+v on a slow one, or another image", a.Sectors, b.Sectors)
				}
			})
		}
	}
}

// TestBackground_WritesDoNotWait: writes go on while the medium stands still with what
// was chosen, until the room is taken. Reads see what leaves. A power cut then ends what
// was chosen before it decides, so that with nothing surviving the oldest are there.
func TestBackground_WritesDoNotWait(t *testing.T) {
	const sectors = cache.MinSizeBytes / 512
	m := newDawdler(memory(t, 1<<20))
	c := open(t, m, cache.Config{SizeBytes: cache.MinSizeBytes})
	m.hold(true)
	for i := range int64(sectors) {
		if done, err := c.TryWriteAt(bytes.Repeat([]byte{1}, 512), i*512); !done || err != nil {
			t.Fatalf("write %d: %v, %v", i, done, err)
		}
	}
	if done, err := c.TryWriteAt(make([]byte, 512), 1<<19); done || err != nil {
		t.Errorf("a write that there is no room for: %v, %v", done, err)
	}
	chosen := c.Stats().Evictions[cache.EvictionRoom]
	if chosen == 0 || chosen > sectors/4 {
		t.Errorf("%d of %d writes are chosen", chosen, sectors)
	}
	for i := range int64(sectors) {
		if at(t, c, i*512) != 1 || at(t, m.Media, i*512) != 0 {
			t.Fatalf("sector %d reads as it was, or is durable", i)
		}
	}
	var group sync.WaitGroup
	group.Go(func() {
		r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone})
		if r.Class != cache.ClassLegal || r.Sectors.Pending != sectors-int(chosen) || r.Sectors.Lost != r.Sectors.Pending {
			t.Errorf("report: %+v", r)
		}
	})
	m.hold(false)
	group.Wait()
	for i := range int64(sectors) {
		want := byte(0)
		if uint64(i) < chosen {
			want = 1
		}
		if got := at(t, m, i*512); got != want {
			t.Errorf("sector %d is %d, want %d", i, got, want)
		}
	}
}

// TestBackground_FlushCoversWhatLeaves: a flush waits for what was chosen before it.
func TestBackground_FlushCoversWhatLeaves(t *testing.T) {
	slow := hbatest.NewMedia(memory(t, 1<<20), hbatest.MediaConfig{})
	c := open(t, slow, cache.Config{SizeBytes: cache.MinSizeBytes})
	slow.Hold()
	for i := range int64(cache.MinSizeBytes / 512) {
		put(t, c, i*512, 1, 512)
	}
	slow.WaitHeld(1) // the goroutine, with what leaves
	var group sync.WaitGroup
	group.Go(func() { flush(t, c) })
	slow.Release()
	group.Wait()
	if r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); r.Sectors.Pending != 0 || r.Class != cache.ClassLegal {
		t.Errorf("report: %+v", r)
	}
}

// TestBackground_ErrorsFailTheFlush: what the medium does not take in the background is
// not lost: it can be read, the next flush fails as long as the medium does, and the one
// that works makes it durable.
func TestBackground_ErrorsFailTheFlush(t *testing.T) {
	bad := &failing{Media: memory(t, 1<<20), write: media.ErrMedium}
	c := open(t, bad, cache.Config{SizeBytes: cache.MinSizeBytes})
	const sectors = cache.MinSizeBytes/512 - 8
	for i := range int64(sectors) {
		put(t, c, i*512, 1, 512)
	}
	c.Settle()
	if s := c.Stats(); s.FailedWriteOuts == 0 || s.PendingBytes != sectors*512 {
		t.Errorf("stats: %+v", s)
	}
	for range 2 {
		if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
			t.Errorf("flush: %v, want the medium's error", err)
		}
	}
	// Who needs the room hears of it as well.
	if _, err := c.WriteAt(make([]byte, 32*512), 1<<19); !errors.Is(err, media.ErrMedium) {
		t.Errorf("a write that there is no room for: %v", err)
	}
	c.Settle()
	bad.write = nil
	flush(t, c)
	for i := range int64(sectors) {
		if at(t, bad.Media, i*512) != 1 {
			t.Fatalf("sector %d is not durable", i)
		}
	}
	if r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); r.Class != cache.ClassLegal {
		t.Errorf("verdict: %+v", r.Verdict)
	}
}

// TestBackground_EarlyPersist: a drive may make a write durable long before it has to.
// EvictRandom does, now and then, and another write for another seed; the others do not.
func TestBackground_EarlyPersist(t *testing.T) {
	const writes = 64
	images := map[string]bool{}
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictNone, cache.EvictRandom} {
		for seed := range uint64(8) {
			m := memory(t, 1<<20)
			c := open(t, m, cache.Config{Eviction: eviction, Seed: seed})
			for i := range int64(writes) {
				put(t, c, i*512, 1, 512)
			}
			early := int(c.Stats().Evictions[cache.EvictionChance])
			r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone})
			p := make([]byte, writes*512)
			if _, err := m.ReadAt(p, 0); err != nil {
				t.Fatal(err)
			}
			durable := bytes.Count(p, []byte{1}) / 512
			if durable != early || r.Sectors.Pending != writes-early || r.Class != cache.ClassLegal {
				t.Errorf("%v, seed %d: %d are durable, %d were chosen: %+v", eviction, seed, durable, early, r.Sectors)
			}
			if random := eviction == cache.EvictRandom; random != (early > 0) || early > writes/3 {
				t.Errorf("%v, seed %d: %d of %d early", eviction, seed, early, writes)
			} else if random {
				images[string(p)] = true
			}
		}
	}
	if len(images) != 8 {
		t.Errorf("%d images by 8 seeds", len(images))
	}
}

// TestBackground_RemembersWhatIsPending: while a sector cannot be written, writes that
// leave with it and have left are forgotten, and so they are by a replay, which leaves
// nothing by itself.
func TestBackground_RemembersWhatIsPending(t *testing.T) {
	const room = cache.MinSizeBytes / 512
	n := &notebook{}
	m := &scratched{Media: memory(t, 1<<20), unwrite: map[int64]bool{1<<20 - 512: true}}
	c := open(t, m, cache.Config{SizeBytes: cache.MinSizeBytes, Recorder: n})
	put(t, c, 1<<20-512, 1, 512)
	most := 0
	for i := range int64(20 * room) {
		put(t, c, i%(4*room)*512, 2, 512)
		c.Settle()
		most = max(most, c.Leaving())
	}
	s := c.Stats()
	if s.FailedWriteOuts == 0 || s.Evictions[cache.EvictionRoom] < 10*room {
		t.Fatalf("stats: %+v, want many writes that left while one did not", s)
	}
	if most > room {
		t.Errorf("%d writes were remembered in a cache of %d sectors", most, room)
	}
	m.unwrite = nil
	r, err := cache.NewReplay(memory(t, 1<<20), cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
	if err != nil {
		t.Fatal(err)
	}
	most = 0
	for _, s := range n.all() {
		if err := r.Do(&s, time.Time{}); err != nil {
			t.Fatal(err)
		}
		most = max(most, r.Leaving())
	}
	if most == 0 || most > 4*room {
		t.Errorf("a replay remembered %d writes of a cache of %d sectors", most, room)
	}
}
