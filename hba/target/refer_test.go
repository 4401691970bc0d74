package target_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

const referBytes = 100 << 10 // what these tests read at once

// A pipeWorld is a unit on a medium that lends, with a buffer that a pipe stands for.
type pipeWorld struct {
	unit  *target.Unit
	m     *fakeMedium
	data  []byte // of the medium, from its beginning
	arena *dma.Arena
	iommu *dma.IOMMU
	buf   []byte
}

func newPipeWorld(t *testing.T, quick bool, hidden media.Ability) *pipeWorld {
	t.Helper()
	memory, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	w := &pipeWorld{
		m: &fakeMedium{Memory: memory, quick: quick, hidden: hidden}, data: make([]byte, 1<<20),
		arena: arena, iommu: dma.NewIOMMU(arena), buf: arena.Alloc(referBytes),
	}
	t.Cleanup(func() {
		arena.Free(w.buf)
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
		if err := memory.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := rand.NewChaCha8([32]byte{3}).Read(w.data); err != nil {
		t.Fatal(err)
	}
	if _, err := memory.WriteAt(w.data, 0); err != nil {
		t.Fatal(err)
	}
	w.unit = newUnit(t, w.m, target.Config{WriteCache: true})
	return w
}

// arm returns the task of a read to the buffer, and the pipe that stands for that.
func (w *pipeWorld) arm(t *testing.T, p put) (*target.Task, *dma.Pipe) {
	t.Helper()
	pipe := w.arena.Pipe(w.buf)
	if pipe == nil {
		t.Fatal("no pipe")
	}
	copy(w.buf, filled(len(w.buf), 0xee))
	task := newTask(p, target.DataIn, w.buf)
	task.Pages = w.iommu.PagesOf(w.buf)
	return task, pipe
}

// end disarms the pipe, and checks who has the n bytes from off: the pipe or the buffer.
func (w *pipeWorld) end(t *testing.T, task *target.Task, pipe *dma.Pipe, lent bool, n, off int) {
	t.Helper()
	if task.Status != scsi.StatusGood || task.TransferredBytes != n {
		t.Errorf("%v, want GOOD and %d transferred", task, n)
	}
	want := append(bytes.Clone(w.data[off:off+n]), filled(len(w.buf)-n, 0xee)...)
	switch got := w.arena.Disarm(pipe); {
	case got != lent:
		t.Errorf("in the pipe: %t, want %t", got, lent)
	case lent:
		if !bytes.Equal(w.buf, filled(len(w.buf), 0xee)) {
			t.Error("the buffer was touched")
		}
		if err := pipe.ReadFull(w.buf); err != nil {
			t.Fatal(err)
		}
		fallthrough
	default:
		if !bytes.Equal(w.buf, want) {
			t.Errorf("%d bytes at %d are not those of the medium", n, off)
		}
	}
	w.arena.ReturnPipe(pipe)
}

// TestRead_Refers: what is lent is in no buffer, and counts as transferred.
func TestRead_Refers(t *testing.T) {
	for _, tt := range []struct {
		name            string
		quick, mayBlock bool
		told            bool // that it may block
	}{
		{"where it may not wait", false, false, false},
		{"where it may wait", false, true, true},
		{"a medium that never waits", true, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newPipeWorld(t, tt.quick, 0)
			for name, p := range map[string]put{
				"10": func(c *[16]byte) int { return scsi.PutRead10(c, 7, referBytes/blockBytes, false, false) },
				"12": func(c *[16]byte) int { return scsi.PutRead12(c, 7, referBytes/blockBytes, false, false) },
				"16": read16(7, referBytes/blockBytes),
			} {
				task, pipe := w.arm(t, p)
				if !w.unit.Execute(task, tt.mayBlock) {
					t.Errorf("%s: not done", name)
				}
				w.end(t, task, pipe, true, referBytes, 7*blockBytes)
			}
			if n := w.m.count("read"); n != 0 || w.m.mayBlock != tt.told {
				t.Errorf("%d reads; told that it may block: %t, want %t", n, w.m.mayBlock, tt.told)
			}
		})
	}
}

// TestRead_RefersNot: the buffer has what is not lent.
func TestRead_RefersNot(t *testing.T) {
	const all = referBytes / blockBytes
	for _, tt := range []struct {
		name   string
		blocks int
		hidden media.Ability
		change func(w *pipeWorld, task *target.Task)
		asked  int
	}{
		{"the medium declines", all, 0, func(w *pipeWorld, _ *target.Task) { w.m.setFail("refer", errBroken) }, 1},
		{"the medium cannot", all, media.AbilityRefer, nil, 0},
		{"less than the buffer", all - 1, 0, nil, 0},
		{"no pages", all, 0, func(_ *pipeWorld, task *target.Task) { task.Pages = dma.Pages{} }, 0},
		{"the pages have expired", all, 0, func(_ *pipeWorld, task *target.Task) {
			if _, ok := task.Pages.Begin(); ok { // somebody else was first
				task.Pages.End(false)
			}
		}, 1},
		{"nothing at all", 0, 0, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newPipeWorld(t, false, tt.hidden)
			task, pipe := w.arm(t, read16(9, uint32(tt.blocks)))
			if tt.change != nil {
				tt.change(w, task)
			}
			if !w.unit.Execute(task, true) {
				t.Error("not done")
			}
			w.end(t, task, pipe, false, tt.blocks*blockBytes, 9*blockBytes)
			if n := w.m.count("refer"); n != tt.asked {
				t.Errorf("asked %d times to lend, want %d", n, tt.asked)
			}
		})
	}
}

// TestRead_RefersLater: what would block is lent by who may wait, with nothing left of the
// first try.
func TestRead_RefersLater(t *testing.T) {
	w := newPipeWorld(t, false, 0)
	task, pipe := w.arm(t, read16(0, referBytes/blockBytes))
	w.m.setFail("refer", errBroken)
	if w.unit.Execute(task, false) || task.TransferredBytes != 0 {
		t.Fatalf("%v: done though it would block", task)
	}
	w.m.setFail("refer", nil)
	if !w.unit.Execute(task, true) {
		t.Error("not done")
	}
	w.end(t, task, pipe, true, referBytes, 0)
	if w.m.count("refer") != 2 || w.m.count("read") != 0 {
		t.Errorf("asked %d times to lend, and %d times to read", w.m.count("refer"), w.m.count("read"))
	}
}

// TestRead_RefersWithFUA: what is lent with FUA has been flushed before, by who may wait.
func TestRead_RefersWithFUA(t *testing.T) {
	fua := func(c *[16]byte) int { return scsi.PutRead16(c, 3, referBytes/blockBytes, true, false) }
	w := newPipeWorld(t, false, 0)
	task, pipe := w.arm(t, fua)
	if w.unit.Execute(task, false) || w.m.count("refer") != 0 {
		t.Error("done, or lent, though it has to flush")
	}
	if !w.unit.Execute(task, true) {
		t.Error("not done")
	}
	w.end(t, task, pipe, true, referBytes, 3*blockBytes)
	if w.m.count("flush") != 1 || w.m.flushed != 1 {
		t.Errorf("%d flushes, %d before it was lent; want one", w.m.count("flush"), w.m.flushed)
	}

	w.m.setFail("flush", errBroken)
	task, pipe = w.arm(t, fua)
	if !w.unit.Execute(task, true) {
		t.Error("not done")
	}
	wantSense(t, task, scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError})
	if n := w.m.count("refer"); n != 1 || w.arena.Disarm(pipe) || task.TransferredBytes != 0 {
		t.Errorf("lent %d times, %v: want nothing lent that cannot be flushed", n, task)
	}
	w.arena.ReturnPipe(pipe)
}

// TestRead_RefusedDoesNotRefer: a command that is not in order fills nothing.
func TestRead_RefusedDoesNotRefer(t *testing.T) {
	w := newPipeWorld(t, false, 0)
	const all = referBytes / blockBytes
	for name, p := range map[string]put{
		"beyond the end":       read16(1<<20/blockBytes-all+1, all),
		"more than the buffer": read16(0, all+1),
		"no read":              func(c *[16]byte) int { return scsi.PutInquiry(c, 36) },
	} {
		task, pipe := w.arm(t, p)
		if !w.unit.Execute(task, true) {
			t.Errorf("%s: not done", name)
		}
		if w.arena.Disarm(pipe) || w.m.count("refer") != 0 {
			t.Errorf("%s: lent", name)
		}
		w.arena.ReturnPipe(pipe)
	}
}
