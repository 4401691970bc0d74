package trace

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vhbad/vhbad/hba/cache"
)

// Version is what this package writes and reads.
const Version = 1

const (
	magic           = "VHBADTRC"
	fixedBytes      = 52 // of the header before the name
	sumBytes        = 4
	recordHeadBytes = 16
	rangeBytes      = 24 // id, offset, length
	cutBytes        = 16
	maxNameBytes    = 255
	// MaxTextBytes is the longest text of a record.
	MaxTextBytes = 1024
	// MaxBodyBytes is the longest body of a record. Longer writes are not recorded.
	MaxBodyBytes = 128 << 20
)

// Flags of records.
const (
	flagFUA = 1 << iota
	flagLie
	flagFailed
	flagsKnown = flagFUA | flagLie | flagFailed
)

// kindEnd is the last record's. No cache takes that step.
const kindEnd = cache.StepKind(15)

// End has to be the kind after the last step's.
var _ = [1]struct{}{}[int(kindEnd)-cache.StepKinds]

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Header says what was recorded.
type Header struct {
	Disk        string
	SectorBytes int
	// DiskBytes is the size of the disk, CacheBytes that of its cache.
	DiskBytes, CacheBytes int64
	Eviction              cache.Eviction
	CacheSeed             uint64
	// Start is when the recording began.
	Start time.Time
}

// appendTo appends the header, and returns its sum.
func (h *Header) appendTo(b []byte) (out []byte, sum uint32) {
	from := len(b)
	le := binary.LittleEndian
	b = append(b, magic...)
	b = le.AppendUint16(b, Version)
	b = le.AppendUint16(b, uint16(fixedBytes+len(h.Disk)+sumBytes))
	b = le.AppendUint32(b, uint32(h.SectorBytes))
	b = le.AppendUint64(b, uint64(h.DiskBytes))
	b = le.AppendUint64(b, uint64(h.CacheBytes))
	b = le.AppendUint64(b, uint64(h.Start.UnixNano()))
	b = le.AppendUint64(b, h.CacheSeed)
	b = append(b, byte(h.Eviction), byte(len(h.Disk)), 0, 0)
	b = append(b, h.Disk...)
	sum = crc32.Update(0, castagnoli, b[from:])
	return le.AppendUint32(b, sum), sum
}

// parseHeader parses a whole header. Its length has been checked.
func parseHeader(b []byte) (h Header, sum uint32, err error) {
	le := binary.LittleEndian
	body := b[:len(b)-sumBytes]
	if sum = le.Uint32(b[len(body):]); sum != crc32.Update(0, castagnoli, body) {
		return h, 0, fmt.Errorf("the sum does not fit")
	}
	h = Header{
		SectorBytes: int(le.Uint32(b[12:])), DiskBytes: int64(le.Uint64(b[16:])), CacheBytes: int64(le.Uint64(b[24:])),
		Start: time.Unix(0, int64(le.Uint64(b[32:]))), CacheSeed: le.Uint64(b[40:]), Disk: string(body[fixedBytes:]),
	}
	if int(b[49]) != len(h.Disk) || b[50] != 0 || b[51] != 0 || !utf8.ValidString(h.Disk) {
		return h, 0, fmt.Errorf("the disk's name is not one")
	}
	if b[48] > byte(cache.EvictNone) {
		return h, 0, fmt.Errorf("cache-eviction %d is not known", b[48])
	}
	h.Eviction = cache.Eviction(b[48])
	return h, sum, h.check()
}

// check reports why no disk has such a header.
func (h *Header) check() error {
	sector := int64(h.SectorBytes)
	switch {
	case sector != 512 && sector != 4096:
		return fmt.Errorf("sectors of %d bytes: want 512 or 4096", sector)
	case h.DiskBytes < sector || h.DiskBytes%sector != 0:
		return fmt.Errorf("a disk of %d bytes: want a positive multiple of %d", h.DiskBytes, sector)
	case h.CacheBytes < cache.MinSizeBytes || h.CacheBytes > cache.MaxSizeBytes || h.CacheBytes%sector != 0:
		return fmt.Errorf("a cache of %d bytes: want a multiple of %d from %d to %d", h.CacheBytes, sector, cache.MinSizeBytes, int64(cache.MaxSizeBytes))
	case len(h.Disk) > maxNameBytes:
		return fmt.Errorf("a name of %d bytes: want at most %d", len(h.Disk), maxNameBytes)
	}
	return nil
}

// recordBytes is the length of the record of s.
func recordBytes(s *cache.Step) int {
	n := recordHeadBytes + rangeBytes + sumBytes + len(s.Data)
	if len(s.Text) > 0 {
		n += min(len(s.Text), MaxTextBytes)
	}
	return n
}

// appendRecord appends the record of s, whose body is not too long, and returns the
// new sum.
func appendRecord(b []byte, s *cache.Step, at time.Duration, sum uint32) (out []byte, newSum uint32) {
	from := len(b)
	le := binary.LittleEndian
	flags := byte(0)
	for i, on := range [...]bool{s.FUA, s.Lie, s.Failed} {
		if on {
			flags |= 1 << i
		}
	}
	b = append(b, 0, 0, 0, 0, byte(s.Kind), flags, byte(s.Op), 0)
	b = le.AppendUint64(b, uint64(max(at, 0)))
	switch s.Kind {
	case cache.StepWrite, cache.StepThrough, cache.StepDurable:
		b = le.AppendUint64(b, s.Write)
		b = le.AppendUint64(b, uint64(s.OffsetBytes))
		b = le.AppendUint64(b, uint64(s.LengthBytes))
		b = append(b, s.Data...)
	case cache.StepUnsure, cache.StepLie:
		b = le.AppendUint64(b, uint64(s.OffsetBytes))
		b = le.AppendUint64(b, uint64(s.LengthBytes))
	case cache.StepAnswer, cache.StepFlush, cache.StepLeave:
		b = le.AppendUint64(b, s.Write)
	case cache.StepFlushed:
		b = le.AppendUint64(b, s.Write)
		b = le.AppendUint64(b, uint64(s.Covered))
	case cache.StepCut:
		b = le.AppendUint64(b, s.Cut.Seed)
		b = le.AppendUint32(b, uint32(s.Cut.TearBytes))
		b = append(b, byte(s.Cut.Policy), byte(s.Cut.Damage))
		b = le.AppendUint16(b, uint16(min(s.Cut.LoseFlushed, math.MaxUint16)))
	case cache.StepImage:
		if s.Failed {
			b = append(b, text(s.Text)...)
			break
		}
		b = append(b, make([]byte, 32)...)
		_, _ = hex.Decode(b[len(b)-32:], []byte(s.Text)) // it is of our own making
	case cache.StepResize:
		b = le.AppendUint64(b, uint64(s.LengthBytes))
	case cache.StepMark, cache.StepBroke, kindEnd:
		b = append(b, text(s.Text)...)
	}
	le.PutUint32(b[from:], uint32(len(b)-from-recordHeadBytes))
	sum = crc32.Update(sum, castagnoli, b[from:])
	return le.AppendUint32(b, sum), sum
}

// text returns s, shortened to the room that a record has for it.
func text(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd") // errors name files, which need not be
	if len(s) <= MaxTextBytes {
		return s
	}
	s = s[:MaxTextBytes]
	for !utf8.ValidString(s) && len(s) > MaxTextBytes-utf8.UTFMax {
		s = s[:len(s)-1]
	}
	return s
}

// A parser takes a body apart.
type parser struct {
	b   []byte
	bad bool
}

func (p *parser) take(n int) []byte {
	if len(p.b) < n {
		p.bad = true
		return make([]byte, n)
	}
	out := p.b[:n]
	p.b = p.b[n:]
	return out
}

func (p *parser) number() uint64 { return binary.LittleEndian.Uint64(p.take(8)) }

// length is a number that counts bytes.
func (p *parser) length() int64 {
	n := p.number()
	if n > 1<<62 {
		p.bad = true
		return 0
	}
	return int64(n)
}

func (p *parser) text() string {
	s := string(p.b)
	p.b = nil
	if len(s) > MaxTextBytes || !utf8.ValidString(s) {
		p.bad = true
		return ""
	}
	return s
}

// parseRecord parses the step of a record whose sum is right. Its data refer to b.
func parseRecord(head, b []byte) (s cache.Step, err error) {
	kind, flags, op := head[4], head[5], head[6]
	if kind == 0 || kind > byte(kindEnd) {
		return s, fmt.Errorf("kind %d is not known", kind)
	}
	if flags&^flagsKnown != 0 || op > byte(cache.KindAllocate) || head[7] != 0 {
		return s, fmt.Errorf("flags %#x, op %d and %d are not known", flags, op, head[7])
	}
	s = cache.Step{
		Kind: cache.StepKind(kind), Op: cache.Kind(op),
		FUA: flags&flagFUA != 0, Lie: flags&flagLie != 0, Failed: flags&flagFailed != 0,
	}
	p := &parser{b: b}
	switch s.Kind {
	case cache.StepWrite, cache.StepThrough, cache.StepDurable:
		s.Write, s.OffsetBytes, s.LengthBytes = p.number(), p.length(), p.length()
		if s.Kind != cache.StepDurable && s.Op == cache.KindWrite {
			p.bad = p.bad || int64(len(p.b)) != s.LengthBytes
			s.Data, p.b = p.b, nil
		}
	case cache.StepUnsure, cache.StepLie:
		s.OffsetBytes, s.LengthBytes = p.length(), p.length()
	case cache.StepAnswer, cache.StepFlush, cache.StepLeave:
		s.Write = p.number()
	case cache.StepFlushed:
		s.Write, s.Covered = p.number(), int(p.length())
	case cache.StepCut:
		s.Cut.Seed = p.number()
		b := p.take(8)
		s.Cut.TearBytes = int(binary.LittleEndian.Uint32(b))
		s.Cut.Policy, s.Cut.Damage = cache.Policy(b[4]), cache.Damage(b[5])
		s.Cut.LoseFlushed = int(binary.LittleEndian.Uint16(b[6:]))
		if err := s.Cut.Check(); err != nil {
			return s, err
		}
	case cache.StepImage:
		if s.Failed {
			s.Text = p.text()
			break
		}
		s.Text = hex.EncodeToString(p.take(32))
	case cache.StepResize:
		s.LengthBytes = p.length()
	case cache.StepMark, cache.StepBroke, kindEnd:
		s.Text = p.text()
	}
	if p.bad || len(p.b) != 0 {
		return s, fmt.Errorf("a body of %d bytes is not that of kind %d", len(b), kind)
	}
	return s, nil
}
