//go:build !race

package dma_test

import (
	"testing"

	"github.com/vhbad/vhbad/internal/dma"
)

func TestMap_NoAllocs(t *testing.T) {
	m, b, w := newIOMMU(t, dma.MinBlockBytes)
	var sum byte
	n := testing.AllocsPerRun(1000, func() {
		addr := m.Map(w, b, dma.Read)
		p, _ := m.Translate(addr, len(b), dma.Read)
		sum += p[0]
		m.Unmap(w)
	})
	if n != 0 {
		t.Errorf("map, translate, unmap: %v allocations, want 0", n)
	}
}
