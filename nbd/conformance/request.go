package conformance

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf8"
)

// A request is one command.
type request struct {
	flags, typ     uint16
	cookie         uint64 // 0: the wire chooses
	offset, length uint64
	payload        []byte
	bare           bool // an extended WRITE without PAYLOAD_LEN
}

func (r *request) String() string {
	names := []string{"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"}
	name := fmt.Sprintf("command %d", r.typ)
	if int(r.typ) < len(names) {
		name = names[r.typ]
	}
	return fmt.Sprintf("%s of %d bytes at %d with flags %#x", name, r.length, r.offset, r.flags)
}

// encode is the request as it goes over the wire in the wire's mode.
func (w *wire) encode(r *request) []byte {
	var b []byte
	flags := r.flags
	if !w.extended {
		b = binary.BigEndian.AppendUint32(b, magicRequest)
	} else {
		b = binary.BigEndian.AppendUint32(b, magicExtRequest)
		if (len(r.payload) > 0 || r.typ == cmdWrite) && !r.bare {
			flags |= withPayloadLen
		}
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, r.typ)
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	b = binary.BigEndian.AppendUint64(b, r.offset)
	if w.extended {
		b = binary.BigEndian.AppendUint64(b, r.length)
	} else {
		b = binary.BigEndian.AppendUint32(b, uint32(r.length))
	}
	return append(b, r.payload...)
}

// request sends one request, with a cookie of its own if it has none.
func (w *wire) request(r request) { w.send(w.prepare(&r)) }

// prepare registers the request and encodes it, to be sent later.
func (w *wire) prepare(r *request) []byte {
	if r.cookie == 0 {
		w.cookie += 0x0101_0000_0001 // every byte of a cookie counts
		r.cookie = w.cookie
	}
	w.pending[r.cookie] = &reply{request: *r}
	return w.encode(r)
}

// A chunk is one message of a structured or extended reply.
type chunk struct {
	flags, typ uint16
	offset     uint64 // extended: the request's
	data       []byte
}

// A problem is a breach of a rule about replies.
type problem struct{ rule, text string }

// A reply is all that the server sends for one request.
type reply struct {
	request  request
	errno    uint32
	simple   bool
	chunks   []chunk
	data     []byte // of a read
	extents  []extent
	problems []problem
}

// An extent is one descriptor of BLOCK_STATUS.
type extent struct{ length, state uint64 }

// Rules about replies that rows pick out of problems.
const (
	ruleKind       = "kind"     // simple or structured
	ruleChunkFlags = "flags"    // flags of chunks
	ruleNone       = "none"     // NBD_REPLY_TYPE_NONE
	ruleType       = "type"     // types of chunks
	ruleBounds     = "bounds"   // data within the request
	ruleEmpty      = "empty"    // content of no bytes
	ruleOverlap    = "overlap"  // bytes sent twice
	ruleCoverage   = "coverage" // bytes not sent
	ruleError      = "error"    // layout of error chunks
	ruleMessage    = "message"  // their text
	ruleErrOffset  = "offset"   // their offset
	ruleEcho       = "echo"     // offset in extended headers
	ruleErrno      = "errno"    // values of errors
	ruleStatus     = "status"   // layout of block status
	ruleExtents    = "extents"  // their number
	ruleErrors     = "errors"   // several errors in one reply
	ruleAligned    = "aligned"  // chunks of multiples of 512 bytes
	rulePayload    = "payload"  // chunks within the maximum payload
)

func (r *reply) problem(rule, format string, args ...any) {
	r.problems = append(r.problems, problem{rule, r.request.String() + ": " + fmt.Sprintf(format, args...)})
}

// receive reads messages until some request has been answered.
func (w *wire) receive() *reply {
	for {
		r, done := w.message()
		if done {
			delete(w.pending, r.request.cookie)
			r.finish(w)
			return r
		}
	}
}

func (w *wire) message() (r *reply, done bool) {
	b := w.read(4, "reply")
	switch m := binary.BigEndian.Uint32(b); {
	case m == magicSimple && !w.extended:
		b = w.read(12, "rest of a simple reply")
		r = w.find(binary.BigEndian.Uint64(b[4:]))
		r.simple = true
		r.errno = binary.BigEndian.Uint32(b)
		if len(r.chunks) > 0 {
			w.x.failf("%v got chunks and then a simple reply", &r.request)
		}
		if r.request.typ == cmdRead && r.errno == 0 {
			r.data = w.read(int(r.request.length), "data of a read")
		}
		return r, true
	case m == magicStructured && w.structured && !w.extended:
		b = w.read(16, "rest of a chunk header")
		r = w.find(binary.BigEndian.Uint64(b[4:]))
		c := chunk{flags: binary.BigEndian.Uint16(b), typ: binary.BigEndian.Uint16(b[2:])}
		c.data = w.chunkData(r, uint64(binary.BigEndian.Uint32(b[12:])))
		r.chunks = append(r.chunks, c)
		return r, c.flags&chunkDone != 0
	case m == magicExtReply && w.extended:
		b = w.read(28, "rest of an extended chunk header")
		r = w.find(binary.BigEndian.Uint64(b[4:]))
		c := chunk{
			flags: binary.BigEndian.Uint16(b), typ: binary.BigEndian.Uint16(b[2:]),
			offset: binary.BigEndian.Uint64(b[12:]),
		}
		c.data = w.chunkData(r, binary.BigEndian.Uint64(b[20:]))
		r.chunks = append(r.chunks, c)
		return r, c.flags&chunkDone != 0
	default:
		w.x.failf("a reply begins with %#x", m)
	}
	return nil, false
}

func (w *wire) chunkData(r *reply, n uint64) []byte {
	if n > maxReplyBytes {
		w.x.failf("%v got a chunk of %d bytes", &r.request, n)
	}
	return w.read(int(n), "data of a chunk")
}

func (w *wire) find(cookie uint64) *reply {
	r, ok := w.pending[cookie]
	if !ok {
		w.x.failf("a reply has cookie %#x, of nothing in flight", cookie)
	}
	return r
}

// finish judges a whole reply.
func (r *reply) finish(w *wire) {
	isRead := r.request.typ == cmdRead
	if r.simple {
		if isRead && w.structured {
			r.problem(ruleKind, "a simple reply to a read although structured replies were negotiated")
		}
		r.checkErrno()
		return
	}
	var spans [][2]uint64
	failedAt := uint64(0)
	var failures []uint64 // offsets of errors
	general := 0          // errors without
	for i := range r.chunks {
		c := &r.chunks[i]
		if c.flags&^chunkDone != 0 {
			r.problem(ruleChunkFlags, "chunk with flags %#x", c.flags)
		}
		if w.extended && c.offset != r.request.offset {
			r.problem(ruleEcho, "chunk header with offset %d", c.offset)
		}
		switch {
		case c.typ == typeNone:
			if len(c.data) != 0 || c.flags&chunkDone == 0 {
				r.problem(ruleNone, "chunk of type NONE with %d bytes, flags %#x", len(c.data), c.flags)
			}
		case c.typ == typeData && isRead:
			if len(c.data) < 9 {
				r.problem(ruleEmpty, "data chunk of %d bytes, want at least 9", len(c.data))
				continue
			}
			at, n := binary.BigEndian.Uint64(c.data), uint64(len(c.data)-8)
			if f := w.x.f; f.hasBlockSize && n > uint64(f.most) {
				r.problem(rulePayload, "data chunk of %d bytes, with a maximum payload of %d", n, f.most)
			}
			if r.span(at, n) {
				spans = append(spans, [2]uint64{at, at + n})
				r.afterError(at, n, failures)
				copy(r.room()[at-r.request.offset:], c.data[8:])
			}
		case c.typ == typeHole && isRead:
			if len(c.data) != 12 {
				r.problem(ruleEmpty, "hole chunk of %d bytes, want 12", len(c.data))
				continue
			}
			at, n := binary.BigEndian.Uint64(c.data), uint64(binary.BigEndian.Uint32(c.data[8:]))
			if n == 0 {
				r.problem(ruleEmpty, "hole of no bytes")
			} else if r.span(at, n) {
				spans = append(spans, [2]uint64{at, at + n})
				r.afterError(at, n, failures)
				clear(r.room()[at-r.request.offset:][:n])
			}
		case (c.typ == typeStatus && !w.extended || c.typ == typeStatusExt && w.extended) && r.request.typ == cmdBlockStatus:
			r.status(c, w)
		case c.typ&typeErrorBit != 0:
			failedAt++
			r.errorChunk(c)
			switch {
			case c.typ == typeErrorOffset && len(c.data) >= 14:
				failures = append(failures, binary.BigEndian.Uint64(c.data[len(c.data)-8:]))
			case c.typ == typeError:
				general++
			}
		default:
			r.problem(ruleType, "chunk of type %d", c.typ)
		}
	}
	r.checkErrno()
	slices.SortFunc(spans, func(a, b [2]uint64) int {
		switch {
		case a[0] < b[0]:
			return -1
		case a[0] > b[0]:
			return 1
		}
		return 0
	})
	r.severalErrors(general, failures, spans)
	at := r.request.offset
	for _, s := range spans {
		if q := &r.request; q.offset%512 == 0 && q.length%512 == 0 && (s[0]%512 != 0 || s[1]%512 != 0) {
			r.problem(ruleAligned, "content from %d to %d", s[0], s[1]-1)
		}
		switch {
		case s[0] < at:
			r.problem(ruleOverlap, "bytes from %d on were sent twice", s[0])
		case s[0] > at && failedAt == 0:
			r.problem(ruleCoverage, "bytes %d to %d were not sent", at, s[0]-1)
		}
		at = max(at, s[1])
	}
	if isRead && failedAt == 0 && at < r.request.offset+r.request.length {
		r.problem(ruleCoverage, "bytes from %d on were not sent", at)
	}
}

// afterError judges content that follows error chunks: it must not include a place where
// an error was reported.
func (r *reply) afterError(at, n uint64, failures []uint64) {
	for _, f := range failures {
		if f >= at && f-at < n {
			r.problem(ruleOverlap, "content of %d bytes at %d, behind an error at %d", n, at, f)
		}
	}
}

// severalErrors judges several errors in one reply.
func (r *reply) severalErrors(general int, failures []uint64, spans [][2]uint64) {
	if general > 1 || general > 0 && len(failures) > 0 {
		r.problem(ruleErrors, "%d errors without and %d with an offset", general, len(failures))
	}
	slices.Sort(failures)
	if len(slices.Compact(slices.Clone(failures))) != len(failures) {
		r.problem(ruleErrors, "two errors at one offset: %d", failures)
	}
	for _, s := range spans {
		within := 0
		for _, f := range failures {
			if f >= s[0] && f < s[1] {
				within++
			}
		}
		if within > 1 {
			r.problem(ruleErrors, "%d errors within one chunk, from %d to %d", within, s[0], s[1]-1)
		}
	}
}

// room is where the data of a read belongs. No server sends more than the largest
// chunk that is read.
func (r *reply) room() []byte {
	if r.data == nil {
		r.data = make([]byte, r.request.length)
	}
	return r.data
}

// span says whether content is within the request.
func (r *reply) span(at, n uint64) bool {
	q := &r.request
	if at < q.offset || at-q.offset > q.length || n > q.length-(at-q.offset) || q.length > maxReplyBytes {
		r.problem(ruleBounds, "content of %d bytes at %d", n, at)
		return false
	}
	return true
}

func (r *reply) errorChunk(c *chunk) {
	if len(c.data) < 6 {
		r.problem(ruleError, "error chunk of %d bytes, want at least 6", len(c.data))
		r.errno = errIO
		return
	}
	errno, n := binary.BigEndian.Uint32(c.data), int(binary.BigEndian.Uint16(c.data[4:]))
	if r.errno == 0 {
		r.errno = errno
	}
	want := 6 + n
	if c.typ == typeErrorOffset {
		want += 8
	}
	if errno == 0 || (c.typ == typeError || c.typ == typeErrorOffset) && len(c.data) != want {
		r.problem(ruleError, "error chunk of %d bytes with error %d and a message of %d bytes", len(c.data), errno, n)
		return
	}
	if m := c.data[6 : 6+min(n, len(c.data)-6)]; len(m) > maxStringBytes || !utf8.Valid(m) || slices.Contains(m, 0) {
		r.problem(ruleMessage, "message %q", m)
	}
	if c.typ == typeErrorOffset {
		at := binary.BigEndian.Uint64(c.data[6+n:])
		if q := &r.request; at < q.offset || at-q.offset >= max(q.length, 1) {
			r.problem(ruleErrOffset, "error at offset %d", at)
		}
	}
}

func (r *reply) status(c *chunk, w *wire) {
	head, each := 4, 8
	if w.extended {
		head, each = 8, 16
	}
	n := (len(c.data) - head) / each
	if len(c.data) < head+each || len(c.data) != head+n*each {
		r.problem(ruleStatus, "block status of %d bytes", len(c.data))
		return
	}
	if n > maxExtents {
		r.problem(ruleExtents, "%d descriptors in one chunk", n)
	}
	if id := binary.BigEndian.Uint32(c.data); id != w.allocationID {
		r.problem(ruleStatus, "block status of context %d, want %d", id, w.allocationID)
	}
	if w.extended && int(binary.BigEndian.Uint32(c.data[4:])) != n {
		r.problem(ruleStatus, "block status says %d descriptors and has %d", binary.BigEndian.Uint32(c.data[4:]), n)
	}
	if r.extents != nil {
		r.problem(ruleStatus, "a second block status chunk for one context")
	}
	for b := c.data[head:]; len(b) > 0; b = b[each:] {
		var e extent
		if w.extended {
			e = extent{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
		} else {
			e = extent{uint64(binary.BigEndian.Uint32(b)), uint64(binary.BigEndian.Uint32(b[4:]))}
		}
		r.extents = append(r.extents, e)
	}
}

func (r *reply) checkErrno() {
	if _, ok := knownErrors[r.errno]; r.errno != 0 && !ok {
		r.problem(ruleErrno, "error %d", r.errno)
	}
}

// errorName is an error for people.
func errorName(errno uint32) string {
	if errno == 0 {
		return "success"
	}
	if name, ok := knownErrors[errno]; ok {
		return name
	}
	return fmt.Sprintf("error %d", errno)
}

// do sends a request and waits for its reply. Nothing else may be in flight.
func (w *wire) do(r request) *reply {
	w.request(r)
	return w.receive()
}

// ok does a request that must succeed, and whose reply must be whole.
func (w *wire) ok(r request) *reply {
	got := w.do(r)
	if got.errno != 0 {
		w.x.failf("%v: %s", &r, errorName(got.errno))
	}
	return got
}

// wantErrno does a request that must get one of the errors, or any error if none
// is given, and leave the server in step.
func (w *wire) wantErrno(r request, errnos ...uint32) {
	got := w.do(r)
	if got.errno == 0 || len(errnos) > 0 && !slices.Contains(errnos, got.errno) {
		want := "an error"
		for i, e := range errnos {
			if i == 0 {
				want = errorName(e)
			} else {
				want += " or " + errorName(e)
			}
		}
		w.x.failf("%v: %s, want %s", &r, errorName(got.errno), want)
	}
	w.alive()
}

// alive checks that the connection is in step and serves, by a read that must succeed: a bad
// reply to an earlier request would show here.
func (w *wire) alive() {
	w.ok(request{typ: cmdRead, offset: 0, length: w.x.f.block()})
}

// block is a small length that the server takes.
func (f *features) block() uint64 { return max(512, uint64(f.minBlock)) }

// patternPeriod is prime: no block of a device has the same bytes as the next.
const patternPeriod = 4099

// pattern is n bytes that depend on seed, none of them zero.
func pattern(seed byte, n uint64) []byte {
	b := make([]byte, n)
	v := uint32(seed)*2654435761 + 1
	for i := range b[:min(n, patternPeriod)] {
		v = v*1664525 + 1013904223
		b[i] = byte(v>>24) | 1
	}
	for at := uint64(patternPeriod); at < n; at *= 2 {
		copy(b[at:], b[:at])
	}
	return b
}

// fill writes a pattern.
func (w *wire) fill(offset, n uint64, seed byte) []byte {
	b := pattern(seed, n)
	w.ok(request{typ: cmdWrite, offset: offset, length: n, payload: b})
	return b
}

// want reads and compares.
func (w *wire) want(offset uint64, b []byte, what string) {
	r := w.ok(request{typ: cmdRead, offset: offset, length: uint64(len(b))})
	if bytes.Equal(r.data, b) {
		return
	}
	for i := range b {
		if i >= len(r.data) || r.data[i] != b[i] {
			w.x.failf("%s: the byte at offset %d is not what it should be", what, offset+uint64(i))
		}
	}
}
