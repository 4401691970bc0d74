package conformance

import (
	"encoding/binary"
)

func handshakeRows() []Row {
	return []Row{
		{
			Name: "handshake/greeting", Level: Must,
			Rule:  "the server speaks first: NBDMAGIC, IHAVEOPT and 16 bits of flags",
			check: func(x *probe) { x.dial().greet() },
		},
		{
			Name: "handshake/fixed-newstyle", Level: Must,
			Rule: "the server offers fixed newstyle, without which there is nothing but EXPORT_NAME",
			check: func(x *probe) {
				if x.f.handshake&fixedNewstyle == 0 {
					x.failf("handshake flags %#x", x.f.handshake)
				}
			},
		},
		{
			Name: "handshake/flags-defined", Level: Must,
			Rule: "handshake flags that are not defined are zero",
			check: func(x *probe) {
				if x.f.handshake&^(fixedNewstyle|noZeroes) != 0 {
					x.failf("handshake flags %#x", x.f.handshake)
				}
			},
		},
		unknownClientFlag("handshake/client-flag-2", 1<<2),
		unknownClientFlag("handshake/client-flag-16", 1<<16),
		unknownClientFlag("handshake/client-flag-31", 1<<31),
		{
			Name: "handshake/client-flag-unoffered", Level: Must,
			Rule:  "a client that sets a flag which the server did not offer is disconnected",
			needs: need("a server without one of the handshake flags", func(f *features) bool { return f.handshake&noZeroes == 0 }),
			check: func(x *probe) {
				w := x.dial()
				w.greet()
				w.sayFlags(fixedNewstyle | noZeroes)
				if w.try(option(optUnknown, nil)) == nil {
					w.wantClosed("a client flag that was not offered")
				}
			},
		},
		{
			Name: "handshake/client-flags-none", Level: Must,
			Rule: "a client that sets no flag, not even fixed newstyle, gets in by EXPORT_NAME",
			check: func(x *probe) {
				if x.target.Secure {
					x.notApplicable("STARTTLS needs fixed newstyle")
				}
				w := x.dial()
				w.greet()
				w.sayFlags(0)
				w.sendOption(optExportName, []byte(x.target.Export))
				w.takeExport()
				w.alive()
			},
		},
		{
			Name: "handshake/option-magic", Level: Should,
			Rule: "what does not begin with IHAVEOPT is no option, and the server does not act on it",
			check: func(x *probe) {
				w := x.haggle()
				b := option(optUnknown, nil)
				b[0] ^= 0xff
				w.send(b)
				w.wantClosed("an option with a wrong magic")
			},
		},
		{
			Name: "handshake/option-in-pieces", Level: Must,
			Rule: "an option is one however the transport cuts it into pieces",
			check: func(x *probe) {
				w := x.haggle()
				for _, b := range option(optUnknown, []byte("piece by piece")) {
					w.send([]byte{b})
				}
				w.wantReply(optUnknown, repUnsup)
				w.inStep()
			},
		},
		{
			Name: "handshake/probe", Level: Should,
			Rule: "a client that goes away at once does not disturb others",
			check: func(x *probe) {
				for range 16 {
					_ = x.dial().nc.Close() // that is the probe
				}
				x.haggle().inStep()
			},
		},
		{
			Name: "handshake/gone-within-option", Level: Should,
			Rule: "a client that goes away in the middle of an option does not disturb others",
			check: func(x *probe) {
				w := x.haggle()
				w.send(option(optInfo, infoData(x.target.Export))[:17])
				_ = w.nc.Close() // in the middle
				x.haggle().inStep()
			},
		},
		{
			Name: "export-name/padding", Level: Must,
			Rule: "a client that did not set NO_ZEROES gets 124 bytes of zeroes behind the flags",
			check: func(x *probe) {
				w := x.dial()
				w.greet()
				w.sayFlags(fixedNewstyle)
				x.secure(w)
				w.sendOption(optExportName, []byte(x.target.Export))
				w.takeExport()
				w.alive()
			},
		},
		{
			Name: "export-name/no-padding", Level: Must,
			Rule:  "if both sides set NO_ZEROES, size and flags are all",
			needs: need("NO_ZEROES", func(f *features) bool { return f.handshake&noZeroes != 0 }),
			check: func(x *probe) {
				w := x.haggle()
				w.sendOption(optExportName, []byte(x.target.Export))
				w.takeExport()
				w.alive()
			},
		},
		{
			Name: "export-name/unknown", Level: Must,
			Rule:  "the option has no error reply: for an unknown name the server hangs up",
			needs: all(needInfo, needNamed),
			check: func(x *probe) {
				w := x.haggle()
				w.sendOption(optExportName, []byte(noSuchExport))
				w.wantClosed("EXPORT_NAME with an unknown name")
			},
		},
		{
			Name: "export-name/agrees", Level: Must,
			Rule:  "EXPORT_NAME and GO tell of the same export: size and flags agree",
			needs: needInfo,
			check: func(x *probe) {
				w := x.haggle()
				w.sendOption(optExportName, []byte(x.target.Export))
				w.takeExport()
				g := x.enter(compact)
				if w.sizeBytes != g.sizeBytes || w.flags != g.flags {
					x.failf("EXPORT_NAME: %d bytes, flags %#x; GO: %d bytes, flags %#x", w.sizeBytes, w.flags, g.sizeBytes, g.flags)
				}
			},
		},
		{
			Name: "export-name/default", Level: Must,
			Rule: "the empty name is the default export, or there is none and the server hangs up",
			check: func(x *probe) {
				w := x.haggle()
				w.sendOption(optExportName, nil)
				if b, err := w.tryRead(8); err == nil {
					w.sizeBytes = binary.BigEndian.Uint64(b)
					w.read(2, "transmission flags")
					if w.said&noZeroes == 0 {
						w.read(124, "padding")
					}
					w.alive()
				} else if timedOut(err) {
					x.end(Hang, "neither an answer nor the end")
				}
			},
		},
		transmissionFlag("has-flags", "NBD_FLAG_HAS_FLAGS is set, or the other flags mean nothing", func(_ mode, flags uint16) bool {
			return flags&flagHas != 0
		}),
		transmissionFlag("defined", "transmission flags that are not defined are zero", func(_ mode, flags uint16) bool {
			return flags&^flagsKnown == 0
		}),
		transmissionFlag("df-needs-structured", "NBD_FLAG_SEND_DF is clear as long as structured replies are not negotiated", func(m mode, flags uint16) bool {
			return m != compact || flags&flagDF == 0
		}),
		transmissionFlag("fast-zero-needs-zeroes", "NBD_FLAG_SEND_FAST_ZERO comes only with NBD_FLAG_SEND_WRITE_ZEROES", func(_ mode, flags uint16) bool {
			return flags&flagFastZero == 0 || flags&flagWriteZeroes != 0
		}),
		{
			Name: "flags/df-honest", Level: Must,
			Rule:  "NBD_FLAG_SEND_DF is set if DF works: without it, reads with DF fail",
			needs: all(needStructured, need("structured replies without DF", func(f *features) bool { return f.byMode[structured]&flagDF == 0 })),
			check: func(x *probe) {
				x.inMode(structured, func(w *wire) { w.wantErrno(request{typ: cmdRead, flags: withDF, length: x.f.block()}) })
			},
		},
		{
			Name: "flags/fast-zero-honest", Level: Must,
			Rule:  "NBD_FLAG_SEND_FAST_ZERO is set if FAST_ZERO works: without it, WRITE_ZEROES with FAST_ZERO fails",
			needs: all(needWritable, needFlag("WRITE_ZEROES", flagWriteZeroes), needNoFlag("FAST_ZERO", flagFastZero)),
			check: func(x *probe) {
				x.inModes(func(w *wire) {
					w.wantErrno(request{typ: cmdWriteZeroes, flags: withFastZero, offset: place(7), length: x.f.block()})
				})
			},
		},
		transmissionFlag("status-payload-needs-extended", "NBD_FLAG_BLOCK_STATUS_PAYLOAD comes only with extended headers", func(m mode, flags uint16) bool {
			return m == extended || flags&flagStatusPayload == 0
		}),
	}
}

// unknownClientFlag has the client set a flag that nobody offered.
func unknownClientFlag(name string, flag uint32) Row {
	return Row{
		Name: name, Level: Must,
		Rule: "a client that sets a flag which the server does not know is disconnected",
		check: func(x *probe) {
			w := x.dial()
			w.greet()
			w.send(binary.BigEndian.AppendUint32(nil, fixedNewstyle|flag))
			if w.try(option(optUnknown, nil)) == nil {
				w.wantClosed("an unknown client flag")
			}
		},
	}
}

// transmissionFlag judges the flags of every mode.
func transmissionFlag(name, rule string, good func(m mode, flags uint16) bool) Row {
	return Row{
		Name: "flags/" + name, Level: Must, Rule: rule,
		check: func(x *probe) {
			for m, flags := range x.f.byMode {
				if mode(m) == structured && !x.f.structured || mode(m) == extended && !x.f.extended {
					continue
				}
				if !good(mode(m), flags) {
					x.failf("%v: transmission flags %#x", mode(m), flags)
				}
			}
		},
	}
}
