package dma

// OffsetForTest is where b starts in m's arena.
func (m *IOMMU) OffsetForTest(b []byte) int { return m.arena.offset(b) }

// MaxPipes is maxPipes.
const MaxPipes = maxPipes
