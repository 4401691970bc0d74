package conformance

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// A wire is one raw connection to the server. Anything that goes wrong on it ends the
// row.
type wire struct {
	x  *probe
	nc net.Conn

	handshake            uint16 // the server's flags
	said                 uint32 // the client's flags
	structured, extended bool
	allocationID         uint32 // 0 if base:allocation was not selected
	sizeBytes            uint64
	flags                uint16

	cookie  uint64
	pending map[uint64]*reply
}

// timedOut says whether err means that the deadline has passed.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// send writes b whole.
func (w *wire) send(b []byte) {
	if err := w.try(b); err != nil {
		if timedOut(err) {
			w.x.end(Hang, "the server does not take what is sent")
		}
		w.x.failf("the server hung up while it was sent something: %v", err)
	}
}

// try writes b, to a server that may hang up.
func (w *wire) try(b []byte) error {
	_ = w.nc.SetWriteDeadline(time.Now().Add(w.x.target.patience())) // the write will tell
	_, err := w.nc.Write(b)
	return err
}

// read reads n bytes of what.
func (w *wire) read(n int, what string) []byte {
	b, err := w.tryRead(n)
	switch {
	case err == nil:
		return b
	case timedOut(err):
		w.x.end(Hang, "no %s", what)
	default:
		w.x.failf("the server hung up instead of %s: %v", what, err)
	}
	return nil
}

// tryRead reads n bytes from a server that may hang up.
func (w *wire) tryRead(n int) ([]byte, error) {
	b := make([]byte, n)
	_ = w.nc.SetReadDeadline(time.Now().Add(w.x.target.patience())) // the read will tell
	_, err := io.ReadFull(w.nc, b)
	return b, err
}

// wantClosed reads on to the end of the connection, which must come next.
func (w *wire) wantClosed(after string) {
	b, err := w.tryRead(1)
	switch {
	case err == nil:
		w.x.failf("after %s the server sent %#02x…: want it to hang up", after, b[0])
	case timedOut(err):
		w.x.end(Hang, "the server did not hang up after %s", after)
	}
}

// close leaves in good order, if it can.
func (w *wire) close() {
	if w.pending != nil && w.sizeBytes > 0 {
		_ = w.try(w.encode(&request{typ: cmdDisc})) // a courtesy
	}
	_ = w.nc.Close()
}

// greet reads the server's greeting.
func (w *wire) greet() {
	b := w.read(18, "greeting")
	if m := binary.BigEndian.Uint64(b); m != magicNBD {
		w.x.failf("the greeting begins with %#x, want %#x", m, uint64(magicNBD))
	}
	if m := binary.BigEndian.Uint64(b[8:]); m != magicOption {
		w.x.failf("the greeting goes on with %#x, want %#x", m, uint64(magicOption))
	}
	w.handshake = binary.BigEndian.Uint16(b[16:])
}

// sayFlags sends the client's flags.
func (w *wire) sayFlags(flags uint16) {
	w.said = uint32(flags)
	w.send(binary.BigEndian.AppendUint32(nil, w.said))
}

// handshakeTLS does the TLS handshake, which must succeed.
func (w *wire) handshakeTLS(config *tls.Config) {
	if err := w.tryTLS(config); err != nil {
		if timedOut(err) {
			w.x.end(Hang, "the TLS handshake does not end")
		}
		w.x.failf("TLS handshake: %v", err)
	}
}

// tryTLS does the TLS handshake.
func (w *wire) tryTLS(config *tls.Config) error {
	conn := tls.Client(w.nc, config)
	_ = w.nc.SetDeadline(time.Now().Add(w.x.target.patience())) // the handshake will tell
	ctx, cancel := context.WithTimeout(w.x.ctx, w.x.target.patience())
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return os.ErrDeadlineExceeded
		}
		return err
	}
	w.nc = conn
	return nil
}

// An optReply is one reply to an option.
type optReply struct {
	typ  uint32
	data []byte
}

func (r optReply) isError() bool { return r.typ&repError != 0 }

func (r optReply) String() string {
	names := map[uint32]string{
		repAck: "ACK", repServer: "SERVER", repInfo: "INFO", repMeta: "META_CONTEXT", repUnsup: "ERR_UNSUP", repPolicy: "ERR_POLICY",
		repInvalid: "ERR_INVALID", repTLSReqd: "ERR_TLS_REQD", repUnknown: "ERR_UNKNOWN", repError | 7: "ERR_SHUTDOWN",
		repError | 4: "ERR_PLATFORM", repBlockReqd: "ERR_BLOCK_SIZE_REQD", repTooBig: "ERR_TOO_BIG", repExtReqd: "ERR_EXT_HEADER_REQD",
	}
	name, ok := names[r.typ]
	if !ok {
		name = fmt.Sprintf("reply %#x", r.typ)
	}
	if r.isError() && len(r.data) > 0 {
		return fmt.Sprintf("%s (%.80q)", name, r.data)
	}
	return name
}

// option is one option as it goes over the wire.
func option(id uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func (w *wire) sendOption(id uint32, data []byte) { w.send(option(id, data)) }

// reply reads one reply to option id.
func (w *wire) reply(id uint32) optReply {
	h := w.read(20, fmt.Sprintf("reply to option %d", id))
	return w.replyBody(id, h)
}

// replyOrEnd reads one reply to option id, or the end of the connection.
func (w *wire) replyOrEnd(id uint32) (r optReply, ok bool) {
	h, err := w.tryRead(20)
	switch {
	case err == nil:
		return w.replyBody(id, h), true
	case timedOut(err):
		w.x.end(Hang, "neither a reply to option %d nor the end", id)
	case errors.Is(err, io.ErrUnexpectedEOF) && !w.isTLS():
		w.x.failf("the server hung up within a reply")
	}
	return optReply{}, false
}

func (w *wire) isTLS() bool {
	_, ok := w.nc.(*tls.Conn)
	return ok
}

func (w *wire) replyBody(id uint32, h []byte) optReply {
	if m := binary.BigEndian.Uint64(h); m != magicOptReply {
		w.x.failf("reply to option %d begins with %#x, want %#x", id, m, uint64(magicOptReply))
	}
	if got := binary.BigEndian.Uint32(h[8:]); got != id {
		w.x.failf("reply to option %#x names option %#x", id, got)
	}
	n := binary.BigEndian.Uint32(h[16:])
	if n > maxOptReplyBytes {
		w.x.failf("reply to option %d has %d bytes", id, n)
	}
	r := optReply{typ: binary.BigEndian.Uint32(h[12:])}
	r.data = w.read(int(n), "data of an option reply")
	return r
}

// wantReply reads one reply, of the type wanted.
func (w *wire) wantReply(id, typ uint32) {
	r := w.reply(id)
	if r.typ != typ {
		w.x.failf("option %d was answered by %v, want %v", id, r, optReply{typ: typ})
	}
}

// final reads the replies to option id up to the last.
func (w *wire) final(id uint32) (before []optReply, last optReply) {
	for {
		r := w.reply(id)
		if r.typ == repAck || r.isError() {
			return before, r
		}
		if r.typ != repServer && r.typ != repInfo && r.typ != repMeta {
			w.x.failf("option %d was answered by %v", id, r)
		}
		if before = append(before, r); len(before) > 1<<16 {
			w.x.failf("option %d gets replies for ever", id)
		}
	}
}

// ask sends an option and reads all its replies.
func (w *wire) ask(id uint32, data []byte) (before []optReply, last optReply) {
	w.sendOption(id, data)
	return w.final(id)
}

// wantFinal sends an option, whose last reply must be of the type wanted.
func (w *wire) wantFinal(id uint32, data []byte, typ uint32) []optReply {
	before, last := w.ask(id, data)
	if last.typ != typ {
		w.x.failf("option %d was answered by %v, want %v", id, last, optReply{typ: typ})
	}
	return before
}

// wantError sends an option that must get an error reply, of one of the types if
// any are given, and leave the server in step.
func (w *wire) wantError(id uint32, data []byte, types ...uint32) {
	_, last := w.ask(id, data)
	if !last.isError() {
		w.x.failf("option %d was answered by %v, want an error", id, last)
	}
	ok := len(types) == 0
	var names []string
	for _, t := range types {
		ok = ok || last.typ == t
		names = append(names, optReply{typ: t}.String())
	}
	if !ok {
		w.x.failf("option %d was answered by %v, want %s", id, last, strings.Join(names, " or "))
	}
	w.inStep()
}

// wantRefused sends an option that the server may refuse by an error, staying in
// step, or by hanging up.
func (w *wire) wantRefused(id uint32, data []byte) {
	if err := w.try(option(id, data)); err != nil {
		if timedOut(err) {
			w.x.end(Hang, "the server neither takes option %d nor hangs up", id)
		}
		return
	}
	r, ok := w.replyOrEnd(id)
	if !ok {
		return
	}
	for !r.isError() && r.typ != repAck {
		r = w.reply(id)
	}
	if !r.isError() {
		w.x.failf("option %d was answered by %v, want an error", id, r)
	}
	w.inStep()
}

// inStep checks that the server understands the next option.
func (w *wire) inStep() {
	_, last := w.ask(optUnknown, []byte("in step?"))
	if last.typ != repUnsup && last.typ != repTLSReqd {
		w.x.failf("the next option, an unknown one, was answered by %v, want ERR_UNSUP", last)
	}
}

// infoData is the data of INFO and GO.
func infoData(name string, requests ...uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(requests)))
	for _, r := range requests {
		b = binary.BigEndian.AppendUint16(b, r)
	}
	return b
}

// metaData is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func metaData(name string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// A context is a NBD_REP_META_CONTEXT.
type metaContext struct {
	id   uint32
	name string
}

// contexts decodes the replies before the last.
func (w *wire) contexts(replies []optReply) []metaContext {
	var cs []metaContext
	for _, r := range replies {
		if r.typ != repMeta || len(r.data) < 4 {
			w.x.failf("%v of %d bytes among the replies to a meta context option", r, len(r.data))
		}
		cs = append(cs, metaContext{binary.BigEndian.Uint32(r.data), string(r.data[4:])})
	}
	return cs
}

// setAllocation selects base:allocation.
func (w *wire) setAllocation(export string) {
	cs := w.contexts(w.wantFinal(optSetMeta, metaData(export, "base:allocation"), repAck))
	if len(cs) != 1 || cs[0].name != "base:allocation" {
		w.x.failf("base:allocation was selected, and %v came back", cs)
	}
	w.allocationID = cs[0].id
}

// enter begins transmission, by GO or, with an old server, by EXPORT_NAME.
func (w *wire) enter(name string) {
	if w.x.f.info {
		w.takeInfo(w.wantFinal(optGo, infoData(name, infoBlockSize), repAck))
		return
	}
	w.sendOption(optExportName, []byte(name))
	w.takeExport()
}

// takeInfo reads NBD_INFO_EXPORT.
func (w *wire) takeInfo(replies []optReply) {
	found := false
	for _, r := range replies {
		if r.typ == repInfo && len(r.data) == 12 && binary.BigEndian.Uint16(r.data) == infoExport {
			w.sizeBytes = binary.BigEndian.Uint64(r.data[2:])
			w.flags = binary.BigEndian.Uint16(r.data[10:])
			found = true
		}
	}
	if !found {
		w.x.failf("no NBD_INFO_EXPORT of 12 bytes among %d replies", len(replies))
	}
}

// takeExport reads the answer to EXPORT_NAME.
func (w *wire) takeExport() {
	n := 10 + 124
	if w.said&noZeroes != 0 {
		n = 10
	}
	b := w.read(n, "answer to EXPORT_NAME")
	w.sizeBytes = binary.BigEndian.Uint64(b)
	w.flags = binary.BigEndian.Uint16(b[8:])
	for i, v := range b[10:] {
		if v != 0 {
			w.x.failf("byte %d of the padding is %#x", i, v)
		}
	}
}

// checkString wants a string of the protocol.
func (w *wire) checkString(what string, b []byte) {
	switch {
	case len(b) > maxStringBytes:
		w.x.failf("%s has %d bytes, want at most %d", what, len(b), maxStringBytes)
	case !utf8.Valid(b):
		w.x.failf("%s is not UTF-8: %q", what, b)
	case strings.ContainsRune(string(b), 0):
		w.x.failf("%s contains NUL: %q", what, b)
	}
}
