package conformance

import (
	"bytes"
)

func readRows() []Row {
	return []Row{
		{
			Name: "read/data", Level: Must,
			Rule:  "a read returns what was written",
			needs: needWritable,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					b := w.fill(place(0), 64<<10, 1)
					w.want(place(0), b, "a read of all of it")
					w.want(place(0)+8192, b[8192:12288], "a read of a part")
				})
			},
		},
		{
			Name: "read/bytes", Level: Should,
			Rule:  "with a minimum block of 1 any offset and length can be read",
			needs: all(needWritable, needBytes),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					b := w.fill(place(0), 8192, 2)
					for _, s := range [][2]int{{0, 1}, {1, 1}, {511, 2}, {513, 4097}, {8191, 1}} {
						w.want(place(0)+uint64(s[0]), b[s[0]:s[0]+s[1]], "a read of odd bytes")
					}
				})
			},
		},
		{
			Name: "read/end", Level: Must,
			Rule: "the last bytes of the export can be read",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					w.ok(request{typ: cmdRead, offset: x.f.sizeBytes - n, length: n})
				})
			},
		},
		beyond("read/beyond", "a read beyond the end gets EINVAL", cmdRead, nil, errInvalid),
		{
			Name: "read/across-end", Level: Should,
			Rule: "a read that begins within the export and ends beyond it gets EINVAL",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					w.wantErrno(request{typ: cmdRead, offset: x.f.sizeBytes - n, length: 2 * n}, errInvalid)
				})
			},
		},
		{
			Name: "read/overflow", Level: Must,
			Rule: "an offset near 2^64 is beyond the end, whatever length is added",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					w.wantErrno(request{typ: cmdRead, offset: -n, length: n})
					w.wantErrno(request{typ: cmdRead, offset: -n, length: 2 * n})
					w.wantErrno(request{typ: cmdRead, offset: 1<<63 - n, length: 2 * n})
				})
			},
		},
		{
			Name: "read/error-has-no-data", Level: Must,
			Rule: "a simple reply with an error has no data behind it",
			check: func(x *probe) {
				x.inMode(compact, func(w *wire) {
					for range 4 {
						w.wantErrno(request{typ: cmdRead, offset: x.f.sizeBytes, length: 16 * x.f.block()})
					}
				})
			},
		},
		{
			Name: "read/unaligned", Level: Should,
			Rule:  "a read that is not aligned to the minimum block gets EINVAL",
			needs: needBlocks,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					w.wantErrno(request{typ: cmdRead, offset: 1, length: n}, errInvalid)
					w.wantErrno(request{typ: cmdRead, offset: 0, length: n + 1}, errInvalid)
				})
			},
		},
		{
			Name: "read/32-MiB", Level: Should,
			Rule:  "a read of 32 MiB is served unless the server said that it takes less",
			needs: all(needSize("32 MiB", 32<<20), need("a maximum payload of 32 MiB", func(f *features) bool { return !f.hasBlockSize || f.most >= 32<<20 })),
			check: func(x *probe) {
				x.inModes(func(w *wire) { w.ok(request{typ: cmdRead, offset: 0, length: 32 << 20}) })
			},
		},
		{
			Name: "read/too-long", Level: Must,
			Rule: "a read of more than the maximum payload is served, refused by an error, or ends the connection",
			needs: all(needBlockSize, need("an export larger than the maximum payload", func(f *features) bool {
				return f.most < 1<<32-1 && uint64(f.most)+f.block() <= min(f.sizeBytes, 65<<20)
			})),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					w.request(request{typ: cmdRead, length: uint64(x.f.most) + x.f.block()})
					if err := w.peek(); err == nil {
						w.receive()
						w.alive()
					} else if timedOut(err) {
						x.end(Hang, "no reply to a read that is too long, and no end")
					}
				})
			},
		},
		{
			Name: "read/4-GiB", Level: Should,
			Rule: "a read of almost 4 GiB is refused by an error",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					length := 1<<32 - max(512, uint64(x.f.minBlock))
					if length <= x.f.sizeBytes && (!x.f.hasBlockSize || uint64(x.f.most) >= length) {
						x.notApplicable("the server takes it")
					}
					w.wantErrno(request{typ: cmdRead, length: length}, errInvalid, errOverflow)
				})
			},
		},
	}
}

// peek waits for the beginning of a reply without consuming it.
func (w *wire) peek() error {
	b, err := w.tryRead(1)
	if err != nil {
		return err
	}
	w.nc = &unread{Conn: w.nc, b: b}
	return nil
}

func writeRows() []Row {
	rows := []Row{
		{
			Name: "write/neighbours", Level: Must,
			Rule: "a write changes its range and nothing beside it",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					b := w.fill(place(0), 8*n, 1)
					copy(b[3*n:], w.fill(place(0)+3*n, 2*n, 9))
					w.want(place(0), b, "around a write")
				})
			},
		},
		{
			Name: "write/bytes", Level: Should,
			Rule:  "with a minimum block of 1 any offset and length can be written",
			needs: needBytes,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					b := w.fill(place(0), 8192, 1)
					for i, s := range [][2]int{{0, 1}, {511, 2}, {1025, 4099}, {8191, 1}} {
						copy(b[s[0]:], w.fill(place(0)+uint64(s[0]), uint64(s[1]), byte(0x20+i)))
					}
					w.want(place(0), b, "after writes of odd bytes")
				})
			},
		},
		{
			Name: "write/end", Level: Must,
			Rule: "the last bytes of the export can be written",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					w.want(x.f.sizeBytes-n, w.fill(x.f.sizeBytes-n, n, 4), "the end")
				})
			},
		},
		{
			Name: "write/in-pieces", Level: Must,
			Rule: "a payload may arrive in pieces, with its header or after it, and the next request in the same piece",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := 8 * x.f.block()
					p := pattern(0x33, n)
					b := w.prepare(&request{typ: cmdWrite, offset: place(1), length: n, payload: p})
					b = append(b, w.prepare(&request{typ: cmdRead, offset: place(2), length: n})...)
					for i := 0; i < len(b); i += 101 {
						w.send(b[i:min(len(b), i+101)])
					}
					w.receive()
					w.receive()
					w.want(place(1), p, "a write in pieces")
				})
			},
		},
		{
			Name: "write/other-connection", Level: Must,
			Rule: "what was written and flushed is there for the next connection",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					b := w.fill(place(4), 16<<10, 0x44)
					if x.f.flags&flagFlush != 0 {
						w.ok(request{typ: cmdFlush})
					}
					w.close()
					x.enter(compact).want(place(4), b, "after reconnecting")
				})
			},
		},
		beyond("write/beyond", "a write beyond the end gets ENOSPC", cmdWrite, nil, errNoSpace),
		{
			Name: "write/across-end", Level: Should,
			Rule: "a write that begins within the export and ends beyond it gets ENOSPC",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					w.wantErrno(request{typ: cmdWrite, offset: x.f.sizeBytes - n, length: 2 * n, payload: make([]byte, 2*n)}, errNoSpace)
				})
			},
		},
		{
			Name: "write/refused-payload", Level: Must,
			Rule: "the payload of a write that is refused is not taken for requests: it is skipped, or the connection ends",
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := 16 * x.f.block()
					inner := bytes.Repeat(w.encode(&request{typ: cmdTrim, length: x.f.block(), cookie: 0x666}), int(n))[:n]
					w.request(request{typ: cmdWrite, offset: x.f.sizeBytes, length: n, payload: inner})
					if err := w.peek(); err != nil {
						if timedOut(err) {
							x.end(Hang, "neither a reply nor the end")
						}
						return
					}
					if r := w.receive(); r.errno == 0 {
						x.failf("%v succeeded", &r.request)
					}
					w.alive()
				})
			},
		},
		{
			Name: "write/unaligned", Level: Should,
			Rule:  "a write that is not aligned to the minimum block gets EINVAL",
			needs: needBlocks,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					w.wantErrno(request{typ: cmdWrite, offset: 1, length: n, payload: make([]byte, n)}, errInvalid)
					w.wantErrno(request{typ: cmdWrite, offset: 0, length: n + 1, payload: make([]byte, n+1)}, errInvalid)
				})
			},
		},
		{
			Name: "write/32-MiB", Level: Should,
			Rule:  "a payload of 32 MiB is no attack: it is written, or refused without ending the connection",
			needs: needSize("32 MiB", 32<<20),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					p := pattern(0x11, 32<<20)
					r := w.do(request{typ: cmdWrite, length: 32 << 20, payload: p})
					if r.errno != 0 && (!x.f.hasBlockSize || x.f.most >= 32<<20) {
						x.failf("%v: %s", &r.request, errorName(r.errno))
					}
					if r.errno == 0 {
						w.want(31<<20, p[31<<20:], "the end of a long write")
					}
					w.alive()
				})
			},
		},
		{
			Name: "write/truncated", Level: Should,
			Rule: "a client that goes away within a payload does not disturb another",
			check: func(x *probe) {
				other := x.enter(compact)
				w := x.enter(compact)
				w.send(w.encode(&request{typ: cmdWrite, offset: place(5), length: 1 << 20, payload: make([]byte, 1<<20), cookie: 1})[:70000])
				_ = w.nc.Close() // in the middle
				other.alive()
			},
		},
	}
	for i := range rows {
		if rows[i].needs == nil {
			rows[i].needs = needWritable
		} else {
			rows[i].needs = all(needWritable, rows[i].needs)
		}
	}
	return append(rows,
		Row{
			Name: "read-only/write", Level: Should,
			Rule:  "a write to a read-only export gets EPERM, and its payload is skipped",
			needs: needReadOnly,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := 4 * x.f.block()
					w.wantErrno(request{typ: cmdWrite, length: n, payload: make([]byte, n)}, errPerm)
				})
			},
		},
		Row{
			Name: "read-only/not-done", Level: Must,
			Rule:  "what would write to a read-only export is an error and changes nothing",
			needs: needReadOnly,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					n := x.f.block()
					was := w.ok(request{typ: cmdRead, length: n}).data
					p := bytes.Clone(was)
					for i := range p {
						p[i] ^= 0xff
					}
					w.wantErrno(request{typ: cmdWrite, length: n, payload: p})
					w.wantErrno(request{typ: cmdWriteZeroes, length: n})
					w.wantErrno(request{typ: cmdTrim, length: n})
					w.want(0, was, "after attempts to write")
				})
			},
		},
		readOnlyEffect("read-only/trim", cmdTrim, flagTrim),
		readOnlyEffect("read-only/write-zeroes", cmdWriteZeroes, flagWriteZeroes),
		Row{
			Name: "read-only/beyond", Level: Must,
			Rule:  "a write beyond the end of a read-only export is an error, too, and its payload is skipped",
			needs: needReadOnly,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					w.wantErrno(request{typ: cmdWrite, offset: x.f.sizeBytes, length: 4096, payload: make([]byte, 4096)})
				})
			},
		},
	)
}

func readOnlyEffect(name string, typ, flag uint16) Row {
	return Row{
		Name: name, Level: Should,
		Rule:  "on a read-only export it gets EPERM, or EINVAL if the command is not advertised there",
		needs: needReadOnly,
		check: func(x *probe) {
			x.inModes(func(w *wire) {
				errnos := []uint32{errPerm}
				if x.f.flags&flag == 0 {
					errnos = append(errnos, errInvalid)
				}
				w.wantErrno(request{typ: typ, length: x.f.block()}, errnos...)
			})
		},
	}
}

// beyond has a range that begins at the end of the export.
func beyond(name, rule string, typ uint16, needs needs, errno uint32) Row {
	return Row{
		Name: name, Level: Should, Rule: rule, needs: needs,
		check: func(x *probe) {
			x.inModes(func(w *wire) {
				n := x.f.block()
				r := request{typ: typ, offset: x.f.sizeBytes, length: n}
				if typ == cmdWrite {
					r.payload = make([]byte, n)
				}
				w.wantErrno(r, errno)
				r.offset += 1 << 40
				r.cookie = 0
				w.wantErrno(r, errno)
			})
		},
	}
}

// effectRows are about the commands without payload.
func effectRows() []Row {
	needTrim := all(needWritable, needFlag("TRIM", flagTrim))
	needZeroes := all(needWritable, needFlag("WRITE_ZEROES", flagWriteZeroes))
	needCache := needFlag("CACHE", flagCache)
	return []Row{
		{
			Name: "flush/ok", Level: Must,
			Rule:  "FLUSH succeeds, with nothing written and after writes",
			needs: needFlag("FLUSH", flagFlush),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					w.ok(request{typ: cmdFlush})
					if x.f.flags&flagReadOnly == 0 {
						w.fill(place(0), 4096, 1)
						w.ok(request{typ: cmdFlush})
					}
				})
			},
		},
		{
			Name: "flush/pipelined", Level: Must,
			Rule:  "FLUSH may be in flight together with writes and other flushes: all are answered",
			needs: all(needWritable, needFlag("FLUSH", flagFlush)),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					var b []byte
					for i := range uint64(8) {
						b = append(b, w.prepare(&request{typ: cmdWrite, offset: place(0) + i*4096, length: 4096, payload: pattern(1, 4096)})...)
						b = append(b, w.prepare(&request{typ: cmdFlush})...)
					}
					w.send(b)
					for range 16 {
						if r := w.receive(); r.errno != 0 {
							x.failf("%v: %s", &r.request, errorName(r.errno))
						}
					}
				})
			},
		},
		notAdvertised("flush", "NBD_CMD_FLUSH", cmdFlush, flagFlush, nil),
		{
			Name: "trim/ok", Level: Must,
			Rule: "TRIM succeeds and touches nothing beside its range", needs: needTrim,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					b := w.fill(place(6), 192<<10, 6)
					w.ok(request{typ: cmdTrim, offset: place(6) + 64<<10, length: 64 << 10})
					w.want(place(6), b[:64<<10], "in front of a trim")
					w.want(place(6)+128<<10, b[128<<10:], "behind a trim")
				})
			},
		},
		{
			Name: "trim/bytes", Level: Must,
			Rule:  "a trim of odd bytes succeeds, and touches no byte beside them",
			needs: all(needTrim, needBytes),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					b := w.fill(place(6), 32<<10, 7)
					w.ok(request{typ: cmdTrim, offset: place(6) + 5001, length: 12347})
					w.want(place(6), b[:5001], "in front of a trim")
					w.want(place(6)+5001+12347, b[5001+12347:], "behind a trim")
				})
			},
		},
		{
			Name: "trim/write-again", Level: Must,
			Rule: "what is written after a trim can be read", needs: needTrim,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					w.ok(request{typ: cmdTrim, offset: place(6), length: 64 << 10})
					w.want(place(6)+4096, w.fill(place(6)+4096, 8192, 8), "after a trim")
				})
			},
		},
		beyond("trim/beyond", "a trim beyond the end gets EINVAL", cmdTrim, needTrim, errInvalid),
		effectLength("trim/large", cmdTrim, needTrim),
		notAdvertised("trim", "NBD_CMD_TRIM", cmdTrim, flagTrim, needWritable),
		unalignedEffect("trim/unaligned", cmdTrim, needTrim),
		zeroesRow("ok", "WRITE_ZEROES makes its range read as zeroes, and touches nothing beside it", 0, 64<<10, 64<<10, needZeroes),
		zeroesRow("bytes", "that goes for odd bytes, too", 0, 5001, 12347, all(needZeroes, needBytes)),
		zeroesRow("no-hole", "with NO_HOLE as well", withNoHole, 64<<10, 64<<10, needZeroes),
		zeroesRow("no-hole-bytes", "with NO_HOLE and odd bytes as well", withNoHole, 5001, 12347, all(needZeroes, needBytes)),
		neverNotSup("write-zeroes/never-enotsup", "where FAST_ZERO is advertised, WRITE_ZEROES without it does not fail with ENOTSUP", Must,
			all(needZeroes, needFlag("FAST_ZERO", flagFastZero))),
		neverNotSup("write-zeroes/never-enotsup-plain", "where FAST_ZERO is not advertised, WRITE_ZEROES does not fail with ENOTSUP", Should,
			all(needZeroes, needNoFlag("FAST_ZERO", flagFastZero))),
		{
			Name: "write-zeroes/fast", Level: Must,
			Rule:  "with FAST_ZERO it either makes zeroes or fails with ENOTSUP",
			needs: all(needZeroes, needFlag("FAST_ZERO", flagFastZero)),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					for _, flags := range []uint16{withFastZero, withFastZero | withNoHole} {
						w.fill(place(7), 64<<10, 9)
						r := w.do(request{typ: cmdWriteZeroes, flags: flags, offset: place(7), length: 64 << 10})
						switch r.errno {
						case 0:
							w.want(place(7), make([]byte, 64<<10), "after fast zeroes")
						case errNotSup:
							w.alive()
						default:
							x.failf("%v: %s", &r.request, errorName(r.errno))
						}
					}
				})
			},
		},
		{
			Name: "write-zeroes/fast-large", Level: Should,
			Rule:  "with FAST_ZERO no length gets EOVERFLOW",
			needs: all(needZeroes, needFlag("FAST_ZERO", flagFastZero)),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					length := min(x.f.sizeBytes, 1<<32-uint64(x.f.minBlock))
					if r := w.do(request{typ: cmdWriteZeroes, flags: withFastZero, length: length}); r.errno == errOverflow {
						x.failf("%v: EOVERFLOW", &r.request)
					}
					w.alive()
				})
			},
		},
		{
			Name: "write-zeroes/fast-refused-unchanged", Level: Should,
			Rule:  "WRITE_ZEROES that fails with ENOTSUP has changed nothing",
			needs: all(needZeroes, needFlag("FAST_ZERO", flagFastZero)),
			check: func(x *probe) {
				x.inMode(compact, func(w *wire) {
					refused := false
					for _, flags := range []uint16{withFastZero, withFastZero | withNoHole} {
						was := w.fill(place(7), 64<<10, 0x19)
						if r := w.do(request{typ: cmdWriteZeroes, flags: flags, offset: place(7), length: 64 << 10}); r.errno == errNotSup {
							refused = true
							w.want(place(7), was, "after ENOTSUP")
						}
					}
					if !refused {
						x.notApplicable("zeroes are always fast")
					}
				})
			},
		},
		{
			Name: "write-zeroes/fast-not-advertised", Level: Should,
			Rule:  "FAST_ZERO that is not advertised gets EINVAL",
			needs: all(needZeroes, needNoFlag("FAST_ZERO", flagFastZero)),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					w.wantErrno(request{typ: cmdWriteZeroes, flags: withFastZero, offset: place(7), length: 4096}, errInvalid)
				})
			},
		},
		beyond("write-zeroes/beyond", "zeroes beyond the end get ENOSPC", cmdWriteZeroes, needZeroes, errNoSpace),
		effectLength("write-zeroes/large", cmdWriteZeroes, needZeroes),
		notAdvertised("write-zeroes", "NBD_CMD_WRITE_ZEROES", cmdWriteZeroes, flagWriteZeroes, needWritable),
		unalignedEffect("write-zeroes/unaligned", cmdWriteZeroes, needZeroes),
		{
			Name: "cache/ok", Level: Must,
			Rule: "CACHE, whether it succeeds or not, sends no data and changes nothing", needs: needCache,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					was := w.ok(request{typ: cmdRead, offset: place(8), length: 64 << 10}).data
					w.do(request{typ: cmdCache, offset: place(8), length: 64 << 10})
					w.want(place(8), was, "after CACHE")
				})
			},
		},
		{
			Name: "cache/unknown-flags", Level: Must,
			Rule: "CACHE refuses flags that it does not know, if it is advertised", needs: needCache,
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					for _, flag := range []uint16{1 << 6, withUnknown, 1 << 15} {
						w.wantErrno(request{typ: cmdCache, flags: flag, length: x.f.block()})
					}
				})
			},
		},
		beyond("cache/beyond", "a range of CACHE beyond the end gets EINVAL", cmdCache, needCache, errInvalid),
		notAdvertised("cache", "NBD_CMD_CACHE", cmdCache, flagCache, nil),
		effectLength("cache/large", cmdCache, needCache),
		unalignedEffect("cache/unaligned", cmdCache, needCache),
	}
}

// neverNotSup writes zeroes without FAST_ZERO.
func neverNotSup(name, rule string, level Level, needs needs) Row {
	return Row{
		Name: name, Level: level, Rule: rule, needs: needs,
		check: func(x *probe) {
			x.inModes(func(w *wire) {
				for _, flags := range []uint16{0, withNoHole} {
					if r := w.do(request{typ: cmdWriteZeroes, flags: flags, offset: place(7), length: 128 << 10}); r.errno == errNotSup {
						x.failf("%v: ENOTSUP", &r.request)
					}
				}
			})
		},
	}
}

// zeroesRow writes zeroes into a pattern.
func zeroesRow(name, rule string, flags uint16, at, n uint64, needs needs) Row {
	return Row{
		Name: "write-zeroes/" + name, Level: Must, Rule: rule, needs: needs,
		check: func(x *probe) {
			x.inModes(func(w *wire) {
				b := w.fill(place(7), 192<<10, 7)
				w.ok(request{typ: cmdWriteZeroes, flags: flags, offset: place(7) + at, length: n})
				clear(b[at : at+n])
				w.want(place(7), b, "around zeroes")
			})
		},
	}
}

// effectLength has lengths that no payload could have.
func effectLength(name string, typ uint16, needs needs) Row {
	return Row{
		Name: name, Level: Should,
		Rule:  "the maximum payload does not limit it: up to 2^32-1 bytes are done at once, or refused by EINVAL or EOVERFLOW, and do not end the connection",
		needs: needs,
		check: func(x *probe) { x.inModes(func(w *wire) { effect(w, typ) }) },
	}
}

// effect has a command work on as much as the compact header can say.
func effect(w *wire, typ uint16) {
	length := min(w.x.f.sizeBytes, 1<<32-uint64(w.x.f.minBlock))
	switch r := w.do(request{typ: typ, length: length}); r.errno {
	case 0, errInvalid, errOverflow:
	default:
		w.x.failf("%v: %s", &r.request, errorName(r.errno))
	}
	w.alive()
}

func unalignedEffect(name string, typ uint16, needs needs) Row {
	return Row{
		Name: name, Level: Should,
		Rule:  "a range that is not aligned to the minimum block gets EINVAL",
		needs: all(needBlocks, needs),
		check: func(x *probe) {
			x.inModes(func(w *wire) {
				n := x.f.block()
				w.wantErrno(request{typ: typ, offset: 1, length: n}, errInvalid)
				w.wantErrno(request{typ: typ, offset: 0, length: n + 1}, errInvalid)
			})
		},
	}
}

func notAdvertised(name, command string, typ, flag uint16, also needs) Row {
	n := needNoFlag(command, flag)
	if also != nil {
		n = all(n, also)
	}
	return Row{
		Name: name + "/not-advertised", Level: Should,
		Rule:  "a command that is not advertised gets EINVAL",
		needs: n,
		check: func(x *probe) {
			x.inModes(func(w *wire) {
				r := request{typ: typ, length: x.f.block()}
				if typ == cmdFlush {
					r.length = 0
				}
				w.wantErrno(r, errInvalid)
			})
		},
	}
}

// flagRows are about command flags.
func flagRows() []Row {
	commands := []struct {
		name  string
		typ   uint16
		needs needs
		flags uint16 // that apply, FUA aside
	}{
		{"read", cmdRead, nil, withDF},
		{"write", cmdWrite, needWritable, 0},
		{"flush", cmdFlush, needFlag("FLUSH", flagFlush), 0},
		{"trim", cmdTrim, all(needWritable, needFlag("TRIM", flagTrim)), 0},
		{"write-zeroes", cmdWriteZeroes, all(needWritable, needFlag("WRITE_ZEROES", flagWriteZeroes)), withNoHole | withFastZero},
		{"cache", cmdCache, needFlag("CACHE", flagCache), 0},
		{"block-status", cmdBlockStatus, needAllocation, withReqOne},
	}
	var rows []Row
	for _, c := range commands {
		make1 := func(x *probe, flags uint16) request {
			r := request{typ: c.typ, flags: flags, length: x.f.block()}
			switch c.typ {
			case cmdFlush:
				r.length = 0
			case cmdWrite:
				r.payload = make([]byte, r.length)
			}
			return r
		}
		modes := func(x *probe, check func(w *wire)) {
			if c.typ == cmdBlockStatus {
				x.inMode(structured, check)
				return
			}
			x.inModes(check)
		}
		rows = append(rows, Row{
			Name: "command-flags/" + c.name + "-unknown", Level: Should,
			Rule:  "an unknown flag gets EINVAL",
			needs: c.needs,
			check: func(x *probe) {
				modes(x, func(w *wire) {
					for _, flag := range []uint16{1 << 6, withUnknown, 1 << 15} {
						w.wantErrno(make1(x, flag), errInvalid)
					}
				})
			},
		}, Row{
			Name: "command-flags/" + c.name + "-inapplicable", Level: Should,
			Rule:  "a flag of another command gets EINVAL",
			needs: c.needs,
			check: func(x *probe) {
				modes(x, func(w *wire) {
					for _, flag := range []uint16{withNoHole, withDF, withReqOne, withFastZero} {
						if flag&c.flags == 0 {
							w.wantErrno(make1(x, flag), errInvalid)
						}
					}
				})
			},
		}, Row{
			Name: "command-flags/" + c.name + "-fua", Level: Must,
			Rule:  "FUA, if it is advertised, is taken with every command",
			needs: fuaNeeds(c.needs),
			check: func(x *probe) { modes(x, func(w *wire) { w.ok(make1(x, withFUA)) }) },
		})
	}
	return append(rows, Row{
		Name: "command-flags/df-compact", Level: Should,
		Rule: "DF without structured replies gets EINVAL",
		check: func(x *probe) {
			x.inMode(compact, func(w *wire) {
				w.wantErrno(request{typ: cmdRead, flags: withDF, length: x.f.block()}, errInvalid)
			})
		},
	}, Row{
		Name: "command-flags/fua-not-advertised", Level: Should,
		Rule:  "FUA that is not advertised gets EINVAL: no durability is promised in silence",
		needs: all(needWritable, needNoFlag("FUA", flagFUA)),
		check: func(x *probe) {
			x.inModes(func(w *wire) {
				w.wantErrno(request{typ: cmdWrite, flags: withFUA, length: 4096, payload: make([]byte, 4096)}, errInvalid)
			})
		},
	})
}

func fuaNeeds(n needs) needs {
	fua := needFlag("FUA", flagFUA)
	if n == nil {
		return fua
	}
	return all(fua, n)
}
