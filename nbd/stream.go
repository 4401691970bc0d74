package nbd

import (
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

	// write is tryWrite, but waits until it has written something.
	write(bufs [][]byte) (int, error)
}

// newStream returns the best stream for nc.
func newStream(nc net.Conn) (stream, error) {
	switch nc := nc.(type) {
	case *net.TCPConn:
		return newSocketStream(nc)
	case *net.UnixConn:
		return newSocketStream(nc)
	}
	return &connStream{nc: nc}, nil
}

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
	s := &socketStream{raw: raw}
	s.onRead = func(fd uintptr) bool {
		s.readN, s.readErr = readv(fd, s.readIov[:s.readIovs])
		return s.readErr != syscall.EAGAIN
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
	s.readIovs = 0
	for _, b := range [2][]byte{first, second} {
		if len(b) > 0 {
			s.readIov[s.readIovs] = iovec(b)
			s.readIovs++
		}
	}
	if err := s.raw.Read(s.onRead); err != nil {
		return 0, err
	}
	if s.readErr != 0 {
		return 0, s.readErr
	}
	if s.readN == 0 {
		return 0, io.EOF
	}
	return s.readN, nil
}

func (s *socketStream) tryWrite(bufs [][]byte) (int, error) { return s.writeWith(bufs, s.onTry) }
func (s *socketStream) write(bufs [][]byte) (int, error)    { return s.writeWith(bufs, s.onWrite) }

func (s *socketStream) writeWith(bufs [][]byte, fn func(fd uintptr) bool) (int, error) {
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

// A connStream is a stream over any net.Conn, one that encrypts for example. It
// cannot write without waiting, so the writer goroutine does all its writing.
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
