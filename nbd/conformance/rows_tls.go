package conformance

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
)

const (
	secStartTLS  = "NBD_OPT_STARTTLS"
	secTLS       = "TLS support"
	secForced    = "FORCEDTLS mode"
	secSelective = "SELECTIVETLS mode"
	secExtHead   = "NBD_OPT_EXTENDED_HEADERS"
)

func extendedOptionRows() []Row {
	rows := []Row{
		{
			Name: "extended-option/ack", Section: secExtHead, Level: Must,
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
			Name: "extended-option/data", Section: secExtHead, Level: Should,
			Rule:  "the option has no data: with some it gets NBD_REP_ERR_INVALID",
			check: func(x *probe) { x.haggle().wantError(optExtended, []byte{0}, repInvalid) },
		},
		{
			Name: "extended-option/twice", Section: secExtHead, Level: Should,
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
			Name: "extended-option/then-structured", Section: secExtHead, Level: Should,
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
			Name: "extended-option/after-structured", Section: secExtHead, Level: Must,
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
			Name: "extended-option/export-name", Section: secExtHead, Level: Should,
			Rule: "EXPORT_NAME is no way in after it: the server hangs up",
			check: func(x *probe) {
				w := x.haggle()
				w.upgrade(extended)
				w.sendOption(optExportName, []byte(x.target.Export))
				w.wantClosed("EXPORT_NAME with extended headers")
			},
		},
		{
			Name: "extended-option/contexts", Section: secExtHead, Level: Must,
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

// overTLS is ready to haggle over TLS whatever the target does otherwise.
func overTLS(x *probe) *wire {
	w := startTLS(x)
	w.handshakeTLS(x.target.tls())
	return w
}

func tlsRows() []Row {
	return []Row{
		{
			Name: "tls/refused", Section: secStartTLS, Level: Should,
			Rule:  "a server that does no TLS says NBD_REP_ERR_POLICY, or NBD_REP_ERR_UNSUP as old ones do, and stays in step",
			needs: need("a server without TLS", func(f *features) bool { return !f.tls }),
			check: func(x *probe) { x.plain().wantError(optStartTLS, nil, repPolicy, repUnsup) },
		},
		{
			Name: "tls/upgrade", Section: secStartTLS, Level: Must,
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
			Name: "tls/data", Section: secStartTLS, Level: Should,
			Rule:  "the option has no data: with some it gets NBD_REP_ERR_INVALID",
			needs: needTLS,
			check: func(x *probe) { x.plain().wantError(optStartTLS, []byte{0}, repInvalid) },
		},
		{
			Name: "tls/second", Section: secStartTLS, Level: Must,
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
			Name: "tls/no-tls-reqd-inside", Section: "NBD_REP_ERR_TLS_REQD", Level: Must,
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
			Name: "tls/1.2", Section: secTLS, Level: Should,
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
			Name: "tls/1.3", Section: secTLS, Level: Should,
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
			Name: "tls/1.1", Section: secTLS, Level: Should,
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
			Name: "tls/not-tls", Section: secTLS, Level: Should,
			Rule:  "a client that sends no TLS after the ACK loses its connection, and others do not suffer",
			needs: needTLS,
			check: func(x *probe) {
				w := startTLS(x)
				w.send(bytes.Repeat([]byte("this is no TLS "), 10))
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
			Name: "tls/injection", Section: secStartTLS, Level: Must,
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
			Name: "tls/forgets-structured", Section: secStartTLS, Level: Must,
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
			Name: "tls/forgets-contexts", Section: secStartTLS, Level: Must,
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
			Name: "tls/forgets-extended", Section: secStartTLS, Level: Must,
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
			Name: "tls/selective-info", Section: secSelective, Level: Must,
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
			Name: "tls/selective-export-name", Section: secSelective, Level: Must,
			Rule:  "EXPORT_NAME of an export for TLS only ends the connection in the clear",
			needs: needTLSOnly,
			check: func(x *probe) {
				w := x.plain()
				w.sendOption(optExportName, []byte(x.f.tlsOnly))
				w.wantClosed("EXPORT_NAME of an export for TLS only")
			},
		},
		{
			Name: "tls/selective-enters", Section: secSelective, Level: Must,
			Rule:  "within TLS an export for TLS only is one as any other",
			needs: needTLSOnly,
			check: func(x *probe) {
				w := overTLS(x)
				w.enter(x.f.tlsOnly)
				w.alive()
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
			Name: "tls/forced-export-name", Section: secForced, Level: Must,
			Rule:  "where TLS is required EXPORT_NAME in the clear ends the connection",
			needs: needForcedTLS,
			check: func(x *probe) {
				w := x.plain()
				w.sendOption(optExportName, []byte(x.target.Export))
				w.wantClosed("EXPORT_NAME without TLS")
			},
		},
		{
			Name: "tls/forced-abort", Section: secForced, Level: Should,
			Rule:  "where TLS is required ABORT in the clear is answered as ever",
			needs: needForcedTLS,
			check: func(x *probe) {
				w := x.plain()
				w.sendOption(optAbort, nil)
				w.wantReply(optAbort, repAck)
			},
		},
		{
			Name: "tls/forced-unknown-names", Section: secForced, Level: Should,
			Rule:  "where TLS is required nobody learns in the clear which exports exist: both get NBD_REP_ERR_TLS_REQD",
			needs: all(needForcedTLS, needInfo),
			check: func(x *probe) {
				w := x.plain()
				w.wantFinal(optInfo, infoData(noSuchExport), repTLSReqd)
				w.wantFinal(optInfo, infoData(x.target.Export), repTLSReqd)
			},
		},
		{
			Name: "tls/disc-closes-session", Section: "NBD_CMD_DISC", Level: Must,
			Rule:  "after DISC the server shuts the TLS session down before it closes: the client sees the end, not a cut",
			needs: needTLS,
			check: func(x *probe) {
				w := overTLS(x)
				w.enter(x.target.Export)
				w.alive()
				w.send(w.encode(&request{typ: cmdDisc}))
				_, err := w.tryRead(1)
				switch {
				case err == nil:
					x.failf("the server sent something after DISC")
				case timedOut(err):
					x.end(Hang, "the server does not hang up after DISC")
				case !errors.Is(err, io.EOF):
					x.failf("the session was cut: %v", err)
				}
			},
		},
	}
}

// forced has an option that must wait for TLS.
func forced(name, option string, id uint32, data func(x *probe) []byte) Row {
	return Row{
		Name: "tls/forced-" + name, Section: secForced, Level: Must,
		Rule:  "where TLS is required " + option + " in the clear gets NBD_REP_ERR_TLS_REQD",
		needs: needForcedTLS,
		check: func(x *probe) {
			w := x.plain()
			w.wantFinal(id, data(x), repTLSReqd)
			w.wantFinal(optList, nil, repTLSReqd)
		},
	}
}
