package scsi

import "encoding/binary"

// Lengths of capacity data in bytes.
const (
	ReadCapacity10Bytes = 8
	ReadCapacity16Bytes = 32
)

// Capacity is what READ CAPACITY returns.
type Capacity struct {
	Blocks     uint64 // number of logical blocks
	BlockBytes uint32 // length of a logical block
	// PhysicalExponent: 2^PhysicalExponent logical blocks make a physical one.
	PhysicalExponent uint8
	// Provisioned (LBPME): logical block provisioning management is on, so there
	// is a provisioning page and UNMAP.
	Provisioned bool
	// ReadZeros (LBPRZ): unmapped blocks read as zeros.
	ReadZeros bool
}

// PutReadCapacity10Data writes READ CAPACITY(10) data. A last address that does
// not fit comes out as all ones, which sends the reader to the long command;
// SBC-3 5.15.2.
func PutReadCapacity10Data(dst []byte, c *Capacity) int {
	var b [ReadCapacity10Bytes]byte
	binary.BigEndian.PutUint32(b[:], uint32(min(c.Blocks-1, 1<<32-1)))
	binary.BigEndian.PutUint32(b[4:], c.BlockBytes)
	return copy(dst, b[:])
}

// ParseReadCapacity10Data reads READ CAPACITY(10) data. tooBig says that the
// capacity is only in READ CAPACITY(16).
func ParseReadCapacity10Data(b []byte) (c Capacity, tooBig, ok bool) {
	if len(b) < ReadCapacity10Bytes {
		return Capacity{}, false, false
	}
	last := binary.BigEndian.Uint32(b)
	return Capacity{Blocks: uint64(last) + 1, BlockBytes: binary.BigEndian.Uint32(b[4:])}, last == 1<<32-1, true
}

// PutReadCapacity16Data writes READ CAPACITY(16) data; SBC-3 5.16.2.
func PutReadCapacity16Data(dst []byte, c *Capacity) int {
	var b [ReadCapacity16Bytes]byte
	binary.BigEndian.PutUint64(b[:], c.Blocks-1)
	binary.BigEndian.PutUint32(b[8:], c.BlockBytes)
	b[13] = c.PhysicalExponent & 0xf
	b[14] = flag(c.Provisioned, 0x80) | flag(c.ReadZeros, 0x40)
	return copy(dst, b[:])
}

// ParseReadCapacity16Data reads READ CAPACITY(16) data of at least 12 bytes.
func ParseReadCapacity16Data(b []byte) (c Capacity, ok bool) {
	if len(b) < 12 {
		return Capacity{}, false
	}
	var p [ReadCapacity16Bytes]byte
	copy(p[:], b)
	last := binary.BigEndian.Uint64(p[:])
	if last == 1<<64-1 {
		return Capacity{}, false
	}
	return Capacity{
		Blocks: last + 1, BlockBytes: binary.BigEndian.Uint32(p[8:]),
		PhysicalExponent: p[13] & 0xf, Provisioned: p[14]&0x80 != 0, ReadZeros: p[14]&0x40 != 0,
	}, true
}
