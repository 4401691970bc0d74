package nbd

// An agreement is what client and server have agreed on in the handshake beyond
// the least that the protocol has. STARTTLS forgets all of it.
//
// Source: proto.md, "NBD_OPT_STRUCTURED_REPLY", "NBD_OPT_SET_META_CONTEXT"; the
// extension branch's "NBD_OPT_EXTENDED_HEADERS".
type agreement struct {
	// structured has every reply to a read, and every error, sent as chunks.
	structured bool
	// extended has requests and replies with 64-bit lengths. It implies
	// structured.
	extended bool
	// allocation is the client's choice of the meta context base:allocation, for
	// the export that the connection has entered.
	allocation bool
}

// allocationID is the id of the meta context base:allocation on each connection.
const allocationID = uint32(1)

// String names the format of replies.
func (a *agreement) String() string {
	switch {
	case a.extended:
		return "extended"
	case a.structured:
		return "structured"
	}
	return "simple"
}
