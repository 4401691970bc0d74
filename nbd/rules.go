package nbd

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

// rules are what a connection's requests are checked against. The negotiation fixes
// them, except for the size, which is the device's current one.
type rules struct {
	sizeBytes       uint64
	alignMask       uint64 // minimum block size minus one
	maxPayloadBytes uint32
	readOnly        bool
	extended        bool
	commands        [cmdBlockStatus + 1]commandRule // by request type
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
	zeroes := fua | cmdFlagNoHole
	if info.CanFastZero {
		zeroes |= cmdFlagFastZero
	}
	r.commands = [cmdBlockStatus + 1]commandRule{
		cmdRead:        {op: OpRead, supported: true, ranged: true, payload: true, flags: fua, beyond: EINVAL},
		cmdWrite:       {op: OpWrite, supported: true, writes: true, ranged: true, payload: true, flags: fua, beyond: ENOSPC},
		cmdDisc:        {op: opUnknown},
		cmdFlush:       {op: OpFlush, supported: info.CanFlush, flags: fua},
		cmdTrim:        {op: OpTrim, supported: info.CanTrim, writes: true, ranged: true, flags: fua, beyond: EINVAL},
		cmdCache:       {op: OpCache, supported: info.CanCache, ranged: true, flags: fua, beyond: EINVAL},
		cmdWriteZeroes: {op: OpWriteZeroes, supported: info.CanWriteZeroes, writes: true, ranged: true, flags: zeroes, beyond: ENOSPC},
		cmdBlockStatus: {op: OpBlockStatus, ranged: true, flags: fua | cmdFlagReqOne, beyond: EINVAL},
	}
	return r
}

// agree adds what the client has agreed on.
//
// Source: proto.md, "Command flags"; the extension branch's
// NBD_CMD_FLAG_PAYLOAD_LEN.
func (r *rules) agree(a *agreement) {
	r.extended = a.extended
	if a.structured || a.extended {
		r.commands[cmdRead].flags |= cmdFlagDF
	}
	if a.extended {
		r.commands[cmdWrite].flags |= cmdFlagPayloadLen
	}
	r.commands[cmdBlockStatus].supported = a.allocation
}

// payload returns how many bytes of payload follow h. A WRITE always has a payload: a
// client that forgets the flag for it in an extended header is tolerated, as it cannot
// mean anything else.
func (r *rules) payload(h *requestHeader) uint64 {
	if h.typ == cmdWrite || r.extended && h.flags&cmdFlagPayloadLen != 0 {
		return h.length
	}
	return 0
}

// statusFilter says whether h is a BLOCK_STATUS that chooses among the meta
// contexts by a payload.
func (r *rules) statusFilter(h *requestHeader) bool {
	return h.typ == cmdBlockStatus && r.extended && h.flags&cmdFlagPayloadLen != 0 &&
		r.commands[cmdBlockStatus].supported
}

// check returns h's operation, or opUnknown, and the error to answer with and its
// cause, or OK if the request may go to the device.
func (r *rules) check(h *requestHeader) (Op, Errno, cause) {
	if int(h.typ) >= len(r.commands) {
		return opUnknown, EINVAL, causeCommand
	}
	rule := &r.commands[h.typ]
	if rule.writes && r.readOnly {
		return rule.op, EPERM, causeReadOnly // also for what would not be supported otherwise
	}
	if !rule.supported {
		return rule.op, EINVAL, causeCommand
	}
	if wrong := h.flags &^ rule.flags; wrong != 0 {
		switch {
		case wrong != cmdFlagPayloadLen || !r.extended:
			return rule.op, EINVAL, causeFlags
		case h.typ == cmdBlockStatus:
			return rule.op, EINVAL, causeContexts
		}
		return rule.op, EINVAL, causeUnexpectedPayload
	}
	if !rule.ranged {
		return rule.op, OK, causeDevice // reserved offset and length are ignored, as most servers do
	}
	if rule.payload && h.length > uint64(r.maxPayloadBytes) {
		if h.flags&cmdFlagDF != 0 {
			return rule.op, EOVERFLOW, causeUnfragmented
		}
		return rule.op, EINVAL, causePayload
	}
	// Written so that offset plus length cannot overflow.
	if h.offset > r.sizeBytes || h.length > r.sizeBytes-h.offset {
		return rule.op, rule.beyond, causeBeyondEnd
	}
	if (h.offset|h.length)&r.alignMask != 0 {
		return rule.op, EINVAL, causeAlignment
	}
	if h.length == 0 && h.typ == cmdBlockStatus {
		return rule.op, EINVAL, causeEmpty
	}
	return rule.op, OK, causeDevice
}

// flags returns the transmission flags that advertise info to a client that has
// agreed on agreed.
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

// normalize fills in block sizes that the device left at zero, and bounds the payload
// by the server's limit. The payload stays a multiple of the minimum block, at least
// one, and the preferred block is made no larger than it.
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
	blocks := max(info.MaxPayloadBytes/info.MinBlockBytes, 1)
	info.MaxPayloadBytes = blocks * info.MinBlockBytes
	for info.PreferredBlockBytes > info.MaxPayloadBytes {
		info.PreferredBlockBytes /= 2
	}
	return info
}
