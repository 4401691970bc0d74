package fault

import (
	"math"
	"math/bits"
	"sync/atomic"
)

// MaxMarked is how many blocks a rule may track as bad or rotten.
const MaxMarked = 1 << 28

// badBlocks are the blocks of a span that are bad or rotten: a share of them that the
// seed chooses, less those that have healed. A command may cover all of them, so blocks
// are processed by words, and words by pages.
//
// Concurrency: any goroutine.
type badBlocks struct {
	in    span
	seed  uint64
	share float64 // 1 is all
	// pages are chosen when they are first needed.
	pages []atomic.Pointer[badPage]
}

// A badPage has a bit for each block, set if it is bad. Pages begin at multiples of
// pageBlocks, so that what is chosen does not depend on where the span begins; bits
// outside of the span mean nothing.
type badPage [pageBlocks / 64]atomic.Uint64

const pageBlocks = 1 << 15

// cleanPage is every page without a bad block. It does not change.
var cleanPage = new(badPage)

func newBadBlocks(in span, seed uint64, share float64) *badBlocks {
	return &badBlocks{in: in, seed: seed, share: share, pages: make([]atomic.Pointer[badPage], (in.end-1)/pageBlocks-in.first/pageBlocks+1)}
}

// first is the first bad block of s.
func (m *badBlocks) first(s span) (block uint64, ok bool) {
	s = s.overlap(m.in)
	for !s.empty() {
		end := min(s.end, pageEnd(s.first))
		if page := m.page(s.first); page == nil {
			return s.first, true // nothing has healed
		} else if page != cleanPage {
			for s.first < end {
				mask, next := wordMask(s.first, end)
				if bad := page[s.first%pageBlocks/64].Load() & mask; bad != 0 {
					return s.first&^63 + uint64(bits.TrailingZeros64(bad)), true
				}
				s.first = next
			}
		}
		s.first = end
	}
	return 0, false
}

// heal makes the blocks of s good.
func (m *badBlocks) heal(s span) {
	s = s.overlap(m.in)
	for !s.empty() {
		end := min(s.end, pageEnd(s.first))
		begins := max(m.in.first, pageEnd(s.first)-pageBlocks)
		if s.first == begins && end == min(m.in.end, pageEnd(s.first)) {
			m.at(s.first).Store(cleanPage)
		} else if page := m.page(s.first); page != cleanPage {
			if page == nil {
				page = m.keep(s.first, fullPage())
			}
			for page != cleanPage && s.first < end {
				mask, next := wordMask(s.first, end)
				page[s.first%pageBlocks/64].And(^mask)
				s.first = next
			}
		}
		s.first = end
	}
}

// pageEnd is where the page of a block ends.
func pageEnd(block uint64) uint64 { return block&^(pageBlocks-1) + pageBlocks }

// wordMask has a bit for each block of the word of block, from that one to end, and
// next is the block that comes then.
func wordMask(block, end uint64) (mask, next uint64) {
	next = min(end, block&^63+64)
	return ^uint64(0) >> (64 - (next - block)) << (block % 64), next
}

func (m *badBlocks) at(block uint64) *atomic.Pointer[badPage] {
	return &m.pages[block/pageBlocks-m.in.first/pageBlocks]
}

// page is the page of a block; nil if all blocks are bad and none of it has healed.
func (m *badBlocks) page(block uint64) *badPage {
	if page := m.at(block).Load(); page != nil || m.share >= 1 {
		return page
	}
	return m.keep(block, m.choose(block/pageBlocks))
}

// keep stores page as that of a block, unless there is one already, and returns the one
// that is stored.
func (m *badBlocks) keep(block uint64, page *badPage) *badPage {
	if at := m.at(block); !at.CompareAndSwap(nil, page) {
		return at.Load()
	}
	return page
}

// choose draws the bad blocks of a page: the distance from one to the next is
// distributed geometrically, so that a small share costs little.
func (m *badBlocks) choose(number uint64) *badPage {
	page := cleanPage
	scale := math.Log1p(-m.share)
	for k, block := uint64(0), uint64(0); ; k, block = k+1, block+1 {
		c := chanceOf(m.seed, number*pageBlocks+k)
		skip := math.Log1p(-c.unit()) / scale
		if skip >= float64(pageBlocks-block) {
			return page
		}
		block += uint64(skip)
		if page == cleanPage {
			page = new(badPage)
		}
		page[block/64].Or(1 << (block % 64))
	}
}

func fullPage() *badPage {
	page := new(badPage)
	for i := range page {
		page[i].Store(^uint64(0))
	}
	return page
}
