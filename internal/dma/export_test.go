package dma

import "time"

// OffsetForTest is where b starts in m's arena.
func (m *IOMMU) OffsetForTest(b []byte) int { return m.arena.offset(b) }

// MaxPipes is maxPipes.
const MaxPipes = maxPipes

// RefusedForTest has the kernel have refused a pipe, refusedTerm or less ago.
func (a *Arena) RefusedForTest(longAgo bool) {
	a.pipes.mu.Lock()
	defer a.pipes.mu.Unlock()
	a.pipes.refused = time.Now()
	if longAgo {
		a.pipes.refused = a.pipes.refused.Add(-refusedTerm)
	}
}
