package media

import (
	"fmt"
	"math/bits"
	"sync"
)

func formatRange(off, n int64) string { return fmt.Sprintf("%d bytes at %d", n, off) }

// inside reports whether n bytes from off are within sizeBytes.
func inside(off, n, sizeBytes int64) bool {
	return off >= 0 && n >= 0 && off <= sizeBytes && n <= sizeBytes-off
}

// A rangeLock excludes calls on overlapping byte ranges from each other: shared for
// reads and writes, exclusive for calls that must be alone. Ranges fold onto a fixed
// number of stripes, so calls on distant ranges may exclude each other, too, which only
// costs time.
//
// Stripes are taken in ascending order, so callers cannot deadlock.
type rangeLock struct {
	stripes [lockStripes]stripe
}

const (
	lockStripes     = 64 // bits of a stripeSet
	lockStripeShift = 16 // bytes per stripe, as a power of two
)

type stripe struct {
	sync.RWMutex
	_ [128 - 24]byte // on its own pair of cache lines
}

// A stripeSet is a set of stripes, a bit each.
type stripeSet uint64

const allStripes stripeSet = 1<<lockStripes - 1

// stripesOf is the set of stripes that n bytes from off fold onto.
func stripesOf(off, n int64) stripeSet {
	first := uint64(off) >> lockStripeShift
	last := first
	if n > 1 {
		last = uint64(off+n-1) >> lockStripeShift
	}
	if last-first >= lockStripes-1 {
		return allStripes
	}
	run := uint64(1)<<(last-first+1) - 1
	return stripeSet(bits.RotateLeft64(run, int(first%lockStripes)))
}

// share takes every stripe of s for shared use.
//
// +checklocksignore: which locks is decided at run time.
func (l *rangeLock) share(s stripeSet) {
	for ; s != 0; s &= s - 1 {
		l.stripes[bits.TrailingZeros64(uint64(s))].RLock()
	}
}

// tryShare is share if that needs no waiting.
//
// +checklocksignore: which locks is decided at run time.
func (l *rangeLock) tryShare(s stripeSet) bool {
	for rest := s; rest != 0; rest &= rest - 1 {
		if !l.stripes[bits.TrailingZeros64(uint64(rest))].TryRLock() {
			l.unshare(s &^ rest)
			return false
		}
	}
	return true
}

// unshare gives back what share took.
//
// +checklocksignore: which locks is decided at run time.
func (l *rangeLock) unshare(s stripeSet) {
	for ; s != 0; s &= s - 1 {
		l.stripes[bits.TrailingZeros64(uint64(s))].RUnlock()
	}
}

// lock takes every stripe of s for exclusive use.
//
// +checklocksignore: which locks is decided at run time.
func (l *rangeLock) lock(s stripeSet) {
	for ; s != 0; s &= s - 1 {
		l.stripes[bits.TrailingZeros64(uint64(s))].Lock()
	}
}

// unlock gives back what lock took.
//
// +checklocksignore: which locks is decided at run time.
func (l *rangeLock) unlock(s stripeSet) {
	for ; s != 0; s &= s - 1 {
		l.stripes[bits.TrailingZeros64(uint64(s))].Unlock()
	}
}
