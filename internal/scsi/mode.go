package scsi

import "encoding/binary"

// A ModePage is the code of a mode page.
type ModePage uint8

// Mode pages.
const (
	ModePageCaching ModePage = 0x08 // SBC-3 6.4.5
	ModePageControl ModePage = 0x0a // SPC-4 7.5.8
	ModePageAll     ModePage = 0x3f // every page, in ascending order
)

// A PageControl says which values of mode pages are wanted; SPC-4 table 154.
type PageControl uint8

// Page controls.
const (
	PageControlCurrent    PageControl = 0
	PageControlChangeable PageControl = 1
	PageControlDefault    PageControl = 2
	PageControlSaved      PageControl = 3
)

// Mode is what the MODE SENSE commands of a disk return.
type Mode struct {
	WriteProtected bool
	DPOFUA         bool // READ and WRITE take DPO and FUA

	// From the caching page.
	WriteCache       bool // WCE: a volatile write cache is in use
	ReadCacheDisable bool // RCD
	CachingPage      bool // parsed data had the page; ignored when building

	// From the control page.
	DescriptorSense bool // D_SENSE: sense data come in descriptor format
	ControlPage     bool // parsed data had the page; ignored when building
}

// Lengths of mode parameters in bytes.
const (
	modeHeader6Bytes         = 4
	modeHeader10Bytes        = 8
	modeBlockDescriptorBytes = 8
	modeLongDescriptorBytes  = 16
	modeCachingPageBytes     = 20
	modeControlPageBytes     = 12
	// modeWCE is the bit of byte 2 of the caching page.
	modeWCE = 0x04
	// ModeSenseMaxBytes is the most that PutModeSenseData writes.
	ModeSenseMaxBytes = modeHeader10Bytes + modeLongDescriptorBytes + modeCachingPageBytes + modeControlPageBytes
)

// A ModeRequest selects what PutModeSenseData writes.
type ModeRequest struct {
	Ten     bool // the long header, of MODE SENSE(10)
	Page    ModePage
	Control PageControl // Saved is not supported
	// Descriptor adds a block descriptor, of the long form if LongLBA.
	Descriptor, LongLBA bool
	// Blocks and BlockBytes fill the block descriptor.
	Blocks     uint64
	BlockBytes uint32
	// FixedWCE: WCE cannot be changed.
	FixedWCE bool
}

// PutModeSenseData writes the answer to a MODE SENSE command; SPC-4 7.5.5,
// SBC-3 6.4. It reports false if it has no such page. WCE is the only field that
// may be changed, so it alone is set among the changeable values, or nothing is.
func PutModeSenseData(dst []byte, m *Mode, r *ModeRequest) (n int, ok bool) {
	var b [ModeSenseMaxBytes]byte
	at := modeHeader6Bytes
	if r.Ten {
		at = modeHeader10Bytes
	}
	descriptor := 0
	switch {
	case r.Descriptor && r.LongLBA:
		descriptor = modeLongDescriptorBytes
		binary.BigEndian.PutUint64(b[at:], r.Blocks)
		binary.BigEndian.PutUint32(b[at+12:], r.BlockBytes)
	case r.Descriptor:
		descriptor = modeBlockDescriptorBytes
		binary.BigEndian.PutUint32(b[at:], uint32(min(r.Blocks, 1<<32-1)))
		binary.BigEndian.PutUint32(b[at+4:], r.BlockBytes&(1<<24-1))
	}
	at += descriptor
	pages := at
	values := r.Control != PageControlChangeable
	if r.Page == ModePageCaching || r.Page == ModePageAll {
		p := b[at : at+modeCachingPageBytes]
		p[0], p[1] = uint8(ModePageCaching), modeCachingPageBytes-2
		if values {
			p[2] = flag(m.WriteCache, modeWCE) | flag(m.ReadCacheDisable, 0x01)
		} else {
			p[2] = flag(!r.FixedWCE, modeWCE)
		}
		at += modeCachingPageBytes
	}
	if r.Page == ModePageControl || r.Page == ModePageAll {
		p := b[at : at+modeControlPageBytes]
		p[0], p[1] = uint8(ModePageControl), modeControlPageBytes-2
		if values {
			p[2] = flag(m.DescriptorSense, 0x04)
			p[3] = 0x10 // queue algorithm modifier: commands may be reordered
		}
		at += modeControlPageBytes
	}
	if at == pages {
		return 0, false
	}
	device := flag(m.WriteProtected, 0x80) | flag(m.DPOFUA, 0x10)
	if r.Ten {
		binary.BigEndian.PutUint16(b[0:], uint16(at-2))
		b[3] = device
		b[4] = flag(descriptor == modeLongDescriptorBytes, 0x01)
		binary.BigEndian.PutUint16(b[6:], uint16(descriptor))
	} else {
		b[0], b[2], b[3] = uint8(at-1), device, uint8(descriptor)
	}
	return copy(dst, b[:at]), true
}

// ParseModeSense6Data reads the answer to MODE SENSE(6).
func ParseModeSense6Data(b []byte) (m Mode, ok bool) {
	if len(b) < modeHeader6Bytes {
		return Mode{}, false
	}
	b = b[:min(len(b), 1+int(b[0]))]
	if len(b) < modeHeader6Bytes {
		return Mode{}, false
	}
	return parseMode(b[2], b[modeHeader6Bytes:], int(b[3])), true
}

// ParseModeSense10Data reads the answer to MODE SENSE(10).
func ParseModeSense10Data(b []byte) (m Mode, ok bool) {
	if len(b) < modeHeader10Bytes {
		return Mode{}, false
	}
	b = b[:min(len(b), 2+int(binary.BigEndian.Uint16(b)))]
	if len(b) < modeHeader10Bytes {
		return Mode{}, false
	}
	return parseMode(b[3], b[modeHeader10Bytes:], int(binary.BigEndian.Uint16(b[6:]))), true
}

func parseMode(device uint8, rest []byte, descriptorBytes int) Mode {
	m := Mode{WriteProtected: device&0x80 != 0, DPOFUA: device&0x10 != 0}
	rest = rest[min(descriptorBytes, len(rest)):]
	for len(rest) >= 2 {
		n := 2 + int(rest[1])
		if rest[0]&0x40 != 0 { // sub-page format: a 16-bit length
			if len(rest) < 4 {
				break
			}
			n = 4 + int(binary.BigEndian.Uint16(rest[2:]))
		} else if len(rest) >= 3 {
			switch ModePage(rest[0] & 0x3f) {
			case ModePageCaching:
				m.CachingPage, m.WriteCache, m.ReadCacheDisable = true, rest[2]&0x04 != 0, rest[2]&0x01 != 0
			case ModePageControl:
				m.ControlPage, m.DescriptorSense = true, rest[2]&0x04 != 0
			case ModePageAll: // is no page of its own
			}
		}
		rest = rest[min(n, len(rest)):]
	}
	return m
}
