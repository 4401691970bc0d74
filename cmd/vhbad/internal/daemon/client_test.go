package daemon

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// nbdConn is an NBD client just good enough to see that data gets through.
type nbdConn struct {
	net.Conn
	t         *testing.T
	sizeBytes uint64
	flags     uint16
}

// open negotiates an export on a unix socket.
func open(t *testing.T, path, export string) *nbdConn {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return negotiate(t, nc, export)
}

// negotiate makes a client of a connection.
func negotiate(t *testing.T, nc net.Conn, export string) *nbdConn {
	t.Helper()
	c, err := tryNegotiate(t, nc, export)
	if err != nil {
		t.Fatalf("export %q: %v", export, err)
	}
	return c
}

// tryNegotiate is negotiate for a server that may refuse or go away.
func tryNegotiate(t *testing.T, nc net.Conn, export string) (*nbdConn, error) {
	t.Helper()
	c, err := greet(t, nc)
	if err != nil {
		return nil, err
	}
	_, err = c.option(optGo, exportData(export))
	return c, err
}

// Options.
const (
	optInfo    = 6
	optGo      = 7
	optUnknown = 99
)

// Final replies to options.
const (
	repAck      = 1
	errUnsup    = 1<<31 | 1
	errPolicy   = 1<<31 | 2
	errInvalid  = 1<<31 | 3
	errUnknown  = 1<<31 | 6
	errTooBig   = 1<<31 | 9
	infoReply   = 3
	infoExport  = 0
	optionBegin = "IHAVEOPT"
)

// greet begins a handshake, which options go on with.
func greet(t *testing.T, nc net.Conn) (*nbdConn, error) {
	t.Helper()
	t.Cleanup(func() { _ = nc.Close() })
	c := &nbdConn{Conn: nc, t: t}
	if _, err := c.tryRead(18); err != nil {
		return nil, err
	}
	_, err := c.Write([]byte{0, 0, 0, 3}) // FIXED_NEWSTYLE, NO_ZEROES
	return c, err
}

// exportData is the data of INFO and GO without any wishes.
func exportData(export string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	return append(append(b, export...), 0, 0)
}

// option sends an option and returns the type of the final reply, whose error is
// err unless it is ACK. What INFO and GO tell of the export goes to c.
func (c *nbdConn) option(id uint32, data []byte) (typ uint32, err error) {
	be := binary.BigEndian
	msg := be.AppendUint32([]byte(optionBegin), id)
	msg = append(be.AppendUint32(msg, uint32(len(data))), data...)
	if _, err := c.Write(msg); err != nil {
		return 0, err
	}
	for {
		head, err := c.tryRead(20)
		if err != nil {
			return 0, err
		}
		body, err := c.tryRead(int(be.Uint32(head[16:])))
		if err != nil {
			return 0, err
		}
		switch typ := be.Uint32(head[12:]); typ {
		case repAck:
			return typ, nil
		case infoReply:
			if be.Uint16(body) == infoExport {
				c.sizeBytes, c.flags = be.Uint64(body[2:]), be.Uint16(body[10:])
			}
		default:
			return typ, fmt.Errorf("reply %#x %q", typ, body)
		}
	}
}

func (c *nbdConn) tryRead(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(c, b)
	return b, err
}

func (c *nbdConn) read(n int) []byte {
	c.t.Helper()
	b, err := c.tryRead(n)
	if err != nil {
		c.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

func (c *nbdConn) write(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("write %d bytes: %v", len(b), err)
	}
}

// Commands.
const (
	cmdRead  = 0
	cmdWrite = 1
	cmdFlush = 3
	cmdTrim  = 4

	cmdWriteZeroes = 6
)

// do sends one command and returns what it read, n bytes for a read.
func (c *nbdConn) do(cmd uint16, offset uint64, n int, data []byte) ([]byte, error) {
	c.t.Helper()
	be := binary.BigEndian
	msg := be.AppendUint32(nil, 0x25609513)
	msg = be.AppendUint16(msg, 0)
	msg = be.AppendUint16(msg, cmd)
	msg = be.AppendUint64(msg, 42)
	msg = be.AppendUint64(msg, offset)
	msg = be.AppendUint32(msg, uint32(n))
	c.write(append(msg, data...))
	reply := c.read(16)
	if be.Uint32(reply) != 0x67446698 || be.Uint64(reply[8:]) != 42 {
		c.t.Fatalf("reply %x", reply)
	}
	if errno := be.Uint32(reply[4:]); errno != 0 {
		return nil, fmt.Errorf("errno %d", errno)
	}
	if cmd != cmdRead {
		return nil, nil
	}
	return c.read(n), nil
}

// tryWrite is do of a write, for a server that may go away.
func (c *nbdConn) tryWrite(offset uint64, data []byte) error {
	be := binary.BigEndian
	msg := be.AppendUint32(nil, 0x25609513)
	msg = be.AppendUint16(msg, 0)
	msg = be.AppendUint16(msg, cmdWrite)
	msg = be.AppendUint64(msg, 7)
	msg = be.AppendUint64(msg, offset)
	msg = be.AppendUint32(msg, uint32(len(data)))
	if _, err := c.Write(append(msg, data...)); err != nil {
		return err
	}
	reply, err := c.tryRead(16)
	if err != nil {
		return err
	}
	if errno := be.Uint32(reply[4:]); errno != 0 {
		return fmt.Errorf("errno %d", errno)
	}
	return nil
}

// allocation is the one meta context that there is.
const allocation = "base:allocation"

// A format is what a client agrees on with the server.
type format struct {
	name string
	nbdtest.Options
}

// formats are all there are.
var formats = []format{
	{"simple", nbdtest.Options{}},
	{"structured", nbdtest.Options{Structured: true, Meta: []string{allocation}}},
	{"extended", nbdtest.Options{Extended: true, Meta: []string{allocation}}},
}

// speak negotiates an export as open does, with a client that knows every format and
// takes nothing that the protocol forbids.
func (s *settings) speak(t *testing.T, export string, f format) *nbdtest.Client {
	t.Helper()
	nc, err := net.Dial("unix", s.socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil { // rather than to hang
		t.Fatal(err)
	}
	c, err := nbdtest.Dial(nc, export, f.Options)
	if err != nil {
		t.Fatalf("export %q, %s: %v", export, f.name, err)
	}
	return c
}

// ask sends one command and wants that error, or none, in reply.
func ask(t *testing.T, c *nbdtest.Client, cmd nbdtest.Command, want nbd.Errno) nbdtest.Reply {
	t.Helper()
	r, err := c.Do(cmd)
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	if r.Errno != want {
		t.Errorf("%v: %s, want %s (%s)", cmd, r.Errno, want, r.Message)
	}
	return r
}
