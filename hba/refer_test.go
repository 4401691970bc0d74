package hba_test

import (
	"bytes"
	"context"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

const referBlocks = 256 // what these tests read at once

// A lender lends copies, with the race detector as without. Unless it is quick, only
// workers reach it.
type lender struct {
	*media.Memory
	quick bool
	lent  atomic.Int32
}

func (l *lender) NeverBlocks() bool { return l.quick }

// Supports leaves out what would answer the engine.
func (l *lender) Supports(a media.Ability) bool { return a != media.AbilityTryRead }

func (l *lender) ReferAt(to dma.Pages, n int, off int64, mayBlock bool) bool {
	if !mayBlock && !l.quick {
		return false
	}
	p := make([]byte, n)
	if _, err := l.ReadAt(p, off); err != nil {
		return false
	}
	fd, ok := to.Begin()
	if !ok {
		return false
	}
	k, err := unix.Write(fd, p)
	l.lent.Add(1)
	return to.End(k == n && err == nil)
}

// A lendingWorld has a lender for disk0, and a buffer that a pipe stands for, or none.
type lendingWorld struct {
	*faultyWorld
	m    *lender
	data []byte // of the medium, from its beginning
	in   *hbatest.Buffer
	pipe *dma.Pipe
}

func newLendingWorld(t *testing.T, quick bool) *lendingWorld {
	t.Helper()
	f := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
	w := &lendingWorld{faultyWorld: f, m: &lender{Memory: f.memory, quick: quick}, data: make([]byte, 1<<20)}
	if err := w.dev.RemoveUnit(context.Background(), 0, 0); err != nil {
		t.Fatal(err)
	}
	w.attach(t, disk0, w.m)
	if _, err := rand.NewChaCha8([32]byte{4}).Read(w.data); err != nil {
		t.Fatal(err)
	}
	if _, err := w.memory.WriteAt(w.data, 0); err != nil {
		t.Fatal(err)
	}
	w.in = w.driver.MappedBuffer(t, referBlocks*blockBytes, dma.Write)
	return w
}

// arm has a pipe stand for the buffer.
func (w *lendingWorld) arm(t *testing.T) {
	t.Helper()
	if w.pipe = w.iommu.Arena().Pipe(w.in.Bytes); w.pipe == nil {
		t.Fatal("no pipe")
	}
	for i := range w.in.Bytes {
		w.in.Bytes[i] = 0xee
	}
}

// good runs commands that read all of the buffer.
func (w *lendingWorld) good(t *testing.T, commands ...hba.Command) {
	t.Helper()
	for _, c := range w.do(t, commands...) {
		if c.Code != hba.CodeExecuted || c.DataBytes != referBlocks*blockBytes {
			t.Errorf("completion %+v, want all that was asked for", c)
		}
	}
}

// disarm returns what the pipe has, or else the buffer, and which of them it is.
func (w *lendingWorld) disarm(t *testing.T) (got []byte, lent bool) {
	t.Helper()
	got = bytes.Clone(w.in.Bytes)
	if lent = w.iommu.Arena().Disarm(w.pipe); lent {
		if !bytes.Equal(got, bytes.Repeat([]byte{0xee}, len(got))) {
			t.Error("the buffer was touched, and the pipe has the data")
		}
		if n := w.pipe.Left(); n != len(got) {
			t.Fatalf("%d bytes in the pipe, want %d", n, len(got))
		}
		if err := w.pipe.ReadFull(got); err != nil {
			t.Fatal(err)
		}
	}
	w.iommu.Arena().ReturnPipe(w.pipe)
	return got, lent
}

// wantData disarms, and checks who has the data from a block on.
func (w *lendingWorld) wantData(t *testing.T, lent bool, lba int) {
	t.Helper()
	got, in := w.disarm(t)
	if in != lent {
		t.Errorf("in the pipe: %t, want %t", in, lent)
	}
	if !bytes.Equal(got, w.data[lba*blockBytes:][:len(got)]) {
		t.Error("other data than the medium's")
	}
}

// onBoth runs a test with engines that execute reads, and with workers.
func onBoth(t *testing.T, test func(t *testing.T, w *lendingWorld)) {
	t.Helper()
	t.Run("engine", func(t *testing.T) { test(t, newLendingWorld(t, true)) })
	t.Run("worker", func(t *testing.T) { test(t, newLendingWorld(t, false)) })
}

// TestRefer: a read fills the pipe that stands for its buffer.
func TestRefer(t *testing.T) {
	onBoth(t, func(t *testing.T, w *lendingWorld) {
		for i := range 3 {
			w.arm(t)
			w.good(t, disk0.Read(1, uint64(100*i), referBlocks, w.in))
			w.wantData(t, true, 100*i)
		}
		before := w.dev.Stats().Queues[0]
		if want := uint64(3 * referBlocks * blockBytes); before.BytesIn != want {
			t.Errorf("%d bytes counted, want those that were lent, %d", before.BytesIn, want)
		}
		if got := before.HandedToWorkers; (got == 3) == w.m.quick {
			t.Errorf("%d commands went to workers", got)
		}
		// Nobody asks where no pipe stands for the buffer.
		w.good(t, disk0.Read(1, 5, referBlocks, w.in))
		if !bytes.Equal(w.in.Bytes, w.data[5*blockBytes:][:len(w.in.Bytes)]) || w.m.lent.Load() != 3 {
			t.Errorf("lent %d times, or other data than the medium's", w.m.lent.Load())
		}
		w.wantOthers(t)
		w.wantIdle(t)
	})
}

// TestRefer_Again: a command that is executed once more for the same buffer has its data in
// memory, whatever the first has done.
func TestRefer_Again(t *testing.T) {
	onBoth(t, func(t *testing.T, w *lendingWorld) {
		w.arm(t)
		w.good(t, disk0.Read(1, 0, referBlocks, w.in))
		w.good(t, disk0.Read(2, 0, referBlocks, w.in))
		spoilt := w.pipe
		w.wantData(t, false, 0)
		w.arm(t)
		if w.pipe == spoilt {
			t.Error("the pipe is used again, with what is in it")
		}
		// The first of two at once may have the pipe; then the other spoils it.
		w.good(t, disk0.Read(3, 7, referBlocks, w.in), disk0.Read(4, 7, referBlocks, w.in))
		w.wantData(t, false, 7)
		w.arm(t)
		w.good(t, disk0.Read(5, 9, referBlocks, w.in))
		w.wantData(t, true, 9)
		w.wantIdle(t)
	})
}

// TestRefer_OtherBuffers: the pipe stands for one piece of memory, and a command that
// fills another, or in pieces, or less, finds memory.
func TestRefer_OtherBuffers(t *testing.T) {
	const half = referBlocks * blockBytes / 2
	onBoth(t, func(t *testing.T, w *lendingWorld) {
		list := w.driver.MappedBuffer(t, 4096, dma.Read)
		long := w.driver.MappedBuffer(t, 2*half+4096, dma.Write)
		halves := []hba.Segment{w.in.Segment(0, half), w.in.Segment(half, half)}
		all := disk0.Read(1, 0, referBlocks, w.in)
		inTwo := all
		inTwo.SegmentCount = uint16(copy(inTwo.Segments[:], halves))
		for name, tt := range map[string]struct {
			command func() hba.Command
			lent    bool
		}{
			"two segments":  {func() hba.Command { return inTwo }, false},
			"a list of two": {func() hba.Command { return hbatest.Chain(all, list, halves) }, false},
			"a list of one": {func() hba.Command { return hbatest.Chain(all, list, all.Segments[:1]) }, true},
		} {
			t.Run(name, func(t *testing.T) {
				w.arm(t)
				w.good(t, tt.command())
				w.wantData(t, tt.lent, 0)
			})
		}
		w.arm(t)
		wantCode(t, w.do(t, disk0.Read(1, 0, uint32(len(long.Bytes)/blockBytes), long))[0], 1, hba.CodeExecuted)
		if got, lent := w.disarm(t); lent || got[0] != 0xee || !bytes.Equal(long.Bytes, w.data[:len(long.Bytes)]) {
			t.Errorf("in other memory: in the pipe: %t, or other data", lent)
		}

		// The pipe stands for the first of two segments.
		first := w.iommu.Arena().Pipe(w.in.Bytes[:half])
		w.good(t, inTwo)
		if w.iommu.Arena().Disarm(first) || !bytes.Equal(w.in.Bytes, w.data[:2*half]) {
			t.Error("the pipe of a first segment was filled, or other data")
		}
		w.iommu.Arena().ReturnPipe(first)

		// One command is refused, and the next is of other memory: it has nothing of the
		// first one's.
		w.arm(t)
		refused := disk0.Read(1, diskBytes/blockBytes, referBlocks, w.in)
		other := disk0.Read(2, 0, referBlocks, long)
		other.DataBytes = 2 * half
		other.SegmentCount = uint16(copy(other.Segments[:], []hba.Segment{long.Segment(0, half), long.Segment(half, half)}))
		clear(long.Bytes)
		w.do(t, refused)
		w.good(t, other)
		if _, lent := w.disarm(t); lent || !bytes.Equal(long.Bytes[:2*half], w.data[:2*half]) {
			t.Errorf("after one that was refused: in the pipe: %t, or other data", lent)
		}

		w.arm(t)
		less := all
		scsi.SetBlocks(&less.CDB, referBlocks-1)
		if c := w.do(t, less)[0]; c.Code != hba.CodeExecuted || c.DataBytes != 2*half-blockBytes {
			t.Errorf("completion %+v, want all but a block", c)
		}
		got, lent := w.disarm(t)
		if n := 2*half - blockBytes; lent || !bytes.Equal(got[:n], w.data[:n]) || got[n] != 0xee {
			t.Errorf("less than the buffer: in the pipe: %t, or other data", lent)
		}
		w.wantIdle(t)
	})
}

// TestRefer_Corrupted: what a rule spoils is in memory, also if the pipe had the data
// before; other rules, and commands that come after, leave it to the pipe.
func TestRefer_Corrupted(t *testing.T) {
	lba := uint64(2)
	at := fault.Match{LBA: &lba, Blocks: 4}
	onBoth(t, func(t *testing.T, w *lendingWorld) {
		read := disk0.Read(1, 0, referBlocks, w.in)
		corrupted := func(t *testing.T) {
			t.Helper()
			got, lent := w.disarm(t)
			if lent {
				t.Error("what is corrupted is in the pipe, or is not corrupted")
			}
			wrong := 0
			for i := range got {
				wrong += bits.OnesCount8(got[i] ^ w.data[i])
			}
			if wrong < 1 || wrong > 64 {
				t.Errorf("%d bits are wrong, want some of the medium's", wrong)
			}
		}
		for name, rule := range map[string]fault.Rule{
			"flip": {Action: fault.Action{Kind: fault.KindFlip}},
			"rot":  {Match: at, Action: fault.Action{Kind: fault.KindRot}},
		} {
			t.Run(name, func(t *testing.T) {
				w.set(t, rule)
				w.arm(t)
				w.good(t, read)
				corrupted(t)

				w.set(t)
				w.arm(t)
				w.good(t, read)
				w.set(t, rule)
				w.good(t, read)
				corrupted(t)

				// The same worker, and the rule is gone.
				w.set(t)
				w.arm(t)
				w.good(t, read)
				w.wantData(t, true, 0)
			})
		}
		t.Run("stale", func(t *testing.T) {
			w.set(t, fault.Rule{Match: at, Action: fault.Action{Kind: fault.KindStaleRead}})
			out := w.driver.MappedBuffer(t, 4*blockBytes, dma.Read)
			wantCode(t, w.do(t, disk0.Write(2, lba, 4, out))[0], 2, hba.CodeExecuted)
			w.arm(t)
			w.good(t, read)
			w.wantData(t, false, 0)
			w.set(t)
			copy(out.Bytes, w.data[lba*blockBytes:])
			wantCode(t, w.do(t, disk0.Write(3, lba, 4, out))[0], 3, hba.CodeExecuted)
		})
		t.Run("short", func(t *testing.T) {
			w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindShortTransfer, Keep: 130 * blockBytes}})
			w.arm(t)
			if c := w.do(t, read)[0]; c.Code != hba.CodeExecuted || c.DataBytes != 130*blockBytes {
				t.Errorf("completion %+v, want 130 blocks", c)
			}
			if got, lent := w.disarm(t); lent || !bytes.Equal(got[:130*blockBytes], w.data[:130*blockBytes]) {
				t.Errorf("in the pipe: %t, or other data", lent)
			}
		})
		t.Run("made up", func(t *testing.T) {
			w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindStatus, Status: "condition-met"}})
			w.arm(t)
			w.good(t, read)
			w.wantData(t, true, 0)
		})
		w.set(t)
		w.wantOthers(t)
		w.wantIdle(t)
	})
}

// TestRefer_NotDone: a read that fails fills nothing, and a write takes nothing.
func TestRefer_NotDone(t *testing.T) {
	onBoth(t, func(t *testing.T, w *lendingWorld) {
		out := w.driver.MappedBuffer(t, referBlocks*blockBytes, dma.Read)
		copy(out.Bytes, w.data)
		w.arm(t)
		c := w.do(t, disk0.Read(1, diskBytes/blockBytes, referBlocks, w.in), disk0.TestUnitReady(2))
		if c[0].DataBytes != 0 || w.m.lent.Load() != 0 {
			t.Errorf("completion %+v, lent %d times: want neither", c[0], w.m.lent.Load())
		}
		// It is still to be filled.
		w.good(t, disk0.Read(3, 0, referBlocks, w.in))
		w.wantData(t, true, 0)

		if w.pipe = w.iommu.Arena().Pipe(out.Bytes); w.pipe == nil {
			t.Fatal("no pipe")
		}
		wantCode(t, w.do(t, disk0.Write(4, 0, referBlocks, out))[0], 4, hba.CodeExecuted)
		if w.iommu.Arena().Disarm(w.pipe) {
			t.Error("a write has filled the pipe")
		}
		w.iommu.Arena().ReturnPipe(w.pipe)
		w.wantIdle(t)
	})
}
