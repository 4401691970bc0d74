package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/media/mediatest"
)

func memory(tb testing.TB, sizeBytes int64) media.Media {
	tb.Helper()
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: sizeBytes})
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func open(tb testing.TB, m media.Media, config cache.Config) *cache.Cache {
	tb.Helper()
	c, err := cache.New(m, config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, media.ErrClosed) {
			tb.Error(err)
		}
	})
	return c
}

// TestCache_IsAMedium runs the acceptance suite for media on caches of each
// eviction, on memory and on a file; the small ones are always full.
func TestCache_IsAMedium(t *testing.T) {
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictRandom, cache.EvictNone} {
		for _, sizeBytes := range []int64{cache.MinSizeBytes, 64 << 20} {
			t.Run(fmt.Sprintf("memory/%v/%d", eviction, sizeBytes), func(t *testing.T) {
				mediatest.Run(t, mediatest.Options{WholeBlocks: true}, func(t *testing.T) media.Media {
					return open(t, memory(t, mediatest.MinBytes+64<<10), cache.Config{SizeBytes: sizeBytes, Eviction: eviction, Seed: 1})
				})
			})
		}
		t.Run(fmt.Sprintf("file/%v", eviction), func(t *testing.T) {
			mediatest.Run(t, mediatest.Options{}, func(t *testing.T) media.Media {
				f, err := media.OpenFile(media.FileConfig{Path: filepath.Join(t.TempDir(), "image"), SizeBytes: mediatest.MinBytes})
				if err != nil {
					t.Fatal(err)
				}
				return open(t, f, cache.Config{SizeBytes: 128 << 10, Eviction: eviction})
			})
		})
	}
}

func TestNew_Refused(t *testing.T) {
	for _, c := range []cache.Config{
		{SectorBytes: 1024},
		{SizeBytes: cache.MinSizeBytes - 512},
		{SizeBytes: cache.MaxSizeBytes + 512},
		{SizeBytes: cache.MinSizeBytes + 1},
		{Eviction: 9},
	} {
		if _, err := cache.New(memory(t, 1<<20), c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	if _, err := cache.New(memory(t, 1<<20+512), cache.Config{SectorBytes: 4096}); err == nil {
		t.Error("a medium that ends in the middle of a sector was taken")
	}
}

func put(tb testing.TB, m media.Media, off int64, b byte, n int) {
	tb.Helper()
	if _, err := m.WriteAt(bytes.Repeat([]byte{b}, n), off); err != nil {
		tb.Fatal(err)
	}
}

// at is the byte of every byte of a sector.
func at(tb testing.TB, m media.Media, off int64) byte {
	tb.Helper()
	p := make([]byte, 512)
	if _, err := m.ReadAt(p, off); err != nil {
		tb.Fatal(err)
	}
	if !bytes.Equal(p, bytes.Repeat(p[:1], 512)) {
		tb.Fatalf("sector at %d is torn", off)
	}
	return p[0]
}

func cut(tb testing.TB, c *cache.Cache, o cache.CutOptions) *cache.Report {
	tb.Helper()
	r, err := c.Cut(o)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func TestCache_WritesWaitForAFlush(t *testing.T) {
	m := memory(t, 1<<20)
	c := open(t, m, cache.Config{})
	put(t, c, 0, 1, 512)
	put(t, c, 512, 2, 512)
	if at(t, m, 0) != 0 || at(t, c, 0) != 1 {
		t.Fatal("a write is durable at once, or cannot be read")
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if at(t, m, 0) != 1 || at(t, m, 512) != 2 {
		t.Error("a flush left something behind")
	}
	put(t, c, 0, 3, 512)
	if _, err := c.WriteAtFUA(bytes.Repeat([]byte{4}, 512), 512); err != nil {
		t.Fatal(err)
	}
	if at(t, m, 0) != 1 || at(t, m, 512) != 4 {
		t.Error("write-through did more or less than its own bytes")
	}
	if err := c.Discard(512, 512); err != nil {
		t.Fatal(err)
	}
	if at(t, m, 512) != 4 || at(t, c, 512) != 0 {
		t.Error("a trim is not a write that waits")
	}
	r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone})
	if at(t, c, 0) != 1 || at(t, c, 512) != 4 {
		t.Error("the cut lost something durable, or kept something that was not")
	}
	if r.Sectors.Pending != 2 || r.Sectors.Lost != 2 || r.Verdict.Class != cache.ClassLegal || len(r.Writes) != 2 {
		t.Errorf("report: %+v", r)
	}
	if r.Writes[0].Fate != "lost" || r.Writes[0].Kind != cache.KindWrite || r.Writes[1].Kind != cache.KindTrim {
		t.Errorf("writes: %+v", r.Writes)
	}
	if s := c.Stats(); s.PendingBytes != 0 || s.PendingWrites != 0 || s.Cuts != 1 || s.Flushes != 1 || s.CoveredWrites != 2 {
		t.Errorf("stats: %+v", s)
	}
}

// TestCache_IsBounded writes eight times what the cache holds.
func TestCache_IsBounded(t *testing.T) {
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictRandom, cache.EvictNone} {
		t.Run(eviction.String(), func(t *testing.T) {
			m := memory(t, 8<<20)
			c := open(t, m, cache.Config{SizeBytes: 128 << 10, Eviction: eviction})
			for i := range int64(256) {
				put(t, c, i<<12, byte(i), 4096)
				if s := c.Stats(); s.PendingBytes > 128<<10 {
					t.Fatalf("%d bytes pending of at most %d", s.PendingBytes, 128<<10)
				}
			}
			put(t, c, 0, 9, 1<<20) // longer than the cache
			for i := range int64(256) {
				if at(t, c, i<<12) != 9 {
					t.Fatalf("sector %d is not the newest", i*8)
				}
			}
			s := c.Stats()
			if s.Evictions[cache.EvictionThrough] == 0 || eviction == cache.EvictFIFO && s.Evictions[cache.EvictionRoom] == 0 ||
				eviction == cache.EvictRandom && s.Evictions[cache.EvictionChance] == 0 {
				t.Errorf("evictions: %v", s.Evictions)
			}
		})
	}
}

// TestCache_FIFOKeepsTheNewest: what is durable is a prefix of the writes.
func TestCache_FIFOKeepsTheNewest(t *testing.T) {
	m := memory(t, 1<<20)
	c := open(t, m, cache.Config{SizeBytes: 64 << 10})
	for i := range int64(200) {
		put(t, c, i<<9, 7, 512)
	}
	c.Settle()
	for i := range int64(200) {
		want := byte(0)
		if i < 90 { // of 128 sectors 112 may be taken; then nine are written out
			want = 7
		}
		if got := at(t, m, i<<9); got != want {
			t.Errorf("sector %d: %d is durable, want %d", i, got, want)
		}
	}
}

func TestCache_FailedFlushIsTriedAgain(t *testing.T) {
	bad := &failing{Media: memory(t, 1<<20)}
	c := open(t, bad, cache.Config{})
	put(t, c, 0, 5, 512)
	bad.write = media.ErrNoSpace
	for range 2 {
		if err := c.Flush(); !errors.Is(err, media.ErrNoSpace) {
			t.Fatalf("flush: %v", err)
		}
	}
	if at(t, c, 0) != 5 {
		t.Error("the write is gone")
	}
	bad.write = nil
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if at(t, bad.Media, 0) != 5 {
		t.Error("the write is not durable")
	}
	bad.flush = media.ErrMedium
	put(t, c, 0, 6, 512)
	if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
		t.Errorf("flush: %v, want the medium's error", err)
	}
	if s := c.Stats(); s.FailedFlushes != 3 || s.Flushes != 1 {
		t.Errorf("stats: %+v", s)
	}
}

type failing struct {
	media.Media
	write, flush error
}

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if f.write != nil {
		return 0, f.write
	}
	return f.Media.WriteAt(p, off)
}

func (f *failing) Flush() error { return errors.Join(f.flush, f.Media.Flush()) }

// reluctant fails to be closed the first time.
type reluctant struct {
	*hbatest.Media
	closed bool
}

func (r *reluctant) Close() error {
	if !r.closed {
		r.closed = true
		return media.ErrMedium
	}
	return r.Media.Close()
}

// TestCut_EndsWhatIsInProgress cuts while a flush waits for the medium, of a cache that
// could not be closed as well.
func TestCut_EndsWhatIsInProgress(t *testing.T) {
	for name, closes := range map[string]bool{"new": false, "not closed": true} {
		t.Run(name, func(t *testing.T) {
			slow := hbatest.NewMedia(memory(t, 8<<20), hbatest.MediaConfig{})
			c := open(t, &reluctant{slow, !closes}, cache.Config{SizeBytes: 4 << 20})
			if closes {
				if err := c.Close(); !errors.Is(err, media.ErrMedium) {
					t.Fatalf("close: %v", err)
				}
			}
			for i := range int64(3) {
				put(t, c, i<<20, 1, 4096) // three runs, so three writes to the medium
			}
			slow.Hold()
			var group sync.WaitGroup
			var flushed error
			group.Go(func() { flushed = c.Flush() })
			slow.WaitHeld(1)
			var report *cache.Report
			var failed error
			group.Go(func() { report, failed = c.Cut(cache.CutOptions{Policy: cache.PolicyNone}) })
			for !c.Cutting() {
				slow.WaitHeld(1) // the cut waits for the one write that has begun
			}
			slow.Release()
			group.Wait()
			if !errors.Is(flushed, media.ErrPowerLost) {
				t.Errorf("flush: %v, want ErrPowerLost", flushed)
			}
			if failed != nil || report.Sectors.Pending != 16 || report.Sectors.Lost != 16 || report.Verdict.Class != cache.ClassLegal {
				t.Errorf("cut: %+v, %v", report, failed)
			}
			if at(t, c, 0) != 1 || at(t, c, 1<<20) != 0 || at(t, c, 2<<20) != 0 {
				t.Error("not just the first write is durable")
			}
		})
	}
}

// unplugged is a medium that fails to be closed the first time, as the power goes.
type unplugged struct {
	media.Media
	c    *cache.Cache
	gone bool
}

func (u *unplugged) Close() error {
	if u.gone {
		return u.Media.Close()
	}
	u.gone = true
	u.c.PowerOff()
	return media.ErrMedium
}

// TestPowerOff_WhileClosing: the power that goes while the cache cannot be closed is off.
func TestPowerOff_WhileClosing(t *testing.T) {
	m := &unplugged{Media: memory(t, 1<<20)}
	c := open(t, m, cache.Config{})
	m.c = c
	if err := c.Close(); !errors.Is(err, media.ErrMedium) {
		t.Fatalf("close: %v", err)
	}
	p := make([]byte, 512)
	_, write := c.WriteAt(p, 0)
	_, read := c.ReadAt(p, 0)
	for what, err := range map[string]error{"write": write, "read": read, "flush": c.Flush()} {
		if !errors.Is(err, media.ErrPowerLost) {
			t.Errorf("%s: %v, want ErrPowerLost", what, err)
		}
	}
	c.PowerOn()
	put(t, c, 0, 1, 512)
	if err := c.Flush(); err != nil || at(t, m, 0) != 1 {
		t.Errorf("flush with power: %v", err)
	}
}

// TestPowerOff: without power every call fails, before and after it is decided what is
// lost, and nothing reaches the medium; what was pending is a part of the decision. A
// cache that is closed then has not lost anything.
func TestPowerOff(t *testing.T) {
	m := memory(t, 1<<20)
	c := open(t, m, cache.Config{})
	put(t, c, 0, 1, 512)
	wantOff := func() {
		t.Helper()
		p := make([]byte, 512)
		p[0] = 9
		_, write := c.WriteAt(p, 4096)
		_, fua := c.WriteAtFUA(p, 8192)
		_, read := c.ReadAt(p, 0)
		for what, err := range map[string]error{"write": write, "FUA": fua, "read": read, "flush": c.Flush(), "trim": c.Discard(0, 512)} {
			if !errors.Is(err, media.ErrPowerLost) {
				t.Errorf("%s: %v, want ErrPowerLost", what, err)
			}
		}
	}
	c.PowerOff()
	wantOff()
	r, err := c.Lose(cache.CutOptions{Policy: cache.PolicyAll})
	if err != nil || r.Sectors.Pending != 1 || r.Sectors.Kept != 1 {
		t.Errorf("report: %+v, %v", r, err)
	}
	wantOff()
	c.PowerOn()
	if at(t, c, 0) != 1 || at(t, c, 4096) != 0 || at(t, c, 8192) != 0 {
		t.Error("something has been done without power")
	}
	put(t, c, 512, 2, 512)
	c.PowerOff()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// probed tries a write whenever it is flushed, as it is while a cut decides.
type probed struct {
	media.Media
	c    *cache.Cache
	done atomic.Uint64
}

func (p *probed) Flush() error {
	if _, err := p.c.WriteAt(make([]byte, 512), 4096); err == nil {
		p.done.Add(1)
	}
	return p.Media.Flush()
}

// TestCut_OneAtATime: a cut that ends does not give the power back in the middle of
// another, nor does one with options that cannot be.
func TestCut_OneAtATime(t *testing.T) {
	m := &probed{Media: memory(t, 1<<20)}
	m.c = open(t, m, cache.Config{})
	var g sync.WaitGroup
	for i := range 3 {
		g.Go(func() {
			for range 300 {
				o := cache.CutOptions{Policy: cache.PolicyNone, Seed: uint64(i)}
				if i == 2 {
					o.TearBytes = 7
				}
				if _, err := m.c.Cut(o); (err != nil) != (i == 2) {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	if n := m.done.Load(); n != 0 {
		t.Errorf("%d cuts took a write while they decided", n)
	}
}

// TestCache_LongExtents: one look at what is pending, for which others wait, is as long as it
// is allowed to be, and those that follow go on where it ended.
func TestCache_LongExtents(t *testing.T) {
	const sectors, most = 40000, 1 << 14
	c := open(t, memory(t, 32<<20), cache.Config{Eviction: cache.EvictNone})
	put(t, c, 0, 1, sectors<<9)
	off := int64(0)
	for looks := 0; off < sectors<<9; looks++ {
		e, err := c.ExtentAt(off)
		if err != nil || e.OffsetBytes != off || e.LengthBytes <= 0 || e.LengthBytes > most<<9 || !e.Data || looks > sectors/most {
			t.Fatalf("extent at %d: %+v, %v", off, e, err)
		}
		off = e.End()
	}
	if off != sectors<<9 {
		t.Errorf("data up to %d, want %d", off, sectors<<9)
	}
}

// TestCache_FarApart: sectors that are pending here and there are found, and nothing
// else is, by reads and looks for extents; so it is after trims that go through and
// after a new end.
func TestCache_FarApart(t *testing.T) {
	const sectors = 64 << 20 >> 9
	c := open(t, memory(t, sectors<<9), cache.Config{SizeBytes: 1 << 20})
	r := rand.New(rand.NewPCG(1, 1))
	want := make([]bool, sectors)
	check := func(what string) {
		t.Helper()
		p := make([]byte, sectors<<9)
		if _, err := c.ReadAt(p[512:], 512); err != nil { // not from a group's begin
			t.Fatal(err)
		}
		for i := 1; i < sectors; i++ {
			if (p[i<<9] == 1) != want[i] {
				t.Fatalf("%s: sector %d reads %d", what, i, p[i<<9])
			}
		}
		found := make([]bool, sectors)
		for off := int64(0); off < sectors<<9; {
			e, err := c.ExtentAt(off)
			if err != nil || e.OffsetBytes != off || e.LengthBytes <= 0 {
				t.Fatalf("%s: extent at %d: %+v, %v", what, off, e, err)
			}
			for i := off; e.Data && i < e.End(); i += 512 {
				found[i>>9] = true
			}
			off = e.End()
		}
		if !slices.Equal(found, want) {
			t.Errorf("%s: extents of data are not what was written", what)
		}
	}
	write := func(sector, n int) {
		put(t, c, int64(sector)<<9, 1, n<<9)
		for i := range n {
			want[sector+i] = true
		}
	}
	// The first trim leaves a part of the groups of its ends, and empties one.
	write(999, 3)
	write(1200, 1)
	write(1699, 2)
	write(19999, 2)
	write(100000, 2)
	for range 500 {
		sector, n := 2000+r.IntN(sectors-2004), 1+r.IntN(3)
		if r.IntN(4) == 0 {
			sector = (sector>>14+1)<<14 - 2 // at the end of an area
		}
		write(sector, min(n, sectors-sector))
	}
	check("written")
	for _, trim := range [][2]int{{1000, 700}, {20000, 60000}} { // few groups, and more than are pending
		if err := c.Discard(int64(trim[0])<<9, int64(trim[1])<<9); err != nil {
			t.Fatal(err)
		}
		clear(want[trim[0] : trim[0]+trim[1]])
	}
	check("trimmed")
	for _, size := range []int64{100001 << 9, sectors << 9} {
		if err := c.Resize(size); err != nil {
			t.Fatal(err)
		}
	}
	clear(want[100001:])
	check("resized")
}

func TestCut_Lies(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(c *cache.Cache) error
		act  cache.Act
	}{
		{"flush", func(c *cache.Cache) error {
			c.LieAboutFlush(true)
			put(t, c, 0, 1, 4096)
			return c.Flush()
		}, cache.ActLyingFlush},
		{"flush answered above", func(c *cache.Cache) error {
			put(t, c, 0, 1, 4096)
			c.PromisedAll()
			return nil
		}, cache.ActLyingFlush},
		{"FUA answered above", func(c *cache.Cache) error {
			put(t, c, 0, 1, 4096)
			c.PromisedRange(0, 4096)
			return nil
		}, cache.ActIgnoredFUA},
		{"FUA", func(c *cache.Cache) error {
			c.IgnoreFUA(true)
			_, err := c.WriteAtFUA(bytes.Repeat([]byte{1}, 4096), 0)
			return err
		}, cache.ActIgnoredFUA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, memory(t, 1<<20), cache.Config{})
			if err := tt.do(c); err != nil {
				t.Fatal(err)
			}
			if h := c.Hostile(); !strings.Contains(tt.name, "above") && (len(h) != 1 || h[0] != tt.act) {
				t.Errorf("hostile: %v", h)
			}
			put(t, c, 8192, 1, 512) // promised to nobody
			r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone})
			if r.Verdict.Class != cache.ClassHostile || r.Verdict.Acts[tt.act] != 8 || len(r.Verdict.Acts) != 1 {
				t.Errorf("verdict: %+v", r.Verdict)
			}
			if f := r.Verdict.Findings; len(f) != 8 || f[0].Write != 1 || f[7].OffsetBytes != 7*512 {
				t.Errorf("findings: %+v", f)
			}
			if !r.Writes[0].Promised || r.Writes[1].Promised {
				t.Errorf("writes: %+v", r.Writes)
			}
		})
	}
}

// TestCut_FindsWhatChangedBelow: a durable sector that is not what it was is told.
func TestCut_FindsWhatChangedBelow(t *testing.T) {
	m := memory(t, 1<<20)
	c := open(t, m, cache.Config{})
	put(t, c, 4096, 1, 512)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	put(t, m, 4096, 2, 512)
	r := cut(t, c, cache.CutOptions{})
	if r.Verdict.Class != cache.ClassHostile || r.Verdict.Acts[cache.ActLostFlushed] != 1 || r.Verdict.Findings[0].OffsetBytes != 4096 {
		t.Errorf("verdict: %+v", r.Verdict)
	}
}

func TestCut_Damage(t *testing.T) {
	c := open(t, memory(t, 1<<20), cache.Config{})
	put(t, c, 0, 1, 4096)
	r := cut(t, c, cache.CutOptions{Seed: 3, Policy: cache.PolicyAll, Damage: cache.DamageUnreadable})
	if r.Sectors.Unreadable != 1 || r.Verdict.Class != cache.ClassDamaged || r.Verdict.Acts[cache.ActUnreadable] != 1 {
		t.Fatalf("report: %+v", r)
	}
	bad := r.Verdict.Findings[0].OffsetBytes
	p := make([]byte, 8192)
	n, err := c.ReadAt(p, 0)
	var where *media.Error
	if !errors.Is(err, media.ErrMedium) || !errors.As(err, &where) || where.OffsetBytes != bad || n != int(bad) {
		t.Fatalf("read: %d, %v, want a medium error at %d", n, err, bad)
	}
	put(t, c, bad, 2, 512)
	if at(t, c, bad) != 2 {
		t.Error("a write does not heal the sector")
	}
	if r = cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); r.Verdict.Class != cache.ClassLegal {
		t.Errorf("verdict: %+v", r.Verdict)
	}
	if _, err := c.ReadAt(p, 0); !errors.Is(err, media.ErrMedium) {
		t.Error("a write that was lost healed the sector")
	}
	put(t, c, bad, 2, 512)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); at(t, c, bad) != 2 || c.Stats().UnreadableSectors != 0 {
		t.Error("a durable write does not heal the sector")
	}
	put(t, c, 0, 3, 4096)
	r = cut(t, c, cache.CutOptions{Seed: 1, Policy: cache.PolicyNone, Damage: cache.DamageGarbage, TearBytes: 4096})
	if r.Sectors.Garbage != 8 || r.Verdict.Class != cache.ClassDamaged {
		t.Errorf("report: %+v", r)
	}
}

// TestCut_TearsASector: with tears shorter than it, a sector of 4096 bytes has
// parts of both.
func TestCut_TearsASector(t *testing.T) {
	c := open(t, memory(t, 1<<20), cache.Config{SectorBytes: 4096})
	torn := 0
	for seed := range uint64(16) {
		put(t, c, 0, 1, 8192)
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		put(t, c, 0, 2, 8192)
		r := cut(t, c, cache.CutOptions{Seed: seed, Policy: cache.PolicyAll, TearBytes: 512})
		if r.Verdict.Acts[cache.ActTornSector] != r.Sectors.Torn || (r.Sectors.Torn > 0) != (r.Verdict.Class == cache.ClassDamaged) {
			t.Errorf("seed %d: %+v", seed, r)
		}
		torn += r.Sectors.Torn
		for i := range int64(16) {
			at(t, c, i*512) // pieces of 512 bytes are whole
		}
	}
	if torn == 0 {
		t.Error("nothing was torn by 16 seeds")
	}
}

// TestFlush_MeetsWrites: a flush of so many writes that it lets others come in between makes
// what it covers durable, or something newer.
func TestFlush_MeetsWrites(t *testing.T) {
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictRandom, cache.EvictNone} {
		t.Run(eviction.String(), func(t *testing.T) {
			const sectors, rounds = 10_000, 4
			m := memory(t, sectors*512)
			c := open(t, m, cache.Config{SizeBytes: 2 * sectors * 512, Eviction: eviction})
			at512 := func(i int) int64 { return int64(i*7919%sectors) * 512 }
			for i := range sectors {
				put(t, c, at512(i), 1, 512)
			}
			for round := range byte(rounds) {
				flushed := make(chan error)
				go func() { flushed <- c.Flush() }()
				for i := range sectors {
					put(t, c, at512(i), round+2, 512)
				}
				if err := <-flushed; err != nil {
					t.Fatal(err)
				}
				for i := range sectors {
					if got := at(t, m, at512(i)); got != round+1 && got != round+2 {
						t.Fatalf("after flush %d there is %d", round+1, got)
					}
				}
			}
			if r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); r.Verdict.Class != cache.ClassLegal {
				t.Errorf("verdict %+v", r.Verdict)
			}
		})
	}
}
