package nbd

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"
)

// A stream carries the bytes of a connection in its transmission phase. It is
// the seam between the protocol and its transport.
//
// Concurrency: read belongs to the reader, tryWrite and write to whoever holds
// the right to send; the two sides may run at once.
type stream interface {
	// read waits for at least one byte and fills first, then second if the
	// transport can. At the end it returns io.EOF.
	read(first, second []byte) (int, error)

	// tryWrite writes what it can of bufs without waiting. Zero bytes without
	// an error means that the socket is full, or that the transport cannot tell.
	tryWrite(bufs [][]byte) (int, error)

	// write is tryWrite, but waits until it has written something. It may return
	// zero bytes without an error, having got on with what it has accepted.
	write(bufs [][]byte) (int, error)
}

// newStream returns the best stream for nc.
func newStream(nc net.Conn) (stream, error) {
	if t, ok := nc.(*tls.Conn); ok {
		if records, ok := t.NetConn().(*recordConn); ok && isStreamSocket(records.Conn) {
			socket, err := newSocketStream(records.Conn.(syscall.Conn))
			if err != nil {
				return nil, err
			}
			return newTLSStream(t, records, socket), nil
		}
		return &connStream{nc: nc}, nil
	}
	if isStreamSocket(nc) {
		return newSocketStream(nc.(syscall.Conn))
	}
	return &connStream{nc: nc}, nil
}

// isStreamSocket says whether nc is a stream socket of the kernel's, of whatever
// family, that the runtime's poller waits for.
func isStreamSocket(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	typ := 0
	err = raw.Control(func(fd uintptr) {
		typ, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TYPE) // what is no socket has no type
	})
	return err == nil && typ == syscall.SOCK_STREAM
}

// unixSendBytes is the send buffer that is asked for on a unix socket, so that a
// reply of the length that most clients ask for, and the next, fits whole. By
// default, 208 KiB, it does not: the sender then waits for the client, who
// is woken up twice for one reply.
const unixSendBytes = 1 << 20

// A socketStream talks to a kernel socket by readv and writev. The functions
// given to RawConn are made once, and their arguments and results are fields,
// so that nothing is allocated for a call.
type socketStream struct {
	raw syscall.RawConn

	// The reader's.
	readIov  [2]syscall.Iovec
	readIovs int
	readN    int
	readErr  syscall.Errno
	onRead   func(fd uintptr) bool
	onPeek   func(fd uintptr) bool // onRead, but does not wait

	// The sender's.
	writeIov []syscall.Iovec
	writeN   int
	writeErr syscall.Errno
	onTry    func(fd uintptr) bool
	onWrite  func(fd uintptr) bool
}

func newSocketStream(sc syscall.Conn) (*socketStream, error) {
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	if u, ok := sc.(*net.UnixConn); ok {
		// The kernel bounds it by net.core.wmem_max. If it refuses, the client is
		// served all the same.
		_ = u.SetWriteBuffer(unixSendBytes)
	}
	s := &socketStream{raw: raw}
	s.onRead = func(fd uintptr) bool {
		s.readN, s.readErr = readv(fd, s.readIov[:s.readIovs])
		return s.readErr != syscall.EAGAIN
	}
	s.onPeek = func(fd uintptr) bool {
		s.readN, s.readErr = readv(fd, s.readIov[:s.readIovs])
		return true
	}
	s.onTry = func(fd uintptr) bool {
		s.writeN, s.writeErr = writev(fd, s.writeIov)
		return true
	}
	s.onWrite = func(fd uintptr) bool {
		s.writeN, s.writeErr = writev(fd, s.writeIov)
		return s.writeErr != syscall.EAGAIN
	}
	return s, nil
}

func (s *socketStream) read(first, second []byte) (int, error) {
	return s.readWith(first, second, true)
}

// readWith is read, but without wait it returns zero if there is nothing.
func (s *socketStream) readWith(first, second []byte, wait bool) (int, error) {
	s.readIovs = 0
	for _, b := range [2][]byte{first, second} {
		if len(b) > 0 {
			s.readIov[s.readIovs] = iovec(b)
			s.readIovs++
		}
	}
	fn := s.onRead
	if !wait {
		fn = s.onPeek
	}
	if err := s.raw.Read(fn); err != nil {
		return 0, err
	}
	if s.readErr == syscall.EAGAIN {
		return 0, nil
	}
	if s.readErr != 0 {
		return 0, s.readErr
	}
	if s.readN == 0 {
		return 0, io.EOF
	}
	return s.readN, nil
}

func (s *socketStream) tryWrite(bufs [][]byte) (int, error) { return s.writeWait(bufs, false) }
func (s *socketStream) write(bufs [][]byte) (int, error)    { return s.writeWait(bufs, true) }

func (s *socketStream) writeWait(bufs [][]byte, wait bool) (int, error) {
	fn := s.onTry
	if wait {
		fn = s.onWrite
	}
	s.writeIov = s.writeIov[:0]
	for _, b := range bufs {
		s.writeIov = append(s.writeIov, iovec(b))
	}
	err := s.raw.Write(fn)
	clear(s.writeIov) // it must not keep memory alive
	switch {
	case err != nil:
		return 0, err
	case s.writeErr == syscall.EAGAIN:
		return 0, nil
	case s.writeErr != 0:
		return 0, s.writeErr
	}
	return s.writeN, nil
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

func (s *connStream) read(first, _ []byte) (int, error) {
	n, err := s.nc.Read(first)
	if n > 0 {
		return n, nil
	}
	return 0, err
}

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
