//go:build !race

package media

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const slabBytes = 64 << 20

// slabsLendable says that pages of slabs keep their contents while somebody has
// references to them.
const slabsLendable = true

// mapSlab reserves a slab that the garbage collector does not see. Its pages
// cost nothing until they are touched.
func mapSlab() ([]byte, error) {
	return unix.Mmap(-1, 0, slabBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
}

func unmapSlab(b []byte) error { return unix.Munmap(b) }

// adjacent reports whether b follows a in memory.
func adjacent(a, b *chunk) bool {
	return uintptr(unsafe.Pointer(a))+chunkBytes == uintptr(unsafe.Pointer(b))
}

// emptyRun gives the memory of n chunks from first back; they then read as zeros.
func emptyRun(first *chunk, n int) {
	b := unsafe.Slice(&first[0], n*chunkBytes)
	if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
		panic(fmt.Sprintf("media: madvise %d chunks of a slab of ours: %v", n, err))
	}
}
