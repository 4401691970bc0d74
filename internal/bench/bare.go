package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Sizes and numbers of the protocol that the bare loop needs.
// Source: proto.md of the NBD project.
const (
	requestBytes = 28
	replyBytes   = 16

	optionExportName = 1
	optionAbort      = 2
	optionStructured = 8

	replyAck         = 1
	replyInfo        = 3
	replyUnsupported = 1<<31 | 1

	// Has flags, flush, FUA, multi-connection.
	bareFlags = 1<<0 | 1<<2 | 1<<3 | 1<<8

	commandRead  = 0
	commandWrite = 1
	commandDisc  = 2

	structuredMagic = 0x668e33ef
	chunkDone       = 1
	chunkOffsetData = 1
)

// bareBufferBytes is the most that one read may bring and one write may take.
const bareBufferBytes = 512 << 10

// serveBare is the upper limit for a server in Go: it parses requests and copies memory.
// There is no queue, no check except of the range, no error but EINVAL, and nothing that
// could be reset, drained or watched.
//
// With structured it agrees on structured replies, as vhbad and nbdkit do: a read's data
// comes in a chunk with its offset, which is more work for clients. libnbd, and so fio,
// makes twice as many system calls for such a reply.
func serveBare(socket string, sizeBytes int64, structured bool) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	memory := make([]byte, sizeBytes)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			if err := bareConnection(c, memory, structured); err != nil && !errors.Is(err, io.EOF) {
				_, _ = fmt.Fprintln(os.Stderr, "bare:", err)
			}
		}()
	}
}

func bareConnection(c net.Conn, memory []byte, structured bool) error {
	structured, err := bareHandshake(c, uint64(len(memory)), structured)
	if err != nil {
		return err
	}
	in := make([]byte, bareBufferBytes)
	out := make([]byte, 0, bareBufferBytes)
	start, end := 0, 0
	for {
		n, err := c.Read(in[end:])
		if err != nil {
			return err
		}
		end += n
		need := 0
		for need == 0 {
			var done bool
			start, out, need, done = bareRequest(in, start, end, out, memory, structured)
			if done {
				return nil
			}
			if len(out) >= bareBufferBytes {
				if _, err := c.Write(out); err != nil {
					return err
				}
				out = out[:0]
			}
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return err
			}
			out = out[:0]
		}
		rest := in[start:end]
		if need > len(in) {
			in = make([]byte, need)
		}
		end = copy(in, rest)
		start = 0
	}
}

// bareRequest serves the request at start if it is there completely; otherwise it returns
// how many bytes it needs.
func bareRequest(in []byte, start, end int, out, memory []byte, structured bool) (next int, replies []byte, need int, done bool) {
	b := in[start:end]
	if len(b) < requestBytes {
		return start, out, requestBytes, false
	}
	if binary.BigEndian.Uint32(b) != protocol.TRANSMISSION_MAGIC_REQUEST {
		return start, out, 0, true
	}
	command := binary.BigEndian.Uint16(b[6:])
	offset, length := binary.BigEndian.Uint64(b[16:]), int(binary.BigEndian.Uint32(b[24:]))
	payload := 0
	if command == commandWrite {
		payload = length
	}
	if len(b) < requestBytes+payload {
		return start, out, requestBytes + payload, false
	}
	if command == commandDisc {
		return start, out, 0, true
	}
	var errno uint32
	if offset > uint64(len(memory)) || uint64(length) > uint64(len(memory))-offset {
		errno = protocol.TRANSMISSION_ERROR_EINVAL
	}
	if structured && command == commandRead && errno == 0 {
		out = binary.BigEndian.AppendUint32(out, structuredMagic)
		out = binary.BigEndian.AppendUint32(out, chunkDone<<16|chunkOffsetData)
		out = append(out, b[8:16]...)
		out = binary.BigEndian.AppendUint32(out, uint32(8+length))
		out = binary.BigEndian.AppendUint64(out, offset)
		out = append(out, memory[offset:offset+uint64(length)]...)
		return start + requestBytes, out, 0, false
	}
	out = binary.BigEndian.AppendUint32(out, protocol.TRANSMISSION_MAGIC_REPLY)
	out = binary.BigEndian.AppendUint32(out, errno)
	out = append(out, b[8:16]...)
	if errno == 0 {
		switch command {
		case commandRead:
			out = append(out, memory[offset:offset+uint64(length)]...)
		case commandWrite:
			copy(memory[offset:], b[requestBytes:requestBytes+payload])
		}
	}
	return start + requestBytes + payload, out, 0, false
}

// bareHandshake accepts any export name, by EXPORT_NAME or GO. It reports whether
// structured replies were agreed on.
func bareHandshake(c net.Conn, sizeBytes uint64, offerStructured bool) (structured bool, err error) {
	hello := binary.BigEndian.AppendUint64(nil, protocol.NEGOTIATION_MAGIC_OLDSTYLE)
	hello = binary.BigEndian.AppendUint64(hello, protocol.NEGOTIATION_MAGIC_OPTION)
	hello = binary.BigEndian.AppendUint16(hello, 1|2)
	if _, err := c.Write(hello); err != nil {
		return false, err
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		return false, err
	}
	reply := func(option, typ uint32, data []byte) error {
		b := binary.BigEndian.AppendUint64(nil, protocol.NEGOTIATION_MAGIC_REPLY)
		b = binary.BigEndian.AppendUint32(b, option)
		b = binary.BigEndian.AppendUint32(b, typ)
		b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
		_, err := c.Write(append(b, data...))
		return err
	}
	for {
		var h [16]byte
		if _, err := io.ReadFull(c, h[:]); err != nil {
			return false, err
		}
		option := binary.BigEndian.Uint32(h[8:])
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(h[12:]))); err != nil {
			return false, err
		}
		switch {
		case option == optionExportName:
			b := binary.BigEndian.AppendUint64(nil, sizeBytes)
			_, err := c.Write(binary.BigEndian.AppendUint16(b, bareFlags))
			return structured, err
		case option == optionAbort:
			return false, io.EOF
		case option == optionStructured && offerStructured:
			structured = true
			if err := reply(option, replyAck, nil); err != nil {
				return false, err
			}
		case option == protocol.NEGOTIATION_ID_OPTION_GO:
			info := binary.BigEndian.AppendUint16(nil, protocol.NEGOTIATION_TYPE_INFO_EXPORT)
			info = binary.BigEndian.AppendUint64(info, sizeBytes)
			info = binary.BigEndian.AppendUint16(info, bareFlags)
			return structured, errors.Join(reply(option, replyInfo, info), reply(option, replyAck, nil))
		default:
			if err := reply(option, replyUnsupported, nil); err != nil {
				return false, err
			}
		}
	}
}
