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

	// agreed is what STARTTLS forgets.
	agreed agreement

	noZeroes bool
	options  int
	// sized is the export whose block sizes the client has asked for: it may
	// then enter transmission without asking again.
	sized    string
	hasSized bool
}

// verdict is what follows an option.
type verdict uint8

const (
	haggle   verdict = iota // the next option
	transmit                // the client is in
	hangUp                  // negotiation.fail or a good end
)

// A negotiationError ends a handshake for a reason.
type negotiationError NegotiationFailure

func (e negotiationError) Error() string { return "negotiation: " + NegotiationFailure(e).String() }

// errEnd is a handshake that the client ended in good order.
const errEnd = negotiationError(NegotiationFailureCount)

// negotiate carries the connection through the handshake. If ok is false it did
// not get to transmission, for the reason given.
func (c *Conn) negotiate() (reason NegotiationFailure, ok bool) {
	n := &negotiation{c: c}
	err := n.run()
	if err == nil {
		err = c.nc.SetDeadline(time.Time{})
	}
	if err == nil && !c.server.enter(c) {
		err = negotiationError(NegotiationShutdown)
	}
	if err == nil {
		return 0, true
	}
	if c.session != nil {
		c.abandon()
		c.session.Close()
		c.session = nil
	}
	var why negotiationError
	switch {
	case errors.As(err, &why):
		return NegotiationFailure(why), false
	case c.draining():
		return NegotiationShutdown, false
	case isTimeout(err):
		return NegotiationTimeout, false
	}
	return NegotiationBroken, false
}

func (n *negotiation) run() error {
	c := n.c
	if err := c.nc.SetDeadline(time.Now().Add(c.limits.HandshakeTimeout)); err != nil {
		return err
	}
	if c.draining() {
		return negotiationError(NegotiationShutdown) // SetDeadline may have undone the poke
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
		return negotiationError(NegotiationProbe) // gone before it said a word
	}
	var b [clientFlagsBytes]byte
	if k, err := io.ReadFull(n.c.wire, b[:]); err != nil {
		if k == 0 && !isTimeout(err) {
			return negotiationError(NegotiationProbe)
		}
		return err
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&^clientFlags != 0 {
		return negotiationError(NegotiationClientFlags)
	}
	n.noZeroes = flags&clientNoZeroes != 0
	return nil
}

// option reads one option and answers it.
func (n *negotiation) option() (verdict, error) {
	c := n.c
	var b [optionHeaderBytes]byte
	if k, err := io.ReadFull(c.wire, b[:]); err != nil {
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
		return 0, negotiationError(NegotiationBadMagic)
	}
	n.options++
	if n.options > c.limits.MaxOptions {
		return 0, negotiationError(NegotiationTooManyOptions)
	}
	if int64(h.Length) > int64(c.limits.MaxOptionBytes) {
		return 0, negotiationError(NegotiationOptionTooLong)
	}
	data := make([]byte, h.Length)
	if _, err := io.ReadFull(c.wire, data); err != nil {
		return 0, err
	}
	if c.draining() {
		if h.ID != optExportName { // which has no error reply
			if err := n.refuse(h.ID, repErrShutdown, "the server is shutting down"); err != nil {
				return 0, err
			}
		}
		return 0, negotiationError(NegotiationShutdown)
	}
	switch h.ID {
	case optExportName:
		return n.exportName(data)
	case optAbort:
		_ = n.reply(h.ID, repAck) // the client may be gone already
		return hangUp, nil
	case optList:
		return haggle, n.list(data)
	case optInfo, optGo:
		return n.infoOrGo(h.ID, data)
	}
	return haggle, n.refuse(h.ID, repErrUnsup, fmt.Sprintf("option %d is not supported", h.ID))
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
	return n.reply(id, typ, []byte(message[:min(len(message), maxStringBytes)]))
}
