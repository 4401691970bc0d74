package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
)

// A notebook is a recorder that keeps all.
type notebook struct {
	mu sync.Mutex
	// +checklocks:mu
	steps []cache.Step
	// +checklocks:mu
	admitted int64
	full     bool // nobody is admitted who does not wait
}

func (n *notebook) Admit(bytes int64, wait bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.full && !wait {
		return false
	}
	n.admitted += bytes
	return true
}

func (n *notebook) Release(bytes int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.admitted -= bytes
}

func (n *notebook) Pace() {}

func (n *notebook) Record(s cache.Step) {
	s.Data = bytes.Clone(s.Data)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.steps = append(n.steps, s)
}

func (n *notebook) all() []cache.Step {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.steps
}

// contents are all bytes of a medium.
func contents(tb testing.TB, m media.Media) []byte {
	tb.Helper()
	p := make([]byte, m.Size())
	if _, err := m.ReadAt(p, 0); err != nil {
		tb.Fatal(err)
	}
	return p
}

// load is n calls of one user, of the kinds that there are. It ends early when the
// power goes.
func load(c *cache.Cache, random *rand.Rand, n int) error {
	size := int(c.Size())
	for range n {
		length := 512 * (1 + random.IntN(24))
		off := int64(random.IntN((size-length)/512) * 512)
		p := bytes.Repeat([]byte{byte(random.Uint32())}, length)
		var err error
		switch random.IntN(16) {
		case 0:
			err = c.Flush()
		case 1:
			_, err = c.WriteAtFUA(p, off)
		case 2:
			err = c.Discard(off, int64(length))
		case 3:
			err = c.Zero(off, int64(length), random.IntN(2) == 0)
		case 4:
			_, err = c.WriteAt(p[:100], off+200)
		case 5:
			_, err = c.CompareAndWriteAt(p[:512], p[:512], off)
		case 6:
			_, err = c.TryWriteAt(p, off)
		case 7:
			_, err = c.WriteAt(bytes.Repeat(p[:1], cache.MinSizeBytes+512), 0) // goes through
		default:
			_, err = c.WriteAt(p, off)
		}
		if errors.Is(err, media.ErrPowerLost) {
			return nil
		}
		if err != nil && !errors.Is(err, media.ErrMedium) { // a cut has damaged what it reads
			return err
		}
	}
	return nil
}

// TestReplay: what many have done at the same time, with power cuts in the middle of
// it, a replay makes of another medium: the same bytes, whatever the eviction.
func TestReplay(t *testing.T) {
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictRandom, cache.EvictNone} {
		t.Run(eviction.String(), func(t *testing.T) {
			under, n := memory(t, 1<<20), &notebook{}
			c := open(t, under, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: eviction, Seed: 7, Recorder: n})
			var left [][]byte // what the medium held after each cut
			for round := range uint64(4) {
				var wg sync.WaitGroup
				reached := make(chan struct{}, 4)
				for user := range uint64(4) {
					wg.Go(func() {
						random := rand.New(rand.NewPCG(round, user))
						err := load(c, random, 150)
						reached <- struct{}{}
						if err == nil {
							err = load(c, random, 1000)
						}
						if err != nil {
							t.Error(err)
						}
					})
				}
				<-reached
				o := cache.CutOptions{Seed: round + 40, TearBytes: 512, Damage: cache.Damage(round % 3)}
				if _, err := c.Cut(o); err != nil {
					t.Fatal(err)
				}
				wg.Wait()
				if err := c.Flush(); err != nil {
					t.Fatal(err)
				}
				left = append(left, contents(t, under))
			}
			if n.admitted != 0 {
				t.Errorf("%d bytes are admitted, and nobody is there", n.admitted)
			}

			again := memory(t, 1<<20)
			r, err := cache.NewReplay(again, cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
			if err != nil {
				t.Fatal(err)
			}
			cuts := 0
			for i, s := range n.all() {
				if s.Kind == cache.StepCut {
					cuts++
				}
				if err := r.Do(&s, time.Time{}); err != nil {
					t.Fatalf("step %d of %d, %s of write %d: %v", i, len(n.all()), s.Kind, s.Write, err)
				}
			}
			if cuts != 4 || r.Inexact() != "" {
				t.Errorf("%d cuts, %q; want 4 and no doubt", cuts, r.Inexact())
			}
			if !bytes.Equal(contents(t, again), left[3]) {
				t.Error("the replay's medium differs from the recorded one")
			}
		})
	}
}

// TestReplay_AnyCut: at any step, a cut with any options leaves what it would have
// left.
func TestReplay_AnyCut(t *testing.T) {
	for stop := 1; stop < 400; stop += 37 {
		o := cache.CutOptions{Seed: uint64(stop), Policy: cache.Policy(stop % 6), TearBytes: 512 * (stop % 2), Damage: cache.Damage(stop % 3)}
		under, n := memory(t, 1<<20), &notebook{}
		c := open(t, under, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictRandom, Seed: 1, Recorder: n})
		if err := load(c, rand.New(rand.NewPCG(1, 1)), stop); err != nil {
			t.Fatal(err)
		}
		steps := len(n.all())
		live, err := c.Cut(o)
		if err != nil {
			t.Fatal(err)
		}
		again := memory(t, 1<<20)
		r, err := cache.NewReplay(again, cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range n.all()[:steps] {
			if err := r.Do(&s, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		replayed, err := r.Cut(o, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if live.ImageSHA256 != replayed.ImageSHA256 || live.Sectors != replayed.Sectors || live.Verdict.Class != replayed.Verdict.Class {
			t.Errorf("after %d calls, %+v: sectors %+v, replayed %+v", stop, o, live.Sectors, replayed.Sectors)
		}
		if !bytes.Equal(contents(t, under), contents(t, again)) {
			t.Errorf("after %d calls, %+v: the media differ", stop, o)
		}
	}
}

// TestReplay_Lies: promises that were lies are found in the replay, too.
func TestReplay_Lies(t *testing.T) {
	n := &notebook{}
	c := open(t, memory(t, 1<<20), cache.Config{SizeBytes: cache.MinSizeBytes, Recorder: n})
	c.LieAboutFlush(true)
	put(t, c, 0, 1, 512)
	flush(t, c)
	c.LieAboutFlush(false)
	put(t, c, 4096, 1, 512)
	c.PromisedRange(4096, 512)
	put(t, c, 8192, 1, 512)
	c.PromisedAll()
	c.Broke("misdirected")
	c.IgnoreFUA(true)
	for _, n := range []int{1024, 2 * cache.MinSizeBytes} { // pending, and through; in three parts
		if _, err := c.WriteAtFUA(make([]byte, n), 16384+100); err != nil {
			t.Fatal(err)
		}
	}
	live := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone})
	r, err := cache.NewReplay(memory(t, 1<<20), cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range n.all() {
		if s.Kind == cache.StepCut {
			break
		}
		if err := r.Do(&s, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	report, err := r.Cut(cache.CutOptions{Policy: cache.PolicyNone}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(report.Hostile) != fmt.Sprint(live.Hostile) || report.Class != live.Class {
		t.Errorf("%s %v, the recorded one %s %v", report.Class, report.Hostile, live.Class, live.Hostile)
	}
	if acts := fmt.Sprint(report.Verdict.Acts); acts != "map[ignored-fua:1 lying-flush:2]" {
		t.Errorf("acts %s", acts)
	}
}

// An endless medium has the bytes of a shorter one, and says that it is long.
type endless struct{ media.Media }

func (endless) Size() int64 { return 1 << 60 }

// TestReplay_LongLie: a promise of a write of all of a large disk takes as long as what is
// pending there. If it took as long as the disk, this would not end. It is not about a
// shorter write.
func TestReplay_LongLie(t *testing.T) {
	r, err := cache.NewReplay(endless{memory(t, 1<<20)}, cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []cache.Step{
		{Kind: cache.StepWrite, Write: 1, OffsetBytes: 4096, LengthBytes: 512, Data: bytes.Repeat([]byte{1}, 512)},
		{Kind: cache.StepAnswer, Write: 1},
		{Kind: cache.StepWrite, Write: 2, OffsetBytes: 8192, LengthBytes: 512, Data: bytes.Repeat([]byte{1}, 512)},
		{Kind: cache.StepAnswer, Write: 2},
		{Kind: cache.StepLie, LengthBytes: 1 << 60},
		{Kind: cache.StepLie, OffsetBytes: 4096, LengthBytes: 512},
	} {
		if err := r.Do(&s, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	report, err := r.Cut(cache.CutOptions{Policy: cache.PolicyNone}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if acts := fmt.Sprint(report.Verdict.Acts); acts != "map[ignored-fua:1]" {
		t.Errorf("the promise of what was pending: acts %s", acts)
	}
}

// TestReplay_Refused: steps that no cache has made say what is wrong with them.
func TestReplay_Refused(t *testing.T) {
	sector := make([]byte, 512)
	write := func(id uint64, off int64, p []byte) cache.Step {
		return cache.Step{Kind: cache.StepWrite, Write: id, OffsetBytes: off, LengthBytes: int64(len(p)), Data: p}
	}
	for _, tt := range []struct {
		name  string
		steps []cache.Step
		want  string
	}{
		{"beyond the end", []cache.Step{write(1, 1<<20, sector)}, "on a disk of 1048576"},
		{"negative", []cache.Step{write(1, -512, sector)}, "on a disk of"},
		{"overflow", []cache.Step{{Kind: cache.StepDurable, Write: 1, OffsetBytes: 512, LengthBytes: 1<<63 - 512}}, "on a disk of"},
		{"part of a sector", []cache.Step{write(1, 1, sector)}, "no multiples of the sector"},
		{"empty", []cache.Step{write(1, 0, nil)}, "on a disk of"},
		{"no number", []cache.Step{write(0, 0, sector)}, "without a number"},
		{"less data", []cache.Step{{Kind: cache.StepThrough, Write: 1, LengthBytes: 1024, Data: sector}}, "has 512"},
		{"numbers go back", []cache.Step{write(2, 0, sector), write(1, 0, sector)}, "comes after write 2"},
		{"no room", []cache.Step{write(1, 0, make([]byte, cache.MinSizeBytes)), write(2, 0, sector)}, "has room for 0"},
		{"durable unasked", []cache.Step{write(1, 0, sector), {Kind: cache.StepDurable, Write: 1, OffsetBytes: 512, LengthBytes: 512}}, "has not been pending there"},
		{"durable twice", []cache.Step{
			write(1, 0, sector),
			{Kind: cache.StepDurable, Write: 1, LengthBytes: 512},
			{Kind: cache.StepDurable, Write: 1, LengthBytes: 512},
		}, "has not been pending there"},
		{"write during a cut", []cache.Step{{Kind: cache.StepCut}, write(1, 0, sector)}, "in the middle of a power cut"},
		{"outcome of nothing", []cache.Step{{Kind: cache.StepImage}}, "without one"},
		{"options", []cache.Step{{Kind: cache.StepCut, Cut: cache.CutOptions{Policy: 9}}}, "policy 9"},
		{"another outcome", []cache.Step{{Kind: cache.StepCut}, {Kind: cache.StepImage, Text: "00"}}, "digest 00"},
		{"another size", []cache.Step{{Kind: cache.StepResize, LengthBytes: 1000}}, "resize"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := cache.NewReplay(memory(t, 1<<20), cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
			if err != nil {
				t.Fatal(err)
			}
			for i := range tt.steps {
				if err = r.Do(&tt.steps[i], time.Time{}); err != nil {
					break
				}
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestReplay_Doubt: what a medium that failed holds nobody knows, and the replay says so.
func TestReplay_Doubt(t *testing.T) {
	n := &notebook{}
	m := &failing{Media: memory(t, 1<<20)}
	c := open(t, m, cache.Config{SizeBytes: cache.MinSizeBytes, Recorder: n})
	put(t, c, 0, 1, 512)
	m.write = media.ErrMedium
	if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
		t.Fatal(err)
	}
	m.write = nil
	r, err := cache.NewReplay(memory(t, 1<<20), cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range n.all() {
		if err := r.Do(&s, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if want := "the medium failed to write 512 bytes at 0"; r.Inexact() != want {
		t.Errorf("%q, want %q", r.Inexact(), want)
	}
}

// A resizableScratched medium can become smaller, too.
type resizableScratched struct {
	*scratched
	media.Resizer
}

// TestReplay_DoubtEnds: where a medium that failed has been written again, or is no more, it
// is known what it holds, unless the power has gone in between.
func TestReplay_DoubtEnds(t *testing.T) {
	const off = 3 << 18
	for _, tt := range []struct {
		name  string
		do    func(c *cache.Cache)
		exact bool
	}{
		{"nothing", func(*cache.Cache) {}, false},
		{"the same again", func(c *cache.Cache) { flush(t, c) }, true},
		{"through", func(c *cache.Cache) { put(t, c, off, 2, 2*cache.MinSizeBytes) }, true},
		{"all but the first", func(c *cache.Cache) { put(t, c, off+512, 2, 2*cache.MinSizeBytes) }, false},
		{"all but the last", func(c *cache.Cache) { put(t, c, off+1536-2*cache.MinSizeBytes, 2, 2*cache.MinSizeBytes) }, false},
		{"all but one in the middle", func(c *cache.Cache) {
			put(t, c, off+512-2*cache.MinSizeBytes, 2, 2*cache.MinSizeBytes)
			put(t, c, off+1024, 2, 2*cache.MinSizeBytes)
		}, false},
		{"a trim of all", func(c *cache.Cache) {
			if err := c.Discard(0, c.Size()); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"a smaller disk", func(c *cache.Cache) {
			if err := c.Resize(1 << 18); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"a power cut", func(c *cache.Cache) {
			cut(t, c, cache.CutOptions{Policy: cache.PolicyNone})
			put(t, c, off, 2, 2*cache.MinSizeBytes)
		}, false},
		{"a power cut afterwards", func(c *cache.Cache) {
			flush(t, c)
			cut(t, c, cache.CutOptions{Policy: cache.PolicyNone})
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := &notebook{}
			m, again := memory(t, 1<<20), memory(t, 1<<20)
			bad := &scratched{Media: m, unwrite: map[int64]bool{off + 512: true}}
			c := open(t, resizableScratched{bad, m.(media.Resizer)}, cache.Config{SizeBytes: cache.MinSizeBytes, Recorder: n})
			put(t, c, off, 1, 2048)
			for range 2 {
				if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
					t.Fatal(err)
				}
			}
			clear(bad.unwrite)
			tt.do(c)
			r, err := cache.NewReplay(again, cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range n.all() {
				if err := r.Do(&s, time.Time{}); err != nil {
					t.Fatal(err)
				}
			}
			if why := r.Inexact(); (why == "") != tt.exact {
				t.Errorf("inexact: %q", why)
			}
			if tt.exact && !bytes.Equal(contents(t, m), contents(t, again)) {
				t.Error("the replay's medium differs from the recorded one")
			}
		})
	}
}

// TestReplay_DoubtsOverlap: where many doubts overlap, and end in part, some are left as
// long as there is a sector of which nobody knows what it holds.
func TestReplay_DoubtsOverlap(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		r, err := cache.NewReplay(memory(t, 64*512), cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
		if err != nil {
			t.Fatal(err)
		}
		var unsure [64]bool
		for id := range uint64(100) {
			first := random.IntN(len(unsure))
			n := 1 + random.IntN(len(unsure)-first)
			doubt := random.IntN(3) == 0
			s := cache.Step{Kind: cache.StepUnsure, OffsetBytes: int64(first) * 512, LengthBytes: int64(n) * 512}
			if !doubt {
				s.Kind, s.Op, s.Write, s.Data = cache.StepThrough, cache.KindWrite, id+1, make([]byte, n*512)
			}
			if err := r.Do(&s, time.Time{}); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				unsure[first+i] = doubt
			}
			if why := r.Inexact(); (why != "") != slices.Contains(unsure[:], true) {
				t.Fatalf("seed %d, step %d: inexact: %q, of %v", seed, id, why, unsure)
			}
		}
	}
}

// TestRecorder_Full: who must not wait is told so when the recorder has no room, and
// nothing has happened.
func TestRecorder_Full(t *testing.T) {
	n := &notebook{full: true}
	c := open(t, memory(t, 1<<20), cache.Config{SizeBytes: cache.MinSizeBytes, Recorder: n})
	if done, err := c.TryWriteAt(bytes.Repeat([]byte{1}, 512), 0); done || err != nil {
		t.Errorf("done %v, %v; want neither", done, err)
	}
	if len(n.all()) != 0 || c.Stats().PendingWrites != 0 {
		t.Errorf("%d steps, %d writes; want none", len(n.all()), c.Stats().PendingWrites)
	}
	put(t, c, 0, 1, 512)
	if c.Stats().PendingWrites != 1 {
		t.Error("a write that may wait has not been done")
	}
}

// TestResize_MeetsWriteThrough: a write that there is no room for, and whose sectors are gone
// when it comes to the durable medium, is refused there. The medium has not failed.
func TestResize_MeetsWriteThrough(t *testing.T) {
	n := &notebook{}
	c := open(t, memory(t, 2*cache.MinSizeBytes), cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictNone, Recorder: n})
	put(t, c, 0, 1, cache.MinSizeBytes)
	err := c.WriteThroughAfter(make([]byte, 512), cache.MinSizeBytes, func() {
		if err := c.Resize(cache.MinSizeBytes); err != nil {
			t.Fatal(err)
		}
	})
	if !errors.Is(err, media.ErrRange) {
		t.Errorf("%v, want %v", err, media.ErrRange)
	}
	for _, s := range n.all() {
		if s.Kind == cache.StepUnsure {
			t.Errorf("the medium is said to have failed, at %d", s.OffsetBytes)
		}
	}
}

// TestReplay_Resizes: a disk that becomes smaller and larger while it is used, and loses
// its power several times, is replayed as it was.
func TestReplay_Resizes(t *testing.T) {
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictRandom, cache.EvictNone} {
		t.Run(eviction.String(), func(t *testing.T) {
			under, n := memory(t, 1<<20), &notebook{}
			c := open(t, under, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: eviction, Seed: 7, Recorder: n})
			for round := range uint64(4) {
				var wg sync.WaitGroup
				for user := range uint64(3) {
					wg.Go(func() {
						random := rand.New(rand.NewPCG(round, user))
						for range 20 {
							if err := load(c, random, 20); err != nil && !errors.Is(err, media.ErrRange) {
								t.Error(err)
							}
						}
					})
				}
				random := rand.New(rand.NewPCG(round, 9))
				for range 20 {
					if err := c.Resize(int64(1+random.IntN(4)) << 18); err != nil {
						t.Error(err)
					}
				}
				if _, err := c.Cut(cache.CutOptions{Seed: round + 40, TearBytes: 512, Damage: cache.Damage(round % 3)}); err != nil {
					t.Fatal(err)
				}
				wg.Wait()
				if err := c.Flush(); err != nil {
					t.Fatal(err)
				}
			}

			again := memory(t, 1<<20)
			r, err := cache.NewReplay(again, cache.ReplayConfig{SectorBytes: 512, SizeBytes: cache.MinSizeBytes})
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range n.all() {
				if err := r.Do(&s, time.Time{}); err != nil {
					t.Fatalf("step %d of %d, %s of write %d: %v", i, len(n.all()), s.Kind, s.Write, err)
				}
			}
			if r.Inexact() != "" {
				t.Errorf("%q: want no doubt", r.Inexact())
			}
			if !bytes.Equal(contents(t, again), contents(t, under)) {
				t.Error("the replay's medium differs from the recorded one")
			}
		})
	}
}
