package trace

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/vhbad/vhbad/hba/cache"
)

// A FormatError says where a file is not a trace or is damaged, and how.
type FormatError struct {
	// Record is its number; 0 is the header.
	Record uint64
	// OffsetBytes is where it begins in the file.
	OffsetBytes int64
	Err         error
}

func (e *FormatError) Error() string {
	what := "header"
	if e.Record > 0 {
		what = fmt.Sprintf("record %d, at byte %d", e.Record, e.OffsetBytes)
	}
	return fmt.Sprintf("trace: %s: %v", what, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }

// A Record is one step, with its number and time.
type Record struct {
	Number uint64
	Time   time.Time
	cache.Step
}

// A Reader reads a trace. It needs memory for the longest record.
type Reader struct {
	in     *bufio.Reader
	header Header
	offset int64
	number uint64
	sum    uint32
	body   []byte
	ended  bool
	reason string
	err    error
}

// NewReader reads the header.
//
// Errors: *FormatError, around io.ErrUnexpectedEOF if the file is cut off; in's own
// errors.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: bufio.NewReaderSize(in, 1<<16)}
	if err := r.readHeader(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Reader) readHeader() error {
	fixed := make([]byte, fixedBytes)
	if _, err := io.ReadFull(r.in, fixed[:12]); err != nil {
		return r.broken(err)
	}
	if string(fixed[:8]) != magic {
		return r.broken(errors.New("not a trace of vhbad: it does not begin with " + magic))
	}
	le := binary.LittleEndian
	if v := le.Uint16(fixed[8:]); v != Version {
		return r.broken(fmt.Errorf("version %d: want version %d", v, Version))
	}
	length := int(le.Uint16(fixed[10:]))
	if length < fixedBytes+sumBytes || length > fixedBytes+maxNameBytes+sumBytes {
		return r.broken(fmt.Errorf("a length of %d bytes: want %d to %d", length, fixedBytes+sumBytes, fixedBytes+maxNameBytes+sumBytes))
	}
	whole := make([]byte, length)
	copy(whole, fixed[:12])
	if _, err := io.ReadFull(r.in, whole[12:]); err != nil {
		return r.broken(err)
	}
	var err error
	if r.header, r.sum, err = parseHeader(whole); err != nil {
		return r.broken(err)
	}
	r.offset = int64(length)
	return nil
}

// broken returns a *FormatError for the current record. An end of the file in the middle
// of the record becomes io.ErrUnexpectedEOF.
func (r *Reader) broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the file ends in the middle of it: %w", io.ErrUnexpectedEOF)
	}
	return &FormatError{Record: r.number, OffsetBytes: r.offset, Err: err}
}

// Header is the header.
func (r *Reader) Header() Header { return r.header }

// End says, once Next has returned io.EOF, whether the trace is all that the disk did.
// If not, reason says why: the recording failed, or the trace does not say.
func (r *Reader) End() (complete bool, reason string) {
	if !r.ended {
		return false, "it has no end: the daemon still writes it, or was killed"
	}
	return r.reason == "", r.reason
}

// Next reads the next record. Its Data is good until the next call.
//
// Errors: io.EOF after the last record; *FormatError; the file's own errors. Later calls
// return the same error.
func (r *Reader) Next() (*Record, error) {
	if r.err != nil {
		return nil, r.err
	}
	rec, err := r.next()
	r.err = err
	return rec, err
}

func (r *Reader) next() (*Record, error) {
	var head [recordHeadBytes]byte
	n, err := io.ReadFull(r.in, head[:])
	if n == 0 && errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	r.number++
	if r.ended {
		return nil, r.broken(errors.New("comes after the end"))
	}
	if err != nil {
		return nil, r.broken(err)
	}
	length := binary.LittleEndian.Uint32(head[:])
	if length > MaxBodyBytes {
		return nil, r.broken(fmt.Errorf("a body of %d bytes: want at most %d", length, MaxBodyBytes))
	}
	if err := r.readBody(int(length) + sumBytes); err != nil {
		return nil, r.broken(err)
	}
	body := r.body[:length]
	sum := crc32.Update(crc32.Update(r.sum, castagnoli, head[:]), castagnoli, body)
	if sum != binary.LittleEndian.Uint32(r.body[length:]) {
		return nil, r.broken(errors.New("the sum does not fit: it is damaged, or records are missing before it"))
	}
	r.sum = sum
	s, err := parseRecord(head[:], body)
	if err != nil {
		return nil, r.broken(err)
	}
	at := binary.LittleEndian.Uint64(head[8:])
	if at > 1<<62 {
		return nil, r.broken(fmt.Errorf("%d nanoseconds after the start", at))
	}
	r.offset += recordHeadBytes + int64(length) + sumBytes
	if s.Kind == kindEnd {
		r.ended, r.reason = true, s.Text
		if s.Failed && s.Text == "" {
			r.reason = "the recording failed"
		}
		return r.next() // there is nothing
	}
	return &Record{Number: r.number, Time: r.header.Start.Add(time.Duration(at)), Step: s}, nil
}

// readBody reads n bytes into body. It takes memory for the bytes that arrive, not for
// what a length claims.
func (r *Reader) readBody(n int) error {
	const atOnce = 1 << 20
	r.body = r.body[:0]
	for len(r.body) < n {
		have, step := len(r.body), min(n-len(r.body), atOnce)
		if cap(r.body) < have+step {
			grown := make([]byte, have, min(n, max(2*cap(r.body), have+step)))
			copy(grown, r.body)
			r.body = grown
		}
		r.body = r.body[:have+step]
		if _, err := io.ReadFull(r.in, r.body[have:]); err != nil {
			return err
		}
	}
	return nil
}
