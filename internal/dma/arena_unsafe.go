package dma

import "unsafe"

// offset is where b starts in the arena, or -1 if it starts elsewhere.
func (a *Arena) offset(b []byte) int {
	if len(a.mem) == 0 || cap(b) == 0 {
		return -1
	}
	base := uintptr(unsafe.Pointer(unsafe.SliceData(a.mem)))
	p := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	if p < base || p >= base+uintptr(len(a.mem)) {
		return -1
	}
	return int(p - base)
}
