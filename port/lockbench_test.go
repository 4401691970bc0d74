package port

import (
	"testing"

	"github.com/vhbad/vhbad/internal/dma"
)

// BenchmarkLock is one acquisition and release of a port lock that nobody else wants.
func BenchmarkLock(b *testing.B) {
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		b.Fatal(err)
	}
	sys := NewSystem(SystemConfig{IOMMU: dma.NewIOMMU(arena)})
	p, err := sys.NewProcessor("benchmark")
	if err != nil {
		b.Fatal(err)
	}
	a := &Adapter{sys: sys}
	a.initLock(&a.startIoLock, rankStartIo, 0)
	for b.Loop() {
		a.startIoLock.acquire(p)
		a.startIoLock.release(p)
	}
}
