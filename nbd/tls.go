package nbd

import (
	"crypto/tls"
)

// A TLSMode says what a server makes of NBD_OPT_STARTTLS.
//
// Source: proto.md, "TLS support", "Server-side requirements".
type TLSMode uint8

// Modes of TLS.
const (
	// TLSOff refuses STARTTLS: mode NOTLS of the specification.
	TLSOff TLSMode = iota
	// TLSOptional takes clients with and without TLS; exports marked TLSOnly
	// are for those with: mode SELECTIVETLS.
	TLSOptional
	// TLSRequired has every client begin with STARTTLS: mode FORCEDTLS.
	TLSRequired
)

// String returns the mode's name in configurations.
func (m TLSMode) String() string {
	switch m {
	case TLSOff:
		return "off"
	case TLSOptional:
		return "optional"
	case TLSRequired:
		return "required"
	}
	return "invalid"
}

// farewell tells a TLS client that nothing more will come, so that it can tell
// the end from a cut cable. Nothing may be in flight.
func (c *Conn) farewell() {
	if t, ok := c.wire.(*tls.Conn); ok {
		_ = t.CloseWrite() // it bounds its own waiting; the connection ends in any case
	}
}
