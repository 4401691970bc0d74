package nbd

// An agreement is what client and server have agreed on in the handshake beyond
// the protocol's minimum. STARTTLS discards all of it.
//
// Source: proto.md, "NBD_OPT_STRUCTURED_REPLY", "NBD_OPT_SET_META_CONTEXT"; the
// extension branch's "NBD_OPT_EXTENDED_HEADERS".
type agreement struct {
	// structured means that every reply to a read, and every error, is sent as chunks.
	structured bool
	// extended means that requests and replies have 64-bit lengths. It implies
	// structured.
	extended bool
	// allocation is the client's choice of the meta context base:allocation, for
	// the export that the connection has entered.
	allocation bool
}

// Replies says which formats of replies a server offers: one and all older ones.
type Replies uint8

// The values of Replies.
const (
	// RepliesExtended offers all formats.
	RepliesExtended Replies = iota
	// RepliesStructured offers no extended headers.
	RepliesStructured
	// RepliesSimple offers no structured replies either, and so no meta contexts,
	// which need them. Clients that do not look for holes lose nothing, and clients
	// that receive a chunk's header in several steps have less to do.
	RepliesSimple
)

// offers says whether the server offers an option. It treats options that it does not
// offer as unknown, as an older server would: ERR_POLICY would be closer to the truth, but
// makes clients give up that could do without the option.
func (o Replies) offers(option uint32) bool {
	switch option {
	case optStructuredReply, optListMetaContext, optSetMetaContext:
		return o < RepliesSimple
	case optExtendedHeaders:
		return o < RepliesStructured
	}
	return true
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
