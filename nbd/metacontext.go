package nbd

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// The one meta context that there is, and its namespace.
const (
	contextAllocation = "base:allocation"
	namespaceBase     = "base:"
)

// maxContextQueries bounds the queries of one option.
const maxContextQueries = 1024

// structuredReply answers NBD_OPT_STRUCTURED_REPLY.
//
// Source: proto.md, "NBD_OPT_STRUCTURED_REPLY".
func (n *negotiation) structuredReply(data []byte) error {
	switch {
	case len(data) != 0:
		return n.refuseData(optStructuredReply, "STRUCTURED_REPLY", data)
	case n.agreed.extended:
		return n.refuse(optStructuredReply, repErrExtHeaderReqd, "extended headers are agreed on, and have structured replies")
	case n.agreed.structured:
		return n.refuse(optStructuredReply, repErrInvalid, "structured replies are agreed on already")
	}
	n.agreed.structured = true
	return n.reply(optStructuredReply, repAck)
}

// extendedHeaders answers NBD_OPT_EXTENDED_HEADERS.
//
// Source: the extension branch of proto.md, "NBD_OPT_EXTENDED_HEADERS".
func (n *negotiation) extendedHeaders(data []byte) error {
	switch {
	case len(data) != 0:
		return n.refuseData(optExtendedHeaders, "EXTENDED_HEADERS", data)
	case n.agreed.extended:
		return n.refuse(optExtendedHeaders, repErrInvalid, "extended headers are agreed on already")
	}
	n.agreed.structured, n.agreed.extended = true, true
	return n.reply(optExtendedHeaders, repAck)
}

// contextRequest is the decoded data of NBD_OPT_LIST_META_CONTEXT and
// NBD_OPT_SET_META_CONTEXT.
type contextRequest struct {
	name    string
	queries []string
}

// decodeContextRequest checks every length against the data.
//
// Source: proto.md, "NBD_OPT_LIST_META_CONTEXT".
func decodeContextRequest(data []byte) (q contextRequest, tooMany bool, err error) {
	name, rest, err := cutString(data)
	if err != nil {
		return q, false, fmt.Errorf("export name: %w", err)
	}
	if err := CheckName(name); err != nil {
		return q, false, err
	}
	q.name = name
	if len(rest) < 4 {
		return q, false, fmt.Errorf("%d bytes for the number of queries: want 4", len(rest))
	}
	count := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if int64(count)*4 > int64(len(rest)) {
		return q, false, fmt.Errorf("%d queries in %d bytes", count, len(rest))
	}
	if count > maxContextQueries {
		return q, true, fmt.Errorf("%d queries: want at most %d", count, maxContextQueries)
	}
	for i := range count {
		var query string
		query, rest, err = cutString(rest)
		if err == nil {
			err = CheckName(query) // what holds for a name holds for every string
		}
		if err != nil {
			return q, false, fmt.Errorf("query %d: %w", i+1, err)
		}
		q.queries = append(q.queries, query)
	}
	if len(rest) != 0 {
		return q, false, fmt.Errorf("%d bytes behind the last query", len(rest))
	}
	return q, false, nil
}

// cutString takes a string with its length before it off data.
func cutString(data []byte) (s string, rest []byte, err error) {
	if len(data) < 4 {
		return "", nil, fmt.Errorf("%d bytes for a length: want 4", len(data))
	}
	length := binary.BigEndian.Uint32(data)
	data = data[4:]
	if int64(length) > int64(len(data)) {
		return "", nil, fmt.Errorf("string of %d bytes in data of %d", length, len(data))
	}
	return string(data[:length]), data[length:], nil
}

// wantsAllocation says whether the queries select base:allocation. Wildcards count for
// listing only; having no queries at all is one of them.
func (q *contextRequest) wantsAllocation(listing bool) bool {
	if listing && (len(q.queries) == 0 || slices.Contains(q.queries, namespaceBase)) {
		return true
	}
	return slices.Contains(q.queries, contextAllocation)
}

// metaContext answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
// The latter replaces what was chosen before, even if it fails. The choice is
// for the export that was named: see negotiation.open.
//
// Source: proto.md, "NBD_OPT_LIST_META_CONTEXT", "NBD_OPT_SET_META_CONTEXT",
// "Metadata querying".
func (n *negotiation) metaContext(id uint32, data []byte) error {
	set := id == optSetMetaContext
	if set {
		n.forgetContexts()
		if !n.agreed.structured {
			return n.refuse(id, repErrInvalid, "meta contexts need structured replies")
		}
	}
	q, tooMany, err := decodeContextRequest(data)
	switch {
	case tooMany:
		return n.refuse(id, repErrTooBig, err.Error())
	case err != nil:
		return n.refuse(id, repErrInvalid, err.Error())
	}
	e, no := n.find(q.name)
	if no != nil {
		return n.turnAway(id, no)
	}
	if q.wantsAllocation(!set) {
		var contextID uint32 // reserved in a list
		if set {
			contextID = allocationID
			n.agreed.allocation, n.mapped = true, e.Name
		}
		if err := n.reply(id, repMetaContext, binary.BigEndian.AppendUint32(nil, contextID), []byte(contextAllocation)); err != nil {
			return err
		}
	}
	return n.reply(id, repAck)
}

// forgetContexts undoes what was chosen before.
func (n *negotiation) forgetContexts() { n.agreed.allocation, n.mapped = false, "" }
