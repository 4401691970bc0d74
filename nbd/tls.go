package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"
)

// A TLSMode says how a server treats NBD_OPT_STARTTLS.
//
// Source: proto.md, "TLS support", "Server-side requirements".
type TLSMode uint8

// Modes of TLS.
const (
	// TLSOff refuses STARTTLS: mode NOTLS of the specification.
	TLSOff TLSMode = iota
	// TLSOptional accepts clients with and without TLS; exports marked TLSOnly
	// are only for clients with TLS: mode SELECTIVETLS.
	TLSOptional
	// TLSRequired makes every client begin with STARTTLS: mode FORCEDTLS.
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

// startTLS answers NBD_OPT_STARTTLS. After its ACK only TLS is read from the socket,
// and nothing was read ahead: plain text that an attacker slipped in behind the option
// makes the TLS handshake fail. What was settled before is forgotten, as a man in the
// middle may have settled it.
//
// Source: proto.md, "NBD_OPT_STARTTLS", "TLS versions".
func (n *negotiation) startTLS(data []byte) error {
	c := n.c
	switch {
	case len(data) != 0:
		return n.refuseData(optStartTLS, "STARTTLS", data)
	case n.secured():
		return n.refuse(optStartTLS, repErrInvalid, "STARTTLS within TLS")
	case c.server.TLSMode == TLSOff:
		return n.refuse(optStartTLS, repErrUnsup, "this server does not do TLS")
	case !n.fixed:
		return n.refuse(optStartTLS, repErrPolicy, "STARTTLS is for clients that set NBD_FLAG_C_FIXED_NEWSTYLE")
	}
	config := c.server.TLSConfig()
	if config == nil {
		c.server.Log.Error("no TLS configuration for a client", "conn", c.id, "remote", c.remote)
		return n.turnAway(optStartTLS, &refusal{repErrPolicy, NegotiationTLSFailed, "TLS is not available now"})
	}
	if err := n.reply(optStartTLS, repAck); err != nil {
		return err
	}
	t := tls.Server(newRecordConn(c.nc), fitConfig(config))
	if err := t.Handshake(); err != nil { // within the deadline of the whole handshake
		if isTimeout(err) {
			return err
		}
		return negotiationError{NegotiationTLSFailed, err.Error()}
	}
	state := t.ConnectionState()
	if state.Version < tls.VersionTLS12 { // by a GetConfigForClient, say
		return negotiationError{NegotiationTLSFailed, "version is " + tls.VersionName(state.Version)}
	}
	n.names = nil
	if len(state.VerifiedChains) > 0 { // else the certificate is anybody's word
		n.names = certificateNames(state.PeerCertificates[0])
	}
	if len(n.names) > 0 {
		c.clientName = n.names[0]
	}
	c.wire = t
	c.tls = fmt.Sprintf("%s %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite))
	n.haggled = haggled{}
	n.refused = nil
	return nil
}

// fitConfig returns c as an NBD server needs it.
func fitConfig(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	// Connections are few and long. Without resumption, a new certificate authority
	// takes effect for every new connection at once.
	c.SessionTicketsDisabled = true
	// Small records at the start help browsers, not disks.
	c.DynamicRecordSizingDisabled = true
	return c
}

// certificateNames returns the names that c speaks for, as Export.AllowedNames
// has them.
func certificateNames(c *x509.Certificate) []string {
	var names []string
	if c.Subject.CommonName != "" {
		names = append(names, c.Subject.CommonName)
	}
	names = append(names, c.DNSNames...)
	names = append(names, c.EmailAddresses...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	return names
}

// needsTLS says whether option id is refused for lack of TLS.
//
// Source: proto.md, "FORCEDTLS mode".
func (n *negotiation) needsTLS(id uint32) bool {
	return n.c.server.TLSMode == TLSRequired && !n.secured() && id != optAbort && id != optStartTLS
}

// mayDemandTLS says whether the option may be answered by NBD_REP_ERR_TLS_REQD. It may
// not if the client could not comply nor, in a server where only some exports need TLS,
// if the option does not enter an export.
//
// Source: proto.md, "Server-side requirements", "SELECTIVETLS mode".
func (n *negotiation) mayDemandTLS(id uint32) bool {
	return n.fixed && (n.c.server.TLSMode == TLSRequired || id == optInfo || id == optGo)
}

// secured says whether the client has TLS.
func (n *negotiation) secured() bool { return n.c.wire != n.c.nc }

// farewell tells a TLS client that nothing more will come, so that it can distinguish
// the end from a cut cable. Nothing may be in flight.
func (c *Conn) farewell() {
	t, ok := c.wire.(*tls.Conn)
	if !ok || c.dead.Load() {
		return
	}
	_ = t.CloseWrite() // it bounds its own waiting; the connection ends in any case
	s, ok := c.stream.(*tlsStream)
	if !ok {
		return
	}
	// CloseWrite leaves a write deadline that has passed, but its record is
	// still to be written.
	if c.nc.SetWriteDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	for more := true; more; more = len(s.out) > 0 {
		if s.drain(true) != nil {
			return
		}
	}
}

// farewellAtOnce is farewell for a handshake that comes to nothing, if it need not wait.
//
// Concurrency: in the handshake, where nobody else reads or writes.
func (c *Conn) farewellAtOnce() {
	t, ok := c.wire.(*tls.Conn)
	if !ok || c.dead.Load() {
		return
	}
	s, ok := newStream(t).(*tlsStream)
	if !ok {
		return // all its writing may wait
	}
	s.begin()
	_ = t.CloseWrite() // to memory
	// As in farewell, the record is still to be written.
	if c.nc.SetWriteDeadline(time.Now().Add(lingerTime)) == nil {
		_ = s.drain(false) // the connection ends in any case
	}
}
