package target

import (
	"fmt"

	"github.com/vhbad/vhbad/internal/scsi"
)

// A transfer is a READ or WRITE whose CDB is in order.
type transfer struct {
	off    int64 // bytes on the medium
	length int   // bytes
	fua    bool
}

// transferOf checks the CDB and the buffers of t, a READ or WRITE, and ends t if
// it has to.
func (u *Unit) transferOf(t *Task, want Direction) (x transfer, ok bool) {
	op := scsi.Opcode(t.CDB[0])
	n := scsi.CDBBytes(op)
	if t.CDBBytes < n || t.CDB[n-1]&scsi.CDBNACA != 0 {
		u.invalidCDB(t, n-1)
		return x, false
	}
	lba, blocks, _ := scsi.BlockRange(&t.CDB)
	if n > 6 { // the short ones have address bits instead of flags
		if t.CDB[1]&scsi.CDBProtectMask != 0 {
			u.invalidCDB(t, 1)
			return x, false
		}
		x.fua = t.CDB[1]&scsi.CDBFUA != 0
	}
	if !u.inRange(t, lba, uint64(blocks)) {
		return x, false
	}
	if blocks > u.maxBlocks {
		u.invalidCDB(t, transferLengthField(n))
		return x, false
	}
	x.off, x.length = int64(lba<<u.shift), int(blocks)<<u.shift
	if x.length > 0 && (t.Direction != want || t.DataBytes < x.length) {
		u.invalidData(t)
		return x, false
	}
	return x, true
}

// transferLengthField is the first byte of the transfer length in a CDB of n
// bytes.
func transferLengthField(n int) int {
	switch n {
	case 6:
		return 4
	case 10:
		return 7
	case 12:
		return 6
	}
	return 10
}

// inRange ends t if the blocks from lba are not all on the unit.
func (u *Unit) inRange(t *Task, lba, blocks uint64) bool {
	if total := u.blocks.Load(); lba > total || blocks > total-lba {
		u.outOfRange(t)
		return false
	}
	return true
}

// read is READ (6), (10), (12) and (16).
//
// FUA asks for what is on the medium, not in a volatile cache, so the cache is
// flushed first; SBC-3 4.15.
func (u *Unit) read(t *Task, mayBlock bool) (done bool) {
	x, ok := u.transferOf(t, DataIn)
	if !ok {
		return true
	}
	if x.fua && x.length > 0 && !u.neverBlocks {
		if !mayBlock {
			return false
		}
		if !u.flushFor(t) {
			return true
		}
	}
	if u.can.Refer != nil && !t.Pages.Expired() && x.length == t.DataBytes &&
		u.can.Refer.ReferAt(t.Pages, x.length, x.off, mayBlock || u.neverBlocks) {
		t.TransferredBytes = x.length
		return true
	}
	left := x.length
	for i := 0; left > 0; i++ {
		p := segment(t, i, left)
		var err error
		switch {
		case mayBlock || u.neverBlocks:
			_, err = u.medium.ReadAt(p, x.off)
		case u.can.TryRead != nil:
			if done, err = u.can.TryRead.TryReadAt(p, x.off); !done {
				t.TransferredBytes = 0
				return false
			}
		default:
			return false
		}
		if err != nil {
			u.mediumFailed(t, err, scsi.UnrecoveredReadError, uint64(x.off)>>u.shift)
			return true
		}
		left -= len(p)
		x.off += int64(len(p))
		t.TransferredBytes += len(p)
	}
	return true
}

// segment is the i-th buffer of t, cut to n bytes.
func segment(t *Task, i, n int) []byte {
	if i >= len(t.Segments) {
		panic(fmt.Sprintf("target: %d bytes short of DataBytes in the segments of %v", n, t))
	}
	p := t.Segments[i]
	return p[:min(len(p), n)]
}

// write is WRITE (6), (10), (12) and (16).
func (u *Unit) write(t *Task, mayBlock bool) (done bool) {
	if u.config.ReadOnly {
		u.writeProtected(t)
		return true
	}
	x, ok := u.transferOf(t, DataOut)
	if !ok || x.length == 0 {
		return true
	}
	// A write that must be durable outlives a power cut once it is done: by one write
	// through the cache, or by writes and a flush.
	durable := (x.fua || u.writeThrough.Load()) && !u.neverBlocks
	if durable && !mayBlock {
		return false
	}
	if u.can.Vector != nil && len(t.Segments[0]) < x.length {
		return u.writeVector(t, &x, durable, mayBlock)
	}
	through := durable && u.can.FUA != nil && len(t.Segments[0]) >= x.length
	left := x.length
	for i := 0; left > 0; i++ {
		p := segment(t, i, left)
		var err error
		switch {
		case through:
			_, err = u.can.FUA.WriteAtFUA(p, x.off)
		case mayBlock || u.neverBlocks:
			_, err = u.medium.WriteAt(p, x.off)
		// Only whole commands are tried: the medium decides about all of a command
		// whether it can take it without waiting, and nothing of a command that it
		// refuses has been done.
		case u.can.TryWrite != nil && len(p) == x.length:
			if done, err = u.can.TryWrite.TryWriteAt(p, x.off); !done {
				return false
			}
		default:
			return false
		}
		if err != nil {
			u.mediumFailed(t, err, scsi.WriteError, uint64(x.off)>>u.shift)
			return true
		}
		left -= len(p)
		x.off += int64(len(p))
		t.TransferredBytes += len(p)
	}
	return u.written(t, durable, durable && !through, mayBlock)
}

// writeVector is write from several buffers to a medium for which the bounds of a write
// matter.
func (u *Unit) writeVector(t *Task, x *transfer, durable, mayBlock bool) (done bool) {
	var err error
	through := durable && u.can.FUA != nil
	switch {
	case mayBlock || u.neverBlocks:
		_, err = u.can.Vector.WriteVectorAt(t.Segments, x.length, x.off, through)
	default:
		if done, err = u.can.Vector.TryWriteVectorAt(t.Segments, x.length, x.off); !done {
			return false
		}
	}
	if err != nil {
		u.mediumFailed(t, err, scsi.WriteError, uint64(x.off)>>u.shift)
		return true
	}
	t.TransferredBytes = x.length
	return u.written(t, durable, durable && !through, mayBlock)
}

// written ends a write that the medium has taken, durably or not, and flushes if that is
// still to be done.
func (u *Unit) written(t *Task, durable, flush, mayBlock bool) (done bool) {
	// MODE SELECT may have switched the write cache off meanwhile, and its flush may
	// have come too early for this write.
	switched := !durable && u.writeThrough.Load() && !u.neverBlocks
	if switched && !mayBlock {
		t.TransferredBytes = 0
		return false
	}
	if switched || flush {
		u.flushFor(t)
	}
	return true
}
