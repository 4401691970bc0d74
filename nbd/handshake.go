package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// A negotiation is the handshake of one connection: haggling over options until
// one of them begins the transmission phase.
//
// It reads exactly what the client sent for each step and never ahead, so that
// whoever takes over the connection, be it transmission or TLS, finds the next
// byte on the socket. Each reply is one write: old clients read replies in one
// piece.
//
// Source: proto.md, "Handshake phase", "Fixed newstyle negotiation".
type negotiation struct {
	c *Conn

	noZeroes bool
	fixed    bool // the client said that it knows fixed newstyle
	spoke    bool // the client has sent something
	deadline time.Time
	// lastWords is set once the client has been given extra time in spite of a drain.
	lastWords bool
	options   int
	// allowance is how many options a client may send beyond Limits.MaxOptions
	// because of the exports that LIST has shown it.
	allowance int
	// names are those of the client's verified certificate.
	names []string
	// refused is why the client was last refused an export, if it was; openErr is why a device
	// could not be opened.
	refused *refusal
	openErr error

	haggled
}

// haggled is what a client has settled by its options so far. STARTTLS makes the server
// forget all of it.
type haggled struct {
	// agreed is the agreement so far; its meta contexts are only for the export mapped.
	agreed agreement
	mapped string
	// sized is the export whose block sizes the client has asked for: the client may
	// then enter transmission without asking again.
	sized    string
	hasSized bool
}

// verdict is what follows an option.
type verdict uint8

const (
	haggle   verdict = iota // the next option
	transmit                // the client is in
	hangUp                  // the client ends it in good order
)

// A negotiationError ends a handshake for a reason.
type negotiationError struct {
	reason NegotiationFailure
	detail string // for people; may be empty
}

func (e negotiationError) Error() string {
	return "negotiation: " + e.reason.String() + ": " + e.detail
}

// errEnd is a handshake that the client ended in good order.
var errEnd = negotiationError{reason: NegotiationFailureCount}

// because returns a negotiationError without detail.
func because(reason NegotiationFailure) error { return negotiationError{reason: reason} }

// A refusal is an error reply that says why the client does not get an export. The
// client may go on after it.
type refusal struct {
	typ     uint32 // of the reply
	reason  NegotiationFailure
	message string
}

func (r *refusal) Error() string { return r.message }

// errDraining refuses everything once the server, or the device, drains.
var errDraining = &refusal{repErrShutdown, NegotiationShutdown, "the server is shutting down"}

// An outcome is how a handshake ended, if not in transmission.
type outcome struct {
	reason NegotiationFailure
	detail string
	// silent is set if the client has done nothing worth logging.
	silent bool
}

// negotiate takes the connection through the handshake. If ok is false it has not
// reached transmission, and end says why.
func (c *Conn) negotiate() (end outcome, ok bool) {
	n := &negotiation{c: c}
	err := n.run()
	if err == nil {
		err = c.nc.SetDeadline(time.Time{})
	}
	if err == nil && !c.server.enter(c) {
		err = because(NegotiationShutdown)
	}
	if err == nil {
		return outcome{}, true
	}
	c.farewellAtOnce()
	if c.session != nil {
		c.abandon()
		c.session.Close()
		c.session = nil
	}
	var why negotiationError
	switch {
	case errors.As(err, &why) && why.reason == NegotiationFailureCount && n.refused != nil:
		// It left because of what it was told.
		return outcome{reason: n.refused.reason, detail: n.explain(n.refused)}, false
	case errors.As(err, &why):
		silent := why.reason == NegotiationProbe || why.reason == NegotiationFailureCount
		return outcome{reason: why.reason, detail: why.detail, silent: silent}, false
	case c.draining():
		return outcome{reason: NegotiationShutdown}, false
	case CloseReason(c.reason.Load()) == CloseDropped:
		return outcome{reason: NegotiationBroken, detail: "dropped with the connections of its export"}, false
	case isTimeout(err):
		return outcome{reason: NegotiationTimeout, silent: !n.spoke}, false
	}
	return outcome{reason: NegotiationBroken, detail: err.Error()}, false
}

func (n *negotiation) run() error {
	c := n.c
	n.deadline = time.Now().Add(c.limits.HandshakeTimeout)
	if err := c.nc.SetDeadline(n.deadline); err != nil {
		return err
	}
	if c.draining() {
		return because(NegotiationShutdown) // SetDeadline may have undone the poke
	}
	if err := n.greet(); err != nil {
		return err
	}
	for {
		v, err := n.option()
		if err != nil {
			return err
		}
		switch v {
		case haggle:
		case transmit:
			return nil
		case hangUp:
			return errEnd
		}
	}
}

// greet sends the server's handshake flags and reads the client's.
func (n *negotiation) greet() error {
	var hello [newstyleHeaderBytes]byte
	binary.BigEndian.PutUint64(hello[0:], protocol.NEGOTIATION_MAGIC_OLDSTYLE)
	binary.BigEndian.PutUint64(hello[8:], protocol.NEGOTIATION_MAGIC_OPTION)
	binary.BigEndian.PutUint16(hello[16:], flagFixedNewstyle|flagNoZeroes)
	if _, err := n.c.wire.Write(hello[:]); err != nil {
		return because(NegotiationProbe) // gone before it said a word
	}
	var b [clientFlagsBytes]byte
	k, err := io.ReadFull(n.c.wire, b[:])
	n.spoke = k > 0
	if err != nil {
		if k == 0 && !isTimeout(err) {
			return because(NegotiationProbe)
		}
		return err
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&^clientFlags != 0 {
		return negotiationError{NegotiationClientFlags, fmt.Sprintf("%#08x", flags)}
	}
	n.noZeroes = flags&clientNoZeroes != 0
	n.fixed = flags&clientFixedNewstyle != 0
	return nil
}

// option reads one option and answers it.
func (n *negotiation) option() (verdict, error) {
	c := n.c
	var b [optionHeaderBytes]byte
	if k, err := n.read(b[:]); err != nil {
		if k == 0 && errors.Is(err, io.EOF) {
			return hangUp, nil // between options a client may leave
		}
		return 0, err
	}
	h := protocol.NegotiationOptionHeader{
		OptionMagic: binary.BigEndian.Uint64(b[0:]),
		ID:          binary.BigEndian.Uint32(b[8:]),
		Length:      binary.BigEndian.Uint32(b[12:]),
	}
	if h.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return 0, because(NegotiationBadMagic)
	}
	n.options++
	if n.options > c.limits.MaxOptions+n.allowance {
		return 0, because(NegotiationTooManyOptions)
	}
	overlong := int64(h.Length) > int64(c.limits.MaxOptionBytes)
	if overlong && (h.ID == optExportName || h.Length > maxDrainBytes) { // the former has no error reply
		return 0, negotiationError{NegotiationOptionTooLong, fmt.Sprintf("option %d with %d bytes", h.ID, h.Length)}
	}
	data := make([]byte, h.Length)
	if _, err := n.read(data); err != nil {
		return 0, err
	}
	if c.draining() && h.ID != optAbort { // whose only answer is ACK
		if h.ID == optExportName { // which has no error reply
			return 0, because(NegotiationShutdown)
		}
		// Clients take it for a no to this option, and only GO makes them say why they give up.
		return haggle, n.turnAway(h.ID, errDraining)
	}
	if overlong {
		return n.overlong(h)
	}
	return n.answer(h.ID, data)
}

// read fills b with a part of an option. When the server begins to drain, a client
// gets a moment more to finish its option, so that it can be told.
func (n *negotiation) read(b []byte) (k int, err error) {
	c := n.c
	for {
		var more int
		more, err = io.ReadFull(c.wire, b[k:])
		k += more
		if err == nil || !isTimeout(err) || !c.draining() || n.lastWords {
			return k, err
		}
		n.lastWords = true
		at := time.Now()
		// If the option comes at the last moment, there is one more to take the answer.
		err = errors.Join(c.nc.SetReadDeadline(at.Add(lingerTime)), c.nc.SetWriteDeadline(at.Add(2*lingerTime)))
		if err != nil {
			return k, err
		}
	}
}

// answer answers an option that came in full.
func (n *negotiation) answer(id uint32, data []byte) (verdict, error) {
	if n.needsTLS(id) {
		if id == optExportName {
			return 0, because(NegotiationTLSRequired)
		}
		return haggle, n.turnAway(id, errTLSFirst)
	}
	if !n.c.server.Replies.offers(id) {
		return haggle, n.unsupported(id)
	}
	switch id {
	case optExportName:
		return n.exportName(data)
	case optAbort:
		if n.reply(id, repAck) == nil { // else the client is gone already, or takes nothing
			n.c.farewell()
		}
		return hangUp, nil
	case optList:
		return haggle, n.list(data)
	case optStartTLS:
		return haggle, n.startTLS(data)
	case optInfo, optGo:
		return n.infoOrGo(id, data)
	case optStructuredReply:
		return haggle, n.structuredReply(data)
	case optListMetaContext, optSetMetaContext:
		return haggle, n.metaContext(id, data)
	case optExtendedHeaders:
		return haggle, n.extendedHeaders(data)
	}
	return haggle, n.unsupported(id)
}

// overlong answers an option with more data than there may be, which has been read so that
// the client stays in step, and is not looked at.
func (n *negotiation) overlong(h protocol.NegotiationOptionHeader) (verdict, error) {
	message := fmt.Sprintf("option %d with %d bytes of data: want at most %d", h.ID, h.Length, n.c.limits.MaxOptionBytes)
	if n.needsTLS(h.ID) {
		return haggle, n.turnAway(h.ID, errTLSFirst)
	}
	if !n.c.server.Replies.offers(h.ID) {
		return haggle, n.unsupported(h.ID)
	}
	if h.ID == optSetMetaContext {
		n.forgetContexts()
	}
	switch h.ID {
	case optAbort:
		return n.answer(h.ID, nil)
	case optInfo, optGo, optListMetaContext, optSetMetaContext:
		return haggle, n.refuse(h.ID, repErrTooBig, message)
	case optList, optStartTLS, optStructuredReply, optExtendedHeaders:
		return haggle, n.refuse(h.ID, repErrInvalid, message) // they should have none
	}
	return n.answer(h.ID, nil) // unknown whatever its data
}

// reply sends one option reply, its data being the concatenation of parts.
func (n *negotiation) reply(id, typ uint32, parts ...[]byte) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	b := make([]byte, replyHeaderBytes, replyHeaderBytes+size)
	binary.BigEndian.PutUint64(b[0:], protocol.NEGOTIATION_MAGIC_REPLY)
	binary.BigEndian.PutUint32(b[8:], id)
	binary.BigEndian.PutUint32(b[12:], typ)
	binary.BigEndian.PutUint32(b[16:], uint32(size))
	for _, p := range parts {
		b = append(b, p...)
	}
	_, err := n.c.wire.Write(b)
	return err
}

// refuse sends an error reply with a message for people.
func (n *negotiation) refuse(id, typ uint32, message string) error {
	return n.reply(id, typ, []byte(clip(message, maxMessageBytes)))
}

// unsupported refuses an option that the server does not have.
func (n *negotiation) unsupported(id uint32) error {
	return n.refuse(id, repErrUnsup, fmt.Sprintf("option %d is not supported", id))
}

// refuseData refuses an option that has data but should have none.
func (n *negotiation) refuseData(id uint32, option string, data []byte) error {
	return n.refuse(id, repErrInvalid, fmt.Sprintf("%s with %d bytes of data: want none", option, len(data)))
}

// turnAway refuses the client an export and remembers why.
func (n *negotiation) turnAway(id uint32, r *refusal) error {
	n.refused = r
	c := n.c
	c.server.Log.Debug("client refused", "conn", c.id, "remote", c.remote, "option", id, "reason", r.reason.String(), "detail", n.explain(r))
	typ := r.typ
	if typ == repErrTLSReqd && !n.mayDemandTLS(id) {
		typ = repErrPolicy
	}
	return n.refuse(id, typ, r.message)
}

// explain is why a client was refused, for the log. The client need not know as much.
func (n *negotiation) explain(r *refusal) string {
	if r.reason == NegotiationOpenFailed {
		return fmt.Sprintf("%s: %v", r.message, n.openErr)
	}
	return r.message
}
