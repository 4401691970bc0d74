//go:build !race

package dma

import "golang.org/x/sys/unix"

// mapMemory reserves n bytes that the garbage collector does not see. Pages
// cost nothing until they are touched.
func mapMemory(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
}

func unmapMemory(b []byte) error { return unix.Munmap(b) }
