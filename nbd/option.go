package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// exportName answers NBD_OPT_EXPORT_NAME, the old way into transmission. It has
// no error reply: the connection is closed instead.
//
// Source: proto.md, "NBD_OPT_EXPORT_NAME".
func (n *negotiation) exportName(data []byte) (verdict, error) {
	if n.agreed.extended {
		return 0, because(NegotiationExtendedName)
	}
	name := string(data)
	if err := CheckName(name); err != nil {
		return 0, negotiationError{NegotiationNoExport, err.Error()}
	}
	e, no := n.find(name)
	if no == nil {
		if err := n.open(e); err != nil && !errors.As(err, &no) {
			return 0, err
		}
	}
	if no != nil {
		return 0, negotiationError{no.reason, n.explain(no)}
	}
	size := 8 + 2 + exportNameZeroes
	if n.noZeroes {
		size = 8 + 2
	}
	b := make([]byte, size)
	binary.BigEndian.PutUint64(b[0:], n.c.info.SizeBytes)
	binary.BigEndian.PutUint16(b[8:], n.c.info.flags(n.c.agreed))
	if _, err := n.c.wire.Write(b); err != nil {
		return 0, err
	}
	return transmit, nil
}

// list answers NBD_OPT_LIST.
//
// Source: proto.md, "NBD_OPT_LIST", "NBD_REP_SERVER".
func (n *negotiation) list(data []byte) error {
	if len(data) != 0 {
		return n.refuseData(optList, "LIST", data)
	}
	listed := 0
	for _, e := range n.c.server.Exports.List() {
		if e.Hidden || n.mayUse(e) != nil {
			continue
		}
		listed++
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], uint32(len(e.Name)))
		description := clip(e.Device.Info().Description, maxStringBytes)
		if err := n.reply(optList, repServer, length[:], []byte(e.Name), []byte(description)); err != nil {
			return err
		}
	}
	// Not a sum over all LISTs, or a client could go on for ever.
	n.allowance = max(n.allowance, optionsPerListed*listed)
	return n.reply(optList, repAck)
}

// clip cuts one of the server's strings to maxBytes.
func clip(s string, maxBytes int) string {
	if len(s) > maxBytes {
		s = s[:maxBytes]
	}
	return strings.ToValidUTF8(s, "") // the cut may have split a character
}

// infoRequest is the decoded data of NBD_OPT_INFO and NBD_OPT_GO.
type infoRequest struct {
	name                         string
	wantName, wantDesc, wantSize bool
}

// decodeInfoRequest checks every length against the data. Unknown and repeated
// information types are ignored.
//
// Source: proto.md, "NBD_OPT_INFO".
func decodeInfoRequest(data []byte) (q infoRequest, err error) {
	if len(data) < 4+2 {
		return q, fmt.Errorf("data of %d bytes: want at least 6", len(data))
	}
	nameBytes := binary.BigEndian.Uint32(data)
	if int64(nameBytes) > int64(len(data)-6) {
		return q, fmt.Errorf("name of %d bytes in data of %d", nameBytes, len(data))
	}
	q.name = string(data[4 : 4+nameBytes])
	if err := CheckName(q.name); err != nil {
		return q, err
	}
	rest := data[4+nameBytes:]
	count := int(binary.BigEndian.Uint16(rest))
	rest = rest[2:]
	if len(rest) != 2*count {
		return q, fmt.Errorf("%d information requests in %d bytes: want %d", count, len(rest), 2*count)
	}
	for ; len(rest) > 0; rest = rest[2:] {
		switch binary.BigEndian.Uint16(rest) {
		case infoName:
			q.wantName = true
		case infoDescription:
			q.wantDesc = true
		case infoBlockSize:
			q.wantSize = true
		}
	}
	return q, nil
}

// infoOrGo answers NBD_OPT_INFO and NBD_OPT_GO. Only the latter begins transmission.
//
// Source: proto.md, "NBD_OPT_INFO", "NBD_OPT_GO".
func (n *negotiation) infoOrGo(id uint32, data []byte) (verdict, error) {
	q, err := decodeInfoRequest(data)
	if err != nil {
		return haggle, n.refuse(id, repErrInvalid, err.Error())
	}
	c := n.c
	e, no := n.find(q.name)
	if no != nil {
		return haggle, n.turnAway(id, no)
	}
	info := e.Device.Info().normalize(c.limits.MaxPayloadBytes)
	if q.wantSize {
		n.sized, n.hasSized = e.Name, true
	}
	sized := n.hasSized && n.sized == e.Name
	if info.MinBlockBytes > 1 && !sized {
		if err := n.replyBlockSize(id, info); err != nil {
			return 0, err
		}
		return haggle, n.turnAway(id, &refusal{
			repErrBlockSizeReqd, NegotiationBlockSize,
			fmt.Sprintf("export %q needs blocks of %d bytes: ask for NBD_INFO_BLOCK_SIZE", e.Name, info.MinBlockBytes),
		})
	}
	if id == optGo {
		if err := n.open(e); err != nil {
			if errors.As(err, &no) {
				return haggle, n.turnAway(id, no)
			}
			return 0, err
		}
		info = c.info
	}
	if err := n.replyInfo(id, &q, e.Name, info); err != nil {
		return 0, err
	}
	if id == optGo {
		return transmit, nil
	}
	return haggle, nil
}

// replyInfo answers INFO or GO with what q asks about an export.
//
// Source: proto.md, "NBD_INFO_EXPORT".
func (n *negotiation) replyInfo(id uint32, q *infoRequest, name string, info Info) error {
	var b [infoExportBytes]byte
	binary.BigEndian.PutUint16(b[0:], infoExport)
	binary.BigEndian.PutUint64(b[2:], info.SizeBytes)
	binary.BigEndian.PutUint16(b[10:], info.flags(n.agreed))
	if err := n.reply(id, repInfo, b[:]); err != nil {
		return err
	}
	if q.wantName {
		if err := n.replyString(id, infoName, name); err != nil {
			return err
		}
	}
	if q.wantDesc && info.Description != "" {
		if err := n.replyString(id, infoDescription, info.Description); err != nil {
			return err
		}
	}
	if q.wantSize {
		if err := n.replyBlockSize(id, info); err != nil {
			return err
		}
	}
	return n.reply(id, repAck)
}

func (n *negotiation) replyString(id uint32, typ uint16, s string) error {
	return n.reply(id, repInfo, binary.BigEndian.AppendUint16(nil, typ), []byte(clip(s, maxStringBytes)))
}

// replyBlockSize sends NBD_INFO_BLOCK_SIZE.
//
// Source: proto.md, "NBD_INFO_BLOCK_SIZE".
func (n *negotiation) replyBlockSize(id uint32, info Info) error {
	var b [infoBlockSizeBytes]byte
	binary.BigEndian.PutUint16(b[0:], infoBlockSize)
	binary.BigEndian.PutUint32(b[2:], info.MinBlockBytes)
	binary.BigEndian.PutUint32(b[6:], info.PreferredBlockBytes)
	binary.BigEndian.PutUint32(b[10:], info.MaxPayloadBytes)
	return n.reply(id, repInfo, b[:])
}

// open makes the connection ready to transmit for e. After it succeeds, the connection
// can only enter transmission or end.
//
// Errors: a refusal leaves the connection as it was; any other ends it.
func (n *negotiation) open(e Export) error {
	c := n.c
	if err := n.detain(e); err != nil {
		return err
	}
	if no := c.server.reserve(n, e); no != nil {
		return no
	}
	mem, err := n.firstBlock()
	if err != nil {
		c.server.release(c)
		return err
	}
	c.stream = newStream(c.wire)
	if !c.server.CopyReads {
		c.splicer, _ = c.stream.(splicer)
	}
	c.export = e
	c.agreed = n.agreed
	c.agreed.allocation = n.agreed.allocation && n.mapped == e.Name
	c.info = e.Device.Info().normalize(c.limits.MaxPayloadBytes)
	c.rules = newRules(&c.info, c.info.MaxPayloadBytes)
	c.granted = mem
	c.rxBytes, c.txBytes = minBlockBytes, minReplyBlockBytes
	c.gather = newGatherer(&c.server.pauses)
	c.rx = c.allocate(minBlockBytes)
	c.mu.Lock()
	c.readerAwake = true
	c.mu.Unlock()
	session, err := e.Device.Open(c)
	if err != nil {
		n.openErr = err
		c.abandon()
		c.server.release(c)
		return &refusal{repErrUnknown, NegotiationOpenFailed, fmt.Sprintf("export %q cannot be opened", e.Name)}
	}
	c.session = session
	return nil
}

// firstBlock waits for the memory that a connection begins with.
//
// Errors: a refusal if a drain has begun; the client's time is up; the client has gone; the
// connection is dead.
func (n *negotiation) firstBlock() ([]byte, error) {
	c := n.c
	if mem := c.arena.Alloc(minBlockBytes); mem != nil {
		return mem, nil
	}
	ctx, cancel := context.WithDeadline(c.ctx, n.deadline)
	defer cancel()
	leave := c.watch(cancel)
	mem, err := c.allocWait(ctx, minBlockBytes, waiter{end: cancel})
	switch gone := leave(n.deadline); {
	case err == nil:
		return mem, nil
	case gone:
		return nil, negotiationError{NegotiationBroken, "the client has closed while it had to wait for memory"}
	case errors.Is(err, context.DeadlineExceeded):
		return nil, because(NegotiationTimeout)
	case c.draining():
		return nil, errDraining
	}
	return nil, err
}
