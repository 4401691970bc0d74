package nbd

import "encoding/binary"

const (
	// minStatusExtents is what a BLOCK_STATUS has room for at first. The room
	// grows by statusGrowth whenever it was too little, to maxStatusExtents, which
	// is the protocol's limit, and shrinks by as much when a reply has left all but
	// the statusAmple-th part of it empty. Ranges too short for all of it do not count.
	minStatusExtents = 512
	maxStatusExtents = 1 << 20
	statusGrowth     = 4
	statusAmple      = 16
	// statusGrainBytes is the shortest extent that room is reserved for. A device
	// may have shorter ones: then the reply ends early, and the client asks again.
	statusGrainBytes = 512

	// statusPayloadBytes is the only payload of BLOCK_STATUS that can make sense:
	// the length of the range and one context, as there is only one.
	statusPayloadBytes = 8 + 4
)

// decodeStatusPayload reads which context a BLOCK_STATUS asks for, and puts the true
// length of its range into h. It returns false if there is no such context.
//
// Source: the extension branch's "NBD_CMD_BLOCK_STATUS".
func decodeStatusPayload(b []byte, h *requestHeader) (ok bool) {
	_ = b[statusPayloadBytes-1]
	h.length = binary.BigEndian.Uint64(b[0:])
	h.flags &^= cmdFlagPayloadLen
	return binary.BigEndian.Uint32(b[8:]) == allocationID
}

// How well the room of a BLOCK_STATUS fitted.
const (
	statusRoomFits   = iota
	statusRoomLittle // there were more extents
	statusRoomMuch   // there were hardly any
)

// judgeStatusRoom is called when the extents of a BLOCK_STATUS are complete.
func (r *Request) judgeStatusRoom() {
	entry := extentBytes
	if r.wide {
		entry = extentExtBytes
	}
	if !r.short && len(r.Data) > minStatusExtents*entry && r.count*entry < len(r.Data)/statusAmple {
		r.conn.statusRoom.Store(statusRoomMuch)
	}
}

// carveStatus gives a BLOCK_STATUS room for its extents: little at first, and when there
// is little memory. If there is none it returns false, and wantBytes says how much is
// wanted.
func (c *Conn) carveStatus(r *Request) bool {
	switch c.statusRoom.Swap(statusRoomFits) {
	case statusRoomLittle:
		c.statusExtents = min(statusGrowth*c.statusExtents, maxStatusExtents)
	case statusRoomMuch:
		c.statusExtents = max(c.statusExtents/statusGrowth, minStatusExtents)
	}
	entry := c.format.extentBytes()
	fits := r.LengthBytes/statusGrainBytes + 1
	r.extents = extents{wide: entry == extentExtBytes, short: fits < uint64(c.statusExtents)}
	n := 1
	if !r.OneExtent {
		n = int(min(uint64(c.statusExtents), fits))
	}
	n = min(n, c.limits.MaxPayloadBytes/entry)
	if c.carve(r, n*entry) {
		return true
	}
	if n <= minStatusExtents {
		return false
	}
	c.statusExtents = minStatusExtents
	return c.carve(r, minStatusExtents*entry)
}
