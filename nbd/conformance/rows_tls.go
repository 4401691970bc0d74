package conformance

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
)

func extendedOptionRows() []Row {
	rows := []Row{
		{
			Name: "extended-option/ack", Level: Must,
			Rule: "after the ACK requests and replies have the long headers",
			check: func(x *probe) {
				w := x.haggle()
				w.upgrade(extended)
				w.inStep()
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "extended-option/data", Level: Should,
			Rule:  "the option has no data: with some it gets NBD_REP_ERR_INVALID",
			check: func(x *probe) { x.haggle().wantError(optExtended, []byte{0}, repInvalid) },
		},
		{
			Name: "extended-option/twice", Level: Should,
			Rule: "asked for a second time, the server stays with extended headers and in step",
			check: func(x *probe) {
				w := x.haggle()
				w.upgrade(extended)
				w.ask(optExtended, nil)
				w.inStep()
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "extended-option/then-structured", Level: Should,
			Rule: "a STRUCTURED_REPLY after it gets NBD_REP_ERR_EXT_HEADER_REQD: extended headers comprise it",
			check: func(x *probe) {
				w := x.haggle()
				w.upgrade(extended)
				w.wantError(optStructured, nil, repExtReqd)
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "extended-option/after-structured", Level: Must,
			Rule:  "a client may ask for structured replies first and for extended headers then",
			needs: needStructured,
			check: func(x *probe) {
				w := x.haggle()
				w.upgrade(structured)
				w.upgrade(extended)
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "extended-option/export-name", Level: Should,
			Rule: "EXPORT_NAME is no way in after it: the server hangs up",
			check: func(x *probe) {
				w := x.haggle()
				w.upgrade(extended)
				w.sendOption(optExportName, []byte(x.target.Export))
				w.wantClosed("EXPORT_NAME with extended headers")
			},
		},
		{
			Name: "extended-option/contexts", Level: Must,
			Rule:  "it is enough for meta contexts: no STRUCTURED_REPLY is needed",
			needs: needAllocation,
			check: func(x *probe) {
				w := x.haggle()
				w.upgrade(extended)
				w.setAllocation(x.target.Export)
				w.enter(x.target.Export)
				w.ok(request{typ: cmdBlockStatus, length: x.f.block()})
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

// startTLS sends the option in the clear and reads the ACK.
func startTLS(x *probe) *wire {
	w := x.plain()
	w.sendOption(optStartTLS, nil)
	w.wantReply(optStartTLS, repAck)
	return w
}

// overTLS connects and gets ready to haggle over TLS, whether or not the target is Secure.
func overTLS(x *probe) *wire {
	w := startTLS(x)
	w.handshakeTLS(x.target.tls())
	return w
}

func tlsRows() []Row {
	return []Row{
		{
			Name: "tls/refused", Level: Must,
			Rule:  "a server that does no TLS says NBD_REP_ERR_POLICY, or NBD_REP_ERR_UNSUP as old ones do, and stays in step",
			needs: need("a server without TLS", func(f *features) bool { return !f.tls }),
			check: func(x *probe) { x.plain().wantError(optStartTLS, nil, repPolicy, repUnsup) },
		},
		{
			Name: "tls/never-required", Level: Must,
			Rule:  "a server that does no TLS never says NBD_REP_ERR_TLS_REQD",
			needs: need("a server without TLS", func(f *features) bool { return !f.tls }),
			check: func(x *probe) {
				w := x.plain()
				noTLSReqd(w, x.target.Export, noSuchExport)
			},
		},
		{
			Name: "tls/needs-fixed-newstyle", Level: Must,
			Rule:  "a client that does not say fixed newstyle finds a server without TLS: no STARTTLS, and no NBD_REP_ERR_TLS_REQD",
			needs: needTLS,
			check: func(x *probe) {
				w := x.dial()
				w.greet()
				w.sayFlags(0)
				w.sendOption(optStartTLS, nil)
				if r, ok := w.replyOrEnd(optStartTLS); ok && (r.typ == repAck || r.typ == repTLSReqd) {
					x.failf("STARTTLS of a client without fixed newstyle: %v", r)
				}
			},
		},
		{
			Name: "tls/hangs-up-in-order", Level: Should,
			Rule:  "a server that hangs up on an option shuts TLS down first: the client sees the end, not a cut",
			needs: all(needTLS, needInfo, needNamed),
			check: func(x *probe) {
				w := overTLS(x)
				w.sendOption(optExportName, []byte(noSuchExport))
				w.wantEndOfTLS("EXPORT_NAME with an unknown name")
			},
		},
		{
			Name: "tls/transmission-hangs-up-in-order", Level: Should,
			Rule:  "so does a server that hangs up on a request",
			needs: needTLS,
			check: func(x *probe) {
				w := overTLS(x)
				w.enter(x.target.Export)
				w.alive()
				b := w.encode(&request{typ: cmdRead, length: x.f.block(), cookie: 1})
				b[0] ^= 0xff
				w.send(b)
				if w.peek() == nil {
					x.notApplicable("it does not hang up")
				}
				w.wantEndOfTLS("a request with a wrong magic")
			},
		},
		{
			Name: "tls/upgrade", Level: Must,
			Rule:  "after the ACK comes the TLS handshake, and haggling goes on inside",
			needs: needTLS,
			check: func(x *probe) {
				w := overTLS(x)
				w.inStep()
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "tls/data", Level: Should,
			Rule:  "the option has no data: with some it gets NBD_REP_ERR_INVALID",
			needs: needTLS,
			check: func(x *probe) { x.plain().wantFinal(optStartTLS, []byte{0}, repInvalid) }, // and may hang up
		},
		{
			Name: "tls/second", Level: Must,
			Rule:  "within TLS a second STARTTLS gets NBD_REP_ERR_INVALID",
			needs: needTLS,
			check: func(x *probe) {
				w := overTLS(x)
				w.wantError(optStartTLS, nil, repInvalid)
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "tls/no-tls-reqd-inside", Level: Must,
			Rule:  "within TLS nothing is refused for want of TLS",
			needs: needTLS,
			check: func(x *probe) {
				w := overTLS(x)
				for _, o := range []struct {
					id   uint32
					data []byte
				}{
					{optList, nil},
					{optInfo, infoData(x.target.Export, infoBlockSize)},
					{optInfo, infoData(noSuchExport)},
					{optStructured, nil},
					{optListMeta, metaData(x.target.Export)},
					{optExtended, nil},
				} {
					if _, last := w.ask(o.id, o.data); last.typ == repTLSReqd {
						x.failf("option %d: %v", o.id, last)
					}
				}
			},
		},
		{
			Name: "tls/1.2", Level: Must,
			Rule:  "a client that speaks TLS 1.2 and no later version is served",
			needs: needTLS,
			check: func(x *probe) {
				w := startTLS(x)
				config := x.target.tls()
				config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
				w.handshakeTLS(config)
				w.inStep()
			},
		},
		{
			Name: "tls/1.3", Level: Should,
			Rule:  "a client that speaks TLS 1.3 and no earlier version is served",
			needs: needTLS,
			check: func(x *probe) {
				w := startTLS(x)
				config := x.target.tls()
				config.MinVersion, config.MaxVersion = tls.VersionTLS13, tls.VersionTLS13
				w.handshakeTLS(config)
				w.inStep()
			},
		},
		{
			Name: "tls/1.1", Level: Should,
			Rule:  "versions of TLS before 1.2 are not spoken",
			needs: needTLS,
			check: func(x *probe) {
				w := startTLS(x)
				config := x.target.tls()
				config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
				if err := w.tryTLS(config); err == nil {
					x.failf("a handshake with TLS 1.1 succeeded")
				} else if timedOut(err) {
					x.end(Hang, "a handshake with TLS 1.1 does not end")
				}
			},
		},
		{
			Name: "tls/not-tls", Level: Must,
			Rule:  "a client that goes on in the clear after the ACK loses its connection, and others do not suffer",
			needs: needTLS,
			check: func(x *probe) {
				w := startTLS(x)
				w.send(bytes.Repeat(option(optUnknown, nil), 10))
				for {
					_, err := w.tryRead(1) // an alert, perhaps, then the end
					if timedOut(err) {
						x.end(Hang, "the server does not hang up")
					}
					if err != nil {
						break
					}
				}
				overTLS(x).inStep()
			},
		},
		{
			Name: "tls/injection", Level: Must,
			Rule:  "what was sent in the clear behind STARTTLS is never taken for something that came by TLS",
			needs: needTLS,
			check: func(x *probe) {
				w := x.plain()
				// The option injected gets another answer than the one asked in TLS.
				w.send(append(option(optStartTLS, nil), option(optUnknown+7, nil)...))
				w.wantReply(optStartTLS, repAck)
				if w.tryTLS(x.target.tls()) == nil {
					w.inStep() // a reply to the other option would show here
				}
			},
		},
		{
			Name: "tls/forgets-structured", Level: Must,
			Rule:  "what was negotiated before STARTTLS is forgotten: structured replies",
			needs: all(needChoiceTLS, needStructured),
			check: func(x *probe) {
				w := x.plain()
				w.upgrade(structured)
				w.structured = false
				w.sendOption(optStartTLS, nil)
				w.wantReply(optStartTLS, repAck)
				w.handshakeTLS(x.target.tls())
				w.enter(x.target.Export)
				w.alive() // only a simple reply is understood
			},
		},
		{
			Name: "tls/forgets-contexts", Level: Must,
			Rule:  "what was negotiated before STARTTLS is forgotten: meta contexts",
			needs: all(needChoiceTLS, needAllocation),
			check: func(x *probe) {
				w := x.plain()
				w.upgrade(structured)
				w.setAllocation(x.target.Export)
				w.sendOption(optStartTLS, nil)
				w.wantReply(optStartTLS, repAck)
				w.handshakeTLS(x.target.tls())
				w.upgrade(structured)
				w.enter(x.target.Export)
				wantNoStatus(w)
			},
		},
		{
			Name: "tls/forgets-extended", Level: Must,
			Rule:  "what was negotiated before STARTTLS is forgotten: extended headers",
			needs: all(needChoiceTLS, needExtended),
			check: func(x *probe) {
				w := x.plain()
				w.wantFinal(optExtended, nil, repAck)
				w.sendOption(optStartTLS, nil)
				w.wantReply(optStartTLS, repAck)
				w.handshakeTLS(x.target.tls())
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "tls/selective-info", Level: Must,
			Rule:  "an export for TLS only gets NBD_REP_ERR_TLS_REQD in the clear, and the client may choose another",
			needs: all(needTLSOnly, needInfo),
			check: func(x *probe) {
				w := x.plain()
				w.wantError(optInfo, infoData(x.f.tlsOnly, infoBlockSize), repTLSReqd)
				w.wantError(optGo, infoData(x.f.tlsOnly, infoBlockSize), repTLSReqd)
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "tls/selective-export-name", Level: Must,
			Rule:  "EXPORT_NAME of an export for TLS only ends the connection in the clear",
			needs: needTLSOnly,
			check: func(x *probe) {
				w := x.plain()
				w.sendOption(optExportName, []byte(x.f.tlsOnly))
				w.wantClosed("EXPORT_NAME of an export for TLS only")
			},
		},
		{
			Name: "tls/selective-enters", Level: Must,
			Rule:  "within TLS an export for TLS only is one as any other",
			needs: needTLSOnly,
			check: func(x *probe) {
				w := overTLS(x)
				w.enter(x.f.tlsOnly)
				w.alive()
			},
		},
		{
			Name: "tls/selective-others", Level: Must,
			Rule:  "where TLS is for some exports, no option but INFO and GO gets NBD_REP_ERR_TLS_REQD",
			needs: needTLSOnly,
			check: func(x *probe) {
				w := x.plain()
				for _, o := range innocent(x.target.Export, x.f.tlsOnly, noSuchExport) {
					if _, last := w.ask(o.id, o.data); last.typ == repTLSReqd {
						x.failf("option %d: %v", o.id, last)
					}
				}
			},
		},
		{
			Name: "tls/selective-no-info", Level: Should,
			Rule:  "a server that hides unknown exports behind NBD_REP_ERR_TLS_REQD tells nothing of those for TLS only",
			needs: all(needTLSOnly, needInfo, needNamed),
			check: func(x *probe) {
				w := x.plain()
				if _, last := w.ask(optInfo, infoData(noSuchExport)); last.typ != repTLSReqd {
					x.notApplicable("unknown exports are not hidden")
				}
				if before, _ := w.ask(optInfo, infoData(x.f.tlsOnly, infoBlockSize)); len(before) > 0 {
					x.failf("%d replies before the error", len(before))
				}
			},
		},
		{
			Name: "tls/forced-no-info", Level: Must,
			Rule:  "where TLS is required there is no NBD_REP_INFO before NBD_REP_ERR_TLS_REQD",
			needs: needForcedTLS,
			check: func(x *probe) {
				w := x.plain()
				for _, id := range []uint32{optInfo, optGo} {
					if before := w.wantFinal(id, everyInfo(x), repTLSReqd); len(before) > 0 {
						x.failf("option %d: %d replies before the error", id, len(before))
					}
				}
			},
		},
		forced("list", "LIST", optList, func(*probe) []byte { return nil }),
		forced("info", "INFO", optInfo, func(x *probe) []byte { return infoData(x.target.Export) }),
		forced("go", "GO", optGo, func(x *probe) []byte { return infoData(x.target.Export) }),
		forced("structured", "STRUCTURED_REPLY", optStructured, func(*probe) []byte { return nil }),
		forced("list-meta", "LIST_META_CONTEXT", optListMeta, func(x *probe) []byte { return metaData(x.target.Export) }),
		forced("set-meta", "SET_META_CONTEXT", optSetMeta, func(x *probe) []byte { return metaData(x.target.Export) }),
		forced("unknown", "an unknown option", optUnknown, func(*probe) []byte { return nil }),
		{
			Name: "tls/forced-export-name", Level: Must,
			Rule:  "where TLS is required EXPORT_NAME in the clear ends the connection",
			needs: needForcedTLS,
			check: func(x *probe) {
				w := x.plain()
				w.sendOption(optExportName, []byte(x.target.Export))
				w.wantClosed("EXPORT_NAME without TLS")
			},
		},
		{
			Name: "tls/forced-abort", Level: Should,
			Rule:  "where TLS is required ABORT in the clear is answered as ever",
			needs: needForcedTLS,
			check: func(x *probe) {
				w := x.plain()
				w.sendOption(optAbort, nil)
				w.wantReply(optAbort, repAck)
			},
		},
		{
			Name: "tls/forced-unknown-names", Level: Should,
			Rule:  "where TLS is required nobody learns in the clear which exports exist: both get NBD_REP_ERR_TLS_REQD",
			needs: all(needForcedTLS, needInfo),
			check: func(x *probe) {
				w := x.plain()
				w.wantFinal(optInfo, infoData(noSuchExport), repTLSReqd)
				w.wantFinal(optInfo, infoData(x.target.Export), repTLSReqd)
			},
		},
		{
			Name: "tls/disc-closes-session", Level: Must,
			Rule:  "after DISC the server shuts the TLS session down before it closes: the client sees the end, not a cut",
			needs: needTLS,
			check: func(x *probe) {
				w := overTLS(x)
				w.enter(x.target.Export)
				w.alive()
				w.send(w.encode(&request{typ: cmdDisc}))
				w.wantEndOfTLS("DISC")
			},
		},
	}
}

// forced has an option that must wait for TLS.
func forced(name, option string, id uint32, data func(x *probe) []byte) Row {
	return Row{
		Name: "tls/forced-" + name, Level: Must,
		Rule:  "where TLS is required " + option + " in the clear gets NBD_REP_ERR_TLS_REQD",
		needs: needForcedTLS,
		check: func(x *probe) {
			w := x.plain()
			w.wantFinal(id, data(x), repTLSReqd)
			w.wantFinal(optList, nil, repTLSReqd)
		},
	}
}

// An ask is an option with its data.
type ask struct {
	id   uint32
	data []byte
}

// innocent are the options for which a server must not require TLS unless it requires TLS
// for all: those that are not about entering an export.
func innocent(exports ...string) []ask {
	asks := []ask{{optList, nil}, {optStructured, nil}, {optUnknown, nil}, {optExtended, nil}}
	for _, e := range exports {
		asks = append(asks, ask{optListMeta, metaData(e)}, ask{optSetMeta, metaData(e, allocation)})
	}
	return asks
}

// noTLSReqd asks everything about the exports short of entering them.
func noTLSReqd(w *wire, exports ...string) {
	asks := append(innocent(exports...), ask{optStartTLS, nil})
	for _, e := range exports {
		asks = append(asks, ask{optInfo, infoData(e, infoBlockSize)})
	}
	for _, o := range asks {
		if _, last := w.ask(o.id, o.data); last.typ == repTLSReqd {
			w.x.failf("option %d: %v", o.id, last)
		}
	}
}

// wantEndOfTLS reads the end of the session, which must come next and in order.
func (w *wire) wantEndOfTLS(after string) {
	b, err := w.tryRead(1)
	switch {
	case err == nil:
		w.x.failf("after %s the server sent %#02x…: want it to hang up", after, b[0])
	case timedOut(err):
		w.x.end(Hang, "the server does not hang up after %s", after)
	case !errors.Is(err, io.EOF):
		w.x.failf("after %s the session was cut: %v", after, err)
	}
}
