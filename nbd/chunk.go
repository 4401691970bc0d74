package nbd

import "encoding/binary"

// Sizes of the parts of replies, in bytes.
const (
	// maxErrorChunkBytes is the longest chunk that tells of an error.
	maxErrorChunkBytes = extendedHeaderBytes + 4 + 2 + maxErrorTextBytes + 8
	// maxHoleChunkBytes is the longest chunk that tells of a hole.
	maxHoleChunkBytes = extendedHeaderBytes + 8 + 4
	// maxDataHeaderBytes goes before the data of a read or of BLOCK_STATUS.
	maxDataHeaderBytes = extendedHeaderBytes + 8
)

// chunkRoom returns how many bytes of headers and entries of a writev the chunks of a
// reply take at most. It is not for simple replies.
func (r *Request) chunkRoom() (headerBytes, bufs int) {
	n := r.holeCount
	if r.errno != OK || r.Op != OpRead {
		n = 0
	}
	// Data before each hole and after the last.
	return max(maxErrorChunkBytes, n*maxHoleChunkBytes+(n+1)*maxDataHeaderBytes), 2*n + 2*(n+1)
}

// replyBytes is about how long a reply is.
func (r *Request) replyBytes() int {
	if r.errno != OK {
		return simpleReplyBytes
	}
	switch r.Op {
	case OpRead:
		n := simpleReplyBytes + len(r.Data)
		for _, h := range r.holes[:r.holeCount] {
			n -= h.length
		}
		return n
	case OpBlockStatus:
		return simpleReplyBytes + r.count*extentExtBytes
	case OpWrite, OpFlush, OpTrim, OpWriteZeroes, OpCache, OpCount:
	}
	return simpleReplyBytes
}

// appendChunks encodes one reply as chunks, or as a simple reply where that
// suffices.
//
// Source: proto.md, "Structured reply types".
func (s *sender) appendChunks(r *Request) {
	switch {
	case r.errno != OK:
		s.appendError(r)
	case r.Op == OpRead && len(r.Data) > 0:
		s.appendRead(r)
	case r.Op == OpBlockStatus:
		s.appendStatus(r)
	case r.Op != OpRead && s.format == formatStructured:
		putSimple(s.header(simpleReplyBytes), r)
	default:
		s.format.putChunk(s.header(s.format.chunkBytes()), r, chunkFlagDone, chunkNone, 0)
	}
}

// header appends n bytes of s.headers to bufs and returns them, to be filled.
func (s *sender) header(n int) []byte {
	at := s.headersAt
	s.headersAt += n
	s.appendBytes(nil, s.headers, at, s.headersAt)
	return s.headers[at:s.headersAt]
}

// appendError encodes NBD_REPLY_TYPE_ERROR, or ERROR_OFFSET if it is known where
// the error happened.
func (s *sender) appendError(r *Request) {
	text := r.cause.text(r.errno, r.failedAtKnown)
	typ, n := chunkError, 4+2+len(text)
	if r.failedAtKnown {
		typ, n = chunkErrorOffset, n+8
	}
	b := s.format.putChunk(s.header(s.format.chunkBytes()+n), r, chunkFlagDone, typ, n)
	binary.BigEndian.PutUint32(b[0:], uint32(r.errno))
	binary.BigEndian.PutUint16(b[4:], uint16(len(text)))
	n = 6 + copy(b[6:], text)
	if r.failedAtKnown {
		binary.BigEndian.PutUint64(b[n:], r.failedAt)
	}
}

// appendRead encodes the data and holes of a read in order; only the last chunk
// is marked so.
func (s *sender) appendRead(r *Request) {
	at, room := 0, r.dataAt // the bytes before Data[at] that are free
	for _, h := range r.holes[:r.holeCount] {
		if at < h.at {
			s.appendData(r, at, h.at, room)
		}
		at, room = h.at+h.length, h.length
		s.appendHole(r, h)
	}
	if at < len(r.Data) {
		s.appendData(r, at, len(r.Data), room)
	}
}

// doneAt is the flag of the chunk that ends at Data[end].
func (r *Request) doneAt(end int) uint16 {
	if end == len(r.Data) {
		return chunkFlagDone
	}
	return 0
}

// appendData encodes Data[from:to] as NBD_REPLY_TYPE_OFFSET_DATA. The header
// goes right before it if there is room.
func (s *sender) appendData(r *Request, from, to, room int) {
	n := s.format.dataBytes()
	at, end := r.dataAt+from, r.dataAt+to
	var b []byte
	if room >= n {
		s.appendBytes(r.block, r.block.mem, at-n, end)
		b = r.block.mem[at-n : at]
	} else {
		b = s.header(n)
		s.appendBytes(r.block, r.block.mem, at, end)
	}
	s.putData(b, r, from, to)
}

// putData encodes the header of NBD_REPLY_TYPE_OFFSET_DATA.
func (s *sender) putData(b []byte, r *Request, from, to int) {
	b = s.format.putChunk(b, r, r.doneAt(to), chunkOffsetData, 8+to-from)
	binary.BigEndian.PutUint64(b, r.OffsetBytes+uint64(from))
}

// appendHole encodes NBD_REPLY_TYPE_OFFSET_HOLE.
func (s *sender) appendHole(r *Request, h hole) {
	const n = 8 + 4
	b := s.format.putChunk(s.header(s.format.chunkBytes()+n), r, r.doneAt(h.at+h.length), chunkOffsetHole, n)
	binary.BigEndian.PutUint64(b[0:], r.OffsetBytes+uint64(h.at))
	binary.BigEndian.PutUint32(b[8:], uint32(h.length))
}

// appendStatus encodes the extents of BLOCK_STATUS, which are in Data in wire format,
// as the one chunk of the context base:allocation.
func (s *sender) appendStatus(r *Request) {
	typ, n := chunkBlockStatus, 4
	if s.format == formatExtended {
		typ, n = chunkBlockStatusExt, 4+4
	}
	extents := r.count * s.format.extentBytes()
	size := s.format.chunkBytes() + n
	at := r.dataAt
	var b []byte
	if at >= size {
		s.appendBytes(r.block, r.block.mem, at-size, at+extents)
		b = r.block.mem[at-size : at]
	} else {
		b = s.header(size)
		s.appendBytes(r.block, r.block.mem, at, at+extents)
	}
	b = s.format.putChunk(b, r, chunkFlagDone, typ, n+extents)
	binary.BigEndian.PutUint32(b, allocationID)
	if s.format == formatExtended {
		binary.BigEndian.PutUint32(b[4:], uint32(r.count))
	}
}
