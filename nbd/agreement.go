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

// Replies says what a server offers: a format of replies and all that are older.
type Replies uint8

// The values of Replies.
const (
	// RepliesExtended offers whatever there is.
	RepliesExtended Replies = iota
	// RepliesStructured offers no extended headers.
	RepliesStructured
	// RepliesSimple offers no structured replies either, and so no meta contexts,
	// which need them. Clients that do not look for holes lose nothing by it, and
	// those that receive a chunk's header in several steps have less to do.
	RepliesSimple
)

// offers says whether an option is one that the server has. To clients those that
// it has not are as unknown as any other, as they are to a server that is older than
// they: ERR_POLICY would be truer, and has clients give up that could do without.
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
