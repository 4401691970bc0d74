package scsi

import "encoding/binary"

// ReportLUNsHeaderBytes and LUNBytes are the lengths of the header and of each
// entry of REPORT LUNS data.
const (
	ReportLUNsHeaderBytes = 8
	LUNBytes              = 8
)

// PutReportLUNsHeader writes the header of a list of luns entries; SPC-4 6.33.
func PutReportLUNsHeader(dst []byte, luns int) int {
	var b [ReportLUNsHeaderBytes]byte
	binary.BigEndian.PutUint32(b[:], uint32(luns*LUNBytes))
	return copy(dst, b[:])
}

// PutLUN writes the address of logical unit lun by peripheral device
// addressing; SAM-5 4.7.7.2.
func PutLUN(dst []byte, lun uint8) int {
	return copy(dst, []byte{0, lun, 0, 0, 0, 0, 0, 0})
}

// ParseReportLUNs sets the bit of each logical unit in REPORT LUNS data and
// returns their number. Addresses of other forms, or above 255, are passed over.
func ParseReportLUNs(b []byte, luns *[256]bool) (n int, ok bool) {
	*luns = [256]bool{}
	if len(b) < ReportLUNsHeaderBytes {
		return 0, false
	}
	listBytes := int(binary.BigEndian.Uint32(b))
	list := b[ReportLUNsHeaderBytes:]
	list = list[:min(len(list), listBytes)]
	for ; len(list) >= LUNBytes; list = list[LUNBytes:] {
		if list[0] != 0 || [6]byte(list[2:8]) != [6]byte{} || luns[list[1]] {
			continue
		}
		luns[list[1]] = true
		n++
	}
	return n, true
}
