package nbdtest

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// Options are what a client asks for in the handshake.
type Options struct {
	// TLS, if set, is used after NBD_OPT_STARTTLS.
	TLS *tls.Config
	// Structured and Extended ask for these formats of replies. Extended implies
	// Structured.
	Structured, Extended bool
	// Meta are the meta contexts to select.
	Meta []string
}

const (
	optionMagic = 0x49484156454F5054

	optStartTLS        = 5
	optGo              = 7
	optStructuredReply = 8
	optSetMetaContext  = 10
	optExtendedHeaders = 11

	repAck         = 1
	repInfo        = 3
	repMetaContext = 4

	infoExport    = 0
	infoBlockSize = 3
)

// Dial negotiates export on nc.
//
// Errors: whatever the server refuses, with its message.
func Dial(nc net.Conn, export string, o Options) (*Client, error) {
	c := &Client{
		Conn:       nc,
		Contexts:   make(map[string]uint32),
		structured: o.Structured || o.Extended,
		extended:   o.Extended,
		sent:       make(chan Command, 1<<14),
		inFlight:   make(map[uint64]*pending),
	}
	var hello [18]byte
	if _, err := io.ReadFull(nc, hello[:]); err != nil {
		return nil, fmt.Errorf("greeting: %w", err)
	}
	if _, err := nc.Write([]byte{0, 0, 0, 3}); err != nil { // FIXED_NEWSTYLE, NO_ZEROES
		return nil, fmt.Errorf("flags: %w", err)
	}
	if o.TLS != nil {
		if err := c.option("STARTTLS", optStartTLS, nil, nil); err != nil {
			return nil, err
		}
		secure := tls.Client(nc, o.TLS)
		if err := secure.Handshake(); err != nil {
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		c.Conn = secure
	}
	switch {
	case o.Extended:
		if err := c.option("EXTENDED_HEADERS", optExtendedHeaders, nil, nil); err != nil {
			return nil, err
		}
	case o.Structured:
		if err := c.option("STRUCTURED_REPLY", optStructuredReply, nil, nil); err != nil {
			return nil, err
		}
	}
	if len(o.Meta) > 0 {
		b := appendString(nil, export)
		b = binary.BigEndian.AppendUint32(b, uint32(len(o.Meta)))
		for _, q := range o.Meta {
			b = appendString(b, q)
		}
		err := c.option("SET_META_CONTEXT", optSetMetaContext, b, func(typ uint32, data []byte) bool {
			if typ == repMetaContext && len(data) >= 4 {
				c.Contexts[string(data[4:])] = binary.BigEndian.Uint32(data)
				return true
			}
			return false
		})
		if err != nil {
			return nil, err
		}
	}
	b := binary.BigEndian.AppendUint16(appendString(nil, export), 1)
	b = binary.BigEndian.AppendUint16(b, infoBlockSize)
	err := c.option("GO", optGo, b, func(typ uint32, data []byte) bool {
		if typ != repInfo || len(data) < 2 {
			return false
		}
		switch kind := binary.BigEndian.Uint16(data); {
		case kind == infoExport && len(data) == 12:
			c.SizeBytes = binary.BigEndian.Uint64(data[2:])
			c.Flags = binary.BigEndian.Uint16(data[10:])
		case kind == infoBlockSize && len(data) == 14:
			c.MinBlockBytes = binary.BigEndian.Uint32(data[2:])
			c.PreferredBlockBytes = binary.BigEndian.Uint32(data[6:])
			c.MaxPayloadBytes = binary.BigEndian.Uint32(data[10:])
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// option sends an option and takes replies to the final one. Those before it go
// to more, which says whether it expects them.
func (c *Client) option(name string, id uint32, data []byte, more func(typ uint32, data []byte) bool) error {
	b := binary.BigEndian.AppendUint64(nil, optionMagic)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	if _, err := c.Conn.Write(append(b, data...)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for {
		var h [20]byte
		if _, err := io.ReadFull(c.Conn, h[:]); err != nil {
			return fmt.Errorf("reply to %s: %w", name, err)
		}
		data := make([]byte, binary.BigEndian.Uint32(h[16:]))
		if _, err := io.ReadFull(c.Conn, data); err != nil {
			return fmt.Errorf("reply to %s: %w", name, err)
		}
		typ := binary.BigEndian.Uint32(h[12:])
		if typ == repAck {
			return nil
		}
		if more == nil || !more(typ, data) {
			return fmt.Errorf("reply to %s: type %#x: %s", name, typ, data)
		}
	}
}
