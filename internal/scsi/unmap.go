package scsi

import "encoding/binary"

// UnmapHeaderBytes and UnmapDescriptorBytes are the lengths of the header and of
// each descriptor of an UNMAP parameter list.
const (
	UnmapHeaderBytes     = 8
	UnmapDescriptorBytes = 16
)

// PutUnmapHeader writes the header of a parameter list with descriptors
// descriptors; SBC-3 5.28.2.
func PutUnmapHeader(dst []byte, descriptors int) int {
	var b [UnmapHeaderBytes]byte
	binary.BigEndian.PutUint16(b[0:], uint16(UnmapHeaderBytes-2+descriptors*UnmapDescriptorBytes))
	binary.BigEndian.PutUint16(b[2:], uint16(descriptors*UnmapDescriptorBytes))
	return copy(dst, b[:])
}

// ParseUnmapHeader reads the header: the length of the descriptors in bytes.
// It reports false if the header is short or its two lengths contradict.
func ParseUnmapHeader(b []byte) (descriptorBytes int, ok bool) {
	if len(b) < UnmapHeaderBytes {
		return 0, false
	}
	list, descriptors := int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	return descriptors, list >= UnmapHeaderBytes-2 && descriptors <= list-(UnmapHeaderBytes-2)
}

// PutUnmapDescriptor writes one block descriptor.
func PutUnmapDescriptor(dst []byte, lba uint64, blocks uint32) int {
	var b [UnmapDescriptorBytes]byte
	binary.BigEndian.PutUint64(b[:], lba)
	binary.BigEndian.PutUint32(b[8:], blocks)
	return copy(dst, b[:])
}

// ParseUnmapDescriptor reads one block descriptor.
func ParseUnmapDescriptor(b []byte) (lba uint64, blocks uint32, ok bool) {
	if len(b) < UnmapDescriptorBytes {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:]), true
}

// A ProvisioningStatus says whether blocks are mapped; SBC-3 table 64.
type ProvisioningStatus uint8

// Provisioning status codes.
const (
	StatusMapped      ProvisioningStatus = 0 // or unknown
	StatusDeallocated ProvisioningStatus = 1
	StatusAnchored    ProvisioningStatus = 2
)

// LBAStatusHeaderBytes and LBAStatusDescriptorBytes are the lengths of the
// header and of each descriptor of GET LBA STATUS data.
const (
	LBAStatusHeaderBytes     = 8
	LBAStatusDescriptorBytes = 16
)

// PutLBAStatusHeader writes the header of GET LBA STATUS data; SBC-3 5.5.2.
func PutLBAStatusHeader(dst []byte, descriptors int) int {
	var b [LBAStatusHeaderBytes]byte
	binary.BigEndian.PutUint32(b[:], uint32(LBAStatusHeaderBytes-4+descriptors*LBAStatusDescriptorBytes))
	return copy(dst, b[:])
}

// ParseLBAStatusHeader reads the header: the number of descriptors that there
// were, which may be more than the allocation length had room for.
func ParseLBAStatusHeader(b []byte) (descriptors int, ok bool) {
	if len(b) < LBAStatusHeaderBytes {
		return 0, false
	}
	n := int(binary.BigEndian.Uint32(b))
	if n < LBAStatusHeaderBytes-4 {
		return 0, false
	}
	return (n - (LBAStatusHeaderBytes - 4)) / LBAStatusDescriptorBytes, true
}

// An LBAStatus is one descriptor: a run of blocks of one status.
type LBAStatus struct {
	LBA    uint64
	Blocks uint32
	Status ProvisioningStatus
}

// PutLBAStatusDescriptor writes one descriptor.
func PutLBAStatusDescriptor(dst []byte, s LBAStatus) int {
	var b [LBAStatusDescriptorBytes]byte
	binary.BigEndian.PutUint64(b[:], s.LBA)
	binary.BigEndian.PutUint32(b[8:], s.Blocks)
	b[12] = uint8(s.Status) & 0xf
	return copy(dst, b[:])
}

// ParseLBAStatusDescriptor reads one descriptor.
func ParseLBAStatusDescriptor(b []byte) (s LBAStatus, ok bool) {
	if len(b) < LBAStatusDescriptorBytes {
		return LBAStatus{}, false
	}
	return LBAStatus{
		LBA: binary.BigEndian.Uint64(b), Blocks: binary.BigEndian.Uint32(b[8:]),
		Status: ProvisioningStatus(b[12] & 0xf),
	}, true
}
