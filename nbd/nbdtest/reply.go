package nbdtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/vhbad/vhbad/nbd"
)

// Types of reply chunks.
const (
	chunkNone           = 0
	chunkOffsetData     = 1
	chunkOffsetHole     = 2
	chunkBlockStatus    = 5
	chunkBlockStatusExt = 6
	chunkError          = 0x8001
	chunkErrorOffset    = 0x8002
)

// A Reply is the answer to one Command.
type Reply struct {
	Cookie uint64
	Errno  nbd.Errno
	Data   []byte // of a read without error, holes included

	// The rest comes by chunks only.

	Chunks int
	// Message and ErrorOffset are of an error; ErrorOffset is -1 if there is none.
	Message     string
	ErrorOffset int64
	// Holes are the ranges of a read that the server called holes.
	Holes []Range
	// Extents are of BLOCK_STATUS, by context id.
	Extents map[uint32][]Extent
}

// A Range is a part of a device.
type Range struct{ Offset, Length uint64 }

// An Extent is one run of BLOCK_STATUS.
type Extent struct {
	Length uint64
	State  nbd.ExtentState
}

// pending is a command in flight and its reply so far.
type pending struct {
	cmd     Command
	reply   Reply
	covered []Range
}

// Receive waits for the next reply and takes it whole.
//
// Errors: among others, a reply that the protocol forbids.
func (c *Client) Receive() (Reply, error) {
	for {
		var magic [4]byte
		if _, err := io.ReadFull(c.Conn, magic[:]); err != nil {
			return Reply{}, err
		}
		for len(c.sent) > 0 {
			cmd := <-c.sent
			c.inFlight[cmd.Cookie] = &pending{cmd: cmd, reply: Reply{Cookie: cmd.Cookie, ErrorOffset: -1}}
		}
		m := binary.BigEndian.Uint32(magic[:])
		switch {
		case m == replyMagic && !c.extended:
			return c.simple()
		case m == structuredMagic && c.structured && !c.extended, m == extReplyMagic && c.extended:
			p, done, err := c.chunk()
			if err != nil {
				return Reply{}, err
			}
			if done {
				delete(c.inFlight, p.cmd.Cookie)
				return p.reply, p.check()
			}
		default:
			return Reply{}, fmt.Errorf("reply magic %#x", m)
		}
	}
}

// simple takes the rest of a simple reply.
func (c *Client) simple() (Reply, error) {
	var h [12]byte
	if _, err := io.ReadFull(c.Conn, h[:]); err != nil {
		return Reply{}, err
	}
	r := Reply{Cookie: binary.BigEndian.Uint64(h[4:]), Errno: nbd.Errno(binary.BigEndian.Uint32(h[0:])), ErrorOffset: -1}
	p := c.inFlight[r.Cookie]
	if p == nil {
		if c.structured {
			return Reply{}, fmt.Errorf("reply to %#x, which is not in flight", r.Cookie)
		}
		return r, nil // a test may have sent it by other means
	}
	delete(c.inFlight, r.Cookie)
	if c.structured && (p.cmd.Type == CmdRead || p.cmd.Type == CmdBlockStatus) {
		return Reply{}, fmt.Errorf("simple reply to %v", p.cmd)
	}
	if p.cmd.Type == CmdRead && r.Errno == nbd.OK && p.cmd.Length > 0 {
		r.Data = make([]byte, p.cmd.Length)
		if _, err := io.ReadFull(c.Conn, r.Data); err != nil {
			return Reply{}, fmt.Errorf("data of read %#x: %w", r.Cookie, err)
		}
	}
	return r, nil
}

// chunk takes the rest of a chunk.
func (c *Client) chunk() (p *pending, done bool, err error) {
	h := make([]byte, 16)
	if c.extended {
		h = make([]byte, 28)
	}
	if _, err := io.ReadFull(c.Conn, h); err != nil {
		return nil, false, err
	}
	flags, typ := binary.BigEndian.Uint16(h[0:]), binary.BigEndian.Uint16(h[2:])
	cookie := binary.BigEndian.Uint64(h[4:])
	p = c.inFlight[cookie]
	if p == nil {
		return nil, false, fmt.Errorf("chunk of %#x, which is not in flight", cookie)
	}
	length := uint64(binary.BigEndian.Uint32(h[12:]))
	if c.extended {
		length = binary.BigEndian.Uint64(h[20:])
		if at := binary.BigEndian.Uint64(h[12:]); at != p.cmd.Offset {
			return nil, false, fmt.Errorf("chunk with offset %d, of %v", at, p.cmd)
		}
	}
	if flags&^1 != 0 {
		return nil, false, fmt.Errorf("chunk with flags %#x", flags)
	}
	if limit := p.cmd.length() + 17<<20; length > limit {
		return nil, false, fmt.Errorf("chunk of type %#x with %d bytes, of %v", typ, length, p.cmd)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(c.Conn, b); err != nil {
		return nil, false, fmt.Errorf("chunk of type %#x with %d bytes: %w", typ, length, err)
	}
	p.reply.Chunks++
	if err := c.payload(p, typ, flags, b); err != nil {
		return nil, false, fmt.Errorf("chunk of type %#x with %d bytes, of %v: %w", typ, len(b), p.cmd, err)
	}
	return p, flags&1 != 0, nil
}

var errLength = errors.New("wrong length")

// payload adds what a chunk says to the reply of p.
func (c *Client) payload(p *pending, typ, flags uint16, b []byte) error {
	isRead, isStatus := p.cmd.Type == CmdRead, p.cmd.Type == CmdBlockStatus
	switch {
	case typ == chunkNone:
		if len(b) != 0 {
			return errLength
		}
		if flags&1 == 0 {
			return errors.New("not the last")
		}
	case typ == chunkOffsetData && isRead:
		if len(b) < 9 {
			return errLength
		}
		at := Range{binary.BigEndian.Uint64(b), uint64(len(b) - 8)}
		return p.cover(at, b[8:])
	case typ == chunkOffsetHole && isRead:
		if len(b) != 12 {
			return errLength
		}
		at := Range{binary.BigEndian.Uint64(b), uint64(binary.BigEndian.Uint32(b[8:]))}
		p.reply.Holes = append(p.reply.Holes, at)
		return p.cover(at, nil)
	case typ == chunkBlockStatus && isStatus && !c.extended, typ == chunkBlockStatusExt && isStatus && c.extended:
		return c.extents(p, b)
	case typ == chunkError || typ == chunkErrorOffset:
		return p.fail(typ, b)
	default:
		return errors.New("type not expected")
	}
	return nil
}

// cover notes that a read has got the bytes at at; they are zeros if data is nil.
func (p *pending) cover(at Range, data []byte) error {
	base, length := p.cmd.Offset, p.cmd.length()
	if at.Length == 0 || at.Offset < base || at.Offset-base > length || at.Length > length-(at.Offset-base) {
		return fmt.Errorf("range %+v is empty or beyond the request", at)
	}
	for _, r := range p.covered {
		if at.Offset < r.Offset+r.Length && r.Offset < at.Offset+at.Length {
			return fmt.Errorf("range %+v overlaps %+v", at, r)
		}
	}
	if p.cmd.Flags&FlagDF != 0 && (len(p.covered) > 0 || at.Length != length || data == nil) {
		return errors.New("a fragment, in spite of DF")
	}
	p.covered = append(p.covered, at)
	if p.reply.Data == nil {
		p.reply.Data = make([]byte, length)
	}
	copy(p.reply.Data[at.Offset-base:], data)
	return nil
}

// extents takes the payload of BLOCK_STATUS.
func (c *Client) extents(p *pending, b []byte) error {
	header, entry := 4, 8
	if c.extended {
		header, entry = 8, 16
	}
	if len(b) < header+entry || (len(b)-header)%entry != 0 {
		return errLength
	}
	id, n := binary.BigEndian.Uint32(b), (len(b)-header)/entry
	if c.extended && int64(binary.BigEndian.Uint32(b[4:])) != int64(n) {
		return fmt.Errorf("%d extents announced, %d sent", binary.BigEndian.Uint32(b[4:]), n)
	}
	if p.reply.Extents == nil {
		p.reply.Extents = make(map[uint32][]Extent)
	}
	if len(p.reply.Extents[id]) > 0 {
		return fmt.Errorf("context %d twice", id)
	}
	if n > 1<<20 || n > 1 && p.cmd.Flags&FlagReqOne != 0 {
		return fmt.Errorf("%d extents", n)
	}
	list := make([]Extent, 0, n)
	for b = b[header:]; len(b) > 0; b = b[entry:] {
		e := Extent{uint64(binary.BigEndian.Uint32(b)), nbd.ExtentState(binary.BigEndian.Uint32(b[4:]))}
		if c.extended {
			e = Extent{binary.BigEndian.Uint64(b), nbd.ExtentState(binary.BigEndian.Uint64(b[8:]))}
		}
		if e.Length == 0 {
			return errors.New("an empty extent")
		}
		list = append(list, e)
	}
	p.reply.Extents[id] = list
	return nil
}

// fail takes the payload of an error chunk.
func (p *pending) fail(typ uint16, b []byte) error {
	tail := 0
	if typ == chunkErrorOffset {
		tail = 8
	}
	if len(b) < 6+tail || int(binary.BigEndian.Uint16(b[4:])) != len(b)-6-tail {
		return errLength
	}
	errno := nbd.Errno(binary.BigEndian.Uint32(b))
	if errno == nbd.OK {
		return errors.New("an error that is none")
	}
	p.reply.Errno = errno
	p.reply.Message = string(b[6 : len(b)-tail])
	if tail > 0 {
		at := binary.BigEndian.Uint64(b[len(b)-8:])
		if at < p.cmd.Offset || at-p.cmd.Offset >= p.cmd.length() {
			return fmt.Errorf("offset %d is beyond the request", at)
		}
		p.reply.ErrorOffset = int64(at)
	}
	return nil
}

// check says whether a reply that has ended is complete.
func (p *pending) check() error {
	if p.reply.Errno != nbd.OK {
		p.reply.Data = nil
		return nil
	}
	switch p.cmd.Type {
	case CmdRead:
		n := uint64(0)
		for _, r := range p.covered {
			n += r.Length
		}
		if n != p.cmd.length() {
			return fmt.Errorf("%d bytes in answer to %v", n, p.cmd)
		}
	case CmdBlockStatus:
		if len(p.reply.Extents) == 0 {
			return fmt.Errorf("no extents in answer to %v", p.cmd)
		}
	}
	return nil
}
