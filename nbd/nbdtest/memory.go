package nbdtest

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/nbd"
)

// A Memory is a device of zero-initialized memory.
//
// By default it completes requests inside Submit. With Async set, one goroutine
// for each session completes them in a random order drawn from Seed.
//
// Concurrency: set the fields before the first use.
type Memory struct {
	// Description is what clients see, except the size, which is that of the memory.
	Description nbd.Info
	Async       bool
	Seed        uint64
	// Sparse makes holes of zero blocks of SparseBytes, in OpBlockStatus and for reads
	// that can report them.
	Sparse bool
	// Lends, unless nil, is the IOMMU through which the device reaches the server's memory.
	// Three times out of four the device then lends pages with the data of a read, if it
	// may, and leaves garbage in memory.
	Lends *dma.IOMMU

	size atomic.Uint64
	mu   sync.RWMutex
	// +checklocks:mu
	data []byte
}

var _ nbd.Device = (*Memory)(nil)

// SparseBytes is the size of blocks that can be holes.
const SparseBytes = 512

// NewMemory returns a device of sizeBytes that takes every command.
func NewMemory(sizeBytes int) *Memory {
	m := &Memory{Description: everything(sizeBytes), data: make([]byte, sizeBytes)}
	m.size.Store(uint64(sizeBytes))
	return m
}

// everything describes a device of sizeBytes that takes every command.
func everything(sizeBytes int) nbd.Info {
	return nbd.Info{
		SizeBytes:           uint64(sizeBytes),
		CanFlush:            true,
		CanFUA:              true,
		CanTrim:             true,
		CanWriteZeroes:      true,
		CanCache:            true,
		CanMultiConn:        true,
		MinBlockBytes:       1,
		PreferredBlockBytes: 4096,
	}
}

// Info implements nbd.Device.
func (m *Memory) Info() nbd.Info {
	info := m.Description
	info.SizeBytes = m.SizeBytes()
	return info
}

// SizeBytes implements nbd.Device.
func (m *Memory) SizeBytes() uint64 { return m.size.Load() }

// Resize makes the memory longer, filled with zeros, or shorter.
//
// Concurrency: any time, even in use.
func (m *Memory) Resize(sizeBytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	data := make([]byte, sizeBytes)
	copy(data, m.data)
	m.data = data
	m.size.Store(uint64(sizeBytes))
}

// Open implements nbd.Device.
func (m *Memory) Open(c *nbd.Conn) (nbd.Session, error) {
	if !m.Async {
		return &inline{m: m}, nil
	}
	s := &shuffled{m: m, conn: c, rng: rand.New(rand.NewPCG(m.Seed, c.ID())), done: make(chan struct{})}
	s.cond.L = &s.mu
	go s.work()
	return s, nil
}

// Fill sets the first bytes of the memory.
func (m *Memory) Fill(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data, b)
}

// Bytes returns a copy of the memory.
func (m *Memory) Bytes() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return append([]byte(nil), m.data...)
}

// do carries out one request.
func (m *Memory) do(r *nbd.Request) nbd.Errno {
	switch r.Op {
	case nbd.OpRead, nbd.OpBlockStatus:
		m.mu.RLock()
		defer m.mu.RUnlock()
		return m.doLocked(r)
	case nbd.OpWrite, nbd.OpTrim, nbd.OpWriteZeroes:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.doLocked(r)
	case nbd.OpFlush, nbd.OpCache:
		return nbd.OK
	case nbd.OpCount:
	}
	return nbd.EINVAL
}

// +checklocksread:m.mu
func (m *Memory) doLocked(r *nbd.Request) nbd.Errno {
	if r.OffsetBytes > uint64(len(m.data)) || r.LengthBytes > uint64(len(m.data))-r.OffsetBytes {
		return nbd.EIO // it has become shorter since the range was checked
	}
	at := m.data[r.OffsetBytes : r.OffsetBytes+r.LengthBytes]
	switch r.Op {
	case nbd.OpRead:
		if m.Sparse && r.Sparse {
			readSparse(r, at)
			break
		}
		if r.OffsetBytes/4096%4 == 3 || !Lend(m.Lends, r, at) {
			copy(r.Data, at)
		}
	case nbd.OpWrite:
		copy(at, r.Data)
	case nbd.OpTrim, nbd.OpWriteZeroes:
		clear(at)
	case nbd.OpBlockStatus:
		for len(at) > 0 {
			n, zero := m.blockOf(r.OffsetBytes+r.LengthBytes-uint64(len(at)), at)
			state := nbd.ExtentState(0)
			if zero {
				state = nbd.StateHole | nbd.StateZero
			}
			if !r.AddExtent(uint64(n), state) {
				break
			}
			at = at[n:]
		}
	case nbd.OpFlush, nbd.OpCache, nbd.OpCount:
	}
	return nbd.OK
}

// Lend lends pages with data, which is everything that r reads, and leaves garbage in r's
// memory. It returns false if r does not take pages.
func Lend(m *dma.IOMMU, r *nbd.Request, data []byte) bool {
	if m == nil {
		return false
	}
	pages := m.PagesOf(r.Data)
	fd, ok := pages.Begin()
	if !ok {
		return false
	}
	n, err := unix.Write(fd, data)
	if !pages.End(err == nil && n == len(data)) {
		return false
	}
	for i := 0; i < len(r.Data); i += 512 {
		r.Data[i] ^= 0xdb
	}
	return true
}

// blockOf returns how much of at, which begins at offset, lies in one block, and
// whether that is a hole.
func (m *Memory) blockOf(offset uint64, at []byte) (n int, hole bool) {
	n = min(len(at), SparseBytes-int(offset%SparseBytes))
	return n, m.Sparse && isZero(at[:n])
}

var zeros [SparseBytes]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// readSparse completes the data of a read: it reports the holes in at, and leaves garbage
// there.
func readSparse(r *nbd.Request, at []byte) {
	for i := 0; i < len(at); {
		n := min(len(at)-i, SparseBytes-int((r.OffsetBytes+uint64(i))%SparseBytes))
		to := r.Data[i : i+n]
		if isZero(at[i:i+n]) && r.AddHole(i, n) {
			for j := range to {
				to[j] = 0xdb
			}
		} else {
			copy(to, at[i:])
		}
		i += n
	}
}

// inline completes requests inside Submit.
type inline struct{ m *Memory }

func (s *inline) Submit(batch []*nbd.Request) {
	for _, r := range batch {
		r.Complete(s.m.do(r)) // the reader flushes
	}
}

func (s *inline) Close() {}

// shuffled completes requests later and in any order.
type shuffled struct {
	m    *Memory
	conn *nbd.Conn
	rng  *rand.Rand // the worker's
	done chan struct{}

	mu   sync.Mutex
	cond sync.Cond
	// +checklocks:mu
	pending []*nbd.Request
	// +checklocks:mu
	closed bool
}

func (s *shuffled) Submit(batch []*nbd.Request) {
	s.mu.Lock()
	s.pending = append(s.pending, batch...)
	s.mu.Unlock()
	s.cond.Signal()
}

func (s *shuffled) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cond.Signal()
	<-s.done
}

func (s *shuffled) work() {
	defer close(s.done)
	for {
		s.mu.Lock()
		for len(s.pending) == 0 && !s.closed {
			s.cond.Wait()
		}
		n := len(s.pending)
		if n == 0 {
			s.mu.Unlock()
			return
		}
		i := s.rng.IntN(n)
		r := s.pending[i]
		s.pending[i] = s.pending[n-1]
		s.pending = s.pending[:n-1]
		s.mu.Unlock()
		if r.Complete(s.m.do(r)) {
			s.conn.Flush()
		}
	}
}
