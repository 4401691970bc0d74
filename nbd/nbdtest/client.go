package nbdtest

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Request types and command flags, for Command.
const (
	CmdRead        = 0
	CmdWrite       = 1
	CmdDisc        = 2
	CmdFlush       = 3
	CmdTrim        = 4
	CmdCache       = 5
	CmdWriteZeroes = 6
	CmdBlockStatus = 7

	FlagFUA        = 1
	FlagNoHole     = 2
	FlagDF         = 4
	FlagReqOne     = 8
	FlagFastZero   = 16
	FlagPayloadLen = 32
)

const (
	requestMagic    = 0x25609513
	extendedMagic   = 0x21e41c71
	replyMagic      = 0x67446698
	structuredMagic = 0x668e33ef
	extReplyMagic   = 0x6e8a278c
)

// A Command is one request. Length and payload are separate so that a test can make them
// disagree.
type Command struct {
	Type, Flags uint16
	Cookie      uint64
	Offset      uint64
	Length      uint32
	// Length64 is sent instead of Length in an extended request if it is not zero.
	Length64 uint64
	Payload  []byte
}

// length is what an extended request says.
func (c Command) length() uint64 {
	if c.Length64 != 0 {
		return c.Length64
	}
	return uint64(c.Length)
}

// String is the command without its payload, for messages.
func (c Command) String() string {
	return fmt.Sprintf("command type %d, flags %#x, cookie %#x, %d bytes at %d, payload of %d",
		c.Type, c.Flags, c.Cookie, c.length(), c.Offset, len(c.Payload))
}

// AppendExtended appends the command as it goes over the wire with extended
// headers.
func (c Command) AppendExtended(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, extendedMagic)
	b = binary.BigEndian.AppendUint16(b, c.Flags)
	b = binary.BigEndian.AppendUint16(b, c.Type)
	b = binary.BigEndian.AppendUint64(b, c.Cookie)
	b = binary.BigEndian.AppendUint64(b, c.Offset)
	b = binary.BigEndian.AppendUint64(b, c.length())
	return append(b, c.Payload...)
}

// Append appends the command as it goes over the wire with a compact header.
func (c Command) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, requestMagic)
	b = binary.BigEndian.AppendUint16(b, c.Flags)
	b = binary.BigEndian.AppendUint16(b, c.Type)
	b = binary.BigEndian.AppendUint64(b, c.Cookie)
	b = binary.BigEndian.AppendUint64(b, c.Offset)
	b = binary.BigEndian.AppendUint32(b, c.Length)
	return append(b, c.Payload...)
}

// A Client is the client's end of a connection, for tests: it sends whatever it is
// told to, and accepts replies only in the format that was negotiated.
//
// Concurrency: Send and Receive are each for one goroutine, and a command must be
// sent before its reply is received.
type Client struct {
	Conn      net.Conn // the socket, or TLS over it
	SizeBytes uint64
	Flags     uint16 // transmission flags
	// Block sizes that the server has stated; zero if it has not.
	MinBlockBytes, PreferredBlockBytes, MaxPayloadBytes uint32
	// Contexts are the ids of the meta contexts selected, by name.
	Contexts map[string]uint32

	structured, extended bool
	sent                 chan Command // without payloads
	inFlight             map[uint64]*pending
}

// NewClient negotiates export on nc with simple replies.
func NewClient(nc net.Conn, export string) (*Client, error) { return Dial(nc, export, Options{}) }

// Extended says whether the client has extended headers.
func (c *Client) Extended() bool { return c.extended }

// Send sends commands in one write. With extended headers it adds the flag
// PAYLOAD_LEN to writes.
func (c *Client) Send(commands ...Command) error {
	var b []byte
	for _, cmd := range commands {
		note := cmd
		note.Payload = nil
		if cmd.Type != CmdDisc {
			c.sent <- note
		}
		if !c.extended {
			b = cmd.Append(b)
			continue
		}
		if cmd.Type == CmdWrite {
			cmd.Flags |= FlagPayloadLen
		}
		b = cmd.AppendExtended(b)
	}
	_, err := c.Conn.Write(b)
	return err
}

// Do sends one command and waits for its reply. Nothing else may be in flight.
func (c *Client) Do(cmd Command) (Reply, error) {
	if err := c.Send(cmd); err != nil {
		return Reply{}, err
	}
	r, err := c.Receive()
	if err == nil && r.Cookie != cmd.Cookie {
		err = fmt.Errorf("reply has cookie %#x, want %#x", r.Cookie, cmd.Cookie)
	}
	return r, err
}

// Close sends DISC, reads to the end of the stream and closes.
//
// Errors: the stream goes on with something instead of ending.
func (c *Client) Close() error {
	if err := c.Send(Command{Type: CmdDisc}); err != nil {
		return errors.Join(err, c.Conn.Close())
	}
	rest, err := io.ReadAll(c.Conn)
	if len(rest) > 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes after DISC", len(rest)))
	}
	if t, ok := c.Conn.(*tls.Conn); ok {
		// The server has closed already, so TLS could not say good-bye.
		return errors.Join(err, t.NetConn().Close())
	}
	return errors.Join(err, c.Conn.Close())
}
