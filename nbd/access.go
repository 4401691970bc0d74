package nbd

import (
	"fmt"
	"slices"
)

// errTLSFirst refuses everything before TLS under TLSRequired.
var errTLSFirst = &refusal{repErrTLSReqd, NegotiationTLSRequired, "this server wants TLS: begin with STARTTLS"}

// find returns the export that a client asks for by name, or why it cannot have
// it. Every option that names an export uses find.
func (n *negotiation) find(name string) (Export, *refusal) {
	e, ok := n.c.server.Exports.Lookup(name)
	if !ok {
		return Export{}, &refusal{repErrUnknown, NegotiationNoExport, fmt.Sprintf("no export %q", clip(name, maxMessageBytes))}
	}
	return e, n.mayUse(e)
}

// mayUse returns why this client may not use e, or nil if it may.
//
// Source: proto.md, "SELECTIVETLS mode"; NBD_REP_ERR_POLICY under "Option reply
// types".
func (n *negotiation) mayUse(e Export) *refusal {
	named := len(e.AllowedNames) > 0
	if (named || e.TLSOnly) && !n.secured() {
		if n.c.server.TLSMode == TLSOff { // then TLS_REQD would send the client nowhere
			return &refusal{
				repErrPolicy, NegotiationTLSRequired,
				fmt.Sprintf("export %q is for clients with TLS, which this server does not do", e.Name),
			}
		}
		return &refusal{repErrTLSReqd, NegotiationTLSRequired, fmt.Sprintf("export %q wants TLS", e.Name)}
	}
	if !named {
		return nil
	}
	for _, name := range n.names {
		if slices.Contains(e.AllowedNames, name) {
			return nil
		}
	}
	return &refusal{
		repErrPolicy, NegotiationNotAllowed,
		fmt.Sprintf("export %q is not for the names in this client's certificate: %q", e.Name, n.names),
	}
}
