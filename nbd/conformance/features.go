package conformance

import (
	"encoding/binary"
	"fmt"
)

// noSuchExport is a name that no server has by chance.
const noSuchExport = "vhbad-conformance/no such export"

// features are what the server offers, found out before any row runs.
type features struct {
	handshake uint16

	tls       bool
	forcedTLS bool
	tlsOnly   string // an export that requires TLS while others do not; "" if none

	info       bool // and GO
	list       bool
	anyName    bool   // unknown names are served, too
	otherName  string // another export that can be entered
	hasOther   bool
	structured bool
	extended   bool
	allocation bool

	sizeBytes uint64
	flags     uint16 // in the richest mode
	byMode    [modeCount]uint16

	hasBlockSize              bool
	minBlock, preferred, most uint32
}

// minSizeBytes is the smallest export that rows can work on.
const minSizeBytes = 4 << 20

// discover finds out x's features. It ends x's row if the server cannot be tested at all.
func discover(x *probe) {
	f := &features{minBlock: 1}
	x.f = f
	w := x.plain()
	f.handshake = w.handshake
	w.sendOption(optStartTLS, nil)
	r := w.reply(optStartTLS)
	f.tls = r.typ == repAck
	_ = w.nc.Close() // it may expect a TLS handshake

	if f.tls {
		w = x.plain()
		w.sendOption(optInfo, infoData(x.target.Export))
		last, ok := w.replyOrEnd(optInfo)
		f.forcedTLS = !ok || last.typ == repTLSReqd
		_ = w.nc.Close() // seen
		if !f.forcedTLS {
			f.tlsOnly = findTLSOnly(x)
		}
	}
	w = x.haggle()
	infos, last := w.ask(optInfo, infoData(x.target.Export, infoBlockSize))
	switch last.typ {
	case repAck:
		f.info = true
		for _, r := range infos {
			if len(r.data) == 14 && binary.BigEndian.Uint16(r.data) == infoBlockSize {
				f.hasBlockSize = true
				f.minBlock = binary.BigEndian.Uint32(r.data[2:])
				f.preferred = binary.BigEndian.Uint32(r.data[6:])
				f.most = binary.BigEndian.Uint32(r.data[10:])
			}
		}
	case repUnsup:
	default:
		x.failf("INFO for export %q: %v", x.target.Export, last)
	}
	if f.info {
		_, last = w.ask(optInfo, infoData(noSuchExport))
		f.anyName = last.typ == repAck
	}
	servers, last := w.ask(optList, nil)
	f.list = last.typ == repAck
	for _, r := range servers {
		if r.typ != repServer || len(r.data) < 4 || f.hasOther {
			continue
		}
		n := binary.BigEndian.Uint32(r.data)
		if uint64(n) > uint64(len(r.data)-4) {
			continue // a row says so
		}
		f.otherName = string(r.data[4 : 4+n])
		f.hasOther = f.otherName != x.target.Export && x.target.Export != ""
	}
	_, last = w.ask(optStructured, nil)
	f.structured = last.typ == repAck
	if f.structured {
		replies, last := w.ask(optListMeta, metaData(x.target.Export))
		if last.typ == repAck {
			for _, c := range w.contexts(replies) {
				f.allocation = f.allocation || c.name == "base:allocation"
			}
		}
	}
	w = x.haggle()
	_, last = w.ask(optExtended, nil)
	f.extended = last.typ == repAck

	for m := range modeCount {
		if m == structured && !f.structured || m == extended && !f.extended {
			continue
		}
		w = x.enter(m)
		f.sizeBytes, f.flags = w.sizeBytes, w.flags
		f.byMode[m] = w.flags
		w.close()
	}
	if f.sizeBytes < minSizeBytes {
		x.failf("export %q has %d bytes: the rows need %d", x.target.Export, f.sizeBytes, uint64(minSizeBytes))
	}
}

// findTLSOnly looks for an export that is listed within TLS, and requires TLS.
func findTLSOnly(x *probe) string {
	listed, _ := overTLS(x).ask(optList, nil)
	w := x.plain()
	for _, r := range listed[:min(len(listed), 16)] { // servers limit how many options they take
		if _, last := w.ask(optInfo, infoData(listName(r), infoBlockSize)); last.typ == repTLSReqd {
			return listName(r)
		}
	}
	return ""
}

// String is a line for people.
func (f *features) String() string {
	return fmt.Sprintf("%d bytes, transmission flags %#x, structured %v, extended %v, base:allocation %v, TLS %v (required %v), blocks %d/%d/%d",
		f.sizeBytes, f.flags, f.structured, f.extended, f.allocation, f.tls, f.forcedTLS, f.minBlock, f.preferred, f.most)
}
