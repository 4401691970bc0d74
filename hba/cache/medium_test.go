package cache_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/hba/media"
)

// A forgetful medium tells once that it has lost writes, to whoever flushes next.
type forgetful struct {
	media.Media
	lost error
}

func (f *forgetful) Flush() error {
	err := f.lost
	f.lost = nil
	return err
}

// TestCache_LossIsToldToTheNextFlushToo: a write with FUA flushes the medium, and
// the error that it gets may be of older writes.
func TestCache_LossIsToldToTheNextFlushToo(t *testing.T) {
	sector := bytes.Repeat([]byte{2}, 512)
	for _, tt := range []struct {
		name string
		do   func(c *cache.Cache) error
	}{
		{"write that was pending", func(c *cache.Cache) error {
			_, err := c.WriteAtFUA(sector, 1<<19)
			return err
		}},
		{"part of a sector", func(c *cache.Cache) error {
			_, err := c.WriteAtFUA(sector[:100], 1<<19)
			return err
		}},
		{"write that goes through", func(c *cache.Cache) error {
			put(t, c, 0, 1, cache.MinSizeBytes) // there is no room any more
			_, err := c.WriteAtFUA(sector, 1<<19)
			return err
		}},
		{"part that goes through", func(c *cache.Cache) error {
			put(t, c, 0, 1, cache.MinSizeBytes)
			_, err := c.WriteAtFUA(sector[:100], 1<<19)
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &forgetful{Media: memory(t, 1<<20)}
			c := open(t, m, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictNone})
			put(t, c, 0, 1, 2*cache.MinSizeBytes) // goes through, and is not flushed
			m.lost = media.ErrMedium
			if err := tt.do(c); !errors.Is(err, media.ErrMedium) {
				t.Fatalf("write with FUA: %v, want the medium's error", err)
			}
			if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
				t.Errorf("flush: %v, but a write that it covers may be lost", err)
			}
			if err := c.Flush(); err != nil {
				t.Errorf("the flush after it: %v", err)
			}
		})
	}
}

// TestCache_OwedLossIsToldToWhoIsServed: a flush that another write's flush of the medium
// serves is told what it would have been told by its own.
func TestCache_OwedLossIsToldToWhoIsServed(t *testing.T) {
	m := &forgetful{Media: memory(t, 1<<20)}
	c := open(t, m, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictNone})
	put(t, c, 0, 1, 2*cache.MinSizeBytes) // goes through, and is not flushed
	sector := bytes.Repeat([]byte{2}, 512)
	m.lost = media.ErrMedium
	if _, err := c.WriteAtFUA(sector, 1<<19); !errors.Is(err, media.ErrMedium) {
		t.Fatalf("write with FUA: %v, want the medium's error", err)
	}
	err := c.FlushMeeting(func() {
		if _, err := c.WriteAtFUA(sector, 1<<19); err != nil {
			t.Errorf("the next write with FUA: %v", err)
		}
	})
	if !errors.Is(err, media.ErrMedium) {
		t.Errorf("flush: %v, but a write that it covers may be lost", err)
	}
	if err := c.Flush(); err != nil {
		t.Errorf("the flush after it: %v", err)
	}
}

// TestCache_TryNeverWaits: whatever waits for the medium, what must not wait does
// not, and the engine can go on.
func TestCache_TryNeverWaits(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(c *cache.Cache) error
		off  bool // calls fail meanwhile
	}{
		{"compare and write", func(c *cache.Cache) error {
			_, err := c.CompareAndWriteAt(make([]byte, 512), make([]byte, 512), 1<<19)
			return err
		}, false},
		{"part of a sector", func(c *cache.Cache) error {
			_, err := c.WriteAt(make([]byte, 100), 1<<19)
			return err
		}, false},
		{"part that goes through", func(c *cache.Cache) error {
			put(t, c, 4096, 1, cache.MinSizeBytes-8192)
			_, err := c.WriteAt(make([]byte, 16384), 1<<19+1)
			return err
		}, false},
		{"flush", (*cache.Cache).Flush, false},
		{"power cut", func(c *cache.Cache) error {
			_, err := c.Cut(cache.CutOptions{Policy: cache.PolicyAll})
			return err
		}, true},
		{"close", (*cache.Cache).Close, false},
		{"resize", func(c *cache.Cache) error { return c.Resize(1 << 19) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			slow := resizable{hbatest.NewMedia(memory(t, 1<<20), hbatest.MediaConfig{})}
			c := open(t, slow, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictNone})
			put(t, c, 0, 1, 512)
			slow.Hold()
			var group sync.WaitGroup
			group.Go(func() {
				if err := tt.do(c); err != nil {
					t.Error(err)
				}
			})
			slow.WaitHeld(1)
			p := make([]byte, 512)
			done, err := c.TryReadAt(p, 0)
			if tt.off && !errors.Is(err, media.ErrPowerLost) || !tt.off && (err != nil || !done || p[0] != 1) {
				t.Errorf("read: %v, %v, %d", done, err, p[0])
			}
			done, err = c.TryWriteAt(bytes.Repeat([]byte{2}, 512), 0)
			if tt.off && !errors.Is(err, media.ErrPowerLost) || !tt.off && (err != nil || !done) {
				t.Errorf("write: %v, %v", done, err)
			}
			slow.Release()
			group.Wait()
		})
	}
}

// A resizable medium waits in Resize and Close as well.
type resizable struct{ *hbatest.Media }

func (r resizable) Resize(int64) error { return r.Flush() }

func (r resizable) Close() error { return errors.Join(r.Flush(), r.Media.Close()) }

// TryReadAt never succeeds, as everything may wait.
func (r resizable) TryReadAt([]byte, int64) (bool, error) { return false, nil }

// A shrinking medium has another size when Resize fails, as a file whose sync fails has.
type shrinking struct {
	media.Media
	media.Resizer
}

func (s shrinking) Resize(sizeBytes int64) error {
	return errors.Join(s.Resizer.Resize(sizeBytes), media.ErrMedium)
}

// TestCache_ResizeThatFails: what was pending beyond the end that there is, is gone, though
// Resize failed: no flush ends by an error for it.
func TestCache_ResizeThatFails(t *testing.T) {
	m := memory(t, 1<<20)
	c := open(t, shrinking{m, m.(media.Resizer)}, cache.Config{})
	put(t, c, 0, 1, 512)
	put(t, c, 1<<19, 2, 512)
	if err := c.Resize(1 << 19); !errors.Is(err, media.ErrMedium) {
		t.Fatalf("resize: %v", err)
	}
	if s := c.Stats(); c.Size() != 1<<19 || s.PendingWrites != 1 {
		t.Errorf("%d bytes, %d writes are pending", c.Size(), s.PendingWrites)
	}
	if err := c.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
	if got := at(t, m, 0); got != 1 {
		t.Errorf("what is before the end is %d after a flush", got)
	}
}

// A scratched medium has sectors that cannot be read, and others where writes fail.
type scratched struct {
	media.Media
	unread  map[int64]bool // by offset
	unwrite map[int64]bool
}

func scratch(op string, bad map[int64]bool, p []byte, off int64) error {
	for at := range bad {
		if at >= off && at < off+int64(len(p)) {
			return &media.Error{Op: op, OffsetBytes: at, LengthBytes: 512, Kind: media.ErrMedium}
		}
	}
	return nil
}

func (s *scratched) ReadAt(p []byte, off int64) (int, error) {
	if err := scratch("read", s.unread, p, off); err != nil {
		return 0, err
	}
	return s.Media.ReadAt(p, off)
}

func (s *scratched) WriteAt(p []byte, off int64) (int, error) {
	if err := scratch("write", s.unwrite, p, off); err != nil {
		return 0, err
	}
	for at := range s.unread {
		if at >= off && at < off+int64(len(p)) {
			delete(s.unread, at)
		}
	}
	return s.Media.WriteAt(p, off)
}

// TestCut_OverABadSector: a sector that cannot be read stays so if nothing of it
// survives, and is healed by what does. Neither is a defect, nor is it one of its
// neighbours.
func TestCut_OverABadSector(t *testing.T) {
	for _, policy := range []cache.Policy{cache.PolicyNone, cache.PolicyAll} {
		t.Run(policy.String(), func(t *testing.T) {
			m := &scratched{Media: memory(t, 1<<20), unread: map[int64]bool{}}
			c := open(t, m, cache.Config{})
			put(t, c, 8192, 1, 4096)
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			m.unread[512] = true
			put(t, c, 0, 2, 4096)
			r := cut(t, c, cache.CutOptions{Policy: policy})
			if r.Verdict.Class != cache.ClassLegal {
				t.Errorf("verdict: %+v", r.Verdict)
			}
			if m.unread[512] != (policy == cache.PolicyNone) {
				t.Error("the sector was healed by nothing, or not by a write")
			}
			m.unread[8192] = true
			r = cut(t, c, cache.CutOptions{})
			if r.Verdict.Acts[cache.ActLostFlushed] != 1 || r.Verdict.Findings[0].OffsetBytes != 8192 {
				t.Errorf("verdict: %+v, want the one that had been durable", r.Verdict)
			}
		})
	}
}

// TestCut_FailsHalfWay: a cut that could not write everything is told, and the
// next one does not take what the first has done for something that got lost.
func TestCut_FailsHalfWay(t *testing.T) {
	m := &scratched{Media: memory(t, 1<<20), unwrite: map[int64]bool{}}
	c := open(t, m, cache.Config{})
	put(t, c, 0, 1, 8192)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	put(t, c, 0, 2, 2048)
	if err := c.Discard(2048, 2048); err != nil { // a change of its own, after which the next fails
		t.Fatal(err)
	}
	put(t, c, 4096, 3, 2048)
	m.unwrite[4096] = true
	r, err := c.Cut(cache.CutOptions{Policy: cache.PolicyAll})
	if !errors.Is(err, media.ErrMedium) || r == nil || r.Error == "" || r.Sectors.Pending != 12 || len(r.Writes) != 3 {
		t.Fatalf("cut: %+v, %v, want a report of a medium error", r, err)
	}
	if at(t, c, 0) != 2 || at(t, c, 4096) != 1 || c.Stats().PendingBytes != 0 || c.Stats().Cuts != 1 {
		t.Error("the cut did not stop where the medium failed")
	}
	m.unwrite = nil
	if r = cut(t, c, cache.CutOptions{}); r.Verdict.Class != cache.ClassLegal || r.Verdict.CheckedSectors != 4 {
		t.Errorf("verdict: %+v", r.Verdict)
	}
}

// TestCache_CloseIsNoPowerCut: what a flush lied about is there after a stop.
func TestCache_CloseIsNoPowerCut(t *testing.T) {
	m := &unclosed{memory(t, 1<<20)}
	c := open(t, m, cache.Config{})
	c.LieAboutFlush(true)
	put(t, c, 0, 1, 512)
	put(t, c, 512, 2, 512)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := c.Discard(512, 512); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if at(t, m, 0) != 1 || at(t, m, 512) != 0 {
		t.Error("a stop has lost writes")
	}
	bad := &failing{Media: memory(t, 1<<20), write: media.ErrNoSpace}
	c = open(t, bad, cache.Config{})
	put(t, c, 0, 1, 512)
	if err := c.Close(); !errors.Is(err, media.ErrNoSpace) {
		t.Errorf("close: %v, want what lost the writes", err)
	}
}

// An unclosed medium can be read after it was closed.
type unclosed struct{ media.Media }

func (*unclosed) Close() error { return nil }

func (u *unclosed) Discard(off, n int64) error { return u.Media.(media.Discarder).Discard(off, n) }

func (s *scratched) Discard(off, n int64) error { return s.Media.(media.Discarder).Discard(off, n) }

// A counting medium counts the writes that it gets.
type counting struct {
	media.Media
	writes, bytes int
	last          int64
	backwards     int
}

func (m *counting) WriteAt(p []byte, off int64) (int, error) {
	m.writes++
	m.bytes += len(p)
	if off < m.last {
		m.backwards++
	}
	m.last = off
	return m.Media.WriteAt(p, off)
}

// TestCache_EvictsInBatches: writes that come backwards to a full cache go out as
// few that are long and in order.
func TestCache_EvictsInBatches(t *testing.T) {
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictRandom} {
		t.Run(eviction.String(), func(t *testing.T) {
			m := &counting{Media: memory(t, 4<<20)}
			c := open(t, m, cache.Config{SizeBytes: 1 << 20, Eviction: eviction})
			for i := range int64(4 << 20 >> 9) {
				put(t, c, 4<<20-(i+1)<<9, 1, 512)
			}
			c.Settle()
			// Each batch is of 128 sectors, and goes backwards once at its begin. By
			// chance there is one write in eight besides.
			short := m.bytes >> 9 >> 3
			if batches := m.bytes >> 9 / 100; eviction == cache.EvictFIFO && (m.writes > batches || m.backwards > batches) ||
				m.backwards > batches+short {
				t.Errorf("%d writes of %d bytes, %d of them backwards", m.writes, m.bytes, m.backwards)
			}
		})
	}
}

// TestCache_TryIsShort: a long write is not for who others wait for.
func TestCache_TryIsShort(t *testing.T) {
	c := open(t, memory(t, 1<<20), cache.Config{})
	for _, n := range []int{256 << 10, 256<<10 + 512} {
		p := make([]byte, n)
		if done, err := c.TryWriteAt(p, 0); err != nil || done != (n <= 256<<10) {
			t.Errorf("%d bytes: %v, %v", n, done, err)
		}
		if done, err := c.TryWriteVectorAt([][]byte{p[:1], p[1:]}, n, 0); err != nil || done != (n <= 256<<10) {
			t.Errorf("%d bytes in segments: %v, %v", n, done, err)
		}
	}
}

// A lastMinute medium has something done as it is closed.
type lastMinute struct {
	unclosed
	closing func()
}

func (l *lastMinute) Close() error {
	l.closing()
	return nil
}

// TestClose_MeetsWrites: a write that comes as the cache is being closed is on the durable
// medium, or fails.
func TestClose_MeetsWrites(t *testing.T) {
	m := &lastMinute{unclosed: unclosed{memory(t, 1<<20)}}
	c := open(t, m, cache.Config{})
	var err error
	m.closing = func() { _, err = c.WriteAt(bytes.Repeat([]byte{1}, 512), 0) }
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err == nil && at(t, m, 0) != 1 || err != nil && !errors.Is(err, media.ErrClosed) {
		t.Errorf("write: %v, and the medium holds %d", err, at(t, m, 0))
	}
}

// A meddling medium has something done when the first write comes, which fails.
type meddling struct {
	unclosed
	first func()
}

func (m *meddling) WriteAt(p []byte, off int64) (int, error) {
	if first := m.first; first != nil {
		m.first = nil
		first()
		return 0, media.ErrMedium
	}
	return m.Media.WriteAt(p, off)
}

// TestClose_WritesWhatComesMeanwhile: a write that is done while closing writes out what the
// medium does not take is on the medium, as without that failure.
func TestClose_WritesWhatComesMeanwhile(t *testing.T) {
	m := &meddling{unclosed: unclosed{memory(t, 1<<20)}}
	c := open(t, m, cache.Config{})
	put(t, c, 0, 1, 512)
	m.first = func() { put(t, c, 1<<19, 2, 512) }
	if err := c.Close(); err != nil {
		t.Errorf("close: %v, though in the end all was written", err)
	}
	if at(t, m, 0) != 1 || at(t, m, 1<<19) != 2 {
		t.Errorf("the medium holds %d and %d, want 1 and 2", at(t, m, 0), at(t, m, 1<<19))
	}
}

// TestFlush_WithoutSpace: a medium that has no space for one write gets the others, too: they
// may need none, and a trim releases some, which the first one then gets.
func TestFlush_WithoutSpace(t *testing.T) {
	const chunk = 64 << 10
	for _, eviction := range []cache.Eviction{cache.EvictFIFO, cache.EvictNone} {
		m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 16 * chunk, LimitBytes: 2 * chunk})
		if err != nil {
			t.Fatal(err)
		}
		c := open(t, m, cache.Config{Eviction: eviction})
		put(t, c, 4*chunk, 1, chunk)
		put(t, c, 8*chunk, 1, chunk)
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		put(t, c, 0, 2, 512)
		put(t, c, 4*chunk, 2, 512)
		if err := c.Flush(); !errors.Is(err, media.ErrNoSpace) {
			t.Errorf("%v: flush: %v, want ErrNoSpace", eviction, err)
		}
		if s := c.Stats(); s.PendingWrites != 1 || at(t, m, 4*chunk) != 2 {
			t.Errorf("%v: %d writes are pending, want the one that has no space", eviction, s.PendingWrites)
		}
		put(t, c, 2*chunk, 3, 512)
		for _, off := range []int64{4 * chunk, 8 * chunk} { // for one write each
			if err := c.Discard(off, chunk); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Flush(); err != nil || at(t, m, 0) != 2 || at(t, m, 2*chunk) != 3 {
			t.Errorf("%v: flush with a trim: %v", eviction, err)
		}
		if r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); r.Verdict.Class != cache.ClassLegal {
			t.Errorf("%v: %+v", eviction, r.Verdict)
		}
	}
}

// TestChange_WithoutSpace: a cache that is full of writes for which the medium has no space
// takes trims, and then as much as they have released space for.
func TestChange_WithoutSpace(t *testing.T) {
	const chunk, chunks = 64 << 10, 16
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 4 * chunks * chunk, LimitBytes: 2 * chunk})
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, m, cache.Config{SizeBytes: chunks * chunk})
	put(t, c, 0, 1, 2*chunk)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range int64(chunks) {
		put(t, c, (2+2*i)*chunk, 2, chunk)
	}
	one := make([]byte, chunk)
	if _, err := c.WriteAt(one, 3*chunks*chunk); !errors.Is(err, media.ErrNoSpace) {
		t.Errorf("a write beyond the room: %v, want ErrNoSpace", err)
	}
	if err := c.Discard(chunk, chunk); err != nil {
		t.Errorf("a trim: %v", err)
	}
	if _, err := c.WriteAt(one, 3*chunks*chunk); err != nil {
		t.Errorf("a write once one of those before it has space: %v", err)
	}
	if err := c.Discard(0, 4*chunks*chunk); err != nil { // so that it can be closed
		t.Error(err)
	}
}

// TestCompareAndWrite_WithoutSpace: one that goes through a full cache to a medium that has
// space for a part of it writes nothing, whether or not what it is to replace is pending.
func TestCompareAndWrite_WithoutSpace(t *testing.T) {
	const chunk, off = 64 << 10, 64<<10 - 512
	for _, pending := range []byte{0, 4} {
		for _, cuts := range []bool{false, true} {
			m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 8 * chunk, LimitBytes: chunk})
			if err != nil {
				t.Fatal(err)
			}
			c := open(t, m, cache.Config{SizeBytes: chunk, Eviction: cache.EvictNone})
			put(t, c, 0, 1, chunk)
			flush(t, c)
			old := byte(1)
			if pending != 0 {
				old = pending
				put(t, c, off, old, 512)
			}
			put(t, c, 4*chunk, 3, chunk-int(c.Stats().PendingBytes)) // there is no room any more
			compare := append(bytes.Repeat([]byte{old}, 512), make([]byte, 512)...)
			mismatch, err := c.CompareAndWriteAt(compare, bytes.Repeat([]byte{2}, 1024), off)
			var where *media.Error
			if mismatch >= 0 || !errors.Is(err, media.ErrNoSpace) || !errors.As(err, &where) || where.OffsetBytes != off {
				t.Errorf("%d, %v, want no space for any of it", mismatch, err)
			}
			if at(t, c, off) != old || at(t, m, off) == 2 {
				t.Errorf("%d of %d was written: the medium holds %d", at(t, c, off), old, at(t, m, off))
			}
			if cuts { // what is there is right for a cut, too
				if r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); r.Verdict.Class != cache.ClassLegal {
					t.Errorf("%+v", r.Verdict)
				}
			} else if err := c.Discard(4*chunk, chunk); err != nil { // so that it can be closed
				t.Error(err)
			}
		}
	}
}

// TestWriteThrough_WithoutSpaceForAll: of a write that goes through a full cache and says how
// much of it was written, that much stays written: what was pending there is older.
func TestWriteThrough_WithoutSpaceForAll(t *testing.T) {
	const chunk, off = 64 << 10, 64<<10 - 1024
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 8 * chunk, LimitBytes: chunk})
	if err != nil {
		t.Fatal(err)
	}
	notes := &notebook{}
	c := open(t, m, cache.Config{SizeBytes: chunk, Eviction: cache.EvictNone, Recorder: notes})
	put(t, c, 0, 1, chunk)
	flush(t, c)
	put(t, c, off-512, 4, 1536)
	put(t, c, 2*chunk, 3, chunk-1536) // there is no room any more
	n, err := c.WriteAt(bytes.Repeat([]byte{2}, 2048), off)
	if n != 1024 || !errors.Is(err, media.ErrNoSpace) {
		t.Fatalf("%d, %v, want half of it and no space for more", n, err)
	}
	if err := c.Discard(2*chunk, chunk); err != nil { // so that it can be flushed
		t.Fatal(err)
	}
	want := append(bytes.Repeat([]byte{4}, 512), bytes.Repeat([]byte{2}, 1024)...)
	got := make([]byte, len(want))
	for _, flushed := range []bool{false, true} {
		if _, err := c.ReadAt(got, off-512); err != nil || !bytes.Equal(got, want) {
			t.Errorf("flushed: %v: %d, %d and %d are read, %v, want 4, 2 and 2", flushed, got[0], got[512], got[1024], err)
		}
		flush(t, c)
	}
	if r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); r.Verdict.Class != cache.ClassLegal {
		t.Errorf("%+v", r.Verdict)
	}
	again := memory(t, 8*chunk)
	r, err := cache.NewReplay(again, cache.ReplayConfig{SectorBytes: 512, SizeBytes: chunk})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range notes.all() {
		if err := r.Do(&s, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(contents(t, again), contents(t, m)) {
		t.Error("a replay leaves another image")
	}
}

// TestFlush_WithoutSpaceForAllOfARun: of writes that follow each other, those are written
// for which the medium has space, before and behind the others.
func TestFlush_WithoutSpaceForAllOfARun(t *testing.T) {
	const chunk = 64 << 10
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 16 * chunk, LimitBytes: 3 * chunk})
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, m, cache.Config{})
	put(t, c, 3*chunk, 1, chunk)
	flush(t, c)
	put(t, c, 0, 2, 4*chunk)
	if err := c.Flush(); !errors.Is(err, media.ErrNoSpace) {
		t.Errorf("flush: %v, want ErrNoSpace", err)
	}
	if s := c.Stats(); s.PendingBytes != chunk || at(t, m, 0) != 2 || at(t, m, chunk) != 2 || at(t, m, 3*chunk) != 2 {
		t.Errorf("%d bytes are pending, want the %d for which there is no space", s.PendingBytes, chunk)
	}
	if err := c.Discard(0, chunk); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil || !bytes.Equal(contents(t, m), contents(t, c)) {
		t.Errorf("flush with a trim: %v", err)
	}
}

// TestFlush_WithABadSector: what a medium cannot write keeps nothing else from it, and fails
// each flush. One on which much fails is not asked for all of it.
func TestFlush_WithABadSector(t *testing.T) {
	const chunk = 64 << 10
	m := &scratched{Media: memory(t, 64*chunk), unwrite: map[int64]bool{chunk + 512: true}}
	counted := &counting{Media: m}
	c := open(t, counted, cache.Config{})
	put(t, c, 0, 2, 3*chunk)
	put(t, c, 5*chunk, 2, chunk)
	for range 2 {
		if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
			t.Errorf("flush: %v, want ErrMedium", err)
		}
		if s := c.Stats(); s.PendingBytes != chunk || at(t, m, 0) != 2 || at(t, m, 2*chunk) != 2 || at(t, m, 5*chunk) != 2 {
			t.Errorf("%d bytes are pending, want %d", s.PendingBytes, chunk)
		}
	}
	for off := int64(0); off < 64*chunk; off += chunk {
		put(t, c, off, 3, chunk)
		m.unwrite[off] = true
	}
	counted.writes = 0
	if err := c.Flush(); !errors.Is(err, media.ErrMedium) || counted.writes > 16 {
		t.Errorf("flush: %v, after %d writes", err, counted.writes)
	}
	clear(m.unwrite)
	if err := c.Flush(); err != nil || !bytes.Equal(contents(t, m), contents(t, c)) {
		t.Errorf("flush once all is well: %v", err)
	}
}

// TestFlush_WithoutSpaceAndWithABadSector: what had no space gets what a trim has released, and
// a trim goes through a full cache to release some, though a bad sector fails behind them.
func TestFlush_WithoutSpaceAndWithABadSector(t *testing.T) {
	const chunk, chunks, bad = 64 << 10, 16, 60 * 64 << 10
	under, err := media.NewMemory(media.MemoryConfig{SizeBytes: 64 * chunk, LimitBytes: 2 * chunk})
	if err != nil {
		t.Fatal(err)
	}
	m := &scratched{Media: under, unwrite: map[int64]bool{bad: true}}
	c := open(t, m, cache.Config{SizeBytes: chunks * chunk})
	put(t, c, 4*chunk, 1, 2*chunk)
	flush(t, c)
	put(t, c, 0, 2, 512)
	if err := c.Discard(4*chunk, chunk); err != nil {
		t.Fatal(err)
	}
	put(t, c, bad, 3, 512)
	if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
		t.Errorf("flush: %v, want ErrMedium", err)
	}
	if s := c.Stats(); s.PendingWrites != 1 || at(t, m, 0) != 2 {
		t.Errorf("%d writes are pending, want the one on the bad sector", s.PendingWrites)
	}
	for i := range int64(chunks - 1) {
		put(t, c, (8+i)*chunk, 4, chunk)
	}
	if err := c.Flush(); !errors.Is(err, media.ErrMedium) || !errors.Is(err, media.ErrNoSpace) {
		t.Errorf("flush: %v, want both errors", err)
	}
	put(t, c, 40*chunk, 4, chunk-512) // there is no room any more
	if err := c.Discard(5*chunk, chunk); err != nil {
		t.Errorf("a trim: %v", err)
	}
	clear(m.unwrite)
	if err := c.Discard(0, 64*chunk); err != nil { // so that it can be closed
		t.Error(err)
	}
}

// TestFlush_WithManyBadSectors: a write-out that much fails of goes no further, but the next one
// goes on behind it, so that all that can be written is after some. Closing writes all of it.
func TestFlush_WithManyBadSectors(t *testing.T) {
	const chunk, bad, most = 64 << 10, 30, 16
	for _, closes := range []bool{false, true} {
		m := &scratched{Media: &unclosed{memory(t, 128*chunk)}, unwrite: map[int64]bool{}}
		counted := &counting{Media: m}
		c := open(t, counted, cache.Config{})
		good := int64(0)
		for i := range int64(bad) {
			put(t, c, 2*i*chunk, 1, chunk)
			m.unwrite[2*i*chunk] = true
			if i%6 == 5 { // some are written before the next fail
				put(t, c, (2*i+1)*chunk, 2, chunk)
				good++
			}
		}
		put(t, c, 127*chunk, 2, chunk)
		good++
		if closes {
			if err := c.Close(); !errors.Is(err, media.ErrMedium) {
				t.Errorf("close: %v, want ErrMedium", err)
			}
		} else {
			for range 4 {
				counted.writes = 0
				if err := c.Flush(); !errors.Is(err, media.ErrMedium) || counted.writes > most {
					t.Errorf("flush: %v, after %d writes", err, counted.writes)
				}
				put(t, c, 126*chunk, 3, 512) // what succeeds in between does not make it begin anew
			}
			if s := c.Stats(); s.PendingBytes > bad*chunk+512 {
				t.Errorf("%d bytes are pending, want those on bad sectors", s.PendingBytes)
			}
		}
		got := int64(0)
		for _, off := range []int64{11, 23, 35, 47, 59, 127} {
			if at(t, m, off*chunk) == 2 {
				got++
			}
		}
		if got != good {
			t.Errorf("closed: %v: %d of %d that can be written are", closes, got, good)
		}
		clear(m.unwrite)
	}
}

// A boasting medium takes nothing, and says that it has taken all, or more, or less than nothing.
type boasting struct {
	media.Media
	more int // than all of it
	well bool
}

func (m *boasting) WriteAt(p []byte, off int64) (int, error) {
	if m.well {
		return m.Media.WriteAt(p, off)
	}
	return len(p) + m.more, &media.Error{Op: "write", OffsetBytes: off, LengthBytes: int64(len(p)), Kind: media.ErrMedium}
}

// TestFlush_OfWhatFailedAsAWhole: a medium that fails and nevertheless counts all bytes as
// written, or an impossible number, has not written any.
func TestFlush_OfWhatFailedAsAWhole(t *testing.T) {
	const chunk = 64 << 10
	for _, more := range []int{0, chunk, -1 << 30} {
		m := &boasting{Media: memory(t, 8*chunk), more: more}
		c := open(t, m, cache.Config{})
		put(t, c, 0, 1, 2*chunk)
		put(t, c, 4*chunk, 2, 2*chunk)
		if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
			t.Errorf("%d more: flush: %v, want ErrMedium", more, err)
		}
		if got := c.Stats().PendingBytes; got != 4*chunk {
			t.Errorf("%d more: %d bytes are pending, want all", more, got)
		}
		m.well = true
		if err := c.Flush(); err != nil || !bytes.Equal(contents(t, m), contents(t, c)) || at(t, m, 5*chunk) != 2 {
			t.Errorf("%d more: flush once all is well: %v", more, err)
		}
	}
}
