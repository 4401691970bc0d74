package hba

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

var (
	_ [CommandBytes]byte    = [unsafe.Sizeof(Command{})]byte{}
	_ [CompletionBytes]byte = [unsafe.Sizeof(Completion{})]byte{}
	_ [SegmentBytes]byte    = [unsafe.Sizeof(Segment{})]byte{}
)

// wordBytes is the alignment of what device and driver share: a Segment holds
// a 64-bit word.
const wordBytes = 8

// Commands views a submission ring as its entries. ring must be aligned to
// eight bytes. Both sides use host byte order, which New requires to be little
// endian.
func Commands(ring []byte) []Command {
	mustBeAligned(ring)
	return unsafe.Slice((*Command)(unsafe.Pointer(unsafe.SliceData(ring))), len(ring)/CommandBytes)
}

// Completions views a completion ring as its entries, as Commands does. An
// entry's Phase is accessed by LoadPhase and StorePhase only.
func Completions(ring []byte) []Completion {
	mustBeAligned(ring)
	return unsafe.Slice((*Completion)(unsafe.Pointer(unsafe.SliceData(ring))), len(ring)/CompletionBytes)
}

// Segments views a chained scatter/gather list as its elements, as Commands
// does.
func Segments(list []byte) []Segment {
	mustBeAligned(list)
	return unsafe.Slice((*Segment)(unsafe.Pointer(unsafe.SliceData(list))), len(list)/SegmentBytes)
}

// LoadPhase reads the phase. If it is the driver's (PhaseAt), everything that
// the device stored in the entry before is visible.
func (c *Completion) LoadPhase() uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&c.Phase)).Load()
}

// StorePhase publishes the entry; see LoadPhase.
func (c *Completion) StorePhase(phase uint32) {
	(*atomic.Uint32)(unsafe.Pointer(&c.Phase)).Store(phase)
}

func isAligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%wordBytes == 0
}

func mustBeAligned(b []byte) {
	if !isAligned(b) {
		panic(fmt.Sprintf("hba: memory at %p is not aligned to %d bytes", unsafe.SliceData(b), wordBytes))
	}
}
