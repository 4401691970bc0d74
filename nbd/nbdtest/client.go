package nbdtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/vhbad/vhbad/nbd"
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

	FlagFUA    = 1
	FlagNoHole = 2
)

const (
	requestMagic = 0x25609513
	replyMagic   = 0x67446698
	optionMagic  = 0x49484156454F5054
	optGo        = 7
	repAck       = 1
	repInfo      = 3
)

// A Command is one request. Length and payload are apart so that a test can say
// something false.
type Command struct {
	Type, Flags uint16
	Cookie      uint64
	Offset      uint64
	Length      uint32
	Payload     []byte
}

// String is the command without its payload, for messages.
func (c Command) String() string {
	return fmt.Sprintf("command type %d, flags %#x, cookie %#x, %d bytes at %d, payload of %d",
		c.Type, c.Flags, c.Cookie, c.Length, c.Offset, len(c.Payload))
}

// Append appends the command as it goes over the wire.
func (c Command) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, requestMagic)
	b = binary.BigEndian.AppendUint16(b, c.Flags)
	b = binary.BigEndian.AppendUint16(b, c.Type)
	b = binary.BigEndian.AppendUint64(b, c.Cookie)
	b = binary.BigEndian.AppendUint64(b, c.Offset)
	b = binary.BigEndian.AppendUint32(b, c.Length)
	return append(b, c.Payload...)
}

// A Reply is the answer to one Command.
type Reply struct {
	Cookie uint64
	Errno  nbd.Errno
	Data   []byte // of a read without error
}

// A Client is the other end of a connection, for tests: it checks little and
// sends whatever it is told to.
//
// Concurrency: Send and Receive are each for one goroutine, and the cookie of a
// read must be sent before its reply is received.
type Client struct {
	Conn      net.Conn
	SizeBytes uint64
	Flags     uint16 // transmission flags

	reads chan readLength
	wait  map[uint64]int
}

type readLength struct {
	cookie uint64
	length int
}

// NewClient negotiates export on nc by NBD_OPT_GO.
func NewClient(nc net.Conn, export string) (*Client, error) {
	c := &Client{Conn: nc, reads: make(chan readLength, 1<<16), wait: make(map[uint64]int)}
	var hello [18]byte
	if _, err := io.ReadFull(nc, hello[:]); err != nil {
		return nil, fmt.Errorf("greeting: %w", err)
	}
	b := binary.BigEndian.AppendUint32(nil, 3)
	b = binary.BigEndian.AppendUint64(b, optionMagic)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint16(b, 0)
	if _, err := nc.Write(b); err != nil {
		return nil, fmt.Errorf("GO: %w", err)
	}
	for {
		var h [20]byte
		if _, err := io.ReadFull(nc, h[:]); err != nil {
			return nil, fmt.Errorf("reply to GO: %w", err)
		}
		data := make([]byte, binary.BigEndian.Uint32(h[16:]))
		if _, err := io.ReadFull(nc, data); err != nil {
			return nil, fmt.Errorf("reply to GO: %w", err)
		}
		switch typ := binary.BigEndian.Uint32(h[12:]); typ {
		case repAck:
			return c, nil
		case repInfo:
			if len(data) == 12 && binary.BigEndian.Uint16(data) == 0 {
				c.SizeBytes = binary.BigEndian.Uint64(data[2:])
				c.Flags = binary.BigEndian.Uint16(data[10:])
			}
		default:
			return nil, fmt.Errorf("reply to GO: type %#x: %s", typ, data)
		}
	}
}

// Send sends commands in one write.
func (c *Client) Send(commands ...Command) error {
	var b []byte
	for _, cmd := range commands {
		if cmd.Type == CmdRead {
			c.reads <- readLength{cmd.Cookie, int(cmd.Length)}
		}
		b = cmd.Append(b)
	}
	_, err := c.Conn.Write(b)
	return err
}

// Receive waits for the next reply.
func (c *Client) Receive() (Reply, error) {
	var h [16]byte
	if _, err := io.ReadFull(c.Conn, h[:]); err != nil {
		return Reply{}, err
	}
	if m := binary.BigEndian.Uint32(h[:]); m != replyMagic {
		return Reply{}, fmt.Errorf("reply magic %#x", m)
	}
	r := Reply{Cookie: binary.BigEndian.Uint64(h[8:]), Errno: nbd.Errno(binary.BigEndian.Uint32(h[4:]))}
	for len(c.reads) > 0 {
		l := <-c.reads
		c.wait[l.cookie] = l.length
	}
	length, isRead := c.wait[r.Cookie]
	delete(c.wait, r.Cookie)
	if isRead && r.Errno == nbd.OK && length > 0 {
		r.Data = make([]byte, length)
		if _, err := io.ReadFull(c.Conn, r.Data); err != nil {
			return Reply{}, fmt.Errorf("data of read %#x: %w", r.Cookie, err)
		}
	}
	return r, nil
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
// Errors: a stream that does not end, but goes on with something.
func (c *Client) Close() error {
	if err := c.Send(Command{Type: CmdDisc}); err != nil {
		return errors.Join(err, c.Conn.Close())
	}
	rest, err := io.ReadAll(c.Conn)
	if len(rest) > 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes after DISC", len(rest)))
	}
	return errors.Join(err, c.Conn.Close())
}
