package cache

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/hba/media"
)

// Limits of a cache in bytes.
const (
	DefaultSizeBytes = 64 << 20
	MinSizeBytes     = 64 << 10
	MaxSizeBytes     = 4 << 30
)

// An Eviction says which pending writes become durable before a flush asks.
type Eviction uint8

// Evictions.
const (
	// EvictFIFO makes the oldest writes durable: when 7/8 of the room are taken, until
	// 13/16 are.
	EvictFIFO Eviction = iota
	// EvictRandom makes writes durable that are drawn by the seed, and so is their
	// number: when 7/8 of the room are taken, and one more on one in eight writes.
	EvictRandom
	// EvictNone makes nothing durable early. When the cache is full, new writes
	// go through to the durable medium.
	EvictNone
)

var evictionNames = [...]string{"fifo", "random", "none"}

// String is the name as ParseEviction takes it.
func (e Eviction) String() string { return evictionNames[e] }

// ParseEviction reads fifo, random or none.
func ParseEviction(s string) (Eviction, error) {
	for i, name := range evictionNames {
		if s == name {
			return Eviction(i), nil
		}
	}
	return 0, fmt.Errorf("cache eviction %q: want fifo, random or none", s)
}

// Config describes a Cache.
type Config struct {
	// Name is used in errors; "cache" if empty.
	Name string
	// SectorBytes is the unit that is written whole: 512 or 4096; 512 if zero.
	SectorBytes int
	// SizeBytes bounds what is pending; DefaultSizeBytes if zero.
	SizeBytes int64
	Eviction  Eviction
	// Seed is for EvictRandom.
	Seed uint64
	// Now is the clock of ages in reports; time.Now if nil.
	Now func() time.Time
	// CanLoseFlushed makes the cache remember what it overwrites, up to SizeBytes of it,
	// so that a power cut can lose what was flushed: CutOptions.LoseFlushed. Each write
	// to the durable medium then reads first. Hostile.
	CanLoseFlushed bool
	// Recorder is told what the cache does; it may be nil.
	Recorder Recorder
}

func (c *Config) complete() error {
	if c.Name == "" {
		c.Name = "cache"
	}
	if c.SectorBytes == 0 {
		c.SectorBytes = 512
	}
	if c.SectorBytes != 512 && c.SectorBytes != 4096 {
		return fmt.Errorf("cache: sector of %d bytes: want 512 or 4096", c.SectorBytes)
	}
	if c.SizeBytes == 0 {
		c.SizeBytes = DefaultSizeBytes
	}
	if c.SizeBytes < MinSizeBytes || c.SizeBytes > MaxSizeBytes || c.SizeBytes%int64(c.SectorBytes) != 0 {
		return fmt.Errorf("cache: size of %d bytes: want a multiple of %d from %d to %d",
			c.SizeBytes, c.SectorBytes, MinSizeBytes, int64(MaxSizeBytes))
	}
	if int(c.Eviction) >= len(evictionNames) {
		return fmt.Errorf("cache: eviction %d is not known", c.Eviction)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// A Cache is a volatile write cache around a durable medium. See the package
// comment.
type Cache struct {
	config Config
	inner  media.Media
	can    media.Abilities
	shift  uint8 // sector as a power of two
	room   int   // sectors in all

	// plain: nothing is pending and no sector is damaged, so that reads need not
	// look here. It is stored under mu.
	plain atomic.Bool
	// cutting: the power is going, or has gone; whoever writes out gives up.
	cutting atomic.Bool

	// losses counts the durable medium's reports of lost writes. syncsBegun counts its
	// flushes.
	losses     atomic.Uint64
	syncsBegun atomic.Uint64

	lieAboutFlush atomic.Bool
	ignoreFUA     atomic.Bool

	// ledger is what callers were told. zeroSums are hashes of zeros, for as many
	// sectors as it enters one by one.
	ledger   ledger
	zeroSums []uint32

	// syncMu is held by whoever flushes the durable medium for others.
	syncMu sync.Mutex
	// owed is the error of a flush of the durable medium that was reported to a call
	// other than Flush; see syncFor. lastLoss is the error of the latest loss.
	// +checklocks:syncMu
	owed error
	// +checklocks:syncMu
	lastLoss error

	// cutMu is held by Cut.
	cutMu sync.Mutex
	// outMu is held by whoever writes to the durable medium.
	outMu sync.Mutex
	// picked and buffer are scratch space of the holder of outMu.
	// +checklocks:outMu
	picked []pick
	// +checklocks:outMu
	buffer []byte
	// from is the sector at which the next write-out begins: see writeOut.
	// +checklocks:outMu
	from int64
	// ending: whoever writes out does so although the power is going.
	// +checklocks:outMu
	ending bool
	// undo is nil without Config.CanLoseFlushed.
	// +checklocks:outMu
	undo undo

	mu sync.Mutex
	// +checklocks:mu
	closed bool
	// off: there is no power. Every call fails.
	// +checklocks:mu
	off bool
	// life counts power cuts: a call that began in an earlier one has failed.
	// +checklocks:mu
	life uint64
	// +checklocks:mu
	store store
	// leaving are the writes that were chosen to become durable. writing: a goroutine of
	// group exists to write them out.
	// +checklocks:mu
	leaving []leaver
	// +checklocks:mu
	writing bool
	group   sync.WaitGroup
	// random is the sequence of EvictRandom; draw is its next number.
	// +checklocks:mu
	random *rand.PCG
	// +checklocks:mu
	draw uint64
	// unreadable are the sectors that a cut damaged and nothing has rewritten.
	// +checklocks:mu
	unreadable map[int64]struct{}
	// +checklocks:mu
	record record
}

var (
	_ media.Media             = (*Cache)(nil)
	_ media.NonBlockingReader = (*Cache)(nil)
	_ media.NonBlockingWriter = (*Cache)(nil)
	_ media.FUAWriter         = (*Cache)(nil)
	_ media.VectorWriter      = (*Cache)(nil)
	_ media.Discarder         = (*Cache)(nil)
	_ media.Zeroer            = (*Cache)(nil)
	_ media.FastZeroer        = (*Cache)(nil)
	_ media.ExtentLister      = (*Cache)(nil)
	_ media.Resizer           = (*Cache)(nil)
	_ media.Prefetcher        = (*Cache)(nil)
	_ media.ComparerWriter    = (*Cache)(nil)
	_ media.Supporter         = (*Cache)(nil)
	_ media.Promiser          = (*Cache)(nil)
)

// New returns an empty cache around m, which the cache owns from now on: Close
// closes it.
//
// Errors name what is wrong with the configuration, or a size of m that is no
// multiple of the sector.
func New(m media.Media, config Config) (*Cache, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	if size := m.Size(); size%int64(config.SectorBytes) != 0 {
		return nil, fmt.Errorf("cache: medium of %d bytes: want a multiple of the sector, %d bytes", size, config.SectorBytes)
	}
	shift := uint8(bits.TrailingZeros(uint(config.SectorBytes)))
	c := &Cache{
		config: config, inner: m, can: media.Probe(m), shift: shift, room: int(config.SizeBytes >> shift),
		random: rand.NewPCG(config.Seed, streamEviction),
	}
	c.ledger.init(shift)
	c.zeroSums = slices.Repeat([]uint32{sum(make([]byte, config.SectorBytes))}, longBytes>>shift)
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if config.CanLoseFlushed {
		c.undo = make(undo)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store.init(config.SectorBytes)
	c.draw = c.random.Uint64()
	c.plain.Store(true)
	return c, nil
}

// Inner is the durable medium.
func (c *Cache) Inner() media.Media { return c.inner }

// Config is the configuration, completed by defaults.
func (c *Cache) Config() Config { return c.config }

// LieAboutFlush makes flushes report success without doing anything, or ends that.
// Hostile.
func (c *Cache) LieAboutFlush(on bool) { c.lieAboutFlush.Store(on) }

// IgnoreFUA makes WriteAtFUA the same as WriteAt, or ends that. Hostile.
func (c *Cache) IgnoreFUA(on bool) { c.ignoreFUA.Store(on) }

// Hostile names the hostile switches that are on.
func (c *Cache) Hostile() []Act {
	var acts []Act
	if c.lieAboutFlush.Load() {
		acts = append(acts, ActLyingFlush)
	}
	if c.ignoreFUA.Load() {
		acts = append(acts, ActIgnoredFUA)
	}
	return acts
}

// Size implements media.Media.
func (c *Cache) Size() int64 { return c.inner.Size() }

// Supports implements media.Supporter: everything that the durable medium can do, and in
// any case write through, compare and write, and vector writes. Writes never wait if
// there is room.
func (c *Cache) Supports(a media.Ability) bool {
	switch a {
	case media.AbilityTryWrite, media.AbilityFUA, media.AbilityCompareAndWrite, media.AbilityVector:
		return true
	case media.AbilityTryRead, media.AbilityDiscard, media.AbilityZero, media.AbilityExtents,
		media.AbilityResize, media.AbilityPrefetch:
		return c.can.Has(a)
	case media.AbilityRefer: // pending data are on no pages that could be lent
	}
	return false
}

// ZeroIsFast implements media.FastZeroer: zeros wait in the cache, and long ones
// go to the durable medium.
func (c *Cache) ZeroIsFast() bool { return c.can.ZeroIsFast }

// Prefetch implements media.Prefetcher.
func (c *Cache) Prefetch(off, n int64) error { return c.can.Prefetch.Prefetch(off, n) }

// Close implements media.Media. A cache that is closed has not lost its power: pending
// writes go to the durable medium first, even those that a flush lied about, but are not
// flushed there.
//
// Errors: of the durable medium. If it cannot be written, what was pending is
// lost and the error says so; if it cannot be closed, neither is the cache.
func (c *Cache) Close() error {
	closed, err := c.closeInner()
	if closed {
		c.group.Wait()
	}
	return err
}

func (c *Cache) closeInner() (closed bool, err error) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	id := c.nextID()
	err = c.emptyOut()
	was := c.setClosed(true)
	if err == nil || c.nextID() != id {
		err = c.emptyOut() // what has come meanwhile, and what failed
	}
	if closing := c.inner.Close(); closing != nil {
		c.setClosed(was)
		return false, errors.Join(err, closing)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = nil
	c.store.init(c.config.SectorBytes)
	c.unreadable = nil
	c.settleLocked()
	return true, err
}

func (c *Cache) setClosed(closed bool) (was bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was, c.closed = c.closed, closed
	return was
}

func (c *Cache) nextID() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.store.nextID
}

// emptyOut writes out all that is pending.
//
// +checklocks:c.outMu
func (c *Cache) emptyOut() error {
	c.pickBefore(c.nextID())
	c.ending = true
	err := c.writeOut(nil)
	c.ending = false
	if err != nil {
		return fmt.Errorf("cache: close %s: %d bytes of pending writes are lost: %w", c.config.Name, c.Stats().PendingBytes, err)
	}
	return nil
}

// Resize implements media.Resizer. What is pending beyond the new end is gone.
func (c *Cache) Resize(sizeBytes int64) error {
	if sizeBytes%int64(c.config.SectorBytes) != 0 {
		return fmt.Errorf("cache: resize %s to %d bytes: want a multiple of the sector, %d bytes",
			c.config.Name, sizeBytes, c.config.SectorBytes)
	}
	c.outMu.Lock()
	defer c.outMu.Unlock()
	old := c.inner.Size()
	if sizeBytes > old { // before anybody writes there
		c.recordStep(Step{Kind: StepResize, LengthBytes: sizeBytes})
	}
	err := c.can.Resize.Resize(sizeBytes)
	c.ledger.forgetFrom(min(old, c.inner.Size()) >> c.shift)
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.inner.Size(); now != max(old, sizeBytes) {
		c.recordStep(Step{Kind: StepResize, LengthBytes: now})
	}
	// Whatever err is: the medium may have shrunk all the same, and would accept nothing
	// beyond its end any more.
	end := c.inner.Size() >> c.shift
	c.store.dropFrom(end)
	for sector := range c.unreadable {
		if sector >= end {
			delete(c.unreadable, sector)
		}
	}
	c.settleLocked()
	return err
}

// settleLocked recomputes plain after versions or damaged sectors went away.
//
// +checklocks:c.mu
func (c *Cache) settleLocked() {
	c.plain.Store(c.store.used == 0 && len(c.unreadable) == 0 && !c.off)
}

// refuseLocked is the error for a range that is not inside, or nil.
//
// +checklocks:c.mu
func (c *Cache) refuseLocked(op string, off, n int64) error {
	if c.closed {
		return &media.Error{Op: op, Name: c.config.Name, OffsetBytes: off, LengthBytes: n, Kind: media.ErrClosed}
	}
	if c.off {
		return c.powerLost(op, off, n)
	}
	if size := c.inner.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return &media.Error{Op: op, Name: c.config.Name, OffsetBytes: off, LengthBytes: n, Kind: media.ErrRange}
	}
	return nil
}

// powerLost is the error of a call that was in progress when the power was cut.
func (c *Cache) powerLost(op string, off, n int64) error {
	return &media.Error{Op: op, Name: c.config.Name, OffsetBytes: off, LengthBytes: n, Kind: media.ErrPowerLost}
}
