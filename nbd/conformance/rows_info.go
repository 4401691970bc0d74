package conformance

import (
	"encoding/binary"
	"slices"
	"strings"
)

func infoRows() []Row {
	rows := []Row{
		{
			Name: "info/known", Level: Must,
			Rule: "INFO and GO are part of the baseline: they are not unknown",
			check: func(x *probe) {
				w := x.haggle()
				for _, id := range []uint32{optInfo, optGo} {
					if _, last := w.ask(id, infoData(x.target.Export, infoBlockSize)); last.typ == repUnsup {
						x.failf("option %d: %v", id, last)
					}
				}
			},
		},
		{
			Name: "info/export", Level: Must,
			Rule:  "before the ACK comes at least one NBD_INFO_EXPORT, of 12 bytes",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				w.takeInfo(w.wantFinal(optInfo, infoData(x.target.Export, infoBlockSize), repAck))
			},
		},
		{
			Name: "info/no-requests", Level: Must,
			Rule:  "the list of information requests may be empty",
			needs: all(needInfo, needBytes),
			check: func(x *probe) {
				w := x.haggle()
				w.takeInfo(w.wantFinal(optInfo, infoData(x.target.Export), repAck))
			},
		},
		{
			Name: "info/haggles-on", Level: Must,
			Rule:  "INFO does not begin transmission: the next option is heard",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				w.wantFinal(optInfo, infoData(x.target.Export, infoBlockSize), repAck)
				w.inStep()
				w.wantFinal(optInfo, infoData(x.target.Export, infoBlockSize), repAck)
			},
		},
		{
			Name: "info/only-info", Level: Must,
			Rule:  "between the option and the ACK there is nothing but NBD_REP_INFO, with a type in each",
			needs: needInfo,
			check: func(x *probe) {
				for _, r := range x.haggle().wantFinal(optInfo, everyInfo(x), repAck) {
					if r.typ != repInfo || len(r.data) < 2 {
						x.failf("%v of %d bytes", r, len(r.data))
					}
				}
			},
		},
		{
			Name: "info/each-once", Level: Should,
			Rule:  "each type of information comes once",
			needs: needInfo,
			check: func(x *probe) {
				seen := map[uint16]bool{}
				for _, r := range x.haggle().wantFinal(optInfo, everyInfo(x), repAck) {
					if len(r.data) < 2 {
						continue // a row says so
					}
					typ := binary.BigEndian.Uint16(r.data)
					if seen[typ] {
						x.failf("information %d came twice", typ)
					}
					seen[typ] = true
				}
			},
		},
		{
			Name: "info/repeats", Level: Must,
			Rule:  "GO right after INFO with the same data gets the same information",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				first := infoSet(w.wantFinal(optInfo, everyInfo(x), repAck))
				second := infoSet(w.wantFinal(optGo, everyInfo(x), repAck))
				if !slices.Equal(first, second) {
					x.failf("INFO: %q, GO: %q", first, second)
				}
			},
		},
		{
			Name: "info/unknown-request", Level: Must,
			Rule:  "information requests that the server does not understand are ignored",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				w.takeInfo(w.wantFinal(optInfo, infoData(x.target.Export, infoBlockSize, 0x7fff, 0xffff), repAck))
			},
		},
		{
			Name: "info/explicit-export", Level: Must,
			Rule:  "NBD_INFO_EXPORT may be asked for by name",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				w.takeInfo(w.wantFinal(optInfo, infoData(x.target.Export, infoExport, infoBlockSize), repAck))
			},
		},
		{
			Name: "info/many-requests", Level: Should,
			Rule:  "the number of requests has 16 bits: a thousand do not break the server, nor take it out of step",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				many := []uint16{infoBlockSize}
				for i := range 1000 {
					many = append(many, uint16(1000+i))
				}
				w.ask(optInfo, infoData(x.target.Export, many...))
				w.inStep()
			},
		},
		{
			Name: "info/repeated-request", Level: Should,
			Rule:  "a client that asks for the same twice does not take the server out of step",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				w.ask(optInfo, infoData(x.target.Export, infoBlockSize, infoBlockSize, infoName, infoName))
				w.inStep()
			},
		},
		{
			Name: "info/unknown-export", Level: Must,
			Rule:  "an export that does not exist gets NBD_REP_ERR_UNKNOWN",
			needs: all(needInfo, needNamed),
			check: func(x *probe) {
				w := x.haggle()
				types := []uint32{repUnknown}
				if x.f.tls && !x.target.Secure {
					types = append(types, repTLSReqd) // it may be one that is for TLS only
				}
				w.wantError(optInfo, infoData(noSuchExport), types...)
				w.wantError(optGo, infoData(noSuchExport), types...)
			},
		},
		{
			Name: "info/unknown-export-no-info", Level: Should,
			Rule:  "before NBD_REP_ERR_UNKNOWN there is no NBD_REP_INFO",
			needs: all(needInfo, needNamed),
			check: func(x *probe) {
				w := x.haggle()
				if before, _ := w.ask(optInfo, infoData(noSuchExport, infoBlockSize, infoName)); len(before) > 0 {
					x.failf("%d replies before the error", len(before))
				}
			},
		},
		{
			Name: "info/name-of-the-moment", Level: Must,
			Rule:  "GO enters the export that it names itself: an INFO before it changes nothing",
			needs: all(needInfo, needNamed),
			check: func(x *probe) {
				w := x.haggle()
				w.wantFinal(optInfo, infoData(x.target.Export, infoBlockSize), repAck)
				w.wantError(optGo, infoData(noSuchExport, infoBlockSize))
			},
		},
		{
			Name: "info/second-try", Level: Must,
			Rule:  "after a GO that failed the client may try another name",
			needs: all(needInfo, needNamed),
			check: func(x *probe) {
				w := x.haggle()
				w.wantError(optGo, infoData(noSuchExport))
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "info/default", Level: Must,
			Rule:  "the empty name is the default export, or there is none: NBD_REP_ERR_UNKNOWN",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				before, last := w.ask(optInfo, infoData("", infoBlockSize))
				switch last.typ {
				case repAck:
					w.takeInfo(before)
				case repUnknown, repTLSReqd:
				default:
					x.failf("INFO for the empty name: %v", last)
				}
				w.inStep()
			},
		},
		{
			Name: "go/enters", Level: Must,
			Rule:  "after the ACK of GO both sides transmit at once",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "go/no-padding", Level: Must,
			Rule:  "no zeroes follow the ACK of GO, even if the client did not set NO_ZEROES",
			needs: needInfo,
			check: func(x *probe) {
				w := x.dial()
				w.greet()
				w.sayFlags(fixedNewstyle)
				x.secure(w)
				w.enter(x.target.Export)
				w.alive()
			},
		},
		malformed(Must, "info/no-data", "data shorter than its fixed parts gets an error", func(*probe) []byte { return nil }),
		malformed(Must, "info/short", "data that ends within the name's length gets an error", func(*probe) []byte { return []byte{0, 0, 0} }),
		malformed(Must, "info/no-count", "data without the number of requests gets an error", func(x *probe) []byte {
			d := infoData(x.target.Export)
			return d[:len(d)-2]
		}),
		malformed(Must, "info/name-overrun", "a name that is longer than the data gets an error", func(x *probe) []byte {
			d := infoData(x.target.Export)
			binary.BigEndian.PutUint32(d, uint32(len(x.target.Export)+100))
			return d
		}),
		malformed(Must, "info/name-overrun-by-one", "a name that takes the place of the number of requests gets an error", func(x *probe) []byte {
			d := infoData(x.target.Export)
			binary.BigEndian.PutUint32(d, uint32(len(x.target.Export)+1))
			return d
		}),
		malformed(Must, "info/name-4-GiB", "a name of 4 GiB in a short option gets an error, not 4 GiB of memory", func(x *probe) []byte {
			d := infoData(x.target.Export)
			binary.BigEndian.PutUint32(d, 1<<32-1)
			return d
		}),
		malformed(Must, "info/count-overrun", "more requests than the data has get an error", func(x *probe) []byte {
			d := infoData(x.target.Export)
			binary.BigEndian.PutUint16(d[len(d)-2:], 3)
			return append(d, 0, infoName)
		}),
		malformed(Should, "info/trailing-data", "data behind the last request gets an error", func(x *probe) []byte {
			return append(infoData(x.target.Export, infoBlockSize), 0, 0, 0)
		}),
		{
			Name: "info/name-4096", Level: Must,
			Rule:  "strings may have 4096 bytes: such a name is understood, and exists or not",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				_, last := w.ask(optInfo, infoData(strings.Repeat("n", maxStringBytes)))
				if last.typ != repUnknown && last.typ != repAck && last.typ != repTLSReqd {
					x.failf("INFO for a name of %d bytes: %v", maxStringBytes, last)
				}
				w.inStep()
			},
		},
		badName("info/name-4097", "strings have at most 4096 bytes: a longer name is refused", strings.Repeat("n", maxStringBytes+1), Should),
		badName("info/name-nul", "strings have no NUL: a name with one is refused", "a\x00b", Should),
		badName("info/name-utf8", "strings are UTF-8: a name that is not is refused", "a\xff\xfeb", Should),
		{
			Name: "info/name", Level: Must,
			Rule:  "the export's canonical name, if it is told, is a string",
			needs: needInfo,
			check: func(x *probe) { infoString(x, infoName) },
		},
		{
			Name: "info/description", Level: Must,
			Rule:  "the export's description, if it is told, is a string",
			needs: needInfo,
			check: func(x *probe) { infoString(x, infoDesc) },
		},
		{
			Name: "block-size/layout", Level: Must,
			Rule:  "the reply has 14 bytes: type, minimum, preferred size and maximum payload",
			needs: needInfo,
			check: func(x *probe) {
				found := false
				for _, r := range x.haggle().wantFinal(optInfo, infoData(x.target.Export, infoBlockSize), repAck) {
					if len(r.data) >= 2 && binary.BigEndian.Uint16(r.data) == infoBlockSize {
						found = true
						if len(r.data) != 14 {
							x.failf("NBD_INFO_BLOCK_SIZE of %d bytes", len(r.data))
						}
					}
				}
				if !found {
					x.notApplicable("the server has no constraints to tell")
				}
			},
		},
		blockSize("minimum", "the minimum block size is a power of two from 1 to 64 KiB", Must, func(f *features) bool {
			return powerOfTwo(f.minBlock) && f.minBlock <= 64<<10
		}),
		blockSize("preferred", "the preferred block size is a power of two, at least 512 and the minimum", Must, func(f *features) bool {
			return powerOfTwo(f.preferred) && f.preferred >= max(512, f.minBlock)
		}),
		blockSize("maximum", "the maximum payload is at least a preferred block", Must, func(f *features) bool {
			return f.most >= f.preferred
		}),
		blockSize("maximum-enough", "the maximum payload is at least 1 MiB if the export has that", Should, func(f *features) bool {
			return uint64(f.most) >= min(f.sizeBytes, 1<<20)
		}),
		blockSize("size", "the export's size is a multiple of the minimum block", Should, func(f *features) bool {
			return f.sizeBytes%uint64(f.minBlock) == 0
		}),
		{
			Name: "block-size/required", Level: Must,
			Rule:  "NBD_REP_ERR_BLOCK_SIZE_REQD is not sent to a client that asks for the block sizes",
			needs: all(needInfo, needBlocks),
			check: func(x *probe) {
				w := x.haggle()
				if _, last := w.ask(optInfo, infoData(x.target.Export)); last.typ != repBlockReqd {
					x.notApplicable("the server does not insist")
				}
				w.wantFinal(optGo, infoData(x.target.Export, infoBlockSize), repAck)
			},
		},
		{
			Name: "block-size/required-told", Level: Should,
			Rule:  "before NBD_REP_ERR_BLOCK_SIZE_REQD the block sizes are told, to save a round trip",
			needs: all(needInfo, needBlocks),
			check: func(x *probe) {
				before, last := x.haggle().ask(optInfo, infoData(x.target.Export))
				if last.typ != repBlockReqd {
					x.notApplicable("the server does not insist")
				}
				for _, r := range before {
					if len(r.data) == 14 && binary.BigEndian.Uint16(r.data) == infoBlockSize {
						return
					}
				}
				x.failf("no NBD_INFO_BLOCK_SIZE among %d replies", len(before))
			},
		},
		{
			Name: "block-size/told", Level: Must,
			Rule:  "a server that does not tell block sizes when it is asked has the usual ones: any byte can be read",
			needs: all(needInfo, need("a server that tells no block sizes", func(f *features) bool { return !f.hasBlockSize })),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					w.ok(request{typ: cmdRead, offset: 1, length: 1})
					w.ok(request{typ: cmdRead, offset: 511, length: 514})
				})
			},
		},
		{
			Name: "block-size/clean-error", Level: Must,
			Rule:  "a client that did not ask for the block sizes is refused, or gets errors, and no damage, for what is not aligned",
			needs: all(needInfo, needBlocks, needWritable),
			check: func(x *probe) {
				w := x.haggle()
				infos, last := w.ask(optGo, infoData(x.target.Export))
				if last.isError() {
					w.sendOption(optExportName, []byte(x.target.Export))
					if err := w.peek(); err != nil {
						if timedOut(err) {
							x.end(Hang, "EXPORT_NAME is neither answered nor refused")
						}
						return // refused both ways
					}
					w.takeExport()
				} else {
					w.takeInfo(infos)
				}
				n := x.f.block()
				was := w.fill(place(0), 4*n, 0x22)
				w.wantErrno(request{typ: cmdWrite, offset: place(0) + 1, length: n, payload: make([]byte, n)})
				w.wantErrno(request{typ: cmdWrite, offset: place(0), length: n + 1, payload: make([]byte, n+1)})
				w.wantErrno(request{typ: cmdRead, offset: place(0) + 1, length: n})
				w.want(place(0), was, "after writes that are not aligned")
			},
		},
		{
			Name: "block-size/not-required", Level: Should,
			Rule:  "a server whose block sizes are the usual ones does not insist that the client asks for them",
			needs: all(needInfo, needBytes),
			check: func(x *probe) {
				if _, last := x.haggle().ask(optInfo, infoData(x.target.Export)); last.typ != repAck {
					x.failf("INFO without requests: %v", last)
				}
			},
		},
	}
	return rows
}

func powerOfTwo(n uint32) bool { return n != 0 && n&(n-1) == 0 }

// everyInfo asks for all that is defined.
func everyInfo(x *probe) []byte {
	return infoData(x.target.Export, infoName, infoDesc, infoBlockSize)
}

// infoSet is what replies carry, in some fixed order.
func infoSet(replies []optReply) []string {
	var set []string
	for _, r := range replies {
		set = append(set, string(r.data))
	}
	slices.Sort(set)
	return set
}

// malformed has INFO and GO with data that contradicts itself. A client must not
// send that: the server may also hang up.
func malformed(level Level, name, rule string, data func(x *probe) []byte) Row {
	return Row{
		Name: name, Level: level,
		Rule:  rule + ", and the next option is heard, or the server hangs up",
		needs: needInfo,
		check: func(x *probe) {
			x.haggle().wantRefused(optInfo, data(x))
			x.haggle().wantRefused(optGo, data(x))
		},
	}
}

func badName(name, rule, export string, level Level) Row {
	return Row{
		Name: name, Level: level, Rule: rule, needs: needInfo,
		check: func(x *probe) { x.haggle().wantRefused(optInfo, infoData(export)) },
	}
}

// infoString checks a reply that is a string.
func infoString(x *probe, typ uint16) {
	w := x.haggle()
	for _, r := range w.wantFinal(optInfo, infoData(x.target.Export, typ, infoBlockSize), repAck) {
		if len(r.data) >= 2 && binary.BigEndian.Uint16(r.data) == typ {
			w.checkString("the information", r.data[2:])
			return
		}
	}
	x.notApplicable("the server does not tell")
}

func blockSize(name, rule string, level Level, good func(f *features) bool) Row {
	return Row{
		Name: "block-size/" + name, Level: level, Rule: rule, needs: needBlockSize,
		check: func(x *probe) {
			if f := x.f; !good(f) {
				x.failf("minimum %d, preferred %d, maximum %d, size %d", f.minBlock, f.preferred, f.most, f.sizeBytes)
			}
		},
	}
}
