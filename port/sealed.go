package port

import (
	"bytes"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

// A seal is what the verifier keeps of an SRB at its completion, to see whether
// somebody writes to it afterwards (V3). The extension and the scatter/gather
// list are filled with poison then, so that a late reader goes wrong, too.
type seal struct {
	set         bool
	status      Status
	scsiStatus  scsi.Status
	senseBytes  uint8
	dataBytes   uint32
	sglElements int
	rest        uint64 // a hash of the rest of the result
}

const poisonByte = 0xDB

// poisonSegment lies in no mapping: window 0 is never handed out.
var poisonSegment = Segment{Addr: dma.Addr(poisonByte), Bytes: ^uint32(0)}

// poison fills b.
func poison(b []byte) {
	if len(b) == 0 {
		return
	}
	b[0] = poisonByte
	for n := 1; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// poisoned reports whether b is as poison left it.
func poisoned(b []byte) bool {
	return len(b) == 0 || b[0] == poisonByte && bytes.Equal(b[1:], b[:len(b)-1])
}

// sealUp notes what a completion left behind. The verifier is on.
func (s *SRB) sealUp() {
	s.seal = seal{true, s.Status, s.ScsiStatus, s.SenseBytes, s.DataTransferBytes, len(s.SGL), s.restOfResult()}
	poison(s.Extension)
	for i := range s.SGL {
		s.SGL[i] = poisonSegment
	}
}

// resultChanged notes the result that the port gave an SRB without a new attempt;
// the seal on the miniport's memory from an earlier completion stays.
func (s *SRB) resultChanged() {
	s.seal.status, s.seal.scsiStatus, s.seal.senseBytes, s.seal.dataBytes = s.Status, s.ScsiStatus, s.SenseBytes, s.DataTransferBytes
	s.seal.rest = s.restOfResult()
}

// restOfResult is a hash of the result's rarer fields: an SRB has no room for a second
// copy of them.
func (s *SRB) restOfResult() uint64 {
	const prime = 1099511628211 // FNV-1a
	h := uint64(s.ServiceTime)
	for i, flag := range [...]bool{s.Injected, s.CutReply, s.BadCookie} {
		if flag {
			h ^= 1 << (61 + i)
		}
	}
	h = (h*prime ^ uint64(s.ReplyBytes)) * prime
	for _, b := range s.Sense {
		h = (h ^ uint64(b)) * prime
	}
	return h
}

// intact reports what has changed since sealUp in the memory that is the miniport's
// only during an attempt; empty: nothing.
func (s *SRB) intact() string {
	if !s.seal.set {
		return ""
	}
	if !poisoned(s.Extension) {
		return "the extension was written after completion"
	}
	for _, x := range s.sglStore[:s.seal.sglElements] {
		if x != poisonSegment {
			return "the scatter/gather list was written after completion"
		}
	}
	return ""
}

// checkSealed looks at an SRB that completed and has not gone back to its owner.
func (p *Processor) checkSealed(s *SRB) {
	if !s.seal.set {
		return
	}
	if s.Status != s.seal.status || s.ScsiStatus != s.seal.scsiStatus || s.SenseBytes != s.seal.senseBytes || s.DataTransferBytes != s.seal.dataBytes || s.restOfResult() != s.seal.rest {
		p.violate(CheckUseAfterComplete, s, "the SRB was written after completion, which said status "+s.seal.status.String())
	}
	if what := s.intact(); what != "" {
		p.violate(CheckUseAfterComplete, s, what)
		s.seal.set = false // once is enough
	}
}

// unseal looks at an SRB's memory once more before it is used again.
func (p *Processor) unseal(s *SRB) {
	what := s.intact()
	if what != "" {
		p.violate(CheckUseAfterComplete, s, what)
	}
	if what != "" || !s.seal.set {
		poison(s.Extension) // otherwise it still is
	}
	s.seal.set = false
}
