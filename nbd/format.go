package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// A format is how requests and replies look on the wire. It follows from the
// agreement and is fixed when transmission begins.
type format uint8

const (
	// formatSimple has compact requests and simple replies.
	formatSimple format = iota
	// formatStructured has compact requests. Replies that carry anything but
	// success are chunks; others stay simple, which the protocol allows.
	formatStructured
	// formatExtended has extended requests, and chunks with extended headers for
	// every reply.
	formatExtended
)

// format returns the format agreed on.
func (a *agreement) format() format {
	switch {
	case a.extended:
		return formatExtended
	case a.structured:
		return formatStructured
	}
	return formatSimple
}

// Sizes on the wire, in bytes.
const (
	extendedRequestBytes  = 4 + 2 + 2 + 8 + 8 + 8
	structuredHeaderBytes = 4 + 2 + 2 + 8 + 4
	extendedHeaderBytes   = 4 + 2 + 2 + 8 + 8 + 8
)

// requestBytes is the size of a request header.
func (f format) requestBytes() int {
	if f == formatExtended {
		return extendedRequestBytes
	}
	return requestBytes
}

// chunkBytes is the size of a chunk header.
func (f format) chunkBytes() int {
	if f == formatExtended {
		return extendedHeaderBytes
	}
	return structuredHeaderBytes
}

// dataBytes is the size of what precedes the data of a read: the room that is reserved
// in a reply block. It suffices before the extents of BLOCK_STATUS, too.
func (f format) dataBytes() int {
	switch f {
	case formatStructured:
		return structuredHeaderBytes + 8 // offset
	case formatExtended:
		return extendedHeaderBytes + 8
	case formatSimple:
	}
	return simpleReplyBytes
}

// extentBytes is the size of one extent of BLOCK_STATUS.
func (f format) extentBytes() int {
	if f == formatExtended {
		return extentExtBytes
	}
	return extentBytes
}

// A requestHeader is a request header of either size.
type requestHeader struct {
	flags, typ uint16
	cookie     uint64
	offset     uint64
	length     uint64
}

// decodeRequest reads h from b, which holds at least requestBytes of f. It returns
// false if b begins with something else.
//
// Source: proto.md, "Request message"; the extension branch's "Extended request
// message".
func (f format) decodeRequest(b []byte, h *requestHeader) (ok bool) {
	_ = b[requestBytes-1]
	h.flags = binary.BigEndian.Uint16(b[4:])
	h.typ = binary.BigEndian.Uint16(b[6:])
	h.cookie = binary.BigEndian.Uint64(b[8:])
	h.offset = binary.BigEndian.Uint64(b[16:])
	magic := binary.BigEndian.Uint32(b[0:])
	if f == formatExtended {
		h.length = binary.BigEndian.Uint64(b[24:])
		return magic == magicExtendedRequest
	}
	h.length = uint64(binary.BigEndian.Uint32(b[24:]))
	return magic == protocol.TRANSMISSION_MAGIC_REQUEST
}

// putSimple writes a simple reply header to b.
//
// Source: proto.md, "Simple reply message".
func putSimple(b []byte, r *Request) {
	_ = b[simpleReplyBytes-1]
	binary.BigEndian.PutUint32(b[0:], protocol.TRANSMISSION_MAGIC_REPLY)
	binary.BigEndian.PutUint32(b[4:], uint32(r.errno))
	binary.BigEndian.PutUint64(b[8:], r.cookie)
}

// putChunk writes a chunk header to b and returns the rest of b, where
// payloadBytes follow.
//
// Source: proto.md, "Structured reply chunk message"; the extension branch's
// "Extended reply chunk message".
func (f format) putChunk(b []byte, r *Request, flags, typ uint16, payloadBytes int) []byte {
	_ = b[structuredHeaderBytes-1]
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], typ)
	binary.BigEndian.PutUint64(b[8:], r.cookie)
	if f == formatExtended {
		binary.BigEndian.PutUint32(b[0:], magicExtendedReply)
		binary.BigEndian.PutUint64(b[16:], r.wireOffset)
		binary.BigEndian.PutUint64(b[24:], uint64(payloadBytes))
		return b[extendedHeaderBytes:]
	}
	binary.BigEndian.PutUint32(b[0:], magicStructuredReply)
	binary.BigEndian.PutUint32(b[16:], uint32(payloadBytes))
	return b[structuredHeaderBytes:]
}
