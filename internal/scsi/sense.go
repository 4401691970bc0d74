package scsi

import "encoding/binary"

// Lengths of sense data in bytes.
const (
	FixedSenseBytes         = 18
	DescriptorSenseMaxBytes = 8 + 12 + 8 // header, information, sense key specific
)

// Response codes, byte 0 of sense data; SPC-4 4.5.1.
const (
	responseFixed              = 0x70
	responseFixedDeferred      = 0x71
	responseDescriptor         = 0x72
	responseDescriptorDeferred = 0x73
)

// Sense is the content of sense data of either format.
type Sense struct {
	Key        SenseKey
	Additional Additional
	// Deferred marks an error of an earlier command.
	Deferred bool
	// Information is the first failing LBA of a medium error, or the offset of
	// the first byte that differs of a miscompare in COMPARE AND WRITE.
	Information      uint64
	InformationValid bool
	// Field is the byte of the CDB, or of the parameter list if not FieldInCDB,
	// that an ILLEGAL REQUEST is about.
	Field      uint16
	FieldInCDB bool
	FieldValid bool
}

func putField(dst []byte, s *Sense) {
	dst[0] = 0x80 | flag(s.FieldInCDB, 0x40)
	binary.BigEndian.PutUint16(dst[1:], s.Field)
}

// PutFixedSense writes s in fixed format and returns its length, at most
// FixedSenseBytes. An Information above 32 bits does not fit the format and is
// left out, marked as not valid; SPC-4 4.5.3.
func PutFixedSense(dst []byte, s *Sense) int {
	var b [FixedSenseBytes]byte
	b[0] = responseFixed
	if s.Deferred {
		b[0] = responseFixedDeferred
	}
	if s.InformationValid && s.Information>>32 == 0 {
		b[0] |= 0x80
		binary.BigEndian.PutUint32(b[3:], uint32(s.Information))
	}
	b[2] = uint8(s.Key) & 0xf
	b[7] = FixedSenseBytes - 8
	b[12], b[13] = s.Additional.ASC(), s.Additional.ASCQ()
	if s.FieldValid {
		putField(b[15:], s)
	}
	return copy(dst, b[:])
}

// PutDescriptorSense writes s in descriptor format and returns its length, at
// most DescriptorSenseMaxBytes; SPC-4 4.5.2.
func PutDescriptorSense(dst []byte, s *Sense) int {
	var b [DescriptorSenseMaxBytes]byte
	b[0] = responseDescriptor
	if s.Deferred {
		b[0] = responseDescriptorDeferred
	}
	b[1] = uint8(s.Key) & 0xf
	b[2], b[3] = s.Additional.ASC(), s.Additional.ASCQ()
	n := 8
	if s.InformationValid {
		b[n+1] = 0x0a // descriptor type 00h, information
		b[n+2] = 0x80
		binary.BigEndian.PutUint64(b[n+4:], s.Information)
		n += 12
	}
	if s.FieldValid {
		b[n] = 0x02 // sense key specific
		b[n+1] = 0x06
		putField(b[n+4:], s)
		n += 8
	}
	b[7] = uint8(n - 8)
	return copy(dst, b[:n])
}

// ParseSense reads sense data of either format. Of truncated data it returns what is
// there; it reports false if not even the sense key is.
func ParseSense(b []byte) (s Sense, ok bool) {
	if len(b) == 0 {
		return Sense{}, false
	}
	switch b[0] & 0x7f {
	case responseFixedDeferred:
		s.Deferred = true
		fallthrough
	case responseFixed:
		ok = parseFixed(b, &s)
		return s, ok
	case responseDescriptorDeferred:
		s.Deferred = true
		fallthrough
	case responseDescriptor:
		ok = parseDescriptors(b, &s)
		return s, ok
	}
	return Sense{}, false
}

func parseField(b []byte, s *Sense) {
	if b[0]&0x80 != 0 && s.Key == KeyIllegalRequest {
		s.FieldValid, s.FieldInCDB, s.Field = true, b[0]&0x40 != 0, binary.BigEndian.Uint16(b[1:])
	}
}

func parseFixed(b []byte, s *Sense) bool {
	if len(b) < 3 {
		return false
	}
	s.Key = SenseKey(b[2] & 0xf)
	if len(b) >= 8 {
		if b[0]&0x80 != 0 {
			s.InformationValid, s.Information = true, uint64(binary.BigEndian.Uint32(b[3:]))
		}
		b = b[:min(len(b), 8+int(b[7]))]
	}
	if len(b) >= 14 {
		s.Additional = Additional(binary.BigEndian.Uint16(b[12:]))
	}
	if len(b) >= 18 {
		parseField(b[15:], s)
	}
	return true
}

func parseDescriptors(b []byte, s *Sense) bool {
	if len(b) < 4 {
		return false
	}
	s.Key = SenseKey(b[1] & 0xf)
	s.Additional = Additional(binary.BigEndian.Uint16(b[2:]))
	if len(b) < 8 {
		return true
	}
	rest := b[8:min(len(b), 8+int(b[7]))]
	for len(rest) >= 2 {
		n := 2 + int(rest[1])
		if n > len(rest) {
			break
		}
		switch {
		case rest[0] == 0x00 && n >= 12 && rest[2]&0x80 != 0:
			s.InformationValid, s.Information = true, binary.BigEndian.Uint64(rest[4:])
		case rest[0] == 0x02 && n >= 8:
			parseField(rest[4:], s)
		}
		rest = rest[n:]
	}
	return true
}
