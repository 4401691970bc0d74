package nbdtest

import (
	"math/rand/v2"
	"sync"

	"github.com/vhbad/vhbad/nbd"
)

// A Memory is a device of zero-initialized memory.
//
// By default it completes requests inside Submit. With Async set, one goroutine
// for each session completes them in a random order drawn from Seed.
//
// Concurrency: set the fields before the first use.
type Memory struct {
	// Description has what clients see; the size is that of the memory.
	Description nbd.Info
	Async       bool
	Seed        uint64

	mu sync.RWMutex
	// +checklocks:mu
	data []byte
}

var _ nbd.Device = (*Memory)(nil)

// NewMemory returns a device of sizeBytes that takes every command.
func NewMemory(sizeBytes int) *Memory {
	return &Memory{Description: everything(sizeBytes), data: make([]byte, sizeBytes)}
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
func (m *Memory) Info() nbd.Info { return m.Description }

// SizeBytes implements nbd.Device.
func (m *Memory) SizeBytes() uint64 { return m.Description.SizeBytes }

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
	case nbd.OpRead:
		m.mu.RLock()
		copy(r.Data, m.data[r.OffsetBytes:])
		m.mu.RUnlock()
	case nbd.OpWrite:
		m.mu.Lock()
		copy(m.data[r.OffsetBytes:], r.Data)
		m.mu.Unlock()
	case nbd.OpTrim, nbd.OpWriteZeroes:
		m.mu.Lock()
		clear(m.data[r.OffsetBytes : r.OffsetBytes+r.LengthBytes])
		m.mu.Unlock()
	case nbd.OpFlush, nbd.OpCache:
	case nbd.OpBlockStatus:
		r.AddExtent(r.LengthBytes, 0)
	case nbd.OpCount:
		return nbd.EINVAL
	}
	return nbd.OK
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
