package conformance

import (
	"bytes"
	"encoding/binary"
)

// inStatusModes runs the check in the modes that have BLOCK_STATUS.
func inStatusModes(x *probe, check func(w *wire)) {
	x.inMode(structured, check)
	if x.f.extended {
		x.inMode(extended, check)
	}
}

// total is the sum of the extents.
func total(es []extent) (n uint64) {
	for _, e := range es {
		n += e.length
	}
	return n
}

func statusRows() []Row {
	rows := []Row{
		{
			Name: "block-status/layout", Level: Must,
			Rule: "each selected context has one chunk of its own, with its id and at least one descriptor",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					r := w.ok(request{typ: cmdBlockStatus, length: 1 << 20})
					noProblem(x, ruleStatus, []*reply{r})
					noProblem(x, ruleType, []*reply{r})
					if len(r.extents) == 0 {
						x.failf("no descriptors")
					}
				})
			},
		},
		{
			Name: "block-status/not-empty", Level: Must,
			Rule: "no descriptor has length zero",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					for _, e := range w.ok(request{typ: cmdBlockStatus, length: 1 << 20}).extents {
						if e.length == 0 {
							x.failf("a descriptor of no bytes")
						}
					}
				})
			},
		},
		{
			Name: "block-status/blocks", Level: Must,
			Rule: "each length is a multiple of the minimum block",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					for _, e := range w.ok(request{typ: cmdBlockStatus, length: 1 << 20}).extents {
						if e.length%uint64(x.f.minBlock) != 0 {
							x.failf("a descriptor of %d bytes", e.length)
						}
					}
				})
			},
		},
		{
			Name: "block-status/within", Level: Must,
			Rule: "only the last descriptor may reach beyond the range, and none beyond the end of the export",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					for _, s := range [][2]uint64{{0, 1 << 20}, {place(1), 4096}, {x.f.sizeBytes - 4096, 4096}, {0, x.f.block()}} {
						es := w.ok(request{typ: cmdBlockStatus, offset: s[0], length: s[1]}).extents
						if len(es) == 0 {
							x.failf("no descriptors")
						}
						if n := total(es[:len(es)-1]); n >= s[1] {
							x.failf("%d bytes asked, and %d told before the last descriptor", s[1], n)
						}
						if n := total(es); n > x.f.sizeBytes-s[0] {
							x.failf("%d bytes told from %d on, of an export of %d", n, s[0], x.f.sizeBytes)
						}
					}
				})
			},
		},
		{
			Name: "block-status/progress", Level: Must,
			Rule: "asking on from where the answer ended gets to the end of the export",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					at := uint64(0)
					for i := 0; at < x.f.sizeBytes && i < 10000; i++ {
						es := w.ok(request{typ: cmdBlockStatus, offset: at, length: min(x.f.sizeBytes-at, 1<<30)}).extents
						if total(es) == 0 {
							x.failf("nothing told from %d on", at)
						}
						at += total(es)
					}
				})
			},
		},
		{
			Name: "block-status/req-one", Level: Must,
			Rule: "with REQ_ONE there is exactly one descriptor, of the range at most",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					if x.f.flags&flagReadOnly == 0 {
						w.fill(place(9), 4096, 1)
					}
					for _, s := range [][2]uint64{{0, 1 << 20}, {place(9), 2 << 20}, {0, x.f.block()}, {x.f.sizeBytes - 4096, 4096}} {
						s[1] = min(s[1], x.f.sizeBytes-s[0])
						es := w.ok(request{typ: cmdBlockStatus, flags: withReqOne, offset: s[0], length: s[1]}).extents
						if len(es) != 1 || es[0].length > s[1] {
							x.failf("%d bytes asked at %d: descriptors %v", s[1], s[0], es)
						}
					}
				})
			},
		},
		{
			Name: "block-status/defined-bits", Level: Should,
			Rule: "base:allocation knows the bits HOLE and ZERO, the others are zero",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					for _, e := range w.ok(request{typ: cmdBlockStatus, length: minSizeBytes}).extents {
						if e.state&^(stateHole|stateZero) != 0 {
							x.failf("status %#x", e.state)
						}
					}
				})
			},
		},
		{
			Name: "block-status/zero-is-zero", Level: Must,
			Rule: "what is told to be ZERO reads as zeroes",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					at := uint64(0)
					for at < minSizeBytes {
						for _, e := range w.ok(request{typ: cmdBlockStatus, offset: at, length: minSizeBytes - at}).extents {
							n := min(e.length, minSizeBytes-at)
							if e.state&stateZero != 0 && n > 0 {
								w.want(at, make([]byte, n), "told to be zero")
							}
							if at += n; at >= minSizeBytes {
								break
							}
						}
					}
				})
			},
		},
		{
			Name: "block-status/data-is-not-zero", Level: Must,
			Rule:  "what was just written, and is not zeroes, is not told to be ZERO",
			needs: needWritable,
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					w.fill(place(10), 64<<10, 3)
					at := uint64(0)
					for _, e := range w.ok(request{typ: cmdBlockStatus, offset: place(10), length: 64 << 10}).extents {
						if at < 64<<10 && e.state&stateZero != 0 {
							x.failf("%d bytes of data are told to be zero", e.length)
						}
						at += e.length
					}
				})
			},
		},
		{
			Name: "block-status/merged", Level: Should,
			Rule: "neighbours differ: descriptors of one state are one descriptor",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					es := w.ok(request{typ: cmdBlockStatus, length: minSizeBytes}).extents
					for i := 1; i < len(es); i++ {
						if es[i].state == es[i-1].state {
							x.failf("descriptors %d and %d both have status %#x", i-1, i, es[i].state)
						}
					}
				})
			},
		},
		{
			Name: "block-status/aligned", Level: Should,
			Rule: "lengths are multiples of 512 bytes, but for the last",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					es := w.ok(request{typ: cmdBlockStatus, length: minSizeBytes}).extents
					for _, e := range es[:max(len(es), 1)-1] {
						if e.length%512 != 0 {
							x.failf("a descriptor of %d bytes", e.length)
						}
					}
				})
			},
		},
		{
			Name: "block-status/not-too-many", Level: Should,
			Rule: "a chunk has at most 2^20 descriptors",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					length := min(x.f.sizeBytes-x.f.sizeBytes%uint64(x.f.minBlock), 1<<32-uint64(max(512, x.f.minBlock)))
					noProblem(x, ruleExtents, []*reply{w.do(request{typ: cmdBlockStatus, length: length})})
				})
			},
		},
		{
			Name: "block-status/allocated-takes-writes", Level: Must,
			Rule:  "a write to what is not told to be a HOLE does not fail with ENOSPC",
			needs: needWritable,
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					at, n := uint64(0), x.f.block()
					w.fill(0, n, 0x77) // no hole, if any server tells
					for i, e := range w.ok(request{typ: cmdBlockStatus, length: minSizeBytes}).extents {
						if i == 16 || at+n > x.f.sizeBytes {
							break
						}
						if e.state&stateHole == 0 && e.length >= n {
							if r := w.do(request{typ: cmdWrite, offset: at, length: n, payload: pattern(0x78, n)}); r.errno == errNoSpace {
								x.failf("%v: ENOSPC", &r.request)
							}
						}
						at += e.length
					}
				})
			},
		},
		{
			Name: "block-status/large", Level: Should,
			Rule:  "the maximum payload does not limit it: up to 2^32-1 bytes are asked about at once, or refused by EINVAL or EOVERFLOW, and do not end the connection",
			check: func(x *probe) { inStatusModes(x, func(w *wire) { effect(w, cmdBlockStatus) }) },
		},
		{
			Name: "block-status/no-length", Level: Should,
			Rule: "a length of zero is answered somehow, and does not end the connection",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					w.do(request{typ: cmdBlockStatus, length: 0})
					w.alive()
				})
			},
		},
		{
			Name: "block-status/beyond", Level: Should,
			Rule: "a range beyond the end gets EINVAL",
			check: func(x *probe) {
				inStatusModes(x, func(w *wire) {
					n := x.f.block()
					w.wantErrno(request{typ: cmdBlockStatus, offset: x.f.sizeBytes, length: n}, errInvalid)
					w.wantErrno(request{typ: cmdBlockStatus, offset: x.f.sizeBytes - n, length: 2 * n}, errInvalid)
				})
			},
		},
	}
	for i := range rows {
		if rows[i].needs == nil {
			rows[i].needs = needAllocation
		} else {
			rows[i].needs = all(needAllocation, rows[i].needs)
		}
	}
	return append(rows, Row{
		Name: "block-status/not-selected", Level: Should,
		Rule: "without a selected context BLOCK_STATUS gets EINVAL",
		check: func(x *probe) {
			w := x.enter(compact)
			w.wantErrno(request{typ: cmdBlockStatus, length: x.f.block()}, errInvalid)
			if x.f.structured {
				w = x.haggle()
				w.upgrade(structured)
				w.enter(x.target.Export)
				w.wantErrno(request{typ: cmdBlockStatus, length: x.f.block()}, errInvalid)
			}
		},
	})
}

// manyReads are the replies to reads of several kinds, good and bad.
func manyReads(w *wire) []*reply {
	x := w.x
	f := x.f
	n := f.block()
	if f.flags&flagReadOnly == 0 {
		w.fill(place(11), 128<<10, 4)
		if f.flags&flagWriteZeroes != 0 {
			w.ok(request{typ: cmdWriteZeroes, offset: place(11) + 32<<10, length: 32 << 10})
		}
	}
	rs := []*reply{
		w.ok(request{typ: cmdRead, offset: place(11), length: 128 << 10}),
		w.ok(request{typ: cmdRead, offset: place(11) + 16<<10, length: 64 << 10}),
		w.ok(request{typ: cmdRead, offset: place(11) + 32<<10, length: 16 << 10}),
		w.ok(request{typ: cmdRead, offset: place(10), length: 2 * placeBytes}),
		w.ok(request{typ: cmdRead, offset: f.sizeBytes - n, length: n}),
	}
	if f.minBlock == 1 {
		rs = append(rs,
			w.ok(request{typ: cmdRead, offset: place(11) + 32<<10 - 1, length: 3}),
			w.ok(request{typ: cmdRead, offset: place(11) + 777, length: 99999}))
	}
	return append(rs, badRequests(w)...)
}

// chunkRule is a rule that every read has to keep.
func chunkRule(name, rule, kind string) Row {
	return Row{
		Name: "structured-read/" + name, Level: Must, Rule: rule, needs: needStructured,
		check: func(x *probe) {
			x.inMode(structured, func(w *wire) { noProblem(x, kind, manyReads(w)) })
			if x.f.extended {
				x.inMode(extended, func(w *wire) { noProblem(x, kind, manyReads(w)) })
			}
		},
	}
}

// shouldRule is such a rule that is a recommendation.
func shouldRule(name, rule, kind string) Row {
	r := chunkRule(name, rule, kind)
	r.Level = Should
	return r
}

// content counts the chunks of content.
func (r *reply) content() (n int) {
	for _, c := range r.chunks {
		if c.typ == typeData || c.typ == typeHole {
			n++
		}
	}
	return n
}

func structuredRows() []Row {
	needDF := all(needStructured, needFlag("DF", flagDF))
	return []Row{
		chunkRule("chunked", "once negotiated, every read is answered by chunks, also if it fails", ruleKind),
		chunkRule("flags", "chunks have no flag but DONE", ruleChunkFlags),
		chunkRule("types", "a read gets chunks of data, holes, errors, or NONE", ruleType),
		chunkRule("none", "a chunk NONE has no data, and is the last", ruleNone),
		chunkRule("bounds", "data and holes are within what was asked for", ruleBounds),
		chunkRule("not-empty", "a data chunk has at least one byte, a hole chunk 12 bytes and a length", ruleEmpty),
		chunkRule("no-overlap", "no byte is sent twice", ruleOverlap),
		chunkRule("coverage", "without an error every byte is sent, as data or hole", ruleCoverage),
		chunkRule("error-layout", "an error chunk has an error, not zero, and a message of the length it says", ruleError),
		chunkRule("error-message", "its message is a string of at most 4096 bytes", ruleMessage),
		chunkRule("error-offset", "an ERROR_OFFSET is within the request", ruleErrOffset),
		shouldRule("one-error", "a reply has one error without an offset, or errors at offsets that differ and belong to different chunks", ruleErrors),
		shouldRule("aligned", "of an aligned read all chunks are aligned to 512 bytes", ruleAligned),
		{
			Name: "structured-read/payload", Level: Must,
			Rule:  "no chunk has more data than the maximum payload, whatever was asked for",
			needs: all(needStructured, needBlockSize, need("a maximum payload", func(f *features) bool { return f.most <= 64<<20 })),
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					for _, n := range []uint64{uint64(x.f.most), uint64(x.f.most) + x.f.block()} {
						if n <= x.f.sizeBytes {
							noProblem(x, rulePayload, []*reply{w.do(request{typ: cmdRead, length: n})})
						}
					}
					noProblem(x, rulePayload, manyReads(w))
				})
			},
		},
		{
			Name: "structured-read/one-chunk", Level: Should,
			Rule:  "a server sends no more chunks than it needs: 64 KiB of data are one",
			needs: all(needStructured, needWritable),
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					w.fill(place(11), 64<<10, 4)
					if n := w.ok(request{typ: cmdRead, offset: place(11), length: 64 << 10}).content(); n != 1 {
						x.failf("%d chunks of content", n)
					}
				})
			},
		},
		{
			Name: "structured-read/df-data", Level: Must,
			Rule:  "with DF, data with a hole in it is sent as data",
			needs: all(needDF, needWritable, needFlag("WRITE_ZEROES", flagWriteZeroes)),
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					b := w.fill(place(12), 64<<10, 5)
					w.ok(request{typ: cmdWriteZeroes, offset: place(12) + 16<<10, length: 32 << 10})
					clear(b[16<<10 : 48<<10])
					r := w.ok(request{typ: cmdRead, flags: withDF, offset: place(12), length: 64 << 10})
					if r.content() != 1 || !bytes.Equal(r.data, b) {
						x.failf("%v: %d chunks of content, or wrong data", &r.request, r.content())
					}
				})
			},
		},
		{
			Name: "structured/errors-by-chunk", Level: Should,
			Rule:  "with structured replies, errors come as chunks, which have room for words",
			needs: needStructured,
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					for _, r := range badRequests(w) {
						if r.errno != 0 && r.simple {
							x.failf("%v: a simple reply", &r.request)
						}
					}
				})
			},
		},
		{
			Name: "structured-read/done-is-last", Level: Must,
			Rule:  "nothing with its cookie follows the chunk with DONE",
			needs: needStructured,
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					for range 4 { // a chunk too many is a reply to nothing
						manyReads(w)
						w.alive()
					}
				})
			},
		},
		{
			Name: "structured-read/holes-are-zero", Level: Must,
			Rule:  "what is sent as a hole is zeroes: reads with and without structured replies agree",
			needs: all(needStructured, needWritable, needFlag("WRITE_ZEROES", flagWriteZeroes)),
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					b := w.fill(place(12), 192<<10, 5)
					for _, at := range []uint64{0, 64 << 10, 160 << 10} {
						w.ok(request{typ: cmdWriteZeroes, offset: place(12) + at, length: 16 << 10})
						clear(b[at : at+16<<10])
					}
					w.want(place(12), b, "a structured read")
					x.enter(compact).want(place(12), b, "a simple read")
				})
			},
		},
		{
			Name: "structured-read/pipeline", Level: Must,
			Rule:  "chunks of several replies may be mixed: each has the cookie of its request",
			needs: needStructured,
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					whole := w.ok(request{typ: cmdRead, length: 1 << 20}).data
					var b []byte
					for i := range uint64(16) {
						b = append(b, w.prepare(&request{typ: cmdRead, offset: i << 16, length: 1 << 16})...)
					}
					w.send(b)
					for range 16 {
						r := w.receive()
						if at := r.request.offset; r.errno != 0 || !bytes.Equal(r.data, whole[at:at+1<<16]) {
							x.failf("%v: %s, or wrong data", &r.request, errorName(r.errno))
						}
					}
				})
			},
		},
		{
			Name: "structured-read/df", Level: Must,
			Rule:  "with DF a read has one chunk of content, or fails",
			needs: needDF,
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					manyReads(w) // makes data and zeroes side by side
					for _, n := range []uint64{4096, 64 << 10, 128 << 10, 1 << 20} {
						r := w.do(request{typ: cmdRead, flags: withDF, offset: place(11), length: n})
						content := r.content()
						if content > 1 || content == 0 && r.errno == 0 {
							x.failf("%v: %d chunks of content, %s", &r.request, content, errorName(r.errno))
						}
					}
				})
			},
		},
		{
			Name: "structured-read/df-64-KiB", Level: Must,
			Rule:  "with DF a read of at most 64 KiB does not fail with EOVERFLOW, and a longer one with nothing else",
			needs: needDF,
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					manyReads(w)
					for _, n := range []uint64{x.f.block(), 4096, 64 << 10} {
						w.ok(request{typ: cmdRead, flags: withDF, offset: place(11), length: n})
					}
					r := w.do(request{typ: cmdRead, flags: withDF, length: minSizeBytes})
					if r.errno != 0 && r.errno != errOverflow {
						x.failf("%v: %s", &r.request, errorName(r.errno))
					}
					if r.errno != 0 && r.content() != 0 {
						x.failf("%v: %d chunks of content with EOVERFLOW", &r.request, r.content())
					}
				})
			},
		},
		{
			Name: "structured-read/32-MiB", Level: Should,
			Rule:  "structured reads may be as long as simple ones",
			needs: all(needStructured, needSize("32 MiB", 32<<20), need("a maximum payload of 32 MiB", func(f *features) bool { return !f.hasBlockSize || f.most >= 32<<20 })),
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					noProblem(x, ruleCoverage, []*reply{w.ok(request{typ: cmdRead, length: 32 << 20})})
				})
			},
		},
		{
			Name: "structured/other-commands", Level: Must,
			Rule:  "other commands get a simple reply, or one chunk, and no content",
			needs: all(needStructured, needWritable),
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) {
					rs := []*reply{w.ok(request{typ: cmdWrite, offset: place(0), length: 4096, payload: make([]byte, 4096)})}
					if x.f.flags&flagFlush != 0 {
						rs = append(rs, w.ok(request{typ: cmdFlush}))
					}
					if x.f.flags&flagTrim != 0 {
						rs = append(rs, w.ok(request{typ: cmdTrim, length: 4096}))
					}
					rs = append(rs, w.do(request{typ: cmdWriteZeroes, offset: x.f.sizeBytes, length: 4096}))
					for _, rule := range []string{ruleType, ruleNone, ruleError, ruleChunkFlags} {
						noProblem(x, rule, rs)
					}
				})
			},
		},
	}
}

func extendedRows() []Row {
	needStatusPayload := all(needAllocation, need("BLOCK_STATUS_PAYLOAD", func(f *features) bool { return f.byMode[extended]&flagStatusPayload != 0 }))
	rows := []Row{
		{
			Name: "extended/compact-request", Level: Must,
			Rule: "once negotiated, a request with the short header is none: the server does not act on it, and hangs up",
			check: func(x *probe) {
				w := x.enter(extended)
				w.extended = false
				b := w.encode(&request{typ: cmdRead, length: 512, cookie: 1})
				w.extended = true
				w.send(append(b, make([]byte, 64)...))
				w.wantClosed("a request with the short header")
			},
		},
		{
			Name: "extended/offset-echo", Level: Must,
			Rule: "each reply header has the offset of its request",
			check: func(x *probe) {
				x.inMode(extended, func(w *wire) { noProblem(x, ruleEcho, manyReads(w)) })
			},
		},
		{
			Name: "extended/write", Level: Must,
			Rule:  "a WRITE says by PAYLOAD_LEN that its length is of a payload, and is carried out",
			needs: needWritable,
			check: func(x *probe) {
				x.inMode(extended, func(w *wire) {
					w.want(place(0), w.fill(place(0), 64<<10, 6), "an extended write")
				})
			},
		},
		{
			Name: "extended/payload-unwanted", Level: Should,
			Rule: "PAYLOAD_LEN with a command that has no payload gets EINVAL, and the payload is skipped",
			check: func(x *probe) {
				x.inMode(extended, func(w *wire) {
					w.wantErrno(request{typ: cmdRead, length: 512, payload: make([]byte, 512)}, errInvalid)
					w.wantErrno(request{typ: cmdFlush, length: 16, payload: make([]byte, 16)}, errInvalid)
				})
			},
		},
		longEffect("read", cmdRead, nil),
		longEffect("trim", cmdTrim, all(needWritable, needFlag("TRIM", flagTrim))),
		longEffect("write-zeroes", cmdWriteZeroes, all(needWritable, needFlag("WRITE_ZEROES", flagWriteZeroes))),
		longEffect("cache", cmdCache, needFlag("CACHE", flagCache)),
		longEffect("block-status", cmdBlockStatus, needAllocation),
		{
			Name: "extended/zeroes-beyond-4-GiB", Level: Must,
			Rule:  "lengths have 64 bits: more than 4 GiB of zeroes are written at once",
			needs: all(needWritable, needFlag("WRITE_ZEROES", flagWriteZeroes), needSize("4 GiB and a bit", 4<<30+1<<20)),
			check: func(x *probe) {
				x.inMode(extended, func(w *wire) {
					const n = 4<<30 + 1<<20
					w.fill(4<<30, 4096, 1)
					w.ok(request{typ: cmdWriteZeroes, length: n})
					w.want(4<<30, make([]byte, 4096), "zeroes beyond 4 GiB")
				})
			},
		},
		{
			Name: "extended/status-beyond-4-GiB", Level: Must,
			Rule:  "a range of more than 4 GiB can be asked about at once",
			needs: all(needAllocation, needSize("4 GiB and a bit", 4<<30+1<<20)),
			check: func(x *probe) {
				x.inMode(extended, func(w *wire) {
					r := w.ok(request{typ: cmdBlockStatus, length: x.f.sizeBytes - x.f.sizeBytes%uint64(x.f.minBlock)})
					noProblem(x, ruleStatus, []*reply{r})
					if len(r.extents) == 0 {
						x.failf("no descriptors")
					}
				})
			},
		},
		{
			Name: "extended/status-type", Level: Must,
			Rule:  "block status comes in chunks BLOCK_STATUS_EXT, which say how many descriptors they have",
			needs: needAllocation,
			check: func(x *probe) {
				x.inMode(extended, func(w *wire) {
					r := w.ok(request{typ: cmdBlockStatus, length: 1 << 20})
					noProblem(x, ruleType, []*reply{r})
					noProblem(x, ruleStatus, []*reply{r})
				})
			},
		},
		{
			Name: "extended/status-payload", Level: Must,
			Rule:  "with a payload BLOCK_STATUS tells of the contexts named in it",
			needs: needStatusPayload,
			check: func(x *probe) {
				x.inMode(extended, func(w *wire) {
					p := statusPayload(w.allocationID)
					r := w.do(request{typ: cmdBlockStatus, length: uint64(len(p)), payload: p})
					noProblem(x, ruleStatus, []*reply{r})
					if r.errno != 0 || len(r.extents) == 0 {
						x.failf("%s, %d descriptors", errorName(r.errno), len(r.extents))
					}
				})
			},
		},
		{
			Name: "extended/status-payload-bad", Level: Should,
			Rule:  "a payload with a context that was not selected, or of a wrong length, gets EINVAL",
			needs: needStatusPayload,
			check: func(x *probe) {
				x.inMode(extended, func(w *wire) {
					for _, p := range [][]byte{
						statusPayload(w.allocationID + 1000),
						statusPayload(w.allocationID)[:11],
						statusPayload(w.allocationID)[:4],
						statusPayload(w.allocationID, w.allocationID),
					} {
						w.wantErrno(request{typ: cmdBlockStatus, length: uint64(len(p)), payload: p}, errInvalid)
					}
				})
			},
		},
	}
	for i := range rows {
		if rows[i].needs == nil {
			rows[i].needs = needExtended
		} else {
			rows[i].needs = all(needExtended, rows[i].needs)
		}
	}
	return rows
}

// statusPayload is the payload of a BLOCK_STATUS of 1 MiB that names contexts.
func statusPayload(ids ...uint32) []byte {
	b := binary.BigEndian.AppendUint64(nil, 1<<20)
	for _, id := range ids {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return b
}

// longEffect has a length that fits only once its upper half is dropped.
func longEffect(name string, typ uint16, needs needs) Row {
	return Row{
		Name: "extended/length-" + name, Level: Must,
		Rule:  "lengths have 64 bits: one beyond the end is an error, and not cut to 32 bits",
		needs: needs,
		check: func(x *probe) {
			x.inMode(extended, func(w *wire) {
				for _, n := range []uint64{1<<40 + 512, 1<<63 + 512, 1<<64 - 512} {
					if x.f.minBlock > 512 {
						n &^= uint64(x.f.minBlock) - 1
					}
					if n <= x.f.sizeBytes {
						continue
					}
					w.wantErrno(request{typ: typ, length: n})
				}
			})
		},
	}
}
