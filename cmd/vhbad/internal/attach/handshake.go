package attach

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Limits of what a server may send.
// Source: proto.md, "Values", string; the reply bound is ours.
const (
	maxStringBytes = 4096
	maxReplyBytes  = 64 << 10
	maxReplies     = 64
)

// Negotiation constants that package protocol lacks.
// Source: proto.md, "Handshake phase", "Option types", "Transmission flags".
const (
	flagNoZeroes    = 1 << 1
	replyErrorBit   = 1 << 31
	infoExport      = 0
	infoBlockSize   = 3
	errUnsupported  = replyErrorBit | 1
	errPolicy       = replyErrorBit | 2
	errTLSRequired  = replyErrorBit | 5
	errUnknown      = replyErrorBit | 6
	errShutdown     = replyErrorBit | 7
	flagHasFlags    = 1 << 0
	flagReadOnly    = 1 << 1
	flagFlush       = 1 << 2
	flagFUA         = 1 << 3
	flagTrim        = 1 << 5
	flagWriteZeroes = 1 << 6
	flagMultiConn   = 1 << 8
	exportInfoBytes = 12
	blockInfoBytes  = 14
)

// exportInfo is what a server says about an export.
type exportInfo struct {
	sizeBytes uint64
	flags     uint16
	// minBlockBytes is 1 unless the server said otherwise.
	minBlockBytes uint32
}

// dial connects to s and negotiates its export. The connection whose socket it returns is
// at the very beginning of the transmission phase.
func dial(ctx context.Context, s Server) (fd int, info exportInfo, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, s.Network, s.Address)
	if err != nil {
		return -1, exportInfo{}, fmt.Errorf("%w: is the server running there?", err)
	}
	// The runtime watches conn for data, which would cost a wake-up for every reply to the
	// kernel. So conn is closed, and a descriptor of our own kept.
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	info, err = negotiate(conn, s.Export)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		fd, err = duplicate(conn)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("the server did not finish the handshake: %w", ctx.Err())
		}
		return -1, exportInfo{}, fmt.Errorf("%s %s: %w", s.Network, s.Address, err)
	}
	return fd, info, nil
}

// negotiate runs the fixed newstyle handshake up to NBD_OPT_GO's ACK. It never reads ahead:
// the bytes that follow are the kernel's. If the server refuses, negotiate ends the session
// by NBD_OPT_ABORT.
//
// Source: proto.md, "Termination of the session during option haggling".
func negotiate(rw io.ReadWriter, export string) (exportInfo, error) {
	var hello [18]byte
	if _, err := io.ReadFull(rw, hello[:]); err != nil {
		return exportInfo{}, fmt.Errorf("read the server's greeting: %w", err)
	}
	be := binary.BigEndian
	if be.Uint64(hello[:]) != protocol.NEGOTIATION_MAGIC_OLDSTYLE || be.Uint64(hello[8:]) != protocol.NEGOTIATION_MAGIC_OPTION {
		return exportInfo{}, errors.New("that is no NBD server, or one of the oldstyle protocol")
	}
	flags := be.Uint16(hello[16:])
	if flags&protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE == 0 {
		return exportInfo{}, errors.New("the server does not speak the fixed newstyle protocol")
	}
	msg := be.AppendUint32(nil, uint32(flags&(protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE|flagNoZeroes)))
	msg = be.AppendUint64(msg, protocol.NEGOTIATION_MAGIC_OPTION)
	msg = be.AppendUint32(msg, protocol.NEGOTIATION_ID_OPTION_GO)
	msg = be.AppendUint32(msg, uint32(4+len(export)+2+2))
	msg = be.AppendUint32(msg, uint32(len(export)))
	msg = append(msg, export...)
	msg = be.AppendUint16(msg, 1)
	msg = be.AppendUint16(msg, infoBlockSize)
	if _, err := rw.Write(msg); err != nil {
		return exportInfo{}, fmt.Errorf("ask for the export: %w", err)
	}
	info, err := readGo(rw, export)
	if errors.As(err, new(refusalError)) {
		// The server waits for another option: leave in good order. The server may be gone.
		msg = be.AppendUint64(nil, protocol.NEGOTIATION_MAGIC_OPTION)
		msg = be.AppendUint32(msg, protocol.NEGOTIATION_ID_OPTION_ABORT)
		_, _ = rw.Write(be.AppendUint32(msg, 0))
	}
	return info, err
}

// A refusalError is an error reply of the server.
type refusalError string

func (e refusalError) Error() string { return string(e) }

// readGo reads the replies to NBD_OPT_GO.
func readGo(r io.Reader, export string) (exportInfo, error) {
	be := binary.BigEndian
	info := exportInfo{minBlockBytes: 1}
	for seen, replies := false, 0; ; replies++ {
		if replies == maxReplies {
			return info, fmt.Errorf("more than %d replies to one option", maxReplies)
		}
		var head [20]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return info, fmt.Errorf("read the server's answer: %w", err)
		}
		kind, n := be.Uint32(head[12:]), be.Uint32(head[16:])
		if be.Uint64(head[:]) != protocol.NEGOTIATION_MAGIC_REPLY || be.Uint32(head[8:]) != protocol.NEGOTIATION_ID_OPTION_GO || n > maxReplyBytes {
			return info, errors.New("the server's answer makes no sense")
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return info, fmt.Errorf("read the server's answer: %w", err)
		}
		switch {
		case kind&replyErrorBit != 0:
			return info, refusal(kind, export, body)
		case kind == protocol.NEGOTIATION_TYPE_REPLY_ACK:
			if !seen {
				return info, errors.New("the server did not tell the export's size")
			}
			return info, nil
		case kind != protocol.NEGOTIATION_TYPE_REPLY_INFO || n < 2:
			return info, fmt.Errorf("the server answered with reply type %d", kind)
		}
		switch be.Uint16(body) {
		case infoExport:
			if n != exportInfoBytes {
				return info, fmt.Errorf("export information of %d bytes, want %d", n, exportInfoBytes)
			}
			info.sizeBytes, info.flags, seen = be.Uint64(body[2:]), be.Uint16(body[10:]), true
		case infoBlockSize:
			if n != blockInfoBytes {
				return info, fmt.Errorf("block size information of %d bytes, want %d", n, blockInfoBytes)
			}
			info.minBlockBytes = be.Uint32(body[2:])
		}
	}
}

// refusal puts the server's error reply into words.
func refusal(kind uint32, export string, body []byte) error {
	name := "the default export"
	if export != "" {
		name = fmt.Sprintf("export %q", export)
	}
	text := ""
	if len(body) > 0 && len(body) <= maxStringBytes {
		text = fmt.Sprintf(" (%q)", body)
	}
	switch kind {
	case errUnsupported:
		return refusalError("the server does not know NBD_OPT_GO" + text)
	case errPolicy:
		return refusalError(fmt.Sprintf("the server does not let us use %s%s", name, text))
	case errTLSRequired:
		return refusalError(fmt.Sprintf("the server wants TLS%s: %s", text, noTLS))
	case errUnknown:
		return refusalError(fmt.Sprintf("the server has no %s%s: list what it has with `nbdinfo --list`", name, text))
	case errShutdown:
		return refusalError("the server is shutting down" + text)
	}
	return refusalError(fmt.Sprintf("the server refused %s with error %#x%s", name, kind, text))
}
