package target_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// newFakeUnit returns a unit on a medium that may block.
func newFakeUnit(tb testing.TB, sizeBytes int64, c target.Config, hidden media.Ability) (*target.Unit, *fakeMedium) {
	tb.Helper()
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: sizeBytes})
	if err != nil {
		tb.Fatal(err)
	}
	f := &fakeMedium{Memory: m, hidden: hidden}
	return newUnit(tb, f, c), f
}

func TestReadWrite_AllLengths(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{})
	for i, tt := range []struct {
		name        string
		write, read put
		lba         uint64
		blocks      int
	}{
		{
			"6", func(c *[16]byte) int { return scsi.PutWrite6(c, 3, 2) },
			func(c *[16]byte) int { return scsi.PutRead6(c, 3, 2) }, 3, 2,
		},
		{
			"6, zero is 256", func(c *[16]byte) int { return scsi.PutWrite6(c, 100, 0) },
			func(c *[16]byte) int { return scsi.PutRead6(c, 100, 0) }, 100, 256,
		},
		{
			"10", func(c *[16]byte) int { return scsi.PutWrite10(c, 500, 3, false, true) },
			func(c *[16]byte) int { return scsi.PutRead10(c, 500, 3, false, true) }, 500, 3,
		},
		{
			"12", func(c *[16]byte) int { return scsi.PutWrite12(c, 600, 1, true, false) },
			func(c *[16]byte) int { return scsi.PutRead12(c, 600, 1, true, false) }, 600, 1,
		},
		{"16", write16(2047, 1), read16(2047, 1), 2047, 1},
		{"16, nothing", write16(2048, 0), read16(2048, 0), 2048, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := tt.blocks * blockBytes
			data := filled(n, byte('a'+i))
			if task := wantGood(t, u, tt.write, target.DataOut, data); task.TransferredBytes != n {
				t.Errorf("%d bytes written, want %d", task.TransferredBytes, n)
			}
			got := make([]byte, n)
			if task := wantGood(t, u, tt.read, target.DataIn, got); task.TransferredBytes != n {
				t.Errorf("%d bytes read, want %d", task.TransferredBytes, n)
			}
			if !bytes.Equal(got, data) || tt.blocks > 0 && !bytes.Equal(mustRead(t, u, tt.lba, uint32(tt.blocks)), data) {
				t.Error("what was written was not read")
			}
		})
	}
}

// TestReadWrite_Segments cuts buffers at odd places and leaves room behind.
func TestReadWrite_Segments(t *testing.T) {
	for _, mayBlock := range []bool{false, true} {
		u, _ := newMemoryUnit(t, 1<<20, target.Config{})
		data := make([]byte, 8*blockBytes)
		r := rand.NewChaCha8([32]byte{1})
		if _, err := r.Read(data); err != nil {
			t.Fatal(err)
		}
		w := newTask(write16(9, 8), target.DataOut, data[:1], data[1:700], data[700:700], data[700:], filled(99, 1))
		if !u.Execute(w, mayBlock) || w.Status != scsi.StatusGood || w.TransferredBytes != len(data) {
			t.Fatal(w)
		}
		got := filled(len(data)+100, 0xee)
		rd := newTask(read16(9, 8), target.DataIn, got[:513], got[513:514], got[514:])
		if !u.Execute(rd, mayBlock) || rd.Status != scsi.StatusGood || rd.TransferredBytes != len(data) {
			t.Fatal(rd)
		}
		if !bytes.Equal(got[:len(data)], data) {
			t.Error("what was written was not read")
		}
		if !bytes.Equal(got[len(data):], filled(100, 0xee)) {
			t.Error("read beyond the transfer length")
		}
		if b := mustRead(t, u, 17, 1); !bytes.Equal(b, make([]byte, blockBytes)) {
			t.Error("written beyond the transfer length")
		}
	}
}

func TestReadWrite_Refused(t *testing.T) {
	u, m := newMemoryUnit(t, 1<<26, target.Config{})
	last := uint64(1<<26/blockBytes - 1)
	outOfRange := illegal(scsi.LBAOutOfRange)
	buf := make([]byte, blockBytes)
	for _, tt := range []struct {
		name      string
		put       put
		direction target.Direction
		data      []byte
		want      scsi.Sense
	}{
		{"one beyond the end", read16(last, 2), target.DataIn, make([]byte, 1024), outOfRange},
		{"first beyond the end", read16(last+1, 1), target.DataIn, buf, outOfRange},
		{"write beyond the end", write16(last+1, 1), target.DataOut, buf, outOfRange},
		{"nothing, but beyond the end", read16(last+2, 0), target.NoData, nil, outOfRange},
		{"address that overflows", read16(1<<64-1, 2), target.DataIn, buf, outOfRange},
		{"address that overflows when shifted", write16(1<<55, 1), target.DataOut, buf, outOfRange},
		{"longer than the limit", read16(0, 65537), target.DataIn, buf, field(10)},
		{
			"longer than the limit, 12",
			func(c *[16]byte) int { return scsi.PutWrite12(c, 0, 65537, false, false) }, target.DataOut, buf, field(6),
		},
		{"read without buffer", read16(0, 1), target.NoData, nil, illegal(scsi.InvalidFieldInInformationUnit)},
		{"read into a short buffer", read16(0, 2), target.DataIn, buf, illegal(scsi.InvalidFieldInInformationUnit)},
		{"read the wrong way", read16(0, 1), target.DataOut, buf, illegal(scsi.InvalidFieldInInformationUnit)},
		{"write the wrong way", write16(0, 1), target.DataIn, buf, illegal(scsi.InvalidFieldInInformationUnit)},
		{"write of a short buffer", write16(0, 1), target.DataOut, buf[:511], illegal(scsi.InvalidFieldInInformationUnit)},
		{"protection information", raw(0x88, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0), target.DataIn, buf, field(1)},
		{"NACA", raw(0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4), target.DataIn, buf, field(15)},
		{"short CDB", raw(0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0), target.DataOut, buf, field(15)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			task := newTask(tt.put, tt.direction, tt.data)
			if !u.Execute(task, false) {
				t.Fatal("not done")
			}
			wantSense(t, task, tt.want)
			if task.TransferredBytes != 0 || m.AllocatedBytes() != 0 {
				t.Errorf("%d bytes transferred, %d allocated, want none", task.TransferredBytes, m.AllocatedBytes())
			}
		})
	}
}

func TestWrite_ReadOnly(t *testing.T) {
	u, m := newMemoryUnit(t, 1<<20, target.Config{ReadOnly: true})
	block := filled(2*blockBytes, 1)
	for name, p := range map[string]put{
		"write 6":           func(c *[16]byte) int { return scsi.PutWrite6(c, 0, 1) },
		"write 16":          write16(0, 1),
		"write same":        func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 1, false, false, false) },
		"unmap":             func(c *[16]byte) int { return scsi.PutUnmap(c, false, 24) },
		"compare and write": func(c *[16]byte) int { return scsi.PutCompareAndWrite(c, 0, 1, false, false) },
	} {
		wantSense(t, run(t, u, p, target.DataOut, block),
			scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.WriteProtected})
		if m.AllocatedBytes() != 0 {
			t.Errorf("%s wrote", name)
		}
	}
	mustRead(t, u, 0, 1)
}

func TestReadWrite_MediumErrors(t *testing.T) {
	at := func(kind, err error) error {
		return &media.Error{Op: "test", Name: "fake", OffsetBytes: 7*blockBytes + 5, Kind: kind, Err: err}
	}
	buf := make([]byte, 4*blockBytes)
	for _, tt := range []struct {
		name string
		err  error
		want scsi.Sense // of a write; of a read with UnrecoveredReadError for WriteError
	}{
		{
			"an error that says where", at(media.ErrMedium, errBroken),
			scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError, Information: 7, InformationValid: true},
		},
		{
			"an error that does not", errBroken,
			scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError, Information: 4, InformationValid: true},
		},
		{
			"no space", at(media.ErrNoSpace, nil),
			scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.SpaceAllocationFailed, Information: 7, InformationValid: true},
		},
		{
			"an error of other blocks, which a cache was to make room by", &media.Error{OffsetBytes: 8 * blockBytes, Kind: media.ErrMedium},
			scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError, Information: 4, InformationValid: true},
		},
		{
			"no space for blocks before", &media.Error{OffsetBytes: 3 * blockBytes, Kind: media.ErrNoSpace},
			scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.SpaceAllocationFailed, Information: 4, InformationValid: true},
		},
		{"read-only", at(media.ErrReadOnly, nil), scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.WriteProtected}},
		{"range", at(media.ErrRange, nil), illegal(scsi.LBAOutOfRange)},
		{"closed", at(media.ErrClosed, nil), scsi.Sense{Key: scsi.KeyHardwareError, Additional: scsi.InternalTargetFailure}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var told []error
			u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true, MediumFailed: func(err error) { told = append(told, err) }}, 0)
			m.setFail("write", tt.err)
			wantSense(t, run(t, u, write16(4, 4), target.DataOut, buf), tt.want)
			m.setFail("read", tt.err)
			want := tt.want
			if want.Additional == scsi.WriteError {
				want.Additional = scsi.UnrecoveredReadError
			}
			wantSense(t, run(t, u, read16(4, 4), target.DataIn, buf), want)
			// What its configuration, its size or its end explains is no failure of the medium.
			failed := tt.want.Key == scsi.KeyMediumError || tt.want.Additional == scsi.SpaceAllocationFailed
			if failed != (len(told) == 2 && errors.Is(told[0], tt.err) && errors.Is(told[1], tt.err)) || !failed && len(told) > 0 {
				t.Errorf("told of %v, a failure of the medium: %v", told, failed)
			}
		})
	}
}

func TestRead_ErrorAfterSomeBlocks(t *testing.T) {
	u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	m.ready = 1
	task := newTask(read16(4, 2), target.DataIn, make([]byte, blockBytes), make([]byte, blockBytes))
	if u.Execute(task, false) {
		t.Fatalf("%v: done though the second segment would block", task)
	}
	m.ready = 2
	m.setFail("read", errBroken)
	if !u.Execute(task, false) {
		t.Fatal("not done")
	}
	wantSense(t, task, scsi.Sense{
		Key: scsi.KeyMediumError, Additional: scsi.UnrecoveredReadError, Information: 4, InformationValid: true,
	})
}

// A write whose data lie in several buffers is not tried, a piece at a time: the medium
// would have to say of each whether it may wait, and those before one that may would be
// written twice.
func TestWrite_PiecesAreNotTried(t *testing.T) {
	u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	for _, ready := range []int{1, 2} {
		m.ready = ready
		task := newTask(write16(4, 2), target.DataOut, make([]byte, blockBytes), make([]byte, blockBytes))
		if u.Execute(task, false) {
			t.Fatalf("%v: done without waiting", task)
		}
		if n := m.count("write"); n != 0 || task.TransferredBytes != 0 {
			t.Errorf("%d writes of %d bytes have been made, want none", n, task.TransferredBytes)
		}
		// What is behind the command does not count.
		task = newTask(write16(4, 1), target.DataOut, make([]byte, blockBytes), make([]byte, blockBytes))
		if !u.Execute(task, false) || m.count("write") != 1 {
			t.Errorf("%v: not done at once", task)
		}
		m.calls = nil
	}
}

// TestExecute_WouldBlock lists what waits for a worker on a medium that may
// block, and what does not.
func TestExecute_WouldBlock(t *testing.T) {
	u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	pair := make([]byte, 2*blockBytes)
	for _, tt := range []struct {
		name      string
		put       put
		direction target.Direction
		ready     int
		done      bool
	}{
		{"read that can", read16(0, 1), target.DataIn, 1, true},
		{"read that cannot", read16(0, 1), target.DataIn, 0, false},
		{"write that can", write16(0, 1), target.DataOut, 1, true},
		{"write that cannot", write16(0, 1), target.DataOut, 0, false},
		{
			"read with FUA", func(c *[16]byte) int { return scsi.PutRead16(c, 0, 1, true, false) },
			target.DataIn, 1, false,
		},
		{
			"write with FUA", func(c *[16]byte) int { return scsi.PutWrite16(c, 0, 1, true, false) },
			target.DataOut, 1, false,
		},
		{
			"synchronize cache", func(c *[16]byte) int { return scsi.PutSynchronizeCache10(c, 0, 0, true) },
			target.NoData, 1, false,
		},
		{"verify", func(c *[16]byte) int { return scsi.PutVerify10(c, 0, 1, scsi.BytchkNone) }, target.NoData, 1, false},
		{"pre-fetch", func(c *[16]byte) int { return scsi.PutPreFetch10(c, 0, 1, false) }, target.NoData, 1, false},
		{
			"write same", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 1, true, false, true) },
			target.NoData, 1, false,
		},
		{
			"compare and write", func(c *[16]byte) int { return scsi.PutCompareAndWrite(c, 0, 1, false, false) },
			target.DataOut, 1, false,
		},
		{"get lba status", func(c *[16]byte) int { return scsi.PutGetLBAStatus(c, 0, 64) }, target.DataIn, 1, false},
		{"stop", func(c *[16]byte) int { return scsi.PutStartStopUnit(c, false, false) }, target.NoData, 1, false},
		{"start", func(c *[16]byte) int { return scsi.PutStartStopUnit(c, true, false) }, target.NoData, 1, true},
		{"inquiry", func(c *[16]byte) int { return scsi.PutInquiry(c, 36) }, target.DataIn, 1, true},
		{"out of range", read16(1<<40, 1), target.DataIn, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m.ready = tt.ready
			task := newTask(tt.put, tt.direction, pair)
			before := m.count("flush") + m.count("fua") + m.count("discard")
			if done := u.Execute(task, false); done != tt.done {
				t.Fatalf("done %v, want %v", done, tt.done)
			}
			if !tt.done {
				if after := m.count("flush") + m.count("fua") + m.count("discard"); after != before {
					t.Error("it called what may block")
				}
				if task.Status != scsi.StatusGood || task.TransferredBytes != 0 || task.SenseBytes != 0 {
					t.Errorf("it reported: %v", task)
				}
			}
		})
	}
}

// TestExecute_MemoryIsInline: nothing on memory waits, but for huge ranges.
func TestExecute_MemoryIsInline(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<40, target.Config{})
	same := func(blocks uint32) put {
		return func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, blocks, true, false, true) }
	}
	for name, p := range map[string]put{
		"flush":            func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 0, 0, false) },
		"write same":       same(8 << 20 / blockBytes),
		"verify":           func(c *[16]byte) int { return scsi.PutVerify16(c, 0, 16384, scsi.BytchkNone) },
		"get lba status":   func(c *[16]byte) int { return scsi.PutGetLBAStatus(c, 0, 64) },
		"stop without end": func(c *[16]byte) int { return scsi.PutStartStopUnit(c, true, false) },
	} {
		if task := newTask(p, target.DataIn, make([]byte, 64)); !u.Execute(task, false) || task.Status != scsi.StatusGood {
			t.Errorf("%s: %v", name, task)
		}
	}
	if task := newTask(same(8<<20/blockBytes+1), target.NoData); u.Execute(task, false) {
		t.Error("more than 8 MiB were zeroed inline")
	} else if !u.Execute(task, true) || task.Status != scsi.StatusGood {
		t.Error(task)
	}
}

func TestWrite_Durable(t *testing.T) {
	for _, tt := range []struct {
		name       string
		cache, fua bool
		hidden     media.Ability
		segments   int
		wantFUA    int
		wantFlush  int
	}{
		{name: "cached", cache: true, segments: 1},
		{name: "cached, FUA", cache: true, fua: true, segments: 1, wantFUA: 1},
		{name: "cached, FUA, segments", cache: true, fua: true, segments: 3, wantFlush: 1},
		{name: "cached, FUA without the ability", cache: true, fua: true, hidden: media.AbilityFUA, segments: 1, wantFlush: 1},
		{name: "write through", segments: 1, wantFUA: 1},
		{name: "write through, segments", segments: 2, wantFlush: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: tt.cache}, tt.hidden)
			segments := make([][]byte, tt.segments)
			for i := range segments {
				segments[i] = filled(blockBytes, 'x')
			}
			wantGood(t, u, func(c *[16]byte) int {
				return scsi.PutWrite16(c, 5, uint32(tt.segments), tt.fua, false)
			}, target.DataOut, segments...)
			if m.count("fua") != tt.wantFUA || m.count("flush") != tt.wantFlush {
				t.Errorf("%d FUA writes and %d flushes, want %d and %d", m.count("fua"), m.count("flush"), tt.wantFUA, tt.wantFlush)
			}
			if b := mustRead(t, u, 5, uint32(tt.segments)); !bytes.Equal(b, filled(tt.segments*blockBytes, 'x')) {
				t.Error("what was written was not read")
			}
			m.setFail("flush", errBroken)
			m.fail["fua"] = errBroken
			task := run(t, u, func(c *[16]byte) int {
				return scsi.PutWrite16(c, 5, uint32(tt.segments), tt.fua, false)
			}, target.DataOut, segments...)
			if durable := tt.wantFUA+tt.wantFlush > 0; durable != (task.Status == scsi.StatusCheckCondition) {
				t.Errorf("when nothing can be made durable: %v", task)
			}
		})
	}
}

func TestRead_FUAFlushes(t *testing.T) {
	u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	p := func(c *[16]byte) int { return scsi.PutRead16(c, 0, 1, true, false) }
	wantGood(t, u, p, target.DataIn, make([]byte, blockBytes))
	if m.count("flush") != 1 {
		t.Errorf("%d flushes, want 1", m.count("flush"))
	}
	m.setFail("flush", errBroken)
	wantSense(t, run(t, u, p, target.DataIn, make([]byte, blockBytes)),
		scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError})
}

func TestRead_DescriptorSenseBeyond32Bits(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<42, target.Config{})
	lba := uint64(1<<32 + 5)
	wantGood(t, u, write16(lba, 1), target.DataOut, filled(blockBytes, 3))
	if b := mustRead(t, u, lba, 1); !bytes.Equal(b, filled(blockBytes, 3)) {
		t.Error("what was written was not read")
	}
	task := run(t, u, func(c *[16]byte) int { return scsi.PutVerify16(c, lba, 1, scsi.BytchkAll) },
		target.DataOut, filled(blockBytes, 4))
	wantSense(t, task, scsi.Sense{
		Key: scsi.KeyMiscompare, Additional: scsi.MiscompareDuringVerify, Information: lba, InformationValid: true,
	})
	if task.Sense[0] != 0x72 {
		t.Errorf("response code %#x, want descriptor format", task.Sense[0])
	}
}

// TestExecute_Concurrent has writers fill whole blocks with one byte each and
// readers look for torn blocks, on all media sizes of a chunk's neighbourhood.
func TestExecute_Concurrent(t *testing.T) {
	const size = 1 << 18
	u, _ := newMemoryUnit(t, size, target.Config{})
	var group sync.WaitGroup
	for w := range 4 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			buf := make([]byte, 8*blockBytes)
			for range 500 {
				blocks := 1 + r.IntN(8)
				lba := uint64(r.IntN(size/blockBytes - blocks))
				b := buf[:blocks*blockBytes]
				if w%2 == 0 {
					for i := range b {
						b[i] = byte(w + 1)
					}
					task := newTask(write16(lba, uint32(blocks)), target.DataOut, b)
					if r.IntN(8) == 0 {
						task = newTask(func(c *[16]byte) int {
							return scsi.PutWriteSame16(c, lba, uint32(blocks), true, false, true)
						}, target.NoData)
					}
					if !u.Execute(task, false) || task.Status != scsi.StatusGood {
						t.Error(task)
					}
					continue
				}
				task := newTask(read16(lba, uint32(blocks)), target.DataIn, b)
				if !u.Execute(task, false) || task.Status != scsi.StatusGood {
					t.Error(task)
				}
				for i := range blocks {
					block := b[i*blockBytes : (i+1)*blockBytes]
					if !bytes.Equal(block, filled(blockBytes, block[0])) {
						t.Errorf("block %d is torn", lba+uint64(i))
					}
				}
			}
		})
	}
	group.Wait()
}

func ExampleUnit() {
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 20})
	if err != nil {
		panic(err)
	}
	u, err := target.NewUnit(m, target.Config{Serial: "EXAMPLE1"})
	if err != nil {
		panic(err)
	}
	task := &target.Task{Direction: target.DataOut, Segments: [][]byte{make([]byte, 512)}, DataBytes: 512}
	task.CDBBytes = scsi.PutWrite16(&task.CDB, 2048, 1, false, false)
	fmt.Println(u.Execute(task, false), task.Status)
	s, _ := scsi.ParseSense(task.Sense[:task.SenseBytes])
	fmt.Println(s.Key, s.Additional)
	// Output:
	// true CHECK CONDITION
	// ILLEGAL REQUEST LOGICAL BLOCK ADDRESS OUT OF RANGE
}
