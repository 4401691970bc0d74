package daemon

import (
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cachedPages says of each page of a file whether the page cache has it.
func cachedPages(t *testing.T, f *os.File, sizeBytes int) []bool {
	t.Helper()
	b, err := unix.Mmap(int(f.Fd()), 0, sizeBytes, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(fmt.Errorf("mmap: %w", err))
	}
	state := make([]byte, sizeBytes/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&state[0])))
	if err := unix.Munmap(b); err != nil || errno != 0 {
		t.Fatalf("mincore: %v, munmap: %v", errno, err)
	}
	cached := make([]bool, len(state))
	for i, s := range state {
		cached[i] = s&1 != 0
	}
	return cached
}
