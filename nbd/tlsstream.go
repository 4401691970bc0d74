package nbd

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
)

const (
	// recordReadBytes is the buffer between a TLS connection and its socket, so
	// that one system call brings many short records.
	recordReadBytes = 32 << 10
	// sealStepBytes bounds what is encrypted before it is written: four records.
	sealStepBytes = 64 << 10
	// sealGatherBytes is how many bytes of short replies are copied together into one
	// record at most. It is the longest record of TLS.
	sealGatherBytes = 16 << 10
	// maxSealedBytes bounds what waits for the socket. Besides one step that is only
	// answers to a client's key updates; a client that makes too many of them without
	// taking replies is cut off.
	maxSealedBytes = sealStepBytes + 64<<10
)

// A recordConn stands between crypto/tls and a socket. During the handshake it
// passes everything on. After that TLS works in memory: what TLS writes is kept until
// the stream sends it, so that encrypting never waits for the client; what TLS reads
// comes from a buffer, and the stream may forbid waiting for more.
type recordConn struct {
	net.Conn

	// socket is nil during the whole handshake of NBD.
	socket *socketStream

	// The reader's.
	in          []byte // received and not yet taken by TLS, of inBuf[0]
	inBuf       [1][]byte
	more        bool // the last read filled inBuf
	mustNotWait bool

	mu sync.Mutex // the reader answers key updates while the sender sends
	// +checklocks:mu
	sealed []byte
}

// newRecordConn returns the connection to give to crypto/tls in place of nc.
func newRecordConn(nc net.Conn) *recordConn { return &recordConn{Conn: nc} }

// errWouldBlock is what TLS gets instead of waiting. It has to be a timeout, so that
// TLS can go on later as if nothing had happened.
var errWouldBlock net.Error = &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}

// errKeyUpdates breaks a TLS connection whose client keeps changing keys.
var errKeyUpdates = errors.New("too much waits for the client to take it")

// Read implements net.Conn.
func (rc *recordConn) Read(p []byte) (int, error) {
	if rc.socket == nil {
		return rc.Conn.Read(p)
	}
	if len(rc.in) == 0 {
		if rc.mustNotWait && !rc.more {
			return 0, errWouldBlock
		}
		if rc.inBuf[0] == nil {
			rc.inBuf[0] = make([]byte, recordReadBytes)
		}
		receive := rc.socket.conn.Receive
		if rc.mustNotWait {
			receive = rc.socket.conn.TryReceive
		}
		n, err := receive(rc.inBuf[:])
		rc.more = n == len(rc.inBuf[0])
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, errWouldBlock
		}
		rc.in = rc.inBuf[0][:n]
	}
	n := copy(p, rc.in)
	rc.in = rc.in[n:]
	return n, nil
}

// Write implements net.Conn.
func (rc *recordConn) Write(p []byte) (int, error) {
	if rc.socket == nil {
		return rc.Conn.Write(p)
	}
	rc.mu.Lock()
	defer rc.mu.Unlock()
	if len(rc.sealed)+len(p) > maxSealedBytes {
		return 0, errKeyUpdates
	}
	rc.sealed = append(rc.sealed, p...)
	return len(p), nil
}

// swap returns what is sealed and puts empty in its place.
func (rc *recordConn) swap(empty []byte) []byte {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	sealed := rc.sealed
	rc.sealed = empty
	return sealed
}

// A tlsStream is a stream over TLS that never waits where it should not.
type tlsStream struct {
	tls     *tls.Conn
	records *recordConn
	socket  *socketStream

	// The sender's. The first accepted bytes of bufs are encrypted; out[outAt:] is
	// the part that the socket has not taken yet.
	accepted int
	out      []byte
	outAt    int
	iov      [1][]byte
	gather   []byte
}

func newTLSStream(t *tls.Conn, records *recordConn, socket *socketStream) *tlsStream {
	return &tlsStream{tls: t, records: records, socket: socket}
}

// begin ends the handshake, during which TLS uses the connection directly.
func (s *tlsStream) begin() { s.records.socket = s.socket }

// read implements stream. It takes every record that has arrived and fits.
func (s *tlsStream) read(bufs [][]byte, _ bool) (n int, err error) {
	for _, to := range bufs {
		for len(to) > 0 && err == nil {
			var k int
			k, err = s.tls.Read(to)
			if k > 0 {
				s.records.mustNotWait = true
			}
			n += k
			to = to[k:]
		}
	}
	if n == 0 {
		return 0, err
	}
	s.records.mustNotWait = false
	return n, nil // whatever the error was, it will come again
}

func (s *tlsStream) crowded() bool   { return s.socket.crowded() }
func (s *tlsStream) yield() bool     { return s.socket.yield() }
func (s *tlsStream) stepAside() bool { return s.socket.stepAside() }

func (s *tlsStream) tryWrite(bufs [][]byte) (int, error) { return s.writeWith(bufs, false) }
func (s *tlsStream) write(bufs [][]byte) (int, error)    { return s.writeWith(bufs, true) }

// writeWith encrypts a step, the first bytes of bufs, and writes it. Until the socket
// has taken the whole step, writeWith returns zero and expects to be called with the
// same bufs again; with wait, it has written some of the step each time.
func (s *tlsStream) writeWith(bufs [][]byte, wait bool) (int, error) {
	if s.accepted == 0 {
		if err := s.seal(bufs); err != nil {
			return 0, err
		}
	}
	if err := s.drain(wait); err != nil || s.outAt < len(s.out) {
		return 0, err
	}
	n := s.accepted
	s.accepted = 0
	return n, nil
}

// drain writes what is encrypted, as far as one system call goes.
func (s *tlsStream) drain(wait bool) error {
	if s.outAt == len(s.out) {
		s.out, s.outAt = s.records.swap(s.out[:0]), 0
	}
	if len(s.out) == 0 {
		return nil
	}
	s.iov[0] = s.out[s.outAt:]
	send := s.socket.conn.TrySend
	if wait {
		send = s.socket.conn.Send
	}
	n, err := send(s.iov[:])
	s.outAt += n
	return err
}

// seal encrypts up to sealStepBytes of bufs. Short ones share a record.
func (s *tlsStream) seal(bufs [][]byte) error {
	if s.gather == nil {
		s.gather = make([]byte, 0, sealGatherBytes)
	}
	gathered := s.gather[:0]
	for _, b := range bufs {
		b = b[:min(len(b), sealStepBytes-s.accepted)]
		s.accepted += len(b)
		for len(b) > 0 {
			if len(gathered) == 0 && len(b) >= sealGatherBytes {
				n := len(b) / sealGatherBytes * sealGatherBytes
				if _, err := s.tls.Write(b[:n]); err != nil {
					return err
				}
				b = b[n:]
				continue
			}
			n := min(len(b), cap(gathered)-len(gathered))
			gathered = append(gathered, b[:n]...)
			b = b[n:]
			if len(gathered) == cap(gathered) {
				if _, err := s.tls.Write(gathered); err != nil {
					return err
				}
				gathered = gathered[:0]
			}
		}
		if s.accepted == sealStepBytes {
			break
		}
	}
	if len(gathered) == 0 {
		return nil
	}
	_, err := s.tls.Write(gathered)
	return err
}
