//go:build race

package media

// The race detector watches only memory that the Go run time knows, and torn
// chunks are worth watching: slabs come from the heap here.

const slabBytes = 1 << 20

// slabsLendable: the garbage collector knows only of Go's own references.
const slabsLendable = false

func mapSlab() ([]byte, error) { return make([]byte, slabBytes), nil }

func unmapSlab([]byte) error { return nil }

func adjacent(_, _ *chunk) bool { return false }

// emptyRun zeroes the chunk; n is always one, as no two chunks count as adjacent.
func emptyRun(first *chunk, _ int) { clear(first[:]) }
