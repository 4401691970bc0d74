package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// decodeRequest reads a compact request header from b[:requestBytes].
//
// Source: proto.md, "Request message".
func decodeRequest(b []byte) protocol.TransmissionRequestHeader {
	_ = b[requestBytes-1]
	return protocol.TransmissionRequestHeader{
		RequestMagic: binary.BigEndian.Uint32(b[0:]),
		CommandFlags: binary.BigEndian.Uint16(b[4:]),
		Type:         binary.BigEndian.Uint16(b[6:]),
		Handle:       binary.BigEndian.Uint64(b[8:]),
		Offset:       binary.BigEndian.Uint64(b[16:]),
		Length:       binary.BigEndian.Uint32(b[24:]),
	}
}

// opUnknown stands for a command that no Device sees. It is a valid index of
// the tables of statistics only.
const opUnknown = OpCount

// commandRule is what one request type allows.
type commandRule struct {
	op        Op
	supported bool
	writes    bool   // EPERM on a read-only export
	ranged    bool   // offset and length count
	payload   bool   // length is of a payload, sent or returned
	flags     uint16 // command flags allowed
	beyond    Errno  // error for a range beyond the end
}

// rules are what a connection's requests are checked against. They are fixed by
// the negotiation.
type rules struct {
	sizeBytes       uint64
	alignMask       uint64 // minimum block size minus one
	maxPayloadBytes uint32
	readOnly        bool
	commands        [cmdWriteZeroes + 1]commandRule // by request type
}

// newRules derives the rules from what was advertised. A command or flag that
// was not advertised is an error.
//
// Source: proto.md, "Transmission flags", "Request types", "Command flags".
func newRules(info *Info, maxPayloadBytes uint32) rules {
	var fua uint16
	if info.CanFUA {
		fua = cmdFlagFUA // then valid on every command
	}
	r := rules{
		sizeBytes:       info.SizeBytes,
		maxPayloadBytes: maxPayloadBytes,
		readOnly:        info.ReadOnly,
	}
	if info.MinBlockBytes > 1 {
		r.alignMask = uint64(info.MinBlockBytes) - 1
	}
	r.commands = [cmdWriteZeroes + 1]commandRule{
		cmdRead:        {op: OpRead, supported: true, ranged: true, payload: true, flags: fua, beyond: EINVAL},
		cmdWrite:       {op: OpWrite, supported: true, writes: true, ranged: true, payload: true, flags: fua, beyond: ENOSPC},
		cmdDisc:        {op: opUnknown},
		cmdFlush:       {op: OpFlush, supported: info.CanFlush, flags: fua},
		cmdTrim:        {op: OpTrim, supported: info.CanTrim, writes: true, ranged: true, flags: fua, beyond: EINVAL},
		cmdCache:       {op: OpCache, supported: info.CanCache, ranged: true, flags: fua, beyond: EINVAL},
		cmdWriteZeroes: {op: OpWriteZeroes, supported: info.CanWriteZeroes, writes: true, ranged: true, flags: fua | cmdFlagNoHole, beyond: ENOSPC},
	}
	return r
}

// check returns h's operation, opUnknown if there is none, and the error to
// answer with, OK if the request may go to the device.
func (r *rules) check(h *protocol.TransmissionRequestHeader) (Op, Errno) {
	if int(h.Type) >= len(r.commands) {
		return opUnknown, EINVAL
	}
	rule := &r.commands[h.Type]
	if rule.writes && r.readOnly {
		return rule.op, EPERM // also for what would not be supported otherwise
	}
	if !rule.supported || h.CommandFlags&^rule.flags != 0 {
		return rule.op, EINVAL
	}
	if !rule.ranged {
		return rule.op, OK // reserved offset and length are ignored, as most servers do
	}
	if rule.payload && h.Length > r.maxPayloadBytes {
		return rule.op, EINVAL
	}
	// Written so that offset plus length cannot overflow.
	if h.Offset > r.sizeBytes || uint64(h.Length) > r.sizeBytes-h.Offset {
		return rule.op, rule.beyond
	}
	if (h.Offset|uint64(h.Length))&r.alignMask != 0 {
		return rule.op, EINVAL
	}
	return rule.op, OK
}

// flags returns the transmission flags that advertise info to a client with
// which agreed is settled.
func (info *Info) flags(agreed agreement) uint16 {
	f := transmitHasFlags
	for _, b := range []struct {
		set  bool
		flag uint16
	}{
		{info.ReadOnly, transmitReadOnly},
		{info.CanFlush, transmitFlush},
		{info.CanFUA, transmitFUA},
		{info.Rotational, transmitRotational},
		{info.CanTrim, transmitTrim},
		{info.CanWriteZeroes, transmitWriteZeroes},
		{info.CanMultiConn, transmitCanMultiConn},
		{agreed.structured, transmitDF},
		{info.CanCache, transmitCache},
		{info.CanWriteZeroes && info.CanFastZero, transmitFastZero},
		{agreed.extended, transmitStatusPayload},
	} {
		if b.set {
			f |= b.flag
		}
	}
	return f
}

// normalize fills in block sizes that the device left at zero and bounds the
// payload by the server's limit.
//
// Source: proto.md, "Block size constraints".
func (info Info) normalize(maxPayloadBytes int) Info {
	if info.MinBlockBytes == 0 {
		info.MinBlockBytes = 1
	}
	if info.PreferredBlockBytes == 0 {
		info.PreferredBlockBytes = max(4096, info.MinBlockBytes)
	}
	if limit := uint32(maxPayloadBytes); info.MaxPayloadBytes == 0 || info.MaxPayloadBytes > limit {
		info.MaxPayloadBytes = limit
	}
	return info
}
