package nbd

import (
	"encoding/binary"
	"fmt"
)

// An ExtentState is what OpBlockStatus says of a run of bytes: the flags of the
// meta context base:allocation.
//
// Source: proto.md, "base:allocation metadata context".
type ExtentState uint32

// Bits of ExtentState. Zero is allocated data.
const (
	StateHole ExtentState = 1 << 0 // nothing is allocated
	StateZero ExtentState = 1 << 1 // reads as zeros
)

// Bytes of one extent on the wire.
const (
	extentBytes    = 4 + 4
	extentExtBytes = 8 + 8
)

// extents are the growing answer to one OpBlockStatus. The answer itself is in
// Request.Data, in wire format.
type extents struct {
	wide    bool   // of extentExtBytes each
	short   bool   // the range is what bounds the room, which says nothing of other ranges
	count   int    // extents so far
	covered uint64 // bytes of the request that they cover
	last    ExtentState
	lastAt  uint64 // covered when the last one began
}

// AddExtent reports the state of the next lengthBytes of an OpBlockStatus. The first
// call begins at OffsetBytes, each later one where the last ended. Neighbours of the
// same state become one extent, and what exceeds the request is cut off. AddExtent
// returns false when nothing more is wanted: the request is covered, its room is used
// up, or it asked for OneExtent and a second would begin. A reply needs at least one
// extent.
//
// Concurrency: the owner of the request; no lock needed.
func (r *Request) AddExtent(lengthBytes uint64, state ExtentState) (more bool) {
	x := &r.extents
	left := r.LengthBytes - x.covered
	lengthBytes = min(lengthBytes, left)
	if lengthBytes == 0 {
		return left > 0
	}
	entry := extentBytes
	if x.wide {
		entry = extentExtBytes
	}
	if x.count == 0 || x.last != state {
		if x.count > 0 && r.OneExtent {
			return false
		}
		if (x.count+1)*entry > len(r.Data) {
			if !x.short {
				r.conn.statusRoom.Store(statusRoomLittle)
			}
			return false
		}
		x.count++
		x.last, x.lastAt = state, x.covered
	}
	x.covered += lengthBytes
	b := r.Data[(x.count-1)*entry:]
	if x.wide {
		binary.BigEndian.PutUint64(b[0:], x.covered-x.lastAt)
		binary.BigEndian.PutUint64(b[8:], uint64(state))
	} else {
		binary.BigEndian.PutUint32(b[0:], uint32(x.covered-x.lastAt)) // LengthBytes has 32 bits then
		binary.BigEndian.PutUint32(b[4:], uint32(state))
	}
	return x.covered < r.LengthBytes
}

// maxHoles is how many holes one read can report.
const maxHoles = 16

// A hole is a part of a read's range that is not sent.
type hole struct{ at, length int }

// AddHole says that lengthBytes of an OpRead with Sparse, at atBytes of its range, read
// as zeros: the client is told so, and Data need not hold them. Holes must come in
// ascending order and not overlap; anything else panics. AddHole returns false if there
// is no room for another hole, or the request is not Sparse: then Data must hold zeros
// there.
//
// Concurrency: the owner of the request; no lock needed.
func (r *Request) AddHole(atBytes, lengthBytes int) bool {
	if !r.Sparse {
		return false
	}
	n := r.holeCount
	from := 0
	if n > 0 {
		from = r.holes[n-1].at + r.holes[n-1].length
	}
	if atBytes < from || lengthBytes <= 0 || lengthBytes > len(r.Data)-atBytes {
		panic(fmt.Sprintf("nbd: hole of %d bytes at %d of a read of %d, after one that ends at %d",
			lengthBytes, atBytes, len(r.Data), from))
	}
	if n > 0 && from == atBytes {
		r.holes[n-1].length += lengthBytes
		return true
	}
	if n == maxHoles {
		return false
	}
	r.holes[n] = hole{at: atBytes, length: lengthBytes}
	r.holeCount++
	return true
}
