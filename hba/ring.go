package hba

import "math/bits"

// Ring positions are free-running 32-bit counts: entry i of a ring is at index
// i modulo the number of entries, which is a power of two.

// PhaseAt is the phase of the completion at a position in a ring of so many
// entries: 1 on the first pass, 0 on the second, and so on. A driver waits for
// it at the position it will consume next.
func PhaseAt(position uint32, entries int) uint32 {
	return ^(position >> bits.TrailingZeros(uint(entries))) & 1
}

// A verdict is what the device thinks of a doorbell.
type verdict uint8

const (
	doorbellNewer verdict = iota // moves the count on
	doorbellStale                // overtaken by a newer one: nothing to do
	doorbellBad                  // beyond anything the driver can mean
)

// judge compares a doorbell value with the count it wants to replace. limit is
// the furthest count that makes sense, at or after old.
func judge(old, value, limit uint32) verdict {
	switch ahead := value - old; {
	case int32(ahead) <= 0:
		return doorbellStale
	case ahead > limit-old:
		return doorbellBad
	}
	return doorbellNewer
}

// validEntries reports whether a ring may have n entries, at most most.
func validEntries(n uint64, most int) bool {
	return n >= minRingEntries && n <= uint64(most) && n&(n-1) == 0
}
