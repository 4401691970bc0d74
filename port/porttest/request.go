package porttest

import (
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// A Request is an SRB with a buffer of its own, whose completions are counted.
type Request struct {
	SRB *port.SRB
	// Buffer is arena memory; Read and Write use a part of it.
	Buffer []byte
	// Completions counts since the request was made.
	Completions atomic.Int32
	// Order is the batch's count of completions when this one came.
	Order int32

	batch *Batch
}

// A Batch is a set of requests that are waited for together. One goroutine uses
// it; completions come from any.
type Batch struct {
	Requests []*Request

	left atomic.Int32
	done chan struct{}
	seq  atomic.Int32
}

// NewBatch makes n requests with buffers of bufferBytes on a. They are freed
// when the test ends.
func (m *Machine) NewBatch(t testing.TB, a *port.Adapter, n, bufferBytes int) *Batch {
	t.Helper()
	b := &Batch{done: make(chan struct{}, 1)}
	for range n {
		srb, err := a.NewSRB(nil)
		if err != nil {
			t.Fatalf("new SRB: %v", err)
		}
		t.Cleanup(func() { a.FreeSRB(srb) })
		buffer := m.Arena.Alloc(bufferBytes)
		if buffer == nil {
			t.Fatalf("the arena has no %d bytes left", bufferBytes)
		}
		t.Cleanup(func() { m.Arena.Free(buffer) })
		r := &Request{SRB: srb, Buffer: buffer, batch: b}
		srb.Completer = r
		b.Requests = append(b.Requests, r)
	}
	return b
}

// CompleteSRB implements port.Completer.
func (r *Request) CompleteSRB(_ *port.Processor, _ *port.SRB) {
	r.Completions.Add(1)
	r.Order = r.batch.seq.Add(1)
	if r.batch.left.Add(-1) == 0 {
		r.batch.done <- struct{}{}
	}
}

// Expect arms the batch for n completions; Wait waits for them.
func (b *Batch) Expect(n int) { b.left.Add(int32(n)) }

// Wait waits until all completions that Expect announced have come.
func (b *Batch) Wait() { <-b.done }

// Run submits the first n requests to lu and waits for them. p is at Passive.
func (b *Batch) Run(p *port.Processor, lu *port.LogicalUnit, n int) {
	b.Expect(n)
	b.Submit(p, lu, 0, n)
	b.Wait()
}

// Submit submits requests first to first+n-1 without waiting.
func (b *Batch) Submit(p *port.Processor, lu *port.LogicalUnit, first, n int) {
	srbs := make([]*port.SRB, 0, n)
	for _, r := range b.Requests[first : first+n] {
		srbs = append(srbs, r.SRB)
	}
	lu.Submit(p, srbs)
}

// flags are on every request: tagged, and no frozen queue after an error.
const flags = port.FlagQueueActionEnable | port.FlagNoQueueFreeze

func (r *Request) prepare(function port.Function) *port.SRB {
	s := r.SRB
	s.Function, s.QueueAction, s.Flags = function, port.SimpleTag, flags
	s.CDBBytes, s.DataTransferBytes, s.TimeoutSecs = 0, 0, 0
	s.DataBuffer = nil
	s.VictimSRB = nil
	return s
}

// Data sets up a command whose CDB put writes, with a data phase of n bytes.
func (r *Request) Data(direction port.Flags, n int, put func(cdb *[scsi.CDBMaxBytes]byte) int) {
	s := r.prepare(port.FunctionExecuteScsi)
	s.CDBBytes = uint8(put(&s.CDB))
	if n > 0 {
		s.Flags |= direction
		s.DataBuffer = r.Buffer[:n]
		s.DataTransferBytes = uint32(n)
	}
}

// Read sets up READ(16) of blocks blocks of blockBytes.
func (r *Request) Read(lba uint64, blocks, blockBytes int) {
	s := r.prepare(port.FunctionExecuteScsi)
	s.CDBBytes = uint8(scsi.PutRead16(&s.CDB, lba, uint32(blocks), false, false))
	s.Flags |= port.FlagDataIn
	s.DataBuffer = r.Buffer[:blocks*blockBytes]
	s.DataTransferBytes = uint32(blocks * blockBytes)
}

// Write sets up WRITE(16), as Read.
func (r *Request) Write(lba uint64, blocks, blockBytes int) {
	s := r.prepare(port.FunctionExecuteScsi)
	s.CDBBytes = uint8(scsi.PutWrite16(&s.CDB, lba, uint32(blocks), false, false))
	s.Flags |= port.FlagDataOut
	s.DataBuffer = r.Buffer[:blocks*blockBytes]
	s.DataTransferBytes = uint32(blocks * blockBytes)
}

// Abort sets up FunctionAbortCommand for victim.
func (r *Request) Abort(victim *Request) { r.prepare(port.FunctionAbortCommand).VictimSRB = victim.SRB }

// Reset sets up a reset: FunctionResetLogicalUnit or FunctionResetDevice.
func (r *Request) Reset(f port.Function) { r.prepare(f) }
