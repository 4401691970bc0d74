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
	t.Cleanup(func() { _ = nc.Close() })
	c := &nbdConn{Conn: nc, t: t}
	if _, err := c.tryRead(18); err != nil {
		return nil, err
	}
	be := binary.BigEndian
	msg := []byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07")
	msg = be.AppendUint32(msg, uint32(4+len(export)+2))
	msg = be.AppendUint32(msg, uint32(len(export)))
	msg = append(append(msg, export...), 0, 0)
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	for {
		head, err := c.tryRead(20)
		if err != nil {
			return nil, err
		}
		body, err := c.tryRead(int(be.Uint32(head[16:])))
		if err != nil {
			return nil, err
		}
		switch be.Uint32(head[12:]) {
		case 1: // ACK
			return c, nil
		case 3: // INFO
			if be.Uint16(body) == 0 {
				c.sizeBytes, c.flags = be.Uint64(body[2:]), be.Uint16(body[10:])
			}
		default:
			return nil, fmt.Errorf("reply %#x %q", be.Uint32(head[12:]), body)
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
