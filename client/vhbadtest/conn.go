package vhbadtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// A Conn is a disk as a program would have it that uses no file system: it reads,
// writes, and makes durable what it has written. One command is under way at a time.
//
// Concurrency: any goroutine. Errors wrap the syscall.Errno that the disk has given,
// or are those of the connection, after which there are no others.
type Conn struct {
	size int64

	mu     sync.Mutex
	nc     net.Conn
	cookie uint64
}

var (
	_ io.ReaderAt = (*Conn)(nil)
	_ io.WriterAt = (*Conn)(nil)
	_ io.Closer   = (*Conn)(nil)
)

// Commands and words of NBD.
const (
	cmdRead  = 0
	cmdWrite = 1
	cmdFlush = 3

	optionGo     = 7
	replyAck     = 1
	replyInfo    = 3
	requestMagic = 0x25609513
	answerMagic  = 0x67446698
	optionMagic  = 0x49484156454f5054 // IHAVEOPT
	replyMagic   = 0x3e889045565a9
	fixedNoZeros = 3
	maxBytes     = 32 << 20 // of one command
	maxOption    = 64 << 10
)

func dial(socket, export string) (*Conn, error) {
	nc, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c := &Conn{nc: nc}
	if err := c.negotiate(export); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return c, nil
}

// negotiate asks for the export.
func (c *Conn) negotiate(export string) error {
	be := binary.BigEndian
	var hello [18]byte
	if _, err := io.ReadFull(c.nc, hello[:]); err != nil {
		return err
	}
	msg := be.AppendUint32(nil, fixedNoZeros)
	msg = be.AppendUint64(msg, optionMagic)
	msg = be.AppendUint32(msg, optionGo)
	msg = be.AppendUint32(msg, uint32(4+len(export)+2))
	msg = be.AppendUint32(msg, uint32(len(export)))
	msg = append(append(msg, export...), 0, 0)
	if _, err := c.nc.Write(msg); err != nil {
		return err
	}
	for {
		var head [20]byte
		if _, err := io.ReadFull(c.nc, head[:]); err != nil {
			return err
		}
		kind, length := be.Uint32(head[12:]), be.Uint32(head[16:])
		if be.Uint64(head[:]) != replyMagic || length > maxOption {
			return fmt.Errorf("no reply of NBD: %x", head)
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(c.nc, body); err != nil {
			return err
		}
		switch {
		case kind == replyAck:
			return nil
		case kind == replyInfo && length >= 12 && be.Uint16(body) == 0:
			c.size = int64(be.Uint64(body[2:]))
		case kind == replyInfo:
		default:
			return fmt.Errorf("refused: %#x %s", kind, body)
		}
	}
}

// Size is the disk's size in bytes when the connection was made.
func (c *Conn) Size() int64 { return c.size }

// do sends a command and gets its answer, with the data of a read in p.
func (c *Conn) do(cmd uint16, p []byte, off int64, n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	be := binary.BigEndian
	c.cookie++
	msg := be.AppendUint32(nil, requestMagic)
	msg = be.AppendUint16(msg, 0)
	msg = be.AppendUint16(msg, cmd)
	msg = be.AppendUint64(msg, c.cookie)
	msg = be.AppendUint64(msg, uint64(off))
	msg = be.AppendUint32(msg, uint32(n))
	if cmd == cmdWrite {
		msg = append(msg, p...)
	}
	if _, err := c.nc.Write(msg); err != nil {
		return err
	}
	var answer [16]byte
	if _, err := io.ReadFull(c.nc, answer[:]); err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	if be.Uint32(answer[:]) != answerMagic || be.Uint64(answer[8:]) != c.cookie {
		return errors.Join(fmt.Errorf("an answer to nothing that was asked: %x", answer), c.nc.Close())
	}
	if errno := be.Uint32(answer[4:]); errno != 0 {
		return syscall.Errno(errno)
	}
	if cmd == cmdRead {
		if _, err := io.ReadFull(c.nc, p); err != nil {
			return fmt.Errorf("no data: %w", err)
		}
	}
	return nil
}

// each does a command for each piece of p.
func (c *Conn) each(cmd uint16, op string, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		piece := p[done:min(len(p), done+maxBytes)]
		if err := c.do(cmd, piece, off+int64(done), len(piece)); err != nil {
			return done, fmt.Errorf("%s %d bytes at %d: %w", op, len(piece), off+int64(done), err)
		}
		done += len(piece)
	}
	return done, nil
}

// ReadAt implements io.ReaderAt.
func (c *Conn) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0 || off > c.size:
		return 0, fmt.Errorf("read at %d of a disk of %d bytes: %w", off, c.size, syscall.EINVAL)
	case int64(len(p)) > c.size-off:
		n, err := c.each(cmdRead, "read", p[:c.size-off], off)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	return c.each(cmdRead, "read", p, off)
}

// WriteAt implements io.WriterAt. What is written is not durable yet.
func (c *Conn) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > c.size || int64(len(p)) > c.size-off {
		return 0, fmt.Errorf("write %d bytes at %d of a disk of %d: %w", len(p), off, c.size, syscall.ENOSPC)
	}
	return c.each(cmdWrite, "write", p, off)
}

// Sync makes durable what has been written, on any connection.
func (c *Conn) Sync() error {
	if err := c.do(cmdFlush, nil, 0, 0); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Close ends the connection. A command that is under way ends with an error.
func (c *Conn) Close() error { return c.nc.Close() }
