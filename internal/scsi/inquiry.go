package scsi

import (
	"bytes"
	"encoding/binary"
)

// StandardInquiryBytes is the length of the standard data that we build.
const StandardInquiryBytes = 96

// Peripheral qualifier and device type, byte 0 of INQUIRY data; SPC-4 6.6.2.
const (
	PeripheralDisk   = 0x00 // connected, direct access block device
	PeripheralAbsent = 0x7f // qualifier 011b: no unit can be at this address; type unknown
)

// Version descriptors; SPC-4 table D.13 and following.
const (
	versionSAM5 = 0x00a0
	versionSPC4 = 0x0460
	versionSBC3 = 0x04c0
)

// Inquiry is the standard INQUIRY data. Texts are ASCII, padded with spaces or
// cut to 8, 16 and 4 bytes.
type Inquiry struct {
	Peripheral uint8 // qualifier and device type
	Vendor     string
	Product    string
	Revision   string
	// CommandQueuing is the CMDQUE bit: the unit takes tagged commands.
	CommandQueuing bool
}

// Present reports whether a logical unit is connected at the address.
func (q *Inquiry) Present() bool { return q.Peripheral&0xe0 == 0 }

// Disk reports whether a direct access block device is connected.
func (q *Inquiry) Disk() bool { return q.Peripheral == PeripheralDisk }

// putText writes s, padded with spaces, into dst; other bytes than printable
// ASCII become question marks.
func putText(dst []byte, s string) {
	for i := range dst {
		c := byte(' ')
		if i < len(s) {
			c = s[i]
			if c < 0x20 || c > 0x7e {
				c = '?'
			}
		}
		dst[i] = c
	}
}

func text(b []byte) string { return string(bytes.TrimRight(b, " \x00")) }

// PutInquiryData writes standard INQUIRY data; SPC-4 6.6.2.
func PutInquiryData(dst []byte, q *Inquiry) int {
	var b [StandardInquiryBytes]byte
	b[0] = q.Peripheral
	b[2] = 0x06        // SPC-4
	b[3] = 0x10 | 0x02 // HISUP, response data format
	b[4] = StandardInquiryBytes - 5
	b[7] = flag(q.CommandQueuing, 0x02)
	putText(b[8:16], q.Vendor)
	putText(b[16:32], q.Product)
	putText(b[32:36], q.Revision)
	binary.BigEndian.PutUint16(b[58:], versionSAM5)
	binary.BigEndian.PutUint16(b[60:], versionSPC4)
	binary.BigEndian.PutUint16(b[62:], versionSBC3)
	return copy(dst, b[:])
}

// ParseInquiryData reads standard INQUIRY data of at least 36 bytes.
func ParseInquiryData(b []byte) (q Inquiry, ok bool) {
	if len(b) < 36 {
		return Inquiry{}, false
	}
	return Inquiry{
		Peripheral: b[0], CommandQueuing: b[7]&0x02 != 0,
		Vendor: text(b[8:16]), Product: text(b[16:32]), Revision: text(b[32:36]),
	}, true
}

// A VPDPage is the code of a page of vital product data.
type VPDPage uint8

// Pages of vital product data.
const (
	VPDSupportedPages           VPDPage = 0x00 // SPC-4 7.8.17
	VPDUnitSerialNumber         VPDPage = 0x80 // SPC-4 7.8.18
	VPDDeviceIdentification     VPDPage = 0x83 // SPC-4 7.8.6
	VPDBlockLimits              VPDPage = 0xb0 // SBC-3 6.5.3
	VPDBlockCharacteristics     VPDPage = 0xb1 // SBC-3 6.5.2
	VPDLogicalBlockProvisioning VPDPage = 0xb2 // SBC-3 6.5.4
)

// Lengths within pages of vital product data, in bytes.
const (
	vpdHeaderBytes               = 4
	vpdMaxListBytes              = 255
	vpdSerialMaxBytes            = 32
	vpdIdentificationVendorBytes = 8
)

func putVPDHeader(b []byte, page VPDPage, bodyBytes int) {
	b[0], b[1] = PeripheralDisk, uint8(page)
	binary.BigEndian.PutUint16(b[2:], uint16(bodyBytes))
}

// vpdBody is the body of page in b, as much of it as is there.
func vpdBody(b []byte, page VPDPage) ([]byte, bool) {
	if len(b) < vpdHeaderBytes || VPDPage(b[1]) != page {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	return b[vpdHeaderBytes:min(len(b), vpdHeaderBytes+n)], true
}

// PutVPDSupportedPages writes the list of pages, which must be ascending.
func PutVPDSupportedPages(dst []byte, pages []VPDPage) int {
	var b [vpdHeaderBytes + vpdMaxListBytes]byte
	n := 0
	for ; n < min(len(pages), vpdMaxListBytes); n++ {
		b[vpdHeaderBytes+n] = uint8(pages[n])
	}
	putVPDHeader(b[:], VPDSupportedPages, n)
	return copy(dst, b[:vpdHeaderBytes+n])
}

// VPDSupports reports whether page is in b, a page of supported pages.
func VPDSupports(b []byte, page VPDPage) bool {
	body, ok := vpdBody(b, VPDSupportedPages)
	return ok && bytes.IndexByte(body, uint8(page)) >= 0
}

// PutVPDSerial writes the unit serial number page; serial is cut to 32 bytes.
func PutVPDSerial(dst []byte, serial string) int {
	var b [vpdHeaderBytes + vpdSerialMaxBytes]byte
	n := min(len(serial), vpdSerialMaxBytes)
	putText(b[vpdHeaderBytes:vpdHeaderBytes+n], serial)
	putVPDHeader(b[:], VPDUnitSerialNumber, n)
	return copy(dst, b[:vpdHeaderBytes+n])
}

// ParseVPDSerial reads the unit serial number page.
func ParseVPDSerial(b []byte) (serial string, ok bool) {
	body, ok := vpdBody(b, VPDUnitSerialNumber)
	if !ok {
		return "", false
	}
	return text(body), true
}

// Identification is the device identification page: how hosts tell units apart.
type Identification struct {
	Vendor string // of the T10 vendor ID designator, 8 bytes
	Unique string // of the same: unique for the vendor, cut to 48 bytes
	// NAA is a locally assigned name: 3h in the top four bits, the rest from the
	// unit's serial number.
	NAA uint64
}

const identificationUniqueMaxBytes = 48

// PutVPDIdentification writes the device identification page with a T10 vendor
// ID designator and an NAA designator; SPC-4 7.8.6.4, 7.8.6.6.
func PutVPDIdentification(dst []byte, id *Identification) int {
	var b [vpdHeaderBytes + 4 + 8 + 4 + vpdIdentificationVendorBytes + identificationUniqueMaxBytes]byte
	p := b[vpdHeaderBytes:]
	p[0], p[1], p[3] = 0x01, 0x03, 8 // binary, logical unit, NAA
	binary.BigEndian.PutUint64(p[4:], id.NAA)
	p = p[12:]
	unique := min(len(id.Unique), identificationUniqueMaxBytes)
	p[0], p[1] = 0x02, 0x01 // ASCII, logical unit, T10 vendor ID
	p[3] = uint8(vpdIdentificationVendorBytes + unique)
	putText(p[4:4+vpdIdentificationVendorBytes], id.Vendor)
	putText(p[4+vpdIdentificationVendorBytes:4+vpdIdentificationVendorBytes+unique], id.Unique)
	body := 12 + 4 + vpdIdentificationVendorBytes + unique
	putVPDHeader(b[:], VPDDeviceIdentification, body)
	return copy(dst, b[:vpdHeaderBytes+body])
}

// ParseVPDIdentification reads the designators of the logical unit that it
// knows from a device identification page.
func ParseVPDIdentification(b []byte) (id Identification, ok bool) {
	body, ok := vpdBody(b, VPDDeviceIdentification)
	if !ok {
		return Identification{}, false
	}
	for len(body) >= 4 {
		n := 4 + int(body[3])
		if n > len(body) {
			break
		}
		d := body[4:n]
		switch {
		case body[1]&0x3f == 0x03 && len(d) == 8:
			id.NAA = binary.BigEndian.Uint64(d)
		case body[1]&0x3f == 0x01 && len(d) >= vpdIdentificationVendorBytes:
			id.Vendor = text(d[:vpdIdentificationVendorBytes])
			id.Unique = text(d[vpdIdentificationVendorBytes:])
		}
		body = body[n:]
	}
	return id, true
}
