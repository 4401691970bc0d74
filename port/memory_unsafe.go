package port

import "unsafe"

// offsetIn is where b starts in region, if it lies inside.
func offsetIn(region, b []byte) (int, bool) {
	if len(region) == 0 || cap(b) == 0 {
		return 0, false
	}
	base := uintptr(unsafe.Pointer(unsafe.SliceData(region)))
	start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	if start < base || start+uintptr(len(b)) > base+uintptr(len(region)) {
		return 0, false
	}
	return int(start - base), true
}

// isAligned reports whether b begins at a multiple of mask+1.
func isAligned(b []byte, mask uint32) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))&uintptr(mask) == 0
}
