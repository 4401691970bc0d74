package hbatest

import (
	"encoding/binary"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/scsi"
)

// Address is where a command goes.
type Address struct{ Target, Lun uint8 }

// Read is a READ (16) of the whole buffer.
func (a Address) Read(tag uint32, lba uint64, blocks uint32, b *Buffer) hba.Command {
	c := a.command(tag, hba.CommandDataIn, b)
	scsi.PutRead16(&c.CDB, lba, blocks, false, false)
	return c
}

// Write is a WRITE (16) of the whole buffer.
func (a Address) Write(tag uint32, lba uint64, blocks uint32, b *Buffer) hba.Command {
	c := a.command(tag, hba.CommandDataOut, b)
	scsi.PutWrite16(&c.CDB, lba, blocks, false, false)
	return c
}

// Flush is a SYNCHRONIZE CACHE (16) of everything.
func (a Address) Flush(tag uint32) hba.Command {
	c := a.command(tag, 0, nil)
	scsi.PutSynchronizeCache16(&c.CDB, 0, 0, false)
	return c
}

// TestUnitReady is a TEST UNIT READY.
func (a Address) TestUnitReady(tag uint32) hba.Command {
	c := a.command(tag, 0, nil)
	c.CDBBytes = 6 // all zeros
	return c
}

// Abort aborts the command with the victim's tag.
func (a Address) Abort(tag, victim uint32) hba.Command {
	c := a.command(tag, 0, nil)
	c.Opcode = hba.OpAbort
	binary.LittleEndian.PutUint32(c.CDB[:], victim)
	return c
}

// Reset resets the unit, or the whole target.
func (a Address) Reset(tag uint32, wholeTarget bool) hba.Command {
	c := a.command(tag, 0, nil)
	c.Opcode = hba.OpResetLun
	if wholeTarget {
		c.Opcode = hba.OpResetTarget
	}
	return c
}

func (a Address) command(tag uint32, flags uint8, b *Buffer) hba.Command {
	c := hba.Command{Tag: tag, Opcode: hba.OpExecute, Flags: flags, Target: a.Target, Lun: a.Lun, CDBBytes: 16}
	if b != nil {
		c.DataBytes = uint32(len(b.Bytes))
		c.SegmentCount = 1
		c.Segments[0] = b.Segment(0, len(b.Bytes))
	}
	return c
}

// Chain replaces c's scatter/gather list by one in host memory.
func Chain(c hba.Command, list *Buffer, segments []hba.Segment) hba.Command {
	copy(hba.Segments(list.Bytes), segments)
	c.Flags |= hba.CommandChained
	c.SegmentCount = uint16(len(segments))
	c.Segments[0] = list.Segment(0, len(segments)*hba.SegmentBytes)
	c.DataBytes = 0
	for _, s := range segments {
		c.DataBytes += s.Bytes
	}
	return c
}
