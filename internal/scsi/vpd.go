package scsi

import "encoding/binary"

// BlockLimits is the block limits page. Counts are in logical blocks, zero
// meaning not reported unless said otherwise; SBC-3 6.5.3.
type BlockLimits struct {
	// WriteSameNonZero (WSNZ) forbids WRITE SAME of 0 blocks for "up to the end".
	WriteSameNonZero    bool
	MaxCompareAndWrite  uint8 // 0: COMPARE AND WRITE is not supported
	OptimalGranularity  uint16
	MaxTransfer         uint32
	OptimalTransfer     uint32
	MaxUnmap            uint32 // 0: UNMAP is not supported
	MaxUnmapDescriptors uint32
	OptimalUnmap        uint32
	UnmapAlignment      uint32
	UnmapAlignmentValid bool
	MaxWriteSame        uint64
	MaxPrefetch         uint32
}

const blockLimitsBodyBytes = 0x3c

// PutVPDBlockLimits writes the block limits page.
func PutVPDBlockLimits(dst []byte, l *BlockLimits) int {
	var b [vpdHeaderBytes + blockLimitsBodyBytes]byte
	putVPDHeader(b[:], VPDBlockLimits, blockLimitsBodyBytes)
	b[4] = flag(l.WriteSameNonZero, 0x01)
	b[5] = l.MaxCompareAndWrite
	binary.BigEndian.PutUint16(b[6:], l.OptimalGranularity)
	binary.BigEndian.PutUint32(b[8:], l.MaxTransfer)
	binary.BigEndian.PutUint32(b[12:], l.OptimalTransfer)
	binary.BigEndian.PutUint32(b[16:], l.MaxPrefetch)
	binary.BigEndian.PutUint32(b[20:], l.MaxUnmap)
	binary.BigEndian.PutUint32(b[24:], l.MaxUnmapDescriptors)
	binary.BigEndian.PutUint32(b[28:], l.OptimalUnmap)
	if l.UnmapAlignmentValid {
		binary.BigEndian.PutUint32(b[32:], 1<<31|l.UnmapAlignment&^(1<<31))
	}
	binary.BigEndian.PutUint64(b[36:], l.MaxWriteSame)
	return copy(dst, b[:])
}

// ParseVPDBlockLimits reads a block limits page; fields beyond the end of an
// older, shorter page are zero.
func ParseVPDBlockLimits(b []byte) (l BlockLimits, ok bool) {
	body, ok := vpdBody(b, VPDBlockLimits)
	if !ok {
		return BlockLimits{}, false
	}
	var p [blockLimitsBodyBytes]byte
	copy(p[:], body)
	return BlockLimits{
		WriteSameNonZero:    p[0]&0x01 != 0,
		MaxCompareAndWrite:  p[1],
		OptimalGranularity:  binary.BigEndian.Uint16(p[2:]),
		MaxTransfer:         binary.BigEndian.Uint32(p[4:]),
		OptimalTransfer:     binary.BigEndian.Uint32(p[8:]),
		MaxPrefetch:         binary.BigEndian.Uint32(p[12:]),
		MaxUnmap:            binary.BigEndian.Uint32(p[16:]),
		MaxUnmapDescriptors: binary.BigEndian.Uint32(p[20:]),
		OptimalUnmap:        binary.BigEndian.Uint32(p[24:]),
		UnmapAlignmentValid: p[28]&0x80 != 0,
		UnmapAlignment:      binary.BigEndian.Uint32(p[28:]) &^ (1 << 31),
		MaxWriteSame:        binary.BigEndian.Uint64(p[32:]),
	}, true
}

// Rotation rates with a meaning of their own; SBC-3 table 183.
const (
	RotationNotReported uint16 = 0
	RotationNone        uint16 = 1 // solid state
)

// BlockCharacteristics is the block device characteristics page.
type BlockCharacteristics struct {
	// RotationRate is in revolutions per minute, or one of the Rotation values.
	RotationRate uint16
}

const characteristicsBodyBytes = 0x3c

// PutVPDBlockCharacteristics writes the block device characteristics page;
// SBC-3 6.5.2.
func PutVPDBlockCharacteristics(dst []byte, c *BlockCharacteristics) int {
	var b [vpdHeaderBytes + characteristicsBodyBytes]byte
	putVPDHeader(b[:], VPDBlockCharacteristics, characteristicsBodyBytes)
	binary.BigEndian.PutUint16(b[4:], c.RotationRate)
	return copy(dst, b[:])
}

// ParseVPDBlockCharacteristics reads a block device characteristics page.
func ParseVPDBlockCharacteristics(b []byte) (c BlockCharacteristics, ok bool) {
	body, ok := vpdBody(b, VPDBlockCharacteristics)
	if !ok || len(body) < 2 {
		return BlockCharacteristics{}, false
	}
	return BlockCharacteristics{RotationRate: binary.BigEndian.Uint16(body)}, true
}

// Provisioning is the logical block provisioning page: what the unit can do to
// blocks that nobody needs any more; SBC-3 6.5.4.
type Provisioning struct {
	Unmap       bool // LBPU: UNMAP unmaps
	WriteSame16 bool // LBPWS: WRITE SAME(16) with UNMAP does
	WriteSame10 bool // LBPWS10: WRITE SAME(10) with UNMAP does
	ReadZeros   bool // LBPRZ: unmapped blocks read as zeros
	Anchor      bool // ANC_SUP: blocks can be anchored
	Thin        bool // provisioning type 2: fewer blocks than the capacity may exist
}

const provisioningBodyBytes = 4

// PutVPDProvisioning writes the logical block provisioning page.
func PutVPDProvisioning(dst []byte, p *Provisioning) int {
	var b [vpdHeaderBytes + provisioningBodyBytes]byte
	putVPDHeader(b[:], VPDLogicalBlockProvisioning, provisioningBodyBytes)
	b[5] = flag(p.Unmap, 0x80) | flag(p.WriteSame16, 0x40) | flag(p.WriteSame10, 0x20) |
		flag(p.ReadZeros, 0x04) | flag(p.Anchor, 0x02)
	b[6] = 1 // resource provisioned
	if p.Thin {
		b[6] = 2
	}
	return copy(dst, b[:])
}

// ParseVPDProvisioning reads a logical block provisioning page.
func ParseVPDProvisioning(b []byte) (p Provisioning, ok bool) {
	body, ok := vpdBody(b, VPDLogicalBlockProvisioning)
	if !ok || len(body) < 3 {
		return Provisioning{}, false
	}
	return Provisioning{
		Unmap: body[1]&0x80 != 0, WriteSame16: body[1]&0x40 != 0, WriteSame10: body[1]&0x20 != 0,
		ReadZeros: body[1]&0x1c == 0x04, Anchor: body[1]&0x02 != 0, Thin: body[2]&0x07 == 2,
	}, true
}
