package cache_test

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
)

// A slowToTell medium has its first flush wait for leave, and fail.
type slowToTell struct {
	media.Media
	flushes     atomic.Int64
	come, leave chan struct{}
}

func (s *slowToTell) Flush() error {
	if s.flushes.Add(1) > 1 {
		return nil
	}
	close(s.come)
	<-s.leave
	return media.ErrMedium
}

// A whenFlushed is told of flushes that come.
type whenFlushed chan<- struct{}

func (whenFlushed) Admit(int64, bool) bool { return true }
func (whenFlushed) Release(int64)          {}
func (whenFlushed) Pace()                  {}

func (w whenFlushed) Record(s cache.Step) {
	if s.Kind == cache.StepFlush {
		w <- struct{}{}
	}
}

// TestCache_LossIsToldToFlushesUnderWay: a medium tells of lost writes once. Flushes that
// were under way then fail, all of them, also those that reached the medium later; one
// that comes afterwards does not.
func TestCache_LossIsToldToFlushesUnderWay(t *testing.T) {
	const others = 4
	m := &slowToTell{Media: memory(t, 1<<20), come: make(chan struct{}), leave: make(chan struct{})}
	begun := make(chan struct{}, others+2)
	c := open(t, m, cache.Config{Recorder: whenFlushed(begun)})
	put(t, c, 0, 1, 512)
	failed := make([]error, others+1)
	var group sync.WaitGroup
	group.Go(func() { failed[others] = c.Flush() })
	<-m.come
	for i := range others {
		group.Go(func() { failed[i] = c.Flush() })
	}
	for range others + 1 {
		<-begun
	}
	close(m.leave)
	group.Wait()
	for i, err := range failed {
		if !errors.Is(err, media.ErrMedium) {
			t.Errorf("flush %d: %v, but a write that it covers may be lost", i, err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Errorf("the flush after them: %v", err)
	}
	put(t, c, 0, 3, 512)
	if r := cut(t, c, cache.CutOptions{Policy: cache.PolicyNone}); r.Class != cache.ClassLegal {
		t.Errorf("verdict: %+v", r.Verdict)
	}
}

// TestCache_EvictsByChanceWithoutReplacement: what is drawn to make room is not drawn
// again, and counted once: as many writes go as are counted, and no more than the room
// that is wanted needs.
func TestCache_EvictsByChanceWithoutReplacement(t *testing.T) {
	for seed := range uint64(16) {
		m := memory(t, 1<<20)
		c := open(t, m, cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictRandom, Seed: seed})
		const writes = 400
		for i := range int64(writes) {
			put(t, c, i<<9, 7, 512)
		}
		c.Settle()
		durable := uint64(0)
		for i := range int64(writes) {
			if at(t, m, i<<9) == 7 {
				durable++
			}
		}
		e := c.Stats().Evictions
		if got := e[cache.EvictionRoom] + e[cache.EvictionChance]; got != durable || e[cache.EvictionRoom] == 0 || e[cache.EvictionChance] == 0 {
			t.Errorf("seed %d: %d writes are durable, evictions %v", seed, durable, e)
		}
		if s := c.Stats(); s.PendingWrites != int64(writes-durable) {
			t.Errorf("seed %d: %d writes are pending and %d durable of %d", seed, s.PendingWrites, durable, writes)
		}
	}
}

// TestCache_RefusedTryIsNotEntered: a write that cannot be done without waiting is
// entered into the ledger once, when it comes again.
func TestCache_RefusedTryIsNotEntered(t *testing.T) {
	c := open(t, memory(t, 1<<20), cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictNone})
	put(t, c, 0, 1, cache.MinSizeBytes)
	before := c.LedgerEntries()
	for _, p := range [][]byte{make([]byte, 512), make([]byte, 100), make([]byte, 2*cache.MinSizeBytes)} {
		if done, err := c.TryWriteAt(p, 1<<19); done || err != nil {
			t.Fatalf("%d bytes: %v, %v", len(p), done, err)
		}
	}
	if n := c.LedgerEntries() - before; n != 0 {
		t.Errorf("%d entries of writes that have to come again", n)
	}
	put(t, c, 1<<19, 2, 512)
	if n := c.LedgerEntries() - before; n != 1 {
		t.Errorf("%d entries of one write", n)
	}
}

// A told medium says when something is written at an offset.
type told struct {
	*slowToTell
	off   int64
	once  sync.Once
	wrote chan struct{}
}

func (m *told) WriteAt(p []byte, off int64) (int, error) {
	n, err := m.slowToTell.WriteAt(p, off)
	if off == m.off {
		m.once.Do(func() { close(m.wrote) })
	}
	return n, err
}

// TestCache_LossIsToldToFUAUnderWay: a write with FUA that the medium has taken while it
// was being flushed fails if that flush tells of lost writes: it may be one, and the
// write's own flush is not told again.
func TestCache_LossIsToldToFUAUnderWay(t *testing.T) {
	sector := bytes.Repeat([]byte{2}, 512)
	for _, tt := range []struct {
		name   string
		length int
	}{{"write", 512}, {"part of a sector", 100}, {"write that goes through", 2 * cache.MinSizeBytes}} {
		t.Run(tt.name, func(t *testing.T) {
			m := &told{
				slowToTell: &slowToTell{Media: memory(t, 1<<20), come: make(chan struct{}), leave: make(chan struct{})},
				off:        1 << 19, wrote: make(chan struct{}),
			}
			c := open(t, m, cache.Config{SizeBytes: cache.MinSizeBytes})
			put(t, c, 0, 1, 512)
			var group sync.WaitGroup
			var flushed, forced error
			group.Go(func() { flushed = c.Flush() })
			<-m.come
			group.Go(func() { _, forced = c.WriteAtFUA(bytes.Repeat(sector, tt.length/512+1)[:tt.length], m.off) })
			<-m.wrote
			close(m.leave)
			group.Wait()
			if !errors.Is(flushed, media.ErrMedium) || !errors.Is(forced, media.ErrMedium) {
				t.Errorf("flush %v, write with FUA %v: either may be lost", flushed, forced)
			}
			if _, err := c.WriteAtFUA(sector, 4096); err != nil {
				t.Errorf("a write with FUA after them: %v", err)
			}
		})
	}
}

// A forcing medium has FUA.
type forcing struct{ *forgetful }

func (f forcing) WriteAtFUA(p []byte, off int64) (int, error) { return f.WriteAt(p, off) }

// TestCache_LossIsToldToFUAThatAFlushTook: what a flush has written out of a write with
// FUA is as good as that flush, also on a medium that has FUA. What the write is told of
// itself the next flush is told, too, and still is when another write has failed.
func TestCache_LossIsToldToFUAThatAFlushTook(t *testing.T) {
	for _, lost := range []error{nil, media.ErrMedium} {
		m := forcing{&forgetful{Media: memory(t, 1<<20), lost: lost}}
		c := open(t, m, cache.Config{})
		err := c.WriteFUAAfter(bytes.Repeat([]byte{2}, 512), 0, func() {
			if err := c.Flush(); !errors.Is(err, lost) {
				t.Errorf("flush: %v, want %v", err, lost)
			}
		})
		if !errors.Is(err, lost) {
			t.Errorf("the flush that took the write failed by %v, the write by %v", lost, err)
		}
	}
	m := forcing{&forgetful{Media: memory(t, 1<<20)}}
	c := open(t, m, cache.Config{})
	write := func(then func()) error {
		return c.WriteFUAAfter(bytes.Repeat([]byte{2}, 512), 0, then)
	}
	err := write(func() {
		m.lost = media.ErrMedium
		if err := write(c.WriteOut); !errors.Is(err, media.ErrMedium) {
			t.Errorf("the write that was told: %v", err)
		}
	})
	if !errors.Is(err, media.ErrMedium) {
		t.Errorf("the write that was there when another was told: %v", err)
	}
	if err := c.Flush(); !errors.Is(err, media.ErrMedium) {
		t.Errorf("flush: %v, but a write that it covers may be lost", err)
	}
}

// TestCut_BetweenParts: a write that is done in parts, as it begins or ends inside of a sector,
// is in progress between them. If the power goes then, what is left of it is not done when
// that is back.
func TestCut_BetweenParts(t *testing.T) {
	for name, n := range map[string]int{"a sector": 512, "part of a sector": 100} {
		t.Run(name, func(t *testing.T) {
			c := open(t, memory(t, 1<<20), cache.Config{})
			p, got := bytes.Repeat([]byte{1}, n), make([]byte, n)
			if err := c.WritePartAfter(p, 4096, func() { cut(t, c, cache.CutOptions{}) }); !errors.Is(err, media.ErrPowerLost) {
				t.Errorf("%v, want an error of power", err)
			}
			if _, err := c.ReadAt(got, 4096); err != nil || bytes.Equal(got, p) {
				t.Errorf("%v, and it has been done", err)
			}
			if err := c.WritePartAfter(p, 4096, func() {}); err != nil {
				t.Error(err)
			}
			if _, err := c.ReadAt(got, 4096); err != nil || !bytes.Equal(got, p) {
				t.Errorf("%v, and a write without a cut has not been done", err)
			}
		})
	}
}
