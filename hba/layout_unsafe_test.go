package hba

import (
	"runtime"
	"testing"
	"unsafe"
)

// TestLayout_Executors: two engines write into lists of their own for each command, and
// those are never on one cache line, however short.
func TestLayout_Executors(t *testing.T) {
	const lineBytes = 64
	used := make(map[uintptr]int)
	var all [16]executor // alive, all of them
	for i := range all {
		all[i] = newExecutor()
		x := &all[i]
		for _, part := range []struct {
			at    uintptr
			bytes int
		}{
			{uintptr(unsafe.Pointer(unsafe.SliceData(x.list))), cap(x.list) * int(unsafe.Sizeof(Segment{}))},
			{uintptr(unsafe.Pointer(unsafe.SliceData(x.segments))), cap(x.segments) * int(unsafe.Sizeof([]byte{}))},
		} {
			for line := part.at / lineBytes; line <= (part.at+uintptr(part.bytes)-1)/lineBytes; line++ {
				if other, ok := used[line]; ok && other != i {
					t.Fatalf("executors %d and %d share a cache line", other, i)
				}
				used[line] = i
			}
		}
	}
	runtime.KeepAlive(&all)
}
