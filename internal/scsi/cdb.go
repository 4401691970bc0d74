package scsi

import "encoding/binary"

// CDBMaxBytes is the room for a command descriptor block. Variable length CDBs,
// which may be longer, are not used.
const CDBMaxBytes = 16

// Bits of byte 1 of CDBs. They mean what their name says only with the commands
// named beside them.
const (
	CDBProtectMask  = 0xe0 // READ, WRITE, VERIFY, WRITE SAME: RDPROTECT, WRPROTECT, VRPROTECT
	CDBDPO          = 0x10 // READ, WRITE, VERIFY, COMPARE AND WRITE: disable page out
	CDBFUA          = 0x08 // READ, WRITE, COMPARE AND WRITE: force unit access
	CDBBytchkMask   = 0x06 // VERIFY: see Bytchk
	CDBSyncImmed    = 0x02 // SYNCHRONIZE CACHE, PRE-FETCH: immediate status
	CDBStartImmed   = 0x01 // START STOP UNIT: immediate status
	CDBSameAnchor   = 0x10 // WRITE SAME
	CDBSameUnmap    = 0x08 // WRITE SAME
	CDBSameObsolete = 0x06 // WRITE SAME: PBDATA and LBDATA
	CDBSameNDOB     = 0x01 // WRITE SAME(16): no data-out buffer
	CDBUnmapAnchor  = 0x01 // UNMAP
	CDBEVPD         = 0x01 // INQUIRY: vital product data
	CDBCMDDT        = 0x02 // INQUIRY: obsolete command support data
	CDBDESC         = 0x01 // REQUEST SENSE: descriptor format
	CDBDBD          = 0x08 // MODE SENSE: disable block descriptors
	CDBLLBAA        = 0x10 // MODE SENSE(10): long LBA accepted
	CDBPF           = 0x10 // MODE SELECT: pages follow, in the format of the standards
	CDBSP           = 0x01 // MODE SELECT: save pages

	// CDBNACA is a bit of the control byte, the last one of every CDB.
	CDBNACA = 0x04
)

// Bits of byte 4 of START STOP UNIT.
const (
	StartStopStart          = 0x01
	StartStopLoadEject      = 0x02
	StartStopNoFlush        = 0x04
	StartStopPowerCondition = 0xf0
)

// Bytchk says what VERIFY compares; SBC-3 5.31.
type Bytchk uint8

// Values of the BYTCHK field.
const (
	BytchkNone   Bytchk = 0 // nothing: the medium is only read
	BytchkAll    Bytchk = 1 // every block with its own block of data-out
	BytchkSingle Bytchk = 3 // every block with the one block of data-out
)

// CDBBytes is the length of a CDB with operation code o, from its group code,
// or 0 if the group has none (variable length and vendor specific).
func CDBBytes(o Opcode) int {
	switch group := uint8(o) >> 5; group {
	case 0:
		return 6
	case 1, 2:
		return 10
	case 4:
		return 16
	case 5:
		return 12
	}
	return 0
}

func flag(on bool, bit uint8) uint8 {
	if on {
		return bit
	}
	return 0
}

// PutTestUnitReady builds TEST UNIT READY. Like all Put functions of CDBs it
// sets every byte of cdb and returns the CDB's length.
func PutTestUnitReady(cdb *[CDBMaxBytes]byte) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpTestUnitReady)}
	return 6
}

// PutRequestSense builds REQUEST SENSE.
func PutRequestSense(cdb *[CDBMaxBytes]byte, descriptor bool, allocationBytes uint8) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpRequestSense), 1: flag(descriptor, CDBDESC), 4: allocationBytes}
	return 6
}

// PutInquiry builds INQUIRY for the standard data.
func PutInquiry(cdb *[CDBMaxBytes]byte, allocationBytes uint16) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpInquiry)}
	binary.BigEndian.PutUint16(cdb[3:], allocationBytes)
	return 6
}

// PutInquiryVPD builds INQUIRY for a page of vital product data.
func PutInquiryVPD(cdb *[CDBMaxBytes]byte, page VPDPage, allocationBytes uint16) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpInquiry), 1: CDBEVPD, 2: uint8(page)}
	binary.BigEndian.PutUint16(cdb[3:], allocationBytes)
	return 6
}

// PutModeSense6 builds MODE SENSE(6) for the current values of page.
func PutModeSense6(cdb *[CDBMaxBytes]byte, page ModePage, noBlockDescriptor bool, allocationBytes uint8) int {
	*cdb = [CDBMaxBytes]byte{
		0: uint8(OpModeSense6), 1: flag(noBlockDescriptor, CDBDBD), 2: uint8(page), 4: allocationBytes,
	}
	return 6
}

// PutModeSense10 builds MODE SENSE(10) for the current values of page.
func PutModeSense10(cdb *[CDBMaxBytes]byte, page ModePage, noBlockDescriptor bool, allocationBytes uint16) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpModeSense10), 1: flag(noBlockDescriptor, CDBDBD), 2: uint8(page)}
	binary.BigEndian.PutUint16(cdb[7:], allocationBytes)
	return 10
}

// PutModeSelect6 builds MODE SELECT(6) for a parameter list of that length.
func PutModeSelect6(cdb *[CDBMaxBytes]byte, listBytes uint8) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpModeSelect6), 1: CDBPF, 4: listBytes}
	return 6
}

// PutModeSelect10 builds MODE SELECT(10) for a parameter list of that length.
func PutModeSelect10(cdb *[CDBMaxBytes]byte, listBytes uint16) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpModeSelect10), 1: CDBPF}
	binary.BigEndian.PutUint16(cdb[7:], listBytes)
	return 10
}

// PutStartStopUnit builds START STOP UNIT.
func PutStartStopUnit(cdb *[CDBMaxBytes]byte, start, immediate bool) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpStartStopUnit), 1: flag(immediate, CDBStartImmed), 4: flag(start, StartStopStart)}
	return 6
}

// PutReadCapacity10 builds READ CAPACITY(10).
func PutReadCapacity10(cdb *[CDBMaxBytes]byte) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpReadCapacity10)}
	return 10
}

// PutReadCapacity16 builds READ CAPACITY(16).
func PutReadCapacity16(cdb *[CDBMaxBytes]byte, allocationBytes uint32) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpServiceActionIn16), 1: uint8(ActionReadCapacity16)}
	binary.BigEndian.PutUint32(cdb[10:], allocationBytes)
	return 16
}

// PutGetLBAStatus builds GET LBA STATUS.
func PutGetLBAStatus(cdb *[CDBMaxBytes]byte, lba uint64, allocationBytes uint32) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpServiceActionIn16), 1: uint8(ActionGetLBAStatus)}
	binary.BigEndian.PutUint64(cdb[2:], lba)
	binary.BigEndian.PutUint32(cdb[10:], allocationBytes)
	return 16
}

// PutReportLUNs builds REPORT LUNS for all logical units that have addresses.
func PutReportLUNs(cdb *[CDBMaxBytes]byte, allocationBytes uint32) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpReportLUNs)}
	binary.BigEndian.PutUint32(cdb[6:], allocationBytes)
	return 12
}

func put6(cdb *[CDBMaxBytes]byte, o Opcode, lba uint32, blocks uint8) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(o), 1: uint8(lba>>16) & 0x1f, 2: uint8(lba >> 8), 3: uint8(lba), 4: blocks}
	return 6
}

func put10(cdb *[CDBMaxBytes]byte, o Opcode, flags uint8, lba uint32, blocks uint16) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(o), 1: flags}
	binary.BigEndian.PutUint32(cdb[2:], lba)
	binary.BigEndian.PutUint16(cdb[7:], blocks)
	return 10
}

func put12(cdb *[CDBMaxBytes]byte, o Opcode, flags uint8, lba, blocks uint32) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(o), 1: flags}
	binary.BigEndian.PutUint32(cdb[2:], lba)
	binary.BigEndian.PutUint32(cdb[6:], blocks)
	return 12
}

func put16(cdb *[CDBMaxBytes]byte, o Opcode, flags uint8, lba uint64, blocks uint32) int {
	cdb[0], cdb[1], cdb[14], cdb[15] = uint8(o), flags, 0, 0
	binary.BigEndian.PutUint64(cdb[2:], lba)
	binary.BigEndian.PutUint32(cdb[10:], blocks)
	return 16
}

// PutRead6 builds READ(6): lba below 2^21, and 0 blocks mean 256.
func PutRead6(cdb *[CDBMaxBytes]byte, lba uint32, blocks uint8) int {
	return put6(cdb, OpRead6, lba, blocks)
}

// PutWrite6 builds WRITE(6): lba below 2^21, and 0 blocks mean 256.
func PutWrite6(cdb *[CDBMaxBytes]byte, lba uint32, blocks uint8) int {
	return put6(cdb, OpWrite6, lba, blocks)
}

// PutRead10 builds READ(10).
func PutRead10(cdb *[CDBMaxBytes]byte, lba uint32, blocks uint16, fua, dpo bool) int {
	return put10(cdb, OpRead10, flag(fua, CDBFUA)|flag(dpo, CDBDPO), lba, blocks)
}

// PutWrite10 builds WRITE(10).
func PutWrite10(cdb *[CDBMaxBytes]byte, lba uint32, blocks uint16, fua, dpo bool) int {
	return put10(cdb, OpWrite10, flag(fua, CDBFUA)|flag(dpo, CDBDPO), lba, blocks)
}

// PutRead12 builds READ(12).
func PutRead12(cdb *[CDBMaxBytes]byte, lba, blocks uint32, fua, dpo bool) int {
	return put12(cdb, OpRead12, flag(fua, CDBFUA)|flag(dpo, CDBDPO), lba, blocks)
}

// PutWrite12 builds WRITE(12).
func PutWrite12(cdb *[CDBMaxBytes]byte, lba, blocks uint32, fua, dpo bool) int {
	return put12(cdb, OpWrite12, flag(fua, CDBFUA)|flag(dpo, CDBDPO), lba, blocks)
}

// PutRead16 builds READ(16).
func PutRead16(cdb *[CDBMaxBytes]byte, lba uint64, blocks uint32, fua, dpo bool) int {
	return put16(cdb, OpRead16, flag(fua, CDBFUA)|flag(dpo, CDBDPO), lba, blocks)
}

// PutWrite16 builds WRITE(16).
func PutWrite16(cdb *[CDBMaxBytes]byte, lba uint64, blocks uint32, fua, dpo bool) int {
	return put16(cdb, OpWrite16, flag(fua, CDBFUA)|flag(dpo, CDBDPO), lba, blocks)
}

// PutVerify10 builds VERIFY(10).
func PutVerify10(cdb *[CDBMaxBytes]byte, lba uint32, blocks uint16, check Bytchk) int {
	return put10(cdb, OpVerify10, uint8(check)<<1, lba, blocks)
}

// PutVerify12 builds VERIFY(12).
func PutVerify12(cdb *[CDBMaxBytes]byte, lba, blocks uint32, check Bytchk) int {
	return put12(cdb, OpVerify12, uint8(check)<<1, lba, blocks)
}

// PutVerify16 builds VERIFY(16).
func PutVerify16(cdb *[CDBMaxBytes]byte, lba uint64, blocks uint32, check Bytchk) int {
	return put16(cdb, OpVerify16, uint8(check)<<1, lba, blocks)
}

// PutSynchronizeCache10 builds SYNCHRONIZE CACHE(10); 0 blocks mean up to the end.
func PutSynchronizeCache10(cdb *[CDBMaxBytes]byte, lba uint32, blocks uint16, immediate bool) int {
	return put10(cdb, OpSynchronizeCache10, flag(immediate, CDBSyncImmed), lba, blocks)
}

// PutSynchronizeCache16 builds SYNCHRONIZE CACHE(16); 0 blocks mean up to the end.
func PutSynchronizeCache16(cdb *[CDBMaxBytes]byte, lba uint64, blocks uint32, immediate bool) int {
	return put16(cdb, OpSynchronizeCache16, flag(immediate, CDBSyncImmed), lba, blocks)
}

// PutPreFetch10 builds PRE-FETCH(10); 0 blocks mean up to the end.
func PutPreFetch10(cdb *[CDBMaxBytes]byte, lba uint32, blocks uint16, immediate bool) int {
	return put10(cdb, OpPreFetch10, flag(immediate, CDBSyncImmed), lba, blocks)
}

// PutPreFetch16 builds PRE-FETCH(16); 0 blocks mean up to the end.
func PutPreFetch16(cdb *[CDBMaxBytes]byte, lba uint64, blocks uint32, immediate bool) int {
	return put16(cdb, OpPreFetch16, flag(immediate, CDBSyncImmed), lba, blocks)
}

// PutUnmap builds UNMAP for a parameter list of parameterBytes; see PutUnmapHeader.
func PutUnmap(cdb *[CDBMaxBytes]byte, anchor bool, parameterBytes uint16) int {
	return put10(cdb, OpUnmap, flag(anchor, CDBUnmapAnchor), 0, parameterBytes)
}

// PutWriteSame10 builds WRITE SAME(10) with one block of data-out.
func PutWriteSame10(cdb *[CDBMaxBytes]byte, lba uint32, blocks uint16, unmap, anchor bool) int {
	return put10(cdb, OpWriteSame10, flag(unmap, CDBSameUnmap)|flag(anchor, CDBSameAnchor), lba, blocks)
}

// PutWriteSame16 builds WRITE SAME(16): with one block of data-out, or with none
// and zeros instead if noData.
func PutWriteSame16(cdb *[CDBMaxBytes]byte, lba uint64, blocks uint32, unmap, anchor, noData bool) int {
	return put16(cdb, OpWriteSame16,
		flag(unmap, CDBSameUnmap)|flag(anchor, CDBSameAnchor)|flag(noData, CDBSameNDOB), lba, blocks)
}

// PutCompareAndWrite builds COMPARE AND WRITE. Its data-out is twice blocks
// long: what to compare with, then what to write.
func PutCompareAndWrite(cdb *[CDBMaxBytes]byte, lba uint64, blocks uint8, fua, dpo bool) int {
	*cdb = [CDBMaxBytes]byte{0: uint8(OpCompareAndWrite), 1: flag(fua, CDBFUA) | flag(dpo, CDBDPO), 13: blocks}
	binary.BigEndian.PutUint64(cdb[2:], lba)
	return 16
}

// BlockRange is the logical block address and the number of logical blocks in
// cdb. It reports false if the command has no such fields.
//
// The zero of READ(6) and WRITE(6) comes back as the 256 it stands for; the
// zero of other commands, which has a meaning of its own in some of them, comes
// back as it is.
func BlockRange(cdb *[CDBMaxBytes]byte) (lba uint64, blocks uint32, ok bool) {
	// Only those with a range.
	//exhaustive:ignore
	switch Opcode(cdb[0]) {
	case OpRead6, OpWrite6:
		lba = uint64(cdb[1]&0x1f)<<16 | uint64(cdb[2])<<8 | uint64(cdb[3])
		blocks = uint32(cdb[4])
		if blocks == 0 {
			blocks = 256
		}
	case OpRead10, OpWrite10, OpVerify10, OpPreFetch10, OpSynchronizeCache10, OpWriteSame10:
		lba = uint64(binary.BigEndian.Uint32(cdb[2:]))
		blocks = uint32(binary.BigEndian.Uint16(cdb[7:]))
	case OpRead12, OpWrite12, OpVerify12:
		lba = uint64(binary.BigEndian.Uint32(cdb[2:]))
		blocks = binary.BigEndian.Uint32(cdb[6:])
	case OpRead16, OpWrite16, OpVerify16, OpPreFetch16, OpSynchronizeCache16, OpWriteSame16:
		lba = binary.BigEndian.Uint64(cdb[2:])
		blocks = binary.BigEndian.Uint32(cdb[10:])
	case OpCompareAndWrite:
		lba = binary.BigEndian.Uint64(cdb[2:])
		blocks = uint32(cdb[13])
	default:
		return 0, 0, false
	}
	return lba, blocks, true
}

// GroupMax is the highest GROUP NUMBER.
const GroupMax = 1<<6 - 1

// groupByte is where the commands of an operation code have their GROUP NUMBER,
// or zero: SBC-3, clause 5.
var groupByte = [256]uint8{
	OpRead10: 6, OpWrite10: 6, OpVerify10: 6, OpPreFetch10: 6, OpSynchronizeCache10: 6, OpWriteSame10: 6, OpUnmap: 6,
	OpRead12: 10, OpWrite12: 10, OpVerify12: 10,
	OpRead16: 14, OpWrite16: 14, OpVerify16: 14, OpPreFetch16: 14, OpSynchronizeCache16: 14, OpWriteSame16: 14,
	OpCompareAndWrite: 14,
}

// SetGroup changes the GROUP NUMBER in a CDB that has one.
func SetGroup(cdb *[CDBMaxBytes]byte, group uint8) {
	if at := groupByte[cdb[0]]; at != 0 {
		cdb[at] = cdb[at]&^GroupMax | group&GroupMax
	}
}

// Group is the GROUP NUMBER in a CDB, zero if it has none.
func Group(cdb *[CDBMaxBytes]byte) uint8 {
	if at := groupByte[cdb[0]]; at != 0 {
		return cdb[at] & GroupMax
	}
	return 0
}

// SetLBA changes the logical block address in a CDB that has one, as BlockRange
// finds it. Bits that do not fit are cut off.
func SetLBA(cdb *[CDBMaxBytes]byte, lba uint64) {
	switch CDBBytes(Opcode(cdb[0])) {
	case 6:
		cdb[1], cdb[2], cdb[3] = cdb[1]&0xe0|uint8(lba>>16)&0x1f, uint8(lba>>8), uint8(lba)
	case 10, 12:
		binary.BigEndian.PutUint32(cdb[2:], uint32(lba))
	case 16:
		binary.BigEndian.PutUint64(cdb[2:], lba)
	}
}

// SetBlocks changes the transfer length of a READ or WRITE. Six bytes of CDB have
// no way to say 0, which is left out there.
func SetBlocks(cdb *[CDBMaxBytes]byte, blocks uint32) {
	switch CDBBytes(Opcode(cdb[0])) {
	case 6:
		if blocks != 0 {
			cdb[4] = uint8(blocks)
		}
	case 10:
		binary.BigEndian.PutUint16(cdb[7:], uint16(blocks))
	case 12:
		binary.BigEndian.PutUint32(cdb[6:], blocks)
	case 16:
		binary.BigEndian.PutUint32(cdb[10:], blocks)
	}
}

// AllocationBytes is the most data that the initiator takes in answer to cdb,
// or, for UNMAP and MODE SELECT, the length of the parameter list that it sends. It reports
// false if the command has no such field.
func AllocationBytes(cdb *[CDBMaxBytes]byte) (n uint32, ok bool) {
	// Only those with the field.
	//exhaustive:ignore
	switch Opcode(cdb[0]) {
	case OpRequestSense, OpModeSense6, OpModeSelect6:
		n = uint32(cdb[4])
	case OpInquiry:
		n = uint32(binary.BigEndian.Uint16(cdb[3:]))
	case OpModeSense10, OpModeSelect10, OpUnmap:
		n = uint32(binary.BigEndian.Uint16(cdb[7:]))
	case OpServiceActionIn16:
		n = binary.BigEndian.Uint32(cdb[10:])
	case OpReportLUNs:
		n = binary.BigEndian.Uint32(cdb[6:])
	default:
		return 0, false
	}
	return n, true
}
