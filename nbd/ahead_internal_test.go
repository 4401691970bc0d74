package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/vhbad/vhbad/internal/dma"
)

// appendRequest appends a request of format f with its payload, which may be none.
func appendRequest(b []byte, f format, h requestHeader, payload []byte) []byte {
	magic := protocol.TRANSMISSION_MAGIC_REQUEST
	if f == formatExtended {
		magic = magicExtendedRequest
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint16(b, h.typ)
	b = binary.BigEndian.AppendUint64(b, h.cookie)
	b = binary.BigEndian.AppendUint64(b, h.offset)
	if f == formatExtended {
		b = binary.BigEndian.AppendUint64(b, h.length)
	} else {
		b = binary.BigEndian.AppendUint32(b, uint32(h.length))
	}
	return append(b, payload...)
}

// newReader makes a connection that has no client: requests come from s and go to d.
func newReader(t *testing.T, f format, s stream, d *disk) *Conn {
	t.Helper()
	arena, err := dma.NewArena(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	c := newBareConn(arena)
	c.format = f
	c.limits.MaxRequests, c.limits.MaxPayloadBytes = 16, maxPayloadLimit
	c.stream, c.session, c.export.Device = s, d, d
	c.rules = newRules(&Info{SizeBytes: d.SizeBytes(), CanFlush: true}, maxPayloadLimit)
	c.rules.agree(&agreement{extended: f == formatExtended})
	c.rxBytes, c.txBytes = minBlockBytes, minReplyBlockBytes
	c.gather.trial = decided()
	c.rx = c.allocate(minBlockBytes)
	c.unpark()
	t.Cleanup(func() {
		c.abandon()
		if held := c.heldBytes.Load(); held != 0 {
			t.Errorf("%d bytes are held at the end", held)
		}
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// notingSocket is a kernelSocket that notes where it has put what: how many bytes from
// an address on.
type notingSocket struct {
	kernelSocket
	put map[*byte]int
}

func (s *notingSocket) read(bufs [][]byte, soon bool) (int, error) {
	n, err := s.kernelSocket.read(bufs, soon)
	for left := n; left > 0; bufs = bufs[1:] {
		k := min(len(bufs[0]), left)
		if k > 0 {
			s.put[&bufs[0][0]] = k
		}
		left -= k
	}
	return n, err
}

// take says whether all of b is as the socket has put it, and forgets it.
func (s *notingSocket) take(b []byte) bool {
	for len(b) > 0 {
		n := s.put[&b[0]]
		delete(s.put, &b[0])
		if n == 0 {
			return false
		}
		b = b[n:]
	}
	return true
}

// TestAhead: of writes of one length that follow each other, the socket puts all data
// where the device finds it, and nothing is allocated for it.
func TestAhead(t *testing.T) {
	const size, writes, holds = 256 << 10, 16, 208 << 10
	for _, f := range []format{formatSimple, formatExtended} {
		s := &notingSocket{kernelSocket: kernelSocket{holds: holds}, put: make(map[*byte]int)}
		d := &disk{mem: make([]byte, writes*size)}
		want := make([]byte, len(d.mem))
		_, _ = rand.NewChaCha8([32]byte{2}).Read(want) // never fails
		var input []byte
		for i := range writes {
			input = appendRequest(input, f, requestHeader{typ: cmdWrite, offset: uint64(i * size), length: size}, want[i*size:][:size])
		}
		input = appendRequest(input, f, requestHeader{typ: cmdDisc}, nil)
		c := newReader(t, f, s, d)
		inPlace := 0
		d.submitted = func(r *Request) {
			if s.take(r.Data) {
				inPlace++
			}
		}
		run := func() {
			s.input = input
			if reason := c.receive(); reason != CloseDisconnect {
				t.Fatalf("format %d: %v, want %v", f, reason, CloseDisconnect)
			}
			c.start, c.end = 0, 0
		}
		run()
		if !bytes.Equal(d.mem, want) {
			t.Errorf("format %d: what the disk has is not what was written", f)
		}
		// Nobody expected the first, and the receive block had little room for the second.
		if inPlace < writes-2 {
			t.Errorf("format %d: %d of %d writes in place, want all but the first two", f, inPlace, writes)
		}
		d.submitted, s.reads = nil, 0
		c.stream = &s.kernelSocket // which allocates nothing
		if n := testing.AllocsPerRun(3, run); n != 0 {
			t.Errorf("format %d: %v allocations for %d writes", f, n, writes)
		}
	}
}

// TestAhead_Wrong: whatever comes instead of the write that was expected, whatever a read
// brings of it, and wherever the stream ends, each request is as its client sent it.
func TestAhead_Wrong(t *testing.T) {
	const seeds, sizeBytes = 24, 2 << 20
	for seed := range uint64(seeds) {
		random, content := rand.New(rand.NewPCG(seed, 0)), rand.NewChaCha8([32]byte{byte(seed)})
		f := []format{formatSimple, formatExtended}[random.IntN(2)]
		type write struct {
			offset uint64
			data   []byte
		}
		var input []byte
		var want []write
		var ends []int // of those writes, in input
		refused, flushes, reads := 0, 0, 0
		size := uint64(0)
		for i := range 40 {
			if i%8 == 0 {
				size = []uint64{5 << 10, 70 << 10, 100 << 10, 256 << 10, 300 << 10, 1<<20 + 512}[random.IntN(6)]
			}
			h := requestHeader{typ: cmdWrite, cookie: uint64(i), length: size}
			switch random.IntN(12) {
			case 0: // another length
				h.length = 1 + random.Uint64N(300<<10)
			case 1: // beyond the end
				h.offset = sizeBytes - size/2
				refused++
			case 2: // no such flag
				h.flags = 1 << 9
				refused++
			case 3:
				input = appendRequest(input, f, requestHeader{typ: cmdFlush}, nil)
				flushes++
				continue
			case 4: // short ones
				h.length = 512
			case 5: // no such command
				h.typ = 77
				if f == formatExtended { // with a payload
					h.flags = cmdFlagPayloadLen
				}
				refused++
			case 6: // another command, as long
				h.typ = cmdRead
				reads++
			}
			data := make([]byte, h.length)
			_, _ = content.Read(data) // never fails
			if h.offset == 0 {
				h.offset = random.Uint64N(sizeBytes - h.length + 1)
			}
			if h.typ == cmdRead || h.typ != cmdWrite && f != formatExtended {
				input = appendRequest(input, f, h, nil)
				continue
			}
			input = appendRequest(input, f, h, data)
			if h.typ == cmdWrite && h.flags == 0 && h.offset+h.length <= sizeBytes {
				want = append(want, write{h.offset, data})
				ends = append(ends, len(input))
			}
		}
		reason := CloseDisconnect
		if random.IntN(2) == 0 { // the client goes away in the middle of something
			input, reason = input[:random.IntN(len(input))], CloseTruncated
			for len(ends) > 0 && ends[len(ends)-1] > len(input) {
				ends = ends[:len(ends)-1]
			}
			want = want[:len(ends)]
		} else {
			input = appendRequest(input, f, requestHeader{typ: cmdDisc}, make([]byte, random.IntN(1000))) // and more
		}
		d := &disk{mem: make([]byte, sizeBytes)}
		s := &raggedSocket{kernelSocket: kernelSocket{input: input}, random: random}
		c := newReader(t, f, s, d)
		at := 0
		d.submitted = func(r *Request) {
			if r.Op != OpWrite {
				return
			}
			if at == len(want) || r.OffsetBytes != want[at].offset || !bytes.Equal(r.Data, want[at].data) {
				t.Fatalf("seed %d: write %d of %d at %d is not what was sent", seed, at, r.LengthBytes, r.OffsetBytes)
			}
			at++
		}
		s.before = func() {
			if c.ahead.filled != 0 {
				t.Fatalf("seed %d: a read while %d bytes ahead are nobody's", seed, c.ahead.filled)
			}
		}
		if got := c.receive(); got != reason && (got != CloseEOF || reason == CloseDisconnect) {
			t.Fatalf("seed %d: %v, want %v", seed, got, reason)
		}
		if at != len(want) {
			t.Fatalf("seed %d: %d writes, want %d", seed, at, len(want))
		}
		var failures, successes uint64
		for i := range c.ops {
			failures += c.ops[i].failures()
			successes += c.ops[i].successes.Load()
		}
		if reason == CloseDisconnect && (failures != uint64(refused) || successes != uint64(len(want)+flushes+reads)) {
			t.Fatalf("seed %d: %d failures and %d successes, want %d and %d", seed, failures, successes, refused, len(want)+flushes+reads)
		}
	}
}

// raggedSocket holds now more, now less, and ends with its input.
type raggedSocket struct {
	kernelSocket
	random *rand.Rand
	before func()
}

func (s *raggedSocket) read(bufs [][]byte, soon bool) (int, error) {
	if len(s.input) == 0 {
		return 0, io.EOF
	}
	s.before()
	s.holds = 1 + s.random.IntN([]int{40, 64 << 10, 400 << 10}[s.random.IntN(3)])
	return s.kernelSocket.read(bufs, soon)
}

// TestAhead_NoMemory: there is memory for what is expected as long as there is plenty, and
// what was not used is free again.
func TestAhead_NoMemory(t *testing.T) {
	d := &disk{mem: make([]byte, 1<<20)}
	c := newReader(t, formatSimple, failing{}, d)
	parts := func(length, missing, room int) int {
		c.filling = &Request{Op: OpWrite, Data: make([]byte, length)}
		c.filled = length - missing
		before := c.heldBytes.Load()
		parts := c.lookAhead(append(c.parts[:0], c.filling.Data[c.filled:]), c.rx.mem[:room])
		if (len(parts) == 4) != (c.heldBytes.Load() > before) {
			t.Errorf("%d parts, and %d bytes more", len(parts), c.heldBytes.Load()-before)
		}
		c.dropAhead()
		if held := c.heldBytes.Load(); held != before {
			t.Errorf("%d bytes are held, want %d as before", held, before)
		}
		c.filling = nil
		return len(parts)
	}
	for _, tt := range []struct {
		what                  string
		length, missing, room int
		want                  int
	}{
		{"plenty", 256 << 10, 256 << 10, minBlockBytes, 4},
		{"the end of a long one", maxAheadBytes, 1, minBlockBytes, 4},
		{"a payload that is too long", maxAheadBytes + 1, 1, minBlockBytes, 2},
		{"much that is to come first", 512 << 10, maxBlockBytes + 1, minBlockBytes, 2},
		{"little room", 256 << 10, 1, requestBytes + minReadBytes - 1, 2},
		{"no room", 256 << 10, 1, 0, 2},
		{"a payload that has no block of its own", ownBlockBytes, 1, minBlockBytes, 2},
	} {
		if n := parts(tt.length, tt.missing, tt.room); n != tt.want {
			t.Errorf("%s: %d parts, want %d", tt.what, n, tt.want)
		}
	}
	c.limits.MaxBytesInFlight = minBlockBytes + 256<<10 // nothing is in flight
	if n := parts(256<<10, 1, minBlockBytes); n != 4 {
		t.Errorf("%d parts within the budget", n)
	}
	c.limits.MaxBytesInFlight--
	if n := parts(256<<10, 1, minBlockBytes); n != 2 {
		t.Errorf("%d parts beyond the budget", n)
	}
	c.limits.MaxBytesInFlight = 1 << 30
	var taken [][]byte
	for c.arena.Plenty() {
		taken = append(taken, c.arena.Alloc(minBlockBytes))
	}
	if n := parts(256<<10, 1, minBlockBytes); n != 2 {
		t.Errorf("%d parts while half of the memory is taken", n)
	}
	for _, b := range taken {
		c.arena.Free(b)
	}
	// A read that fails gives it back.
	held := c.heldBytes.Load()
	c.filling = &Request{Op: OpWrite, Data: make([]byte, 256<<10)}
	c.rxBytes = minBlockBytes
	if reason, stop := c.fill(); !stop || reason != CloseReadError {
		t.Errorf("%v, want %v", reason, CloseReadError)
	}
	c.filling = nil
	if now := c.heldBytes.Load(); now != held {
		t.Errorf("after a read that failed %d bytes are held, want %d", now, held)
	}
}

// failing is a stream that reads nothing.
type failing struct{ alone }

func (failing) read([][]byte, bool) (int, error) { return 0, errors.New("broken") }
func (failing) tryWrite([][]byte) (int, error)   { return 0, nil }
func (failing) write([][]byte) (int, error)      { return 0, nil }
