package conformance

import (
	"bytes"
)

// Places on the export that rows use.
const (
	placeBytes = 256 << 10
	maxPlaces  = minSizeBytes / placeBytes
)

// place is the beginning of one of several areas of placeBytes.
func place(n int) uint64 { return uint64(n%maxPlaces) * placeBytes }

func transmissionRows() []Row {
	return []Row{
		{
			Name: "transmission/cookie", Level: Must,
			Rule: "the reply has the request's cookie, whatever that is",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					for _, cookie := range []uint64{1, 1<<64 - 1, 1 << 63, 0x0102030405060708} {
						w.ok(request{typ: cmdRead, length: x.f.block(), cookie: cookie})
						w.wantErrno(request{typ: cmdRead, offset: x.f.sizeBytes, length: x.f.block(), cookie: cookie})
					}
				})
			},
		},
		{
			Name: "transmission/cookie-again", Level: Must,
			Rule: "a cookie may be used again once its reply has come",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					for range 8 {
						w.ok(request{typ: cmdRead, length: x.f.block(), cookie: 7})
					}
				})
			},
		},
		{
			Name: "transmission/pipeline", Level: Must,
			Rule: "requests may be sent without waiting: each gets one reply, in any order",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					var b []byte
					for i := range 64 {
						b = append(b, w.prepare(&request{typ: cmdRead, offset: uint64(i) * x.f.block(), length: x.f.block()})...)
					}
					w.send(b)
					for range 64 {
						if r := w.receive(); r.errno != 0 {
							x.failf("%v: %s", &r.request, errorName(r.errno))
						}
					}
					w.alive()
				})
			},
		},
		{
			Name: "transmission/mixed-pipeline", Level: Must,
			Rule:  "reads, writes and what is wrong may be mixed in flight: each reply fits its own request",
			needs: needWritable,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					const each = 24
					n := x.f.block()
					w.fill(place(1), each*n, 3)
					var b []byte
					for i := range uint64(each) {
						b = append(b, w.prepare(&request{typ: cmdWrite, offset: place(0) + i*n, length: n, payload: pattern(byte(i), n)})...)
						b = append(b, w.prepare(&request{typ: cmdRead, offset: place(1) + i*n, length: n})...)
						b = append(b, w.prepare(&request{typ: cmdRead, offset: x.f.sizeBytes, length: n})...)
					}
					w.send(b)
					was := pattern(3, each*n)
					for range 3 * each {
						r := w.receive()
						bad := r.request.offset == x.f.sizeBytes
						if bad != (r.errno != 0) {
							x.failf("%v: %s", &r.request, errorName(r.errno))
						}
						if at := r.request.offset - place(1); r.request.typ == cmdRead && !bad && !bytes.Equal(r.data, was[at:at+n]) {
							x.failf("%v: wrong data", &r.request)
						}
					}
					for i := range uint64(each) {
						w.want(place(0)+i*n, pattern(byte(i), n), "a pipelined write")
					}
				})
			},
		},
		{
			Name: "transmission/in-pieces", Level: Must,
			Rule: "a request is one however the transport cuts it into pieces",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					for _, b := range w.prepare(&request{typ: cmdRead, length: x.f.block()}) {
						w.send([]byte{b})
					}
					if r := w.receive(); r.errno != 0 {
						x.failf("%v: %s", &r.request, errorName(r.errno))
					}
				})
			},
		},
		{
			Name: "transmission/unknown-command", Level: Should,
			Rule: "a command that the server does not know gets EINVAL",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					for _, typ := range []uint16{8, 9, 0x7fff, 0xffff} {
						w.wantErrno(request{typ: typ}, errInvalid)
					}
				})
			},
		},
		{
			Name: "transmission/unknown-command-length", Level: Must,
			Rule: "only WRITE has a payload: behind an unknown command with a length comes the next request",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					w.wantErrno(request{typ: 9, length: 4096})
					w.wantErrno(request{typ: 0x100, offset: 512, length: 1 << 20})
				})
			},
		},
		{
			Name: "transmission/bad-magic", Level: Should,
			Rule: "what does not begin with the magic of a request is none: the server hangs up",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					b := w.encode(&request{typ: cmdRead, length: x.f.block(), cookie: 1})
					b[3] ^= 0xff
					w.send(b)
					w.wantClosed("a request with a wrong magic")
				})
			},
		},
		{
			Name: "transmission/bad-magic-not-done", Level: Must,
			Rule:  "a write with a wrong magic is not carried out",
			needs: needWritable,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					was := w.fill(place(0), n, 5)
					b := w.encode(&request{typ: cmdWrite, offset: place(0), length: n, payload: pattern(6, n), cookie: 1})
					b[0] ^= 0xff
					_ = w.try(b)        // it may hang up halfway
					_, _ = w.tryRead(1) // and should
					x.enter(compact).want(place(0), was, "after a write with a wrong magic")
				})
			},
		},
		zeroLength("read", cmdRead, nil),
		zeroLength("write", cmdWrite, needWritable),
		zeroLength("trim", cmdTrim, all(needWritable, needFlag("TRIM", flagTrim))),
		zeroLength("write-zeroes", cmdWriteZeroes, all(needWritable, needFlag("WRITE_ZEROES", flagWriteZeroes))),
		zeroLength("cache", cmdCache, needFlag("CACHE", flagCache)),
		{
			Name: "transmission/error-values", Level: Must,
			Rule: "errors are of those that the protocol defines",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					noProblem(x, ruleErrno, badRequests(w))
				})
			},
		},
		{
			Name: "transmission/rare-errors", Level: Should,
			Rule: "EOVERFLOW, ENOTSUP and ENOMEM are not for what is plainly wrong",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					for _, r := range badRequests(w) {
						if r.errno == errOverflow || r.errno == errNotSup || r.errno == errNoMem {
							x.failf("%v: %s", &r.request, errorName(r.errno))
						}
					}
				})
			},
		},
		{
			Name: "disc/closes", Level: Must,
			Rule: "DISC has no reply: the server closes the connection",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					w.alive()
					w.send(w.encode(&request{typ: cmdDisc, cookie: 99}))
					w.wantClosed("DISC")
				})
			},
		},
		{
			Name: "disc/finishes", Level: Must,
			Rule:  "before that it carries out what is in flight",
			needs: needWritable,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					const each = 16
					n := x.f.block()
					w.fill(place(2), each*n, 0x40)
					var b []byte
					for i := range uint64(each) {
						b = append(b, w.prepare(&request{typ: cmdWrite, offset: place(2) + i*n, length: n, payload: pattern(byte(0x50+i), n)})...)
					}
					w.send(append(b, w.encode(&request{typ: cmdDisc})...))
					for {
						_, err := w.tryRead(1)
						if timedOut(err) {
							x.end(Hang, "the server does not close after DISC")
						}
						if err != nil {
							break
						}
					}
					v := x.enter(compact)
					for i := range uint64(each) {
						v.want(place(2)+i*n, pattern(byte(0x50+i), n), "a write in front of DISC")
					}
				})
			},
		},
		{
			Name: "disc/answers", Level: Should,
			Rule: "and answers what is in flight",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					var b []byte
					for i := range uint64(16) {
						b = append(b, w.prepare(&request{typ: cmdRead, offset: i * x.f.block(), length: x.f.block()})...)
					}
					w.send(append(b, w.encode(&request{typ: cmdDisc})...))
					for range 16 {
						if r := w.receive(); r.errno != 0 {
							x.failf("%v: %s", &r.request, errorName(r.errno))
						}
					}
					w.wantClosed("DISC")
				})
			},
		},
		{
			Name: "disc/abrupt", Level: Should,
			Rule: "a client that goes away in the middle of a request does not disturb another",
			check: func(x *probe) {
				other := x.enter(compact)
				for range 4 {
					w := x.enter(compact)
					w.send(w.encode(&request{typ: cmdRead, length: x.f.block(), cookie: 1})[:20])
					_ = w.nc.Close() // in the middle
				}
				other.alive()
				x.enter(compact).alive()
			},
		},
		{
			Name: "multi-conn/agrees", Level: Should,
			Rule:  "all connections to an export are told the same size and flags",
			needs: needFlag("CAN_MULTI_CONN", flagMultiConn),
			check: func(x *probe) {
				a, b := x.enter(compact), x.enter(compact)
				if a.sizeBytes != b.sizeBytes || a.flags != b.flags {
					x.failf("%d bytes, flags %#x; and %d bytes, flags %#x", a.sizeBytes, a.flags, b.sizeBytes, b.flags)
				}
			},
		},
		{
			Name: "multi-conn/flush", Level: Must,
			Rule:  "with CAN_MULTI_CONN, a write is seen on every connection once a FLUSH has been answered on any",
			needs: all(needWritable, needFlag("CAN_MULTI_CONN", flagMultiConn), needFlag("FLUSH", flagFlush)),
			check: func(x *probe) {
				a, b, c := x.enter(compact), x.enter(compact), x.enter(compact)
				for i := range 8 {
					p := pattern(byte(0x60+i), 4*x.f.block())
					c.ok(request{typ: cmdRead, offset: place(3), length: 4 * x.f.block()}) // into its cache, if it has one
					a.ok(request{typ: cmdWrite, offset: place(3), length: uint64(len(p)), payload: p})
					b.ok(request{typ: cmdFlush})
					c.want(place(3), p, "after a flush on another connection")
				}
			},
		},
		{
			Name: "multi-conn/fua", Level: Must,
			Rule:  "with CAN_MULTI_CONN, a write with FUA is seen on every connection once it has been answered",
			needs: all(needWritable, needFlag("CAN_MULTI_CONN", flagMultiConn), needFlag("FUA", flagFUA)),
			check: func(x *probe) {
				a, c := x.enter(compact), x.enter(compact)
				for i := range 8 {
					p := pattern(byte(0x70+i), 4*x.f.block())
					c.ok(request{typ: cmdRead, offset: place(3), length: 4 * x.f.block()})
					a.ok(request{typ: cmdWrite, flags: withFUA, offset: place(3), length: uint64(len(p)), payload: p})
					c.want(place(3), p, "after a write with FUA on another connection")
				}
			},
		},
		{
			Name: "multi-conn/own-replies", Level: Must,
			Rule:  "replies come on the connection that asked, even if cookies are the same on both",
			needs: needFlag("CAN_MULTI_CONN", flagMultiConn),
			check: func(x *probe) {
				a, b := x.enter(compact), x.enter(compact)
				for i := range uint64(16) {
					a.request(request{typ: cmdRead, length: x.f.block(), cookie: i + 1})
					b.request(request{typ: cmdRead, length: 2 * x.f.block(), cookie: i + 1})
				}
				for range 16 {
					a.receive()
					b.receive()
				}
				a.alive()
				b.alive()
			},
		},
	}
}

// zeroLength has a request of no bytes.
func zeroLength(name string, typ uint16, needs needs) Row {
	return Row{
		Name: "zero-length/" + name, Level: Should,
		Rule:  "a request of length zero is answered somehow, and does not end the connection",
		needs: needs,
		check: func(x *probe) {
			x.inModes(func(w *wire) {
				w.do(request{typ: typ, offset: 0, length: 0})
				w.alive()
			})
		},
	}
}

// badRequests are the replies to requests that fail in several ways. None has a
// payload: how payloads are treated is for separate rows.
func badRequests(w *wire) []*reply {
	f := w.x.f
	n := f.block()
	return []*reply{
		w.do(request{typ: cmdRead, offset: f.sizeBytes, length: n}),
		w.do(request{typ: cmdRead, offset: f.sizeBytes - n, length: 2 * n}),
		w.do(request{typ: cmdRead, flags: withUnknown, length: n}),
		w.do(request{typ: cmdTrim, offset: f.sizeBytes, length: n}),
		w.do(request{typ: cmdWriteZeroes, offset: f.sizeBytes, length: n}),
		w.do(request{typ: cmdCache, offset: f.sizeBytes, length: n}),
		w.do(request{typ: cmdBlockStatus, offset: f.sizeBytes, length: n}),
		w.do(request{typ: 0x7fff}),
	}
}

// noProblem ends the row if one of the replies breaks the rule.
func noProblem(x *probe, rule string, replies []*reply) {
	for _, r := range replies {
		for _, p := range r.problems {
			if p.rule == rule {
				x.failf("%s", p.text)
			}
		}
	}
}
