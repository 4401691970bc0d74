package hba

import (
	"math"

	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

// An executor runs commands, one at a time: the device's data path. Each engine
// and each worker has one, so that the memory it needs is bounded by their
// number and not by the commands in flight. A command that is handed over is
// gathered again by the worker.
type executor struct {
	task target.Task
	// list and segments hold the scatter/gather list as the driver gave it, and
	// translated. They grow to the longest list met, MaxSegments at most.
	list     []Segment
	segments [][]byte
	// inMemory says that the data read must be in the segments when run returns.
	inMemory bool
}

// newExecutor returns an executor whose lists, however short, begin on pairs of cache
// lines of their own: two engines must not share one.
func newExecutor() executor {
	const least = 16
	return executor{list: make([]Segment, 0, least), segments: make([][]byte, 0, least)}
}

// run executes c and fills out, or reports false: it would block and must not.
func (x *executor) run(d *Device, c *Command, out *Completion, t *tally, mayBlock bool) bool {
	out.set(c.Tag, CodeExecuted)
	if !c.valid() {
		out.Code = CodeBadCommand
		return true
	}
	tgt := d.targetAt(c.Target)
	if tgt == nil {
		out.Code = CodeNoDevice
		return true
	}
	access := dma.Write
	if c.Flags&CommandDataOut != 0 {
		access = dma.Read
	}
	if out.Code = x.gather(d.iommu, c, access); out.Code != CodeExecuted {
		if out.Code == CodeDMAFault {
			t.dmaFaults++
		}
		return true
	}
	task := &x.task
	task.CDB = c.CDB
	task.CDBBytes = int(c.CDBBytes)
	task.Nexus = c.Nexus
	task.Direction = directionOf(c.Flags)
	task.Segments = x.segments
	task.DataBytes = int(c.DataBytes)
	task.Pages = dma.Pages{}
	if access == dma.Write && len(x.segments) == 1 && c.DataBytes >= dma.PipeLeastBytes {
		// Asked for in any case, as this voids what came of it before.
		if pages := d.iommu.PagesAt(dma.Addr(x.list[0].Addr), x.segments[0]); !x.inMemory {
			task.Pages = pages
		}
	}
	yieldPoint("execute")
	if !tgt.Execute(c.Lun, task, mayBlock) {
		return false
	}
	if mayBlock && !x.live(d.iommu, access) {
		out.Code = CodeDMAFault
		t.dmaFaults++
		return true
	}
	out.ScsiStatus = uint8(task.Status)
	if task.NoPower {
		out.Flags = CompletionInjected
	}
	out.DataBytes = uint32(task.TransferredBytes)
	if task.SenseBytes != 0 {
		out.SenseBytes = uint8(copy(out.Sense[:], task.Sense[:task.SenseBytes]))
	}
	if access == dma.Write {
		t.bytesIn += uint64(task.TransferredBytes)
	} else {
		t.bytesOut += uint64(task.TransferredBytes)
	}
	return true
}

func directionOf(flags uint8) target.Direction {
	switch {
	case flags&CommandDataIn != 0:
		return target.DataIn
	case flags&CommandDataOut != 0:
		return target.DataOut
	}
	return target.NoData
}

// valid checks what can be checked from the command alone.
func (c *Command) valid() bool {
	const directions = CommandDataIn | CommandDataOut
	switch {
	case c.Flags&^(directions|CommandChained) != 0,
		c.Flags&directions == directions,
		c.CDBBytes == 0 || int(c.CDBBytes) > len(c.CDB),
		c.DataBytes > MaxTransferBytes:
		return false
	case c.DataBytes == 0:
		return c.SegmentCount == 0
	case c.Flags&directions == 0:
		return false
	case c.Flags&CommandChained != 0:
		return c.SegmentCount > 0 && c.SegmentCount <= MaxSegments &&
			c.Segments[0].Bytes == uint32(c.SegmentCount)*SegmentBytes
	}
	return c.SegmentCount > 0 && c.SegmentCount <= InlineSegments
}

// gather copies c's scatter/gather list and translates it into segments.
func (x *executor) gather(m *dma.IOMMU, c *Command, access dma.Access) CompletionCode {
	x.list, x.segments = x.list[:0], x.segments[:0]
	if c.DataBytes == 0 {
		return CodeExecuted
	}
	list := c.Segments[:min(c.SegmentCount, InlineSegments)]
	if c.Flags&CommandChained != 0 {
		b, ok := m.Translate(dma.Addr(c.Segments[0].Addr), int(c.Segments[0].Bytes), dma.Read)
		if !ok {
			return CodeDMAFault
		}
		if !isAligned(b) {
			return CodeBadCommand
		}
		list = Segments(b)
	}
	// Copied, so that what Live checks later is what was translated.
	x.list = append(x.list, list...)
	left := c.DataBytes
	for i := range x.list {
		s := &x.list[i]
		if s.Bytes == 0 || s.Bytes > left {
			return CodeBadCommand
		}
		left -= s.Bytes
		b, ok := m.Translate(dma.Addr(s.Addr), int(s.Bytes), access)
		if !ok {
			return CodeDMAFault
		}
		x.segments = append(x.segments, b)
	}
	if left != 0 {
		return CodeBadCommand
	}
	return CodeExecuted
}

// live reports whether every buffer is still mapped as it was at gather.
func (x *executor) live(m *dma.IOMMU, access dma.Access) bool {
	for i := range x.list {
		if s := &x.list[i]; !m.Live(dma.Addr(s.Addr), int(s.Bytes), access) {
			return false
		}
	}
	return true
}

// front returns the first n bytes of what was gathered, or all if that is less, in one
// piece.
func (x *executor) front(n int) []byte {
	if len(x.segments) == 0 {
		return nil
	}
	if b := x.segments[0]; len(b) >= n || len(x.segments) == 1 {
		return b[:min(len(b), n)]
	}
	var whole []byte
	for _, s := range x.segments {
		whole = append(whole, s[:min(len(s), n-len(whole))]...)
	}
	return whole
}

// unmapList is the parameter list of the UNMAP that was gathered: as much as its header
// can speak of.
func (x *executor) unmapList() []byte { return x.front(scsi.UnmapHeaderBytes + math.MaxUint16) }
