package nbd

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/vhbad/vhbad/internal/dma"
)

// kernelSocket is a stream like a unix socket whose client is never late: each read
// finds as much as the socket holds.
type kernelSocket struct {
	alone
	input []byte
	holds int // bytes
	reads int
}

func (s *kernelSocket) read(first, second []byte, _ bool) (int, error) {
	s.reads++
	there := s.input[:min(len(s.input), s.holds)]
	n := copy(first, there)
	n += copy(second, there[n:])
	s.input = s.input[n:]
	return n, nil
}

func (*kernelSocket) tryWrite(bufs [][]byte) (int, error) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n, nil
}

func (s *kernelSocket) write(bufs [][]byte) (int, error) { return s.tryWrite(bufs) }

// disk is a device in memory, and its session.
type disk struct {
	Device
	mem []byte
}

func (d *disk) SizeBytes() uint64 { return uint64(len(d.mem)) }
func (d *disk) Close()            {}

func (d *disk) Submit(batch []*Request) {
	for _, r := range batch {
		copy(d.mem[r.OffsetBytes:], r.Data)
		r.Complete(OK)
	}
}

// TestReceive_LongWrites: of writes that follow each other a read takes all that the
// socket holds, whichever write it is of, and each finds its data.
func TestReceive_LongWrites(t *testing.T) {
	const (
		holds  = 208 << 10 // what Linux lets a unix socket hold by default
		writes = 64
	)
	for _, size := range []int{100 << 10, 256 << 10, 1 << 20} {
		arena, err := dma.NewArena(16 << 20)
		if err != nil {
			t.Fatal(err)
		}
		d := &disk{mem: make([]byte, writes*size)}
		want := make([]byte, len(d.mem))
		random := rand.NewChaCha8([32]byte{1})
		_, _ = random.Read(want) // never fails
		s := &kernelSocket{holds: holds}
		for at := 0; at < len(want); at += size {
			s.input = binary.BigEndian.AppendUint32(s.input, protocol.TRANSMISSION_MAGIC_REQUEST)
			s.input = binary.BigEndian.AppendUint32(s.input, uint32(cmdWrite))
			s.input = binary.BigEndian.AppendUint64(s.input, uint64(at))
			s.input = binary.BigEndian.AppendUint64(s.input, uint64(at))
			s.input = binary.BigEndian.AppendUint32(s.input, uint32(size))
			s.input = append(s.input, want[at:at+size]...)
		}
		s.input = binary.BigEndian.AppendUint32(s.input, protocol.TRANSMISSION_MAGIC_REQUEST)
		s.input = binary.BigEndian.AppendUint32(s.input, uint32(cmdDisc))
		s.input = append(s.input, make([]byte, requestBytes-8)...)
		// All that is asked for beyond this is the growth of the first block.
		least := len(s.input)/holds + 1

		c := newBareConn(arena)
		c.limits.MaxRequests = 16
		c.stream, c.session, c.export.Device = s, d, d
		c.rules = newRules(&Info{SizeBytes: d.SizeBytes()}, maxPayloadLimit)
		c.rxBytes, c.txBytes = minBlockBytes, minReplyBlockBytes
		c.rx = c.allocate(minBlockBytes)
		c.unpark()
		if reason := c.receive(); reason != CloseDisconnect {
			t.Fatalf("%d bytes each: %v, want %v", size, reason, CloseDisconnect)
		}
		if !bytes.Equal(d.mem, want) {
			t.Errorf("%d bytes each: what the disk has is not what was written", size)
		}
		if s.reads > least+8 {
			t.Errorf("%d bytes each: %d reads, want the %d that it takes, or a few more", size, s.reads, least)
		}
		c.abandon()
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestMakeRoom_Scarce: while a payload is received the receive block grows, unless memory
// is scarce.
func TestMakeRoom_Scarce(t *testing.T) {
	arena, err := dma.NewArena(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	c := newBareConn(arena)
	c.rxBytes = maxBlockBytes
	c.rx = c.allocate(minBlockBytes)
	c.filling = &Request{Op: OpWrite}
	var taken [][]byte
	for !arena.Scarce() {
		b := arena.Alloc(minBlockBytes)
		if b == nil {
			t.Fatal("there is no memory, and it is not scarce")
		}
		taken = append(taken, b)
	}
	if !c.makeRoom() || len(c.rx.mem) != minBlockBytes {
		t.Errorf("a receive block of %d bytes, want %d while memory is scarce", len(c.rx.mem), minBlockBytes)
	}
	for _, b := range taken {
		arena.Free(b)
	}
	if !c.makeRoom() || len(c.rx.mem) != maxBlockBytes {
		t.Errorf("a receive block of %d bytes, want %d", len(c.rx.mem), maxBlockBytes)
	}
	c.drop(c.rx)
	if err := arena.Close(); err != nil {
		t.Error(err)
	}
}
