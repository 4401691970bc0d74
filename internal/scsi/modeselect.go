package scsi

import "encoding/binary"

// A ModeSelectError says what is wrong with the parameter list of MODE SELECT.
type ModeSelectError uint8

// Errors in parameter lists.
const (
	ModeSelectOK        ModeSelectError = iota
	ModeSelectTruncated                 // a header, descriptor or page is cut off
	ModeSelectField                     // a field has a value that it cannot have
)

// ParseModeSelect reads the parameter list of MODE SELECT (6) or, if r.Ten, (10);
// SPC-4 6.11, 7.5. m is the current mode, and changed the requested one: only WCE may
// differ. r has the size that a block descriptor may repeat.
//
// If a field has a wrong value, field is its byte.
func ParseModeSelect(list []byte, m Mode, r *ModeRequest) (changed Mode, wrong ModeSelectError, field int) {
	header, lengthAt := modeHeader6Bytes, 3 // the length of the block descriptor
	if r.Ten {
		header, lengthAt = modeHeader10Bytes, 6
	}
	if len(list) < header {
		return m, ModeSelectTruncated, 0
	}
	at, descriptor, want := header, int(list[lengthAt]), modeBlockDescriptorBytes
	if r.Ten {
		descriptor = int(binary.BigEndian.Uint16(list[lengthAt:]))
	}
	long := r.Ten && list[4]&0x01 != 0
	if long {
		want = modeLongDescriptorBytes
	}
	switch {
	case len(list)-at < descriptor:
		return m, ModeSelectTruncated, 0
	case descriptor != 0 && descriptor != want:
		return m, ModeSelectField, lengthAt
	case descriptor != 0:
		if field, ok := checkBlockDescriptor(list[at:], long, r); !ok {
			return m, ModeSelectField, at + field
		}
	}
	for at += descriptor; at < len(list); {
		n, wrong, field := selectPage(list[at:], &m, r.FixedWCE)
		if wrong != ModeSelectOK {
			return m, wrong, at + field
		}
		at += n
	}
	return m, ModeSelectOK, 0
}

// checkBlockDescriptor holds a block descriptor against the unit: it may say what
// is, or leave the number of blocks open by zero or all ones.
func checkBlockDescriptor(b []byte, long bool, r *ModeRequest) (field int, ok bool) {
	blocks, all, blockBytes, at := uint64(binary.BigEndian.Uint32(b)), uint64(1<<32-1), binary.BigEndian.Uint32(b[4:])&(1<<24-1), 5
	if long {
		blocks, all, blockBytes, at = binary.BigEndian.Uint64(b), 1<<64-1, binary.BigEndian.Uint32(b[12:]), 12
	}
	switch {
	case blocks != 0 && blocks != all && blocks != r.Blocks:
		return 0, false
	case blockBytes != r.BlockBytes:
		return at, false
	}
	return 0, true
}

// selectPage reads one page into m and returns its length. PS, which MODE SENSE
// may have set, does not count.
func selectPage(b []byte, m *Mode, fixedWCE bool) (n int, wrong ModeSelectError, field int) {
	if len(b) < 2 {
		return 0, ModeSelectTruncated, 0
	}
	code := ModePage(b[0] & 0x7f)
	var now [ModeSenseMaxBytes]byte
	if code != ModePageCaching && code != ModePageControl {
		return 0, ModeSelectField, 0
	}
	total, _ := PutModeSenseData(now[:], m, &ModeRequest{Page: code})
	page := now[modeHeader6Bytes:total]
	if b[1] != page[1] {
		return 0, ModeSelectField, 1
	}
	if len(b) < len(page) {
		return 0, ModeSelectTruncated, 0
	}
	b = b[:len(page)]
	if code == ModePageCaching && !fixedWCE {
		m.WriteCache = b[2]&modeWCE != 0
		page[2] = page[2]&^modeWCE | flag(m.WriteCache, modeWCE)
	}
	for i := 2; i < len(page); i++ {
		if b[i] != page[i] {
			return 0, ModeSelectField, i
		}
	}
	return len(page), ModeSelectOK, 0
}
