package conformance

import (
	"bytes"
	"encoding/binary"
	"strings"
)

func optionRows() []Row {
	rows := []Row{
		{
			Name: "option/unknown", Level: Must,
			Rule:  "an option that the server does not know gets NBD_REP_ERR_UNSUP",
			check: func(x *probe) { x.haggle().wantError(optUnknown, nil, repUnsup) },
		},
		{
			Name: "option/unknown-data", Level: Must,
			Rule: "the data of an unknown option is read and not taken for the next option",
			check: func(x *probe) {
				w := x.haggle()
				w.wantError(optUnknown, option(optAbort, nil), repUnsup)
				w.wantError(optUnknown, bytes.Repeat([]byte{0xa5}, 4000), repUnsup)
			},
		},
		{
			Name: "option/unknown-large", Level: Must,
			Rule: "each value of the option field is an option, also the largest",
			check: func(x *probe) {
				w := x.haggle()
				for _, id := range []uint32{0, 12, 1 << 31, 1<<32 - 1} {
					w.wantError(id, nil, repUnsup)
				}
			},
		},
		{
			Name: "option/withdrawn", Level: Should,
			Rule:  "the withdrawn option 4 gets NBD_REP_ERR_UNSUP",
			check: func(x *probe) { x.haggle().wantError(optPeek, infoData(x.target.Export), repUnsup) },
		},
		{
			Name: "option/many", Level: Should,
			Rule: "a client may try twenty options before it gets in",
			check: func(x *probe) {
				w := x.haggle()
				for range 20 {
					w.wantFinal(optUnknown, nil, repUnsup)
				}
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "option/64-KiB", Level: Should,
			Rule: "an option longer than the server likes gets NBD_REP_ERR_TOO_BIG or another error, and the next one is heard",
			check: func(x *probe) {
				x.haggle().wantError(optUnknown, make([]byte, 64<<10))
			},
		},
		{
			Name: "option/4-GiB", Level: Should,
			Rule: "a server need not read an option of 4 GiB: an error or the end comes without it",
			check: func(x *probe) {
				w := x.haggle()
				b := option(optUnknown, nil)
				binary.BigEndian.PutUint32(b[12:], 1<<32-1)
				w.send(b)
				if r, ok := w.replyOrEnd(optUnknown); ok && !r.isError() {
					x.failf("answered by %v", r)
				}
			},
		},
		{
			Name: "option/error-text", Level: Must,
			Rule: "what an error reply carries is a message for people: UTF-8 of at most 4096 bytes without NUL",
			check: func(x *probe) {
				w := x.haggle()
				for _, o := range []struct {
					id   uint32
					data []byte
				}{
					{optUnknown, nil},
					{optInfo, infoData(noSuchExport)},
					{optInfo, infoData(strings.Repeat("n", maxStringBytes))},
					{optInfo, infoData(strings.Repeat("\u00e9", maxStringBytes/2))}, // a name that may be cut in a letter
					{optSetMeta, metaData(x.target.Export)},
				} {
					if _, last := w.ask(o.id, o.data); last.isError() {
						w.checkString("the message", last.data)
					}
				}
			},
		},
		{
			Name: "option/strings-short", Level: Should,
			Rule: "names, descriptions and messages have at most 256 bytes",
			check: func(x *probe) {
				const enough = 256
				w := x.haggle()
				short := func(what string, b []byte) {
					if len(b) > enough {
						x.failf("%s has %d bytes: %.40q…", what, len(b), b)
					}
				}
				listed, last := w.ask(optList, nil)
				for _, r := range listed {
					if name := listName(r); r.typ == repServer && len(r.data) >= 4+len(name) {
						short("a name", []byte(name))
						short("a description", r.data[4+len(name):])
					}
				}
				for _, o := range []struct {
					id   uint32
					data []byte
				}{
					{optUnknown, nil},
					{optInfo, infoData(noSuchExport)},
					{optInfo, infoData(strings.Repeat("n", maxStringBytes))},
					{optSetMeta, metaData(strings.Repeat("n", maxStringBytes))},
				} {
					if last.isError() {
						short("a message", last.data)
					}
					_, last = w.ask(o.id, o.data)
				}
				if last.isError() {
					short("a message", last.data)
				}
			},
		},
		{
			Name: "option/ack-empty", Level: Must,
			Rule: "NBD_REP_ACK carries no data",
			check: func(x *probe) {
				w := x.haggle()
				var acks []optReply
				if x.f.info {
					_, r := w.ask(optInfo, infoData(x.target.Export, infoBlockSize))
					acks = append(acks, r)
				}
				if x.f.list {
					_, r := w.ask(optList, nil)
					acks = append(acks, r)
				}
				if x.f.structured {
					_, r := w.ask(optStructured, nil)
					acks = append(acks, r)
				}
				for _, r := range acks {
					if r.typ == repAck && len(r.data) > 0 {
						x.failf("an ACK has %d bytes of data", len(r.data))
					}
				}
			},
		},
		{
			Name: "abort/ack", Level: Must,
			Rule: "NBD_OPT_ABORT is answered by NBD_REP_ACK",
			check: func(x *probe) {
				w := x.haggle()
				w.sendOption(optAbort, nil)
				w.wantReply(optAbort, repAck)
			},
		},
		{
			Name: "abort/close", Level: Should,
			Rule: "after the ACK of an ABORT the server sends nothing and hangs up",
			check: func(x *probe) {
				w := x.haggle()
				w.sendOption(optAbort, nil)
				w.wantReply(optAbort, repAck)
				w.wantClosed("ABORT")
			},
		},
		{
			Name: "abort/no-wait", Level: Should,
			Rule: "a client that sends ABORT and closes at once does not disturb the server",
			check: func(x *probe) {
				for range 4 {
					w := x.haggle()
					w.sendOption(optAbort, nil)
					_ = w.nc.Close() // that is the point
				}
				x.haggle().inStep()
			},
		},
		{
			Name: "abort/data", Level: Should,
			Rule: "data that comes with ABORT is ignored: it gets its ACK",
			check: func(x *probe) {
				w := x.haggle()
				w.sendOption(optAbort, []byte("a reason"))
				w.wantReply(optAbort, repAck)
			},
		},
		{
			Name: "list/known", Level: Must,
			Rule: "LIST is part of the baseline: it may be refused, but is not unknown",
			check: func(x *probe) {
				if _, last := x.haggle().ask(optList, nil); last.typ == repUnsup {
					x.failf("LIST: %v", last)
				}
			},
		},
		{
			Name: "list/ack", Level: Must,
			Rule:  "a list is any number of NBD_REP_SERVER and then NBD_REP_ACK",
			needs: needList,
			check: func(x *probe) {
				w := x.haggle()
				for _, r := range w.wantFinal(optList, nil, repAck) {
					if r.typ != repServer {
						x.failf("%v in a list", r)
					}
				}
				w.inStep()
			},
		},
		{
			Name: "list/refused", Level: Should,
			Rule:  "a server that keeps its list to itself says NBD_REP_ERR_POLICY or NBD_REP_ERR_UNSUP",
			needs: need("a server that does not list", func(f *features) bool { return !f.list }),
			check: func(x *probe) { x.haggle().wantError(optList, nil, repPolicy, repUnsup) },
		},
		{
			Name: "list/layout", Level: Must,
			Rule:  "each NBD_REP_SERVER has the length of the name, the name, and perhaps text: strings, and within the reply",
			needs: needList,
			check: func(x *probe) {
				w := x.haggle()
				for _, r := range w.wantFinal(optList, nil, repAck) {
					if len(r.data) < 4 {
						x.failf("NBD_REP_SERVER of %d bytes", len(r.data))
					}
					n := binary.BigEndian.Uint32(r.data)
					if uint64(n) > uint64(len(r.data)-4) {
						x.failf("a name of %d bytes in an NBD_REP_SERVER of %d", n, len(r.data))
					}
					w.checkString("a name", r.data[4:4+n])
					w.checkString("a description", r.data[4+n:])
				}
			},
		},
		{
			Name: "list/each-once", Level: Must,
			Rule:  "there is one NBD_REP_SERVER for each export",
			needs: needList,
			check: func(x *probe) {
				w := x.haggle()
				seen := map[string]bool{}
				for _, r := range w.wantFinal(optList, nil, repAck) {
					name := listName(r)
					if seen[name] {
						x.failf("%q is listed twice", name)
					}
					seen[name] = true
				}
			},
		},
		{
			Name: "list/names-exist", Level: Should,
			Rule:  "what is listed can be asked about by its name",
			needs: all(needList, needInfo),
			check: func(x *probe) {
				w := x.haggle()
				for i, r := range w.wantFinal(optList, nil, repAck) {
					if i == 16 {
						break // options are not for ever
					}
					if _, last := w.ask(optInfo, infoData(listName(r), infoBlockSize)); last.typ == repUnknown {
						x.failf("%q is listed, and INFO says %v", listName(r), last)
					}
				}
			},
		},
		{
			Name: "list/data", Level: Should,
			Rule:  "LIST has no data: with some it gets NBD_REP_ERR_INVALID, and the server stays in step",
			needs: needList,
			check: func(x *probe) { x.haggle().wantError(optList, []byte("list"), repInvalid) },
		},
		{
			Name: "structured/ack", Level: Must,
			Rule:  "after the ACK the server goes on haggling, and lets the client in",
			needs: needStructured,
			check: func(x *probe) {
				w := x.haggle()
				w.upgrade(structured)
				w.inStep()
				w.enter(x.target.Export)
				w.alive()
			},
		},
		{
			Name: "structured/data", Level: Should,
			Rule:  "the option has no data: with some it gets NBD_REP_ERR_INVALID",
			needs: needStructured,
			check: func(x *probe) { x.haggle().wantError(optStructured, []byte{0}, repInvalid) },
		},
		{
			Name: "structured/refused-is-off", Level: Must,
			Rule:  "after an error structured replies are not negotiated",
			needs: needStructured,
			check: func(x *probe) {
				w := x.haggle()
				if _, last := w.ask(optStructured, []byte{0}); !last.isError() {
					x.notApplicable("it was not refused")
				}
				w.enter(x.target.Export)
				w.alive() // only a simple reply is understood
			},
		},
		{
			Name: "structured/twice", Level: Should,
			Rule:  "a second STRUCTURED_REPLY does not undo the first, nor the session",
			needs: needStructured,
			check: func(x *probe) {
				w := x.haggle()
				w.upgrade(structured)
				w.ask(optStructured, nil)
				w.inStep()
				w.enter(x.target.Export)
				r := w.ok(request{typ: cmdRead, length: x.f.block()})
				if r.simple {
					x.failf("reads get simple replies")
				}
			},
		},
		{
			Name: "structured/not-asked", Level: Must,
			Rule: "a client that did not ask gets simple replies, also for errors",
			check: func(x *probe) {
				w := x.enter(compact)
				w.alive()
				w.wantErrno(request{typ: cmdRead, offset: x.f.sizeBytes, length: x.f.block()})
			},
		},
	}
	return rows
}

// listName is the name in an NBD_REP_SERVER, or nothing if that is malformed.
func listName(r optReply) string {
	if len(r.data) < 4 {
		return ""
	}
	n := binary.BigEndian.Uint32(r.data)
	if uint64(n) > uint64(len(r.data)-4) {
		return ""
	}
	return string(r.data[4 : 4+n])
}
