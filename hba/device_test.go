package hba_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

func TestNew_BadConfig(t *testing.T) {
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	m := dma.NewIOMMU(arena)
	for _, c := range []hba.Config{
		{},
		{IOMMU: m, QueuePairs: -1},
		{IOMMU: m, QueuePairs: hba.MaxQueuePairs + 1},
		{IOMMU: m, RingEntries: -4},
		{IOMMU: m, RingEntries: 1},
		{IOMMU: m, RingEntries: 100},
		{IOMMU: m, RingEntries: 2 * hba.MaxRingEntries},
		{IOMMU: m, Workers: -1},
		{IOMMU: m, Workers: hba.MaxWorkers + 1},
	} {
		if d, err := hba.New(c); err == nil {
			d.Close()
			t.Errorf("New(%+v): no error", c)
		}
	}
}

func TestReadConfig(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 3}, hbatest.Config{})
	var space [300]byte
	if n := w.dev.ReadConfig(0, space[:]); n != 256 {
		t.Fatalf("ReadConfig copied %d bytes, want 256", n)
	}
	le := binary.LittleEndian
	if v, d := le.Uint16(space[0:]), le.Uint16(space[2:]); v != hba.VendorID || d != hba.DeviceID {
		t.Errorf("identity %#x:%#x, want %#x:%#x", v, d, hba.VendorID, hba.DeviceID)
	}
	if space[11] != 1 || space[10] != 0 {
		t.Errorf("class %#x.%#x, want a SCSI controller", space[11], space[10])
	}
	msix := space[0x34]
	if space[msix] != 0x11 || space[msix+1] != 0 {
		t.Errorf("capability at %#x: % x, want one MSI-X", msix, space[msix:msix+2])
	}
	if got := int(le.Uint16(space[msix+2:])) + 1; got != 4 || got != w.dev.Messages() {
		t.Errorf("%d messages in configuration space, %d by Messages, want 4", got, w.dev.Messages())
	}
	for _, offset := range []int{-1, 256, 1 << 30} {
		if n := w.dev.ReadConfig(offset, space[:]); n != 0 {
			t.Errorf("ReadConfig(%d) copied %d bytes", offset, n)
		}
	}
	if n := w.dev.ReadConfig(250, space[:]); n != 6 {
		t.Errorf("ReadConfig(250) copied %d bytes, want 6", n)
	}
	if w.dev.BAR(1) != nil || w.dev.BAR(-1) != nil {
		t.Error("a second memory range")
	}
}

func TestCapability(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 3, RingEntries: 64}, hbatest.Config{})
	c := hba.Capability(w.driver.Read(hba.RegCapability))
	if c.QueuePairs() != 3 || c.MaxRingEntries() != 64 || c.Targets() != hba.MaxTargets ||
		c.UnitsPerTarget() != hba.MaxLuns || c.MaxTransferBytes() != hba.MaxTransferBytes {
		t.Errorf("capability %#x: %d queue pairs, %d entries, %d targets, %d units, %d bytes", uint64(c),
			c.QueuePairs(), c.MaxRingEntries(), c.Targets(), c.UnitsPerTarget(), c.MaxTransferBytes())
	}
}

func TestReadWrite(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
	out := w.driver.MappedBuffer(t, 8*blockBytes, dma.Read)
	in := w.driver.MappedBuffer(t, 8*blockBytes, dma.Write)
	for i := range out.Bytes {
		out.Bytes[i] = byte(i * 7)
	}
	c := w.do(t, disk0.Write(1, 100, 8, out), disk0.Read(2, 100, 8, in))
	wantCode(t, c[0], 1, hba.CodeExecuted)
	wantCode(t, c[1], 2, hba.CodeExecuted)
	if c[1].ScsiStatus != 0 || c[1].DataBytes != 8*blockBytes || c[1].SubmissionHead != 2 {
		t.Errorf("completion %+v, want good status, %d bytes, head 2", c[1], 8*blockBytes)
	}
	if !bytes.Equal(in.Bytes, out.Bytes) {
		t.Error("read back other data than written")
	}
	s := w.dev.Stats().Queues[0]
	if s.Commands != 2 || s.Completions != 2 || s.BytesIn != 8*blockBytes || s.BytesOut != 8*blockBytes ||
		s.HandedToWorkers != 0 || s.Interrupts != 1 || s.Batches[1] != 1 || s.SubmissionDoorbells != 1 || s.CompletionDoorbells != 1 {
		t.Errorf("stats %+v", s)
	}
	w.wantIdle(t)
}

func TestReadWrite_Chained(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
	const segments = 300
	out := w.driver.MappedBuffer(t, segments*blockBytes, dma.Read)
	in := w.driver.MappedBuffer(t, segments*blockBytes, dma.Write)
	list := w.driver.MappedBuffer(t, segments*hba.SegmentBytes, dma.Read)
	for i := range out.Bytes {
		out.Bytes[i] = byte(i>>9 ^ i)
	}
	wantCode(t, w.do(t, disk0.Write(1, 0, segments, out))[0], 1, hba.CodeExecuted)
	var backwards []hba.Segment
	for i := range segments {
		backwards = append(backwards, in.Segment((segments-1-i)*blockBytes, blockBytes))
	}
	c := w.do(t, hbatest.Chain(disk0.Read(2, 0, segments, in), list, backwards))
	wantCode(t, c[0], 2, hba.CodeExecuted)
	for i := range segments {
		if !bytes.Equal(in.Bytes[(segments-1-i)*blockBytes:][:blockBytes], out.Bytes[i*blockBytes:][:blockBytes]) {
			t.Fatalf("segment %d holds other data than block %d", i, i)
		}
	}
}

func TestExecute_BadCommand(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
	in := w.driver.MappedBuffer(t, 4*blockBytes, dma.Write)
	list := w.driver.MappedBuffer(t, 4096, dma.Read)
	good := disk0.Read(7, 0, 4, in)
	tests := []struct {
		name   string
		change func(c *hba.Command)
		want   hba.CompletionCode
	}{
		{"nothing", func(*hba.Command) {}, hba.CodeExecuted},
		{"opcode 0", func(c *hba.Command) { c.Opcode = 0 }, hba.CodeBadCommand},
		{"opcode 255", func(c *hba.Command) { c.Opcode = 255 }, hba.CodeBadCommand},
		{"unknown flag", func(c *hba.Command) { c.Flags |= 0x80 }, hba.CodeBadCommand},
		{"both directions", func(c *hba.Command) { c.Flags |= hba.CommandDataOut }, hba.CodeBadCommand},
		{"no direction", func(c *hba.Command) { c.Flags = 0 }, hba.CodeBadCommand},
		{"no CDB", func(c *hba.Command) { c.CDBBytes = 0 }, hba.CodeBadCommand},
		{"long CDB", func(c *hba.Command) { c.CDBBytes = 17 }, hba.CodeBadCommand},
		{"no segment", func(c *hba.Command) { c.SegmentCount = 0 }, hba.CodeBadCommand},
		{"three inline segments", func(c *hba.Command) { c.SegmentCount = 3 }, hba.CodeBadCommand},
		{"segments without data", func(c *hba.Command) { c.DataBytes = 0 }, hba.CodeBadCommand},
		{"segments too short", func(c *hba.Command) { c.DataBytes += blockBytes }, hba.CodeBadCommand},
		{"segments too long", func(c *hba.Command) { c.DataBytes -= blockBytes }, hba.CodeBadCommand},
		{"empty segment", func(c *hba.Command) { c.SegmentCount = 2 }, hba.CodeBadCommand},
		{"too much data", func(c *hba.Command) { c.DataBytes = hba.MaxTransferBytes + 1 }, hba.CodeBadCommand},
		{"list length", func(c *hba.Command) {
			*c = hbatest.Chain(*c, list, []hba.Segment{in.Segment(0, len(in.Bytes))})
			c.SegmentCount = 2
		}, hba.CodeBadCommand},
		{"list too long", func(c *hba.Command) {
			*c = hbatest.Chain(*c, list, []hba.Segment{in.Segment(0, len(in.Bytes))})
			c.SegmentCount = hba.MaxSegments + 1
			c.Segments[0].Bytes = (hba.MaxSegments + 1) * hba.SegmentBytes
		}, hba.CodeBadCommand},
		{"list misaligned", func(c *hba.Command) {
			*c = hbatest.Chain(*c, list, []hba.Segment{in.Segment(0, len(in.Bytes))})
			c.Segments[0].Addr++
		}, hba.CodeBadCommand},
		{"target out of range", func(c *hba.Command) { c.Target = hba.MaxTargets }, hba.CodeNoDevice},
		{"empty target", func(c *hba.Command) { c.Target = 1 }, hba.CodeNoDevice},
		{"stale address", func(c *hba.Command) { c.Segments[0].Addr -= 1 << 32 }, hba.CodeDMAFault},
		{"behind the buffer", func(c *hba.Command) { c.Segments[0].Addr++ }, hba.CodeDMAFault},
		{"zero address", func(c *hba.Command) { c.Segments[0].Addr = 0 }, hba.CodeDMAFault},
		{"wrong direction", func(c *hba.Command) { *c = disk0.Write(7, 0, 4, in) }, hba.CodeDMAFault},
		{"list outside", func(c *hba.Command) {
			*c = hbatest.Chain(*c, list, []hba.Segment{in.Segment(0, len(in.Bytes))})
			c.Segments[0].Addr += 4096 - 8
		}, hba.CodeDMAFault},
		{"list not readable", func(c *hba.Command) {
			c.Flags |= hba.CommandChained
			c.Segments[0] = in.Segment(0, hba.SegmentBytes)
			c.SegmentCount = 1
		}, hba.CodeDMAFault},
		{"list of a stale address", func(c *hba.Command) {
			s := in.Segment(0, len(in.Bytes))
			s.Addr -= 1 << 32
			*c = hbatest.Chain(*c, list, []hba.Segment{s})
		}, hba.CodeDMAFault},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, faults := good, w.iommu.Faults()
			tt.change(&c)
			wantCode(t, w.do(t, c)[0], c.Tag, tt.want)
			if got := w.iommu.Faults() != faults; got != (tt.want == hba.CodeDMAFault) {
				t.Errorf("DMA fault recorded: %v", got)
			}
		})
	}
	w.wantStatus(t, hba.StatusReady)
	w.wantIdle(t)
}

// TestUnits_Hot: units come and go while the driver works.
func TestUnits_Hot(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
	other := hbatest.Address{Target: 2, Lun: 3}
	before := w.driver.Read(hba.RegUnitsChanged)
	wantCode(t, w.do(t, other.TestUnitReady(1))[0], 1, hba.CodeNoDevice)
	w.attach(t, other, w.memory)
	wantCode(t, w.do(t, other.TestUnitReady(2))[0], 2, hba.CodeExecuted)
	u, err := newUnit(w.memory)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.dev.AddUnit(2, 3, u); !errors.Is(err, hba.ErrUnitExists) {
		t.Errorf("AddUnit twice: %v, want ErrUnitExists", err)
	}
	if err := w.dev.AddUnit(hba.MaxTargets, 0, u); !errors.Is(err, hba.ErrBadAddress) {
		t.Errorf("AddUnit out of range: %v, want ErrBadAddress", err)
	}
	if err := w.dev.RemoveUnit(t.Context(), 2, 3); err != nil {
		t.Error(err)
	}
	if err := w.dev.RemoveUnit(t.Context(), 2, 3); !errors.Is(err, hba.ErrNoUnit) {
		t.Errorf("RemoveUnit twice: %v, want ErrNoUnit", err)
	}
	if got := w.driver.Read(hba.RegUnitsChanged) - before; got != 2 {
		t.Errorf("RegUnitsChanged counted %d changes, want 2", got)
	}
	w.wantIdle(t)
}

// TestRemoveUnit_Waits: RemoveUnit returns only when no command runs on the
// unit, but does not wait longer than its context.
func TestRemoveUnit_Waits(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
	slow := hbatest.Address{Lun: 1}
	m := w.attachSlow(t, slow, hbatest.MediaConfig{})
	m.Hold()
	q := w.driver.Queues[0]
	q.Submit(slow.Flush(1))
	q.Ring(runner)
	m.WaitHeld(1)
	ctx, cancel := context.WithCancel(t.Context())
	removed := make(chan error)
	go func() { removed <- w.dev.RemoveUnit(ctx, 0, 1) }()
	for w.dev.Left() != "controls" {
		runtime.Gosched()
	}
	cancel()
	if err := <-removed; !errors.Is(err, context.Canceled) {
		t.Errorf("RemoveUnit with a cancelled context: %v", err)
	}
	// The unit is detached already; attach and remove another in its place.
	w.attach(t, slow, w.memory)
	go func() { removed <- w.dev.RemoveUnit(context.Background(), 0, 1) }()
	for w.dev.Left() != "controls" {
		runtime.Gosched()
	}
	select {
	case err := <-removed:
		t.Fatalf("RemoveUnit returned %v while a command runs", err)
	default:
	}
	m.Release()
	if err := <-removed; err != nil {
		t.Error(err)
	}
	wantCode(t, w.reap(q, 1)[0], 1, hba.CodeExecuted)
	w.wantIdle(t)
}

// TestEnable_Stops: a device that is not enabled leaves commands in the rings,
// and takes them when it is enabled.
func TestEnable_Stops(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 2}, hbatest.Config{})
	w.driver.Write(hba.RegControl, 0)
	w.wantStatus(t, 0)
	for _, q := range w.driver.Queues {
		q.Submit(disk0.TestUnitReady(9))
		q.Ring(runner)
		if n := q.Consume(make([]hba.Completion, 1)); n != 0 {
			t.Error("a disabled device executed a command")
		}
	}
	w.driver.Write(hba.RegControl, hba.ControlEnable)
	for _, q := range w.driver.Queues {
		wantCode(t, w.reap(q, 1)[0], 9, hba.CodeExecuted)
	}
	w.wantIdle(t)
}

// TestDoorbell_BackPressure: what would not fit into the completion ring is not
// fetched, and the completion doorbell resumes fetching.
func TestDoorbell_BackPressure(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{SubmissionEntries: 64, CompletionEntries: 8})
	q := w.driver.Queues[0]
	for tag := range uint32(64) {
		q.Submit(disk0.TestUnitReady(tag))
	}
	q.Ring(runner)
	if s := w.dev.Stats().Queues[0]; s.Commands != 8 || s.Unconsumed != 8 || s.Submitted != 56 {
		t.Fatalf("stats %+v, want 8 of 64 fetched", s)
	}
	var out [64]hba.Completion
	for tag := range uint32(64) {
		if n := q.Consume(out[:1]); n != 1 {
			t.Fatalf("no completion for command %d", tag)
		}
		wantCode(t, out[0], tag, hba.CodeExecuted)
		q.Ack(runner)
		if s := w.dev.Stats().Queues[0]; uint64(s.Unconsumed) != min(8, 64-uint64(tag)-1) {
			t.Fatalf("after %d: %d unconsumed", tag+1, s.Unconsumed)
		}
	}
	w.wantIdle(t)
}

func TestDoorbell_Bad(t *testing.T) {
	for _, tt := range []struct {
		name  string
		ring  func(w *world, q *hbatest.Queue)
		fatal bool
	}{
		{"tail beyond the ring", func(_ *world, q *hbatest.Queue) { q.RingTail(runner, 9) }, true},
		{"tail far ahead", func(_ *world, q *hbatest.Queue) { q.RingTail(runner, 1<<31-1) }, true},
		{"tail far behind", func(_ *world, q *hbatest.Queue) { q.RingTail(runner, 1<<31) }, false},
		{"tail just behind", func(_ *world, q *hbatest.Queue) { q.RingTail(runner, ^uint32(0)) }, false},
		{"head of nothing", func(_ *world, q *hbatest.Queue) { q.AckHead(runner, 1) }, true},
		{"head behind", func(_ *world, q *hbatest.Queue) { q.AckHead(runner, ^uint32(0)) }, false},
		{"submission ring unmapped", func(_ *world, q *hbatest.Queue) {
			sub, _ := q.Rings()
			sub.Unmap()
			q.Submit(disk0.TestUnitReady(1))
			q.Ring(runner)
		}, true},
		{"completion ring unmapped", func(_ *world, q *hbatest.Queue) {
			_, comp := q.Rings()
			comp.Unmap()
			q.Submit(disk0.TestUnitReady(1))
			q.Ring(runner)
		}, true},
		{"no such queue pair", func(w *world, q *hbatest.Queue) {
			w.driver.Write(hba.RegQueueSelect, 0)
			w.driver.Write(hba.RegQueueEnable, 0)
			q.RingTail(runner, 1)
		}, true},
		{"late, after a reset", func(w *world, q *hbatest.Queue) {
			w.driver.Reset()
			q.RingTail(runner, 1)
			q.AckHead(runner, 1)
			if err := w.driver.Restart(); err != nil {
				t.Error(err)
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, hba.Config{QueuePairs: 2}, hbatest.Config{SubmissionEntries: 8, CompletionEntries: 8})
			q := w.driver.Queues[0]
			tt.ring(w, q)
			want := uint64(hba.StatusReady)
			if tt.fatal {
				want = hba.StatusFatal
			}
			w.wantStatus(t, want)
			if n := q.Consume(make([]hba.Completion, 1)); n != 0 {
				t.Error("a completion")
			}
			// Fatal stops the other queue pair too.
			other := w.driver.Queues[1]
			other.Submit(disk0.TestUnitReady(5))
			other.Ring(runner)
			if n := other.Consume(make([]hba.Completion, 1)); (n == 0) != tt.fatal {
				t.Errorf("other queue pair: %d completions, fatal %v", n, tt.fatal)
			}
			// A reset ends it.
			for _, q := range w.driver.Queues {
				sub, comp := q.Rings()
				sub.Unmap()
				sub.Map(dma.Read)
				comp.Unmap()
				comp.Map(dma.Write)
			}
			if err := w.driver.Restart(); err != nil {
				t.Fatal(err)
			}
			wantCode(t, w.do(t, disk0.TestUnitReady(6))[0], 6, hba.CodeExecuted)
			w.wantIdle(t)
		})
	}
}

func TestQueueEnable_Refused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(d *hbatest.Driver)
	}{
		{"size 0", func(d *hbatest.Driver) { d.Write(hba.RegQueueSize, 0) }},
		{"size 1", func(d *hbatest.Driver) { d.Write(hba.RegQueueSize, 1|8<<32) }},
		{"size no power of two", func(d *hbatest.Driver) { d.Write(hba.RegQueueSize, 8|12<<32) }},
		{"ring larger than allowed", func(d *hbatest.Driver) { d.Write(hba.RegQueueSize, 128|8<<32) }},
		{"ring larger than mapped", func(d *hbatest.Driver) { d.Write(hba.RegQueueSize, 8|64<<32) }},
		{"submission unaligned", func(d *hbatest.Driver) { d.Write(hba.RegQueueSubmit, d.Read(hba.RegQueueSubmit)+8) }},
		{"submission unmapped", func(d *hbatest.Driver) { d.Write(hba.RegQueueSubmit, 1<<63) }},
		{"completion zero", func(d *hbatest.Driver) { d.Write(hba.RegQueueComplete, 0) }},
		{"completion read-only", func(d *hbatest.Driver) { d.Write(hba.RegQueueComplete, d.Read(hba.RegQueueSubmit)) }},
		{"message out of range", func(d *hbatest.Driver) { d.Write(hba.RegQueueMessage, 3) }},
		{"queue pair out of range", func(d *hbatest.Driver) { d.Write(hba.RegQueueSelect, 2) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, hba.Config{QueuePairs: 2, RingEntries: 64}, hbatest.Config{SubmissionEntries: 8, CompletionEntries: 8})
			d := w.driver
			d.Write(hba.RegQueueSelect, 1)
			d.Write(hba.RegQueueEnable, 0)
			if got := d.Read(hba.RegQueueEnable); got != 0 {
				t.Fatalf("deleted queue pair reads %d", got)
			}
			tt.change(d)
			d.Write(hba.RegQueueEnable, 1)
			if got := d.Read(hba.RegQueueEnable); got != 0 {
				t.Errorf("RegQueueEnable = %d, want 0", got)
			}
			wantCode(t, w.do(t, disk0.TestUnitReady(6))[0], 6, hba.CodeExecuted)
		})
	}
}

func TestRegisters_Nonsense(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 2}, hbatest.Config{})
	bar := w.dev.BAR(hba.BAR)
	for _, offset := range []uint32{0x68, 0xff8, hba.RegDoorbells, bar.SizeBytes() - 8, ^uint32(7)} {
		if got := bar.Read64(runner, offset); got != ^uint64(0) {
			t.Errorf("Read64(%#x) = %#x, want all ones", offset, got)
		}
	}
	for _, offset := range []uint32{0, hba.RegControl, hba.RegDoorbells + 4, hba.RegDoorbells + 2*hba.DoorbellStride, ^uint32(3)} {
		if got := bar.Read32(runner, offset); got != ^uint32(0) {
			t.Errorf("Read32(%#x) = %#x, want all ones", offset, got)
		}
	}
	w.wantStatus(t, hba.StatusReady)
}

// FuzzRegisters: whatever a driver writes, the device neither panics nor hangs,
// and a reset brings it back.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte{0x30, 0, 0, 0x58, 0, 0, 0x80, 1, 1, 0x81, 200, 0})
	f.Add([]byte{0x10, 2, 0, 0x10, 1, 0, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		w := newWorld(t, hba.Config{QueuePairs: 2, RingEntries: 16, Workers: 1}, hbatest.Config{})
		bar := w.dev.BAR(hba.BAR)
		if err := w.dev.ConnectInterrupt(pci.Line, func(pci.Runner, pci.Message) {}, newRunner); err != nil {
			t.Fatal(err)
		}
		for ; len(script) >= 3; script = script[3:] {
			value := uint64(script[1])
			if script[2] != 0 {
				value = value<<(script[2]%64) | uint64(script[2])
			}
			if at := uint32(script[0]); at&0x80 != 0 {
				bar.Write32(runner, hba.RegDoorbells+at&0x7f*4, uint32(value))
			} else {
				bar.Write64(runner, at*8&0xff, value)
			}
		}
		w.dev.DisconnectInterrupt()
		if err := w.driver.Restart(); err != nil {
			t.Fatal(err)
		}
		wantCode(t, w.do(t, disk0.TestUnitReady(6))[0], 6, hba.CodeExecuted)
	})
}

// FuzzRing drives a queue pair from any position with any mixture of
// submitting, ringing (also stale values), consuming and acknowledging: each
// command completes exactly once, in order, also where positions wrap.
func FuzzRing(f *testing.F) {
	f.Add(uint32(0), uint8(3), uint8(2), []byte{3, 0x41, 0x82, 0xc0, 7, 0x40, 0x8f, 0xc0})
	f.Add(^uint32(0)-5, uint8(2), uint8(3), []byte{8, 0x40, 0x84, 0xc0, 8, 0x40, 0x88, 0xc0, 8, 0x42, 0x88, 0xc1})
	f.Add(uint32(1<<31-3), uint8(4), uint8(1), []byte{16, 0x40, 0x81, 0xc0, 0x82, 0xc0, 0x40})
	f.Fuzz(func(t *testing.T, start uint32, sub, comp uint8, script []byte) {
		w := newWorld(t, hba.Config{QueuePairs: 1, RingEntries: 32, Workers: 1},
			hbatest.Config{SubmissionEntries: 2 << (sub % 5), CompletionEntries: 2 << (comp % 5)})
		if err := w.startAt(start); err != nil {
			t.Fatal(err)
		}
		q := w.driver.Queues[0]
		var submitted, completed uint32
		var out [32]hba.Completion
		check := func(n int) {
			for _, c := range out[:n] {
				wantCode(t, c, completed, hba.CodeExecuted)
				completed++
			}
		}
		for _, b := range script {
			arg := uint32(b & 0x3f)
			switch b >> 6 {
			case 0:
				for range arg {
					submitted += uint32(q.Submit(disk0.TestUnitReady(submitted)))
				}
			case 1:
				q.RingTail(runner, q.Tail()-min(arg, submitted))
			case 2:
				check(q.Consume(out[:min(int(arg), len(out))]))
			case 3:
				q.AckHead(runner, q.Head()-min(arg, completed))
			}
			w.wantStatus(t, hba.StatusReady)
		}
		q.Ring(runner)
		q.Ack(runner)
		for n := -1; n != 0; {
			n = q.Consume(out[:])
			check(n)
			q.Ack(runner)
		}
		if completed != submitted {
			t.Fatalf("%d submitted, %d completed", submitted, completed)
		}
		w.wantIdle(t)
	})
}

// startAt restarts the driver with rings that start from a position.
func (w *world) startAt(position uint32) error {
	if err := w.driver.RestartAt(position); err != nil {
		return err
	}
	for i := range w.driver.Queues {
		w.dev.SetPositions(i, position)
	}
	return nil
}

// TestQueues_Parallel: goroutines that submit and goroutines that consume on
// every queue pair, with data that tells whose it is.
func TestQueues_Parallel(t *testing.T) {
	const queues, rounds, depth, seed = 4, 300, 8, 1
	w := newWorld(t, hba.Config{QueuePairs: queues, RingEntries: 16}, hbatest.Config{})
	w.attachSlow(t, hbatest.Address{Lun: 1}, hbatest.MediaConfig{})
	var wg sync.WaitGroup
	for i, q := range w.driver.Queues {
		var bufs [depth]*hbatest.Buffer
		for j := range bufs {
			bufs[j] = w.driver.MappedBuffer(t, 4*blockBytes, dma.Read|dma.Write)
		}
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			lba := func(j int) uint64 { return uint64(i*depth+j) * 4 }
			for round := range rounds {
				for phase := range 2 {
					for j, b := range bufs {
						unit := hbatest.Address{Lun: uint8(rng.IntN(2))}
						stamp := uint64(i)<<32 | uint64(j)<<24 | uint64(round)
						c := unit.Write(uint32(j), lba(j), 4, b)
						if phase == 1 {
							clear(b.Bytes)
							c = unit.Read(uint32(j), lba(j), 4, b)
						} else {
							for at := 0; at < len(b.Bytes); at += 8 {
								binary.LittleEndian.PutUint64(b.Bytes[at:], stamp+uint64(at)<<40)
							}
						}
						if q.Submit(c) != 1 {
							t.Error("submission ring full")
						}
						if rng.IntN(3) == 0 {
							q.Ring(runner)
						}
					}
					q.Ring(runner)
					for _, c := range w.reap(q, depth) {
						if c.Code != hba.CodeExecuted || c.ScsiStatus != 0 || c.DataBytes != 4*blockBytes {
							t.Errorf("seed %d: queue pair %d: completion %+v", seed, i, c)
						}
					}
				}
				for j, b := range bufs {
					stamp := uint64(i)<<32 | uint64(j)<<24 | uint64(round)
					for at := 0; at < len(b.Bytes); at += 8 {
						if got := binary.LittleEndian.Uint64(b.Bytes[at:]); got != stamp+uint64(at)<<40 {
							t.Errorf("seed %d: queue pair %d buffer %d offset %d: %#x, want %#x", seed, i, j, at, got, stamp+uint64(at)<<40)
							return
						}
					}
				}
			}
		})
	}
	wg.Wait()
	w.wantStatus(t, hba.StatusReady)
	w.wantIdle(t)
}

// TestDoorbell_NoLostWakeUp: many goroutines share one queue pair, and no
// command stays in the ring although each rings after it has submitted.
func TestDoorbell_NoLostWakeUp(t *testing.T) {
	const goroutines, each = 8, 5000
	w := newWorld(t, hba.Config{QueuePairs: 1, RingEntries: 64}, hbatest.Config{})
	q := w.driver.Queues[0]
	var done [goroutines * each]uint8
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				for q.Submit(disk0.TestUnitReady(uint32(g*each+i))) == 0 {
					runtime.Gosched()
				}
				q.Ring(runner)
			}
		})
	}
	for range goroutines * each {
		c := w.reap(q, 1)[0]
		done[c.Tag]++
	}
	wg.Wait()
	for tag, n := range done {
		if n != 1 {
			t.Fatalf("command %d completed %d times", tag, n)
		}
	}
	w.wantStatus(t, hba.StatusReady)
	w.wantIdle(t)
}

// TestDoorbell_LoserIsSeen: two goroutines ring at the same moment, so that one
// is the engine and the other leaves its entry to it. When both have returned,
// both commands have completed.
func TestDoorbell_LoserIsSeen(t *testing.T) {
	const rounds = 100000
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
	q := w.driver.Queues[0]
	var round, arrived atomic.Uint32
	var wg sync.WaitGroup
	ringer := func() {
		for r := range uint32(rounds) {
			for round.Load() == r {
				runtime.Gosched()
			}
			q.Submit(disk0.TestUnitReady(r))
			q.Ring(runner)
			arrived.Add(1)
		}
	}
	wg.Go(ringer)
	wg.Go(ringer)
	out := make([]hba.Completion, 3)
	for r := range uint32(rounds) {
		round.Add(1)
		for arrived.Load() != 2*(r+1) {
			runtime.Gosched()
		}
		if n := q.Consume(out); n != 2 {
			t.Errorf("round %d: %d of 2 commands completed", r, n)
			q.Ring(runner)
		}
		q.Ack(runner)
	}
	wg.Wait()
	w.wantIdle(t)
}

// TestWorkers: commands that block run side by side, as many as there are
// workers, and do not hold up those that do not block; but flushes leave
// some for reads.
func TestWorkers(t *testing.T) {
	const workers = 4
	w := newWorld(t, hba.Config{QueuePairs: 1, Workers: workers}, hbatest.Config{})
	slow := hbatest.Address{Lun: 1}
	m := w.attachSlow(t, slow, hbatest.MediaConfig{})
	m.Hold()
	q := w.driver.Queues[0]
	for tag := range uint32(10) {
		q.Submit(slow.Flush(tag))
	}
	q.Submit(disk0.TestUnitReady(100))
	q.Ring(runner)
	wantCode(t, w.reap(q, 1)[0], 100, hba.CodeExecuted)
	m.WaitHeld(workers - 2)
	if s := w.dev.Stats(); s.WorkersBusy != workers-2 || s.WaitForWorkers != 12-workers || s.Queues[0].InFlight != 10 || s.Queues[0].HandedToWorkers != 10 {
		t.Errorf("stats %+v", s)
	}
	b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	q.Submit(slow.Read(10, 0, 1, b), slow.Read(11, 0, 1, b)) // the last workers are for such
	q.Ring(runner)
	m.WaitHeld(workers)
	m.Release()
	seen := 0
	for _, c := range w.reap(q, 12) {
		if c.Code != hba.CodeExecuted {
			t.Errorf("completion %+v", c)
		}
		seen |= 1 << c.Tag
	}
	if seen != 1<<12-1 {
		t.Errorf("completed %#b, want each of 12 once", seen)
	}
	if got := m.Peak(); got != workers {
		t.Errorf("%d ran at once, want %d", got, workers)
	}
	w.wantIdle(t)
}

// TestWorkers_Unmapped: a buffer that is unmapped while a worker uses it is a
// DMA fault.
func TestWorkers_Unmapped(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
	slow := hbatest.Address{Lun: 1}
	m := w.attachSlow(t, slow, hbatest.MediaConfig{})
	m.Hold()
	b := w.driver.MappedBuffer(t, 4*blockBytes, dma.Write)
	q := w.driver.Queues[0]
	q.Submit(slow.Read(1, 0, 4, b))
	q.Ring(runner)
	m.WaitHeld(1)
	b.Unmap()
	m.Release()
	wantCode(t, w.reap(q, 1)[0], 1, hba.CodeDMAFault)
	if got := w.dev.Stats().Queues[0].DMAFaults; got != 1 || w.iommu.Faults() != 1 {
		t.Errorf("%d faults of the queue pair, %d of the IOMMU, want 1", got, w.iommu.Faults())
	}
	w.wantIdle(t)
}

// TestMedia_Faults: errors and torn writes of the medium reach the driver as
// CHECK CONDITION, for the same commands whenever the seed is the same.
func TestMedia_Faults(t *testing.T) {
	const n = 200
	run := func(seed uint64) (failed [n]bool) {
		w := newWorld(t, hba.Config{QueuePairs: 1}, hbatest.Config{})
		slow := hbatest.Address{Lun: 1}
		w.attachSlow(t, slow, hbatest.MediaConfig{Seed: seed, ErrorRate: 0.2, TornRate: 0.2})
		b := w.driver.MappedBuffer(t, blockBytes, dma.Read)
		var commands []hba.Command
		for i := range uint32(n) {
			commands = append(commands, slow.Write(i, uint64(i), 1, b))
		}
		for _, c := range w.do(t, commands...) {
			failed[c.Tag] = c.ScsiStatus != 0
			if c.Code != hba.CodeExecuted || failed[c.Tag] != (c.SenseBytes != 0) {
				t.Errorf("seed %d: completion %+v", seed, c)
			}
		}
		return failed
	}
	first := run(42)
	if again := run(42); again != first {
		t.Error("seed 42 failed other commands the second time")
	}
	if other := run(43); other == first {
		t.Error("seeds 42 and 43 fail the same commands")
	}
	bad := 0
	for _, f := range first {
		if f {
			bad++
		}
	}
	if bad == 0 || bad == n {
		t.Errorf("%d of %d writes failed at a rate of about a third", bad, n)
	}
}

// TestClose_LeavesNothing: after 100,000 commands on all roads no goroutine and
// no record is left.
func TestClose_LeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("work", func(t *testing.T) {
		w := newWorld(t, hba.Config{QueuePairs: 2, RingEntries: 256, Workers: 4}, hbatest.Config{})
		slow := hbatest.Address{Lun: 1}
		w.attachSlow(t, slow, hbatest.MediaConfig{})
		var wg sync.WaitGroup
		for _, q := range w.driver.Queues {
			b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
			wg.Go(func() {
				for range 50000 / 100 {
					for i := range uint32(100) {
						unit := disk0
						if i%10 == 0 {
							unit = slow
						}
						q.Submit(unit.Read(i, 0, 1, b))
					}
					q.Ring(runner)
					w.reap(q, 100)
				}
			})
		}
		wg.Wait()
		w.wantIdle(t)
		w.dev.Close()
		w.dev.Close() // harmless
		w.driver.Write(hba.RegQueueSelect, 1)
		if got := w.driver.Read(hba.RegQueueSelect); got != 0 {
			t.Errorf("RegQueueSelect = %d after a write to a closed device, want 0", got)
		}
		u, err := newUnit(w.memory)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.dev.AddUnit(1, 0, u); !errors.Is(err, hba.ErrClosed) {
			t.Errorf("AddUnit after Close: %v, want ErrClosed", err)
		}
		if err := w.dev.ConnectInterrupt(pci.MessageSignaled, nil, nil); !errors.Is(err, hba.ErrClosed) {
			t.Errorf("ConnectInterrupt after Close: %v, want ErrClosed", err)
		}
	})
	for range 1000000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		runtime.Gosched()
	}
	buf := make([]byte, 1<<16)
	t.Errorf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
}

func newRunner(name string) pci.Runner { return hbatest.Runner(name) }
