package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// stdioName is the name of standard input and output in addresses and errors.
const stdioName = "stdio"

// Stdio makes a connection of standard input and output, and puts /dev/null in their
// places, so that nothing else can get into the conversation.
//
// Errors: there is no client but, for example, a terminal.
func Stdio() (net.Conn, error) {
	return stdio(unix.Stdin, unix.Stdout)
}

// stdio is Stdio for any two descriptors.
func stdio(inFD, outFD int) (net.Conn, error) {
	var inStat, outStat unix.Stat_t
	if err := errors.Join(unix.Fstat(inFD, &inStat), unix.Fstat(outFD, &outStat)); err != nil {
		return nil, fmt.Errorf("standard input or output: %w", err)
	}
	both := inStat.Dev == outStat.Dev && inStat.Ino == outStat.Ino
	for name, mode := range map[string]uint32{"input": inStat.Mode, "output": outStat.Mode} {
		if kind := mode & unix.S_IFMT; kind != unix.S_IFSOCK && kind != unix.S_IFIFO {
			return nil, fmt.Errorf("standard %s is neither a socket nor a pipe: want to be started by a client, as in nbdinfo -- [ vhbad serve --single … ]", name)
		}
	}
	in, err := takeFD(inFD)
	if err != nil {
		return nil, err
	}
	out, err := takeFD(outFD)
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	if both && inStat.Mode&unix.S_IFMT == unix.S_IFSOCK {
		nc, err := net.FileConn(in)
		_, _ = in.Close(), out.Close() // nc has a duplicate
		if err != nil {
			return nil, fmt.Errorf("standard input: %w: want a connected TCP or unix socket", err)
		}
		return nc, nil
	}
	return &pipeConn{in: in, out: out}, nil
}

// takeFD moves a descriptor to another number and leaves /dev/null in its place.
func takeFD(fd int) (*os.File, error) {
	moved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("standard input or output: %w", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Dup3(null, fd, 0), unix.Close(null))
	}
	if err == nil {
		err = unix.SetNonblock(moved, true) // for deadlines
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(moved))
	}
	return os.NewFile(uintptr(moved), stdioName), nil
}

// A pipeConn is a connection over two pipes.
type pipeConn struct {
	in, out *os.File
}

func (c *pipeConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *pipeConn) Write(b []byte) (int, error) { return c.out.Write(b) }
func (c *pipeConn) Close() error                { return errors.Join(c.in.Close(), c.out.Close()) }

func (c *pipeConn) SetReadDeadline(t time.Time) error  { return c.in.SetReadDeadline(t) }
func (c *pipeConn) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }
func (c *pipeConn) SetDeadline(t time.Time) error {
	return errors.Join(c.in.SetReadDeadline(t), c.out.SetWriteDeadline(t))
}

func (c *pipeConn) LocalAddr() net.Addr  { return stdioAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr { return stdioAddr{} }

// stdioAddr is the address of either end of a pipeConn.
type stdioAddr struct{}

func (stdioAddr) Network() string { return stdioName }
func (stdioAddr) String() string  { return stdioName }
