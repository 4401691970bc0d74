package nbd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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

func (s *kernelSocket) read(bufs [][]byte, _ bool) (n int, err error) {
	s.reads++
	there := s.input[:min(len(s.input), s.holds)]
	for _, b := range bufs {
		n += copy(b, there[n:])
	}
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
	mem       []byte
	submitted func(*Request) // unless nil
}

func (d *disk) SizeBytes() uint64 { return uint64(len(d.mem)) }
func (d *disk) Close()            {}

func (d *disk) Submit(batch []*Request) {
	for _, r := range batch {
		if d.submitted != nil {
			d.submitted(r)
		}
		if r.Op == OpWrite {
			copy(d.mem[r.OffsetBytes:], r.Data)
		}
		r.Complete(OK)
	}
}

// TestReceive_LongWrites: while writes follow each other a read takes everything that the
// socket holds, whichever write it belongs to, and each write finds its data.
func TestReceive_LongWrites(t *testing.T) {
	const (
		holds  = 208 << 10 // what Linux lets a unix socket hold by default
		writes = 64
	)
	for _, size := range []int{100 << 10, 256 << 10, 1 << 20} {
		d := &disk{mem: make([]byte, writes*size)}
		want := make([]byte, len(d.mem))
		random := rand.NewChaCha8([32]byte{1})
		_, _ = random.Read(want) // never fails
		s := &kernelSocket{holds: holds}
		for at := 0; at < len(want); at += size {
			s.input = appendRequest(s.input, formatSimple, requestHeader{typ: cmdWrite, offset: uint64(at), length: uint64(size)}, want[at:at+size])
		}
		s.input = appendRequest(s.input, formatSimple, requestHeader{typ: cmdDisc}, nil)
		// All that is asked for beyond this is the growth of the first block.
		least := len(s.input)/holds + 1

		c := newReader(t, formatSimple, s, d)
		if reason := c.receive(); reason != CloseDisconnect {
			t.Fatalf("%d bytes each: %v, want %v", size, reason, CloseDisconnect)
		}
		if !bytes.Equal(d.mem, want) {
			t.Errorf("%d bytes each: what the disk has is not what was written", size)
		}
		if s.reads > least+8 {
			t.Errorf("%d bytes each: %d reads, want the %d that it takes, or a few more", size, s.reads, least)
		}
	}
}

// TestFill_Soon: only a payload is awaited as input on its way. A client that has sent part
// of a header may take its time, and so may one that has sent nothing.
func TestFill_Soon(t *testing.T) {
	const size = 256 << 10
	d := &disk{mem: make([]byte, size)}
	request := appendRequest(nil, formatSimple, requestHeader{typ: cmdWrite, length: size}, make([]byte, size))
	disc := appendRequest(nil, formatSimple, requestHeader{typ: cmdDisc}, nil)
	s := &hastySocket{parts: [][]byte{request[:10], request[10:1000], request[1000 : size/2], request[size/2:], disc[:1], disc[1:]}}
	c := newReader(t, formatSimple, s, d)
	c.gather = newGatherer(decided())
	if reason := c.receive(); reason != CloseDisconnect {
		t.Fatal(reason)
	}
	if want := []bool{false, false, true, true, false, false}; !slices.Equal(s.soon, want) {
		t.Errorf("what was on its way: %v, want %v", s.soon, want)
	}
}

// hastySocket brings one part with each read.
type hastySocket struct {
	kernelSocket
	parts [][]byte
	soon  []bool // what the reads were told
}

func (s *hastySocket) read(bufs [][]byte, soon bool) (int, error) {
	s.soon = append(s.soon, soon)
	s.input, s.holds, s.parts = s.parts[0], len(s.parts[0]), s.parts[1:]
	return s.kernelSocket.read(bufs, soon)
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

// TestMakeRoom_Tail: a receive block that had to do for want of memory is followed by one
// that has room for all that was received and not parsed.
func TestMakeRoom_Tail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arena, err := dma.NewArena(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		c := newBareConn(arena)
		c.ctx = t.Context()
		c.rxBytes = maxBlockBytes
		c.rx = c.allocate(maxBlockBytes)
		c.end = len(c.rx.mem)
		c.start, c.needBytes = c.end-10, requestBytes
		c.rx.refs.Add(1) // of a request
		var taken [][]byte
		for b := arena.Alloc(minBlockBytes); b != nil; b = arena.Alloc(minBlockBytes) {
			taken = append(taken, b)
		}
		time.AfterFunc(memoryWait/2, func() { c.rx.refs.Add(-1) }) // it was answered
		if !c.makeRoom() || len(c.rx.mem) != maxBlockBytes {
			t.Fatalf("a receive block of %d bytes: the test does not test", len(c.rx.mem))
		}
		for _, b := range taken {
			arena.Free(b)
		}
		const tail = ownBlockBytes - 1
		want := make([]byte, tail)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(want) // never fails
		c.end = len(c.rx.mem)
		c.start, c.needBytes = c.end-copy(c.rx.mem[c.end-tail:], want), requestBytes+ownBlockBytes
		parsed := c.rx
		parsed.refs.Add(1)
		if !c.makeRoom() || !bytes.Equal(c.rx.mem[c.start:c.end], want) {
			t.Errorf("%d bytes are left of %d, or other ones", c.end-c.start, tail)
		}
		c.drop(parsed)
		c.drop(c.rx)
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestAwaitMemory_Scarce: memory that was waited for may be used, though it is what makes
// memory scarce.
func TestAwaitMemory_Scarce(t *testing.T) {
	const most, partBytes = 1 << 20, 256 << 10
	arena, err := dma.NewArena(8 * most)
	if err != nil {
		t.Fatal(err)
	}
	c := newBareConn(arena)
	c.ctx = t.Context()
	c.taken = 1 // a request is in flight
	mine := []*block{c.allocate(minBlockBytes), c.allocate(partBytes)}
	var large, taken [][]byte
	for b := arena.Alloc(most); b != nil; b = arena.Alloc(most) {
		large = append(large, b)
	}
	for range 2 {
		taken = append(taken, arena.Alloc(partBytes))
	}
	if c.allocate(most) != nil || arena.Scarce() {
		t.Fatal("there is memory, or it is scarce: the test does not test")
	}
	arena.Free(large[0])
	taken = append(append(taken, arena.Alloc(partBytes)), large[1:]...)
	if err := c.awaitMemory(most, nil); err != nil || !arena.Scarce() {
		t.Fatalf("%v, or memory is not scarce: the test does not test", err)
	}
	b := c.allocate(most)
	if b == nil {
		t.Error("there is none, and who waits for it again gets it at once")
	}
	for _, b := range append(mine, b) {
		c.drop(b)
	}
	for _, b := range taken {
		arena.Free(b)
	}
	if err := arena.Close(); err != nil {
		t.Error(err)
	}
}

// TestAwaitMemory_Draining: a drain that has begun before the wait could be seen ends it, too,
// and is not put off by those that begin later.
func TestAwaitMemory_Draining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arena, err := dma.NewArena(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		c := newBareConn(arena)
		c.ctx = t.Context()
		taken := arena.Alloc(1 << 20)
		c.wishes.Store(wishDrain)
		time.AfterFunc(lastOrdersTime/2, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.hurryLocked()
		})
		begin := time.Now()
		if err := c.awaitMemory(minBlockBytes, nil); !errors.Is(err, errMemoryDrain) {
			t.Errorf("%v, want %v", err, errMemoryDrain)
		}
		if took := time.Since(begin); took != lastOrdersTime {
			t.Errorf("waited for %v, want %v", took, lastOrdersTime)
		}
		arena.Free(taken)
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestCarve_Granted: a reply block that was waited for is used as it is. To give it back for
// a larger one is to stand in line again, behind others who do the same.
func TestCarve_Granted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arena, err := dma.NewArena(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		c := newBareConn(arena)
		ctx, cancel := context.WithCancel(t.Context())
		c.ctx = ctx
		c.txBytes = minReplyBlockBytes
		const length = minReplyBlockBytes / 2
		var one, two Request
		if !c.carve(&one, length) {
			t.Fatal("no memory")
		}
		var taken [][]byte
		for b := arena.Alloc(minReplyBlockBytes); b != nil; b = arena.Alloc(minReplyBlockBytes) {
			taken = append(taken, b)
		}
		if c.carve(&two, length) {
			t.Fatal("there is memory: the test does not test")
		}
		arena.Free(taken[0])
		if err := c.awaitMemory(c.wantBytes, c.wantOwn); err != nil {
			t.Fatal(err)
		}
		var others sync.WaitGroup
		others.Go(func() {
			if b, err := arena.AllocWait(ctx, minReplyBlockBytes); err == nil {
				t.Error("somebody else has it")
				arena.Free(b)
			}
		})
		synctest.Wait()
		if !c.carve(&two, length) {
			t.Error("no reply block")
		}
		cancel()
		others.Wait()
		for _, b := range []*block{one.block, two.block, c.tx} {
			c.drop(b)
		}
		for _, b := range taken[1:] {
			arena.Free(b)
		}
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestTrim_Granted: memory that was waited for, and then not needed, is not kept.
func TestTrim_Granted(t *testing.T) {
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	c := newBareConn(arena)
	c.ctx = t.Context()
	c.rxBytes, c.txBytes = minBlockBytes, minReplyBlockBytes
	c.rx = c.allocate(minBlockBytes)
	var one, two Request
	const length = minReplyBlockBytes / 2
	if !c.carve(&one, length) {
		t.Fatal("no memory")
	}
	if err := c.awaitMemory(minReplyBlockBytes, nil); err != nil {
		t.Fatal(err)
	}
	c.drop(one.block) // it was answered meanwhile
	if !c.carve(&two, length) || two.block != one.block {
		t.Fatal("not the same reply block: the test does not test")
	}
	c.drop(two.block)
	c.trim()
	if n := arena.Stats().InUseBytes; n != minBlockBytes {
		t.Errorf("an idle connection has %d bytes, want %d", n, minBlockBytes)
	}
	c.abandon()
	if err := arena.Close(); err != nil {
		t.Error(err)
	}
}
