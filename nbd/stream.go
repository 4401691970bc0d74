package nbd

import (
	"crypto/tls"
	"net"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/nbd/socket"
)

// A stream carries the bytes of a connection in its transmission phase. It is
// the seam between the protocol and its transport.
//
// Concurrency: read belongs to the reader, tryWrite and write to whoever holds
// the right to send; the two sides may run at once.
type stream interface {
	yielder

	// read waits for at least one byte and fills bufs in order; some transports fill only
	// the first, which is not empty. At the end it returns io.EOF. soon says that input
	// has probably arrived already, or will in a moment.
	read(bufs [][]byte, soon bool) (int, error)

	// tryWrite writes what it can of bufs without waiting. Zero bytes without
	// an error means that the socket is full, or that the transport cannot tell.
	tryWrite(bufs [][]byte) (int, error)

	// write is tryWrite, but waits until it has written something. It may return zero
	// bytes without an error when it has made progress with bytes it had accepted before.
	write(bufs [][]byte) (int, error)
}

// A splicer is a stream that sends pages by references to them.
type splicer interface {
	// tryWriteMore is tryWrite for bytes that trySplice or splice is to follow.
	tryWriteMore(bufs [][]byte) (int, error)
	// trySplice and splice do for pages what tryWrite and write do for bytes.
	trySplice(pages *dma.Pipe) (int, error)
	splice(pages *dma.Pipe) (int, error)
}

// newStream returns the best stream for nc.
func newStream(nc net.Conn) stream {
	switch nc := nc.(type) {
	case *socket.Conn:
		return newSocketStream(nc)
	case *tls.Conn:
		if records, ok := nc.NetConn().(*recordConn); ok {
			if conn, ok := records.Conn.(*socket.Conn); ok {
				return newTLSStream(nc, records, newSocketStream(conn))
			}
		}
	}
	return &connStream{nc: nc}
}

// unixSendBytes is the send buffer that is requested for a unix socket, so that a
// reply of the length that most clients ask for fits whole, and so does the next. The
// default of 208 KiB does not hold them: the sender then waits for the client, which is
// woken up twice for one reply.
const unixSendBytes = 1 << 20

// A socketStream talks to a kernel socket.
type socketStream struct{ conn *socket.Conn }

func newSocketStream(conn *socket.Conn) *socketStream {
	if conn.LocalAddr().Network() == "unix" {
		// The kernel bounds it by net.core.wmem_max. If it refuses, the client is
		// served all the same.
		_ = conn.SetSendBuffer(unixSendBytes)
	}
	return &socketStream{conn: conn}
}

func (s *socketStream) read(bufs [][]byte, soon bool) (int, error) {
	if soon {
		return s.conn.ReceiveSoon(bufs)
	}
	return s.conn.Receive(bufs)
}

func (s *socketStream) crowded() bool   { return s.conn.Crowded() }
func (s *socketStream) yield() bool     { return s.conn.Yield() }
func (s *socketStream) stepAside() bool { return s.conn.StepAside() }

func (s *socketStream) tryWrite(bufs [][]byte) (int, error) { return s.conn.TrySend(bufs) }
func (s *socketStream) write(bufs [][]byte) (int, error)    { return s.conn.Send(bufs) }

func (s *socketStream) tryWriteMore(bufs [][]byte) (int, error) { return s.conn.TrySendMore(bufs) }

func (s *socketStream) trySplice(pages *dma.Pipe) (int, error) {
	return s.conn.TrySplice(pages.Out(), pages.Left())
}

func (s *socketStream) splice(pages *dma.Pipe) (int, error) {
	return s.conn.Splice(pages.Out(), pages.Left())
}

// A connStream is a stream over any net.Conn, a pipe for example. It cannot write
// without waiting, so the writer goroutine does all its writing.
type connStream struct {
	nc      net.Conn
	staging []byte
}

const (
	// stagingBytes is how much a connStream gathers into one Write.
	stagingBytes = 64 << 10
	// writeStepBytes bounds one Write, so that progress can be seen.
	writeStepBytes = 256 << 10
)

func (s *connStream) read(bufs [][]byte, _ bool) (int, error) {
	n, err := s.nc.Read(bufs[0])
	if n > 0 {
		return n, nil
	}
	return 0, err
}

func (s *connStream) crowded() bool   { return false }
func (s *connStream) yield() bool     { return false }
func (s *connStream) stepAside() bool { return false }

func (s *connStream) tryWrite([][]byte) (int, error) { return 0, nil }

func (s *connStream) write(bufs [][]byte) (int, error) {
	if len(bufs[0]) >= stagingBytes || len(bufs) == 1 {
		return s.nc.Write(bufs[0][:min(len(bufs[0]), writeStepBytes)])
	}
	if s.staging == nil {
		s.staging = make([]byte, 0, stagingBytes)
	}
	b := s.staging[:0]
	for _, p := range bufs {
		if len(p) > cap(b)-len(b) {
			break
		}
		b = append(b, p...)
	}
	return s.nc.Write(b)
}
