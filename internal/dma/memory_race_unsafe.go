//go:build race

package dma

import "unsafe"

// mapMemory takes the arena from the Go heap: the race detector watches only
// memory that the Go run time knows, and rings and buffers are worth watching.
func mapMemory(n int) ([]byte, error) {
	b := make([]byte, n+MinBlockBytes)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (MinBlockBytes - 1)
	return b[skip : skip+n : skip+n], nil
}

func unmapMemory([]byte) error { return nil }
