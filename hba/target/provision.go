package target

import (
	"bytes"
	"encoding/binary"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/scsi"
)

// unmap is UNMAP; SBC-3 5.28. All ranges are checked before the first is
// unmapped. Unmapped blocks read as zeros.
func (u *Unit) unmap(t *Task, mayBlock bool) (done bool) {
	switch {
	case u.config.ReadOnly:
		u.writeProtected(t)
		return true
	case !u.thin:
		u.failCode(t, scsi.KeyIllegalRequest, scsi.InvalidCommandOperationCode)
		return true
	}
	anchor := t.CDB[1]&scsi.CDBUnmapAnchor != 0
	if anchor && !u.anchor {
		u.invalidCDB(t, 1)
		return true
	}
	descriptors, bytesInAll, ok := u.checkUnmapList(t)
	if !ok || descriptors == 0 {
		return true
	}
	if !u.mayRun(mayBlock, bytesInAll) {
		return false
	}
	for i := range descriptors {
		lba, blocks := t.unmapDescriptor(i)
		if blocks == 0 {
			continue
		}
		if err := u.release(lba, uint64(blocks), anchor); err != nil {
			u.rangeFailed(t, err, scsi.WriteError, lba, lba, uint64(blocks))
			return true
		}
	}
	if u.writeThrough.Load() {
		u.flushFor(t)
	}
	return true
}

// release unmaps blocks, or anchors them: they read as zeros, but their place is
// reserved.
func (u *Unit) release(lba, blocks uint64, anchor bool) error {
	off, n := int64(lba<<u.shift), int64(blocks<<u.shift)
	if anchor {
		return u.can.Zero.Zero(off, n, true)
	}
	return u.can.Discard.Discard(off, n)
}

// checkUnmapList checks the parameter list of t and ends t if it has to.
func (u *Unit) checkUnmapList(t *Task) (descriptors int, bytesInAll int64, ok bool) {
	n, _ := scsi.AllocationBytes(&t.CDB)
	listBytes := int(n)
	if listBytes == 0 {
		return 0, 0, true
	}
	if t.Direction != DataOut || t.DataBytes < listBytes {
		u.invalidData(t)
		return 0, 0, false
	}
	if listBytes < scsi.UnmapHeaderBytes {
		u.failCode(t, scsi.KeyIllegalRequest, scsi.ParameterListLengthError)
		return 0, 0, false
	}
	var header [scsi.UnmapHeaderBytes]byte
	t.dataOut(header[:], 0)
	descriptorBytes, ok := scsi.ParseUnmapHeader(header[:])
	if !ok || descriptorBytes > listBytes-scsi.UnmapHeaderBytes {
		u.failCode(t, scsi.KeyIllegalRequest, scsi.ParameterListLengthError)
		return 0, 0, false
	}
	descriptors = descriptorBytes / scsi.UnmapDescriptorBytes
	if descriptors > maxUnmapDescriptors {
		u.invalidList(t, 2)
		return 0, 0, false
	}
	total := uint64(0)
	for i := range descriptors {
		lba, blocks := t.unmapDescriptor(i)
		if !u.inRange(t, lba, uint64(blocks)) {
			return 0, 0, false
		}
		if total += uint64(blocks); total > maxUnmapBlocks {
			u.invalidList(t, scsi.UnmapHeaderBytes+i*scsi.UnmapDescriptorBytes+8)
			return 0, 0, false
		}
	}
	t.TransferredBytes = listBytes
	return descriptors, int64(total << u.shift), true
}

func (t *Task) unmapDescriptor(i int) (lba uint64, blocks uint32) {
	var b [scsi.UnmapDescriptorBytes]byte
	t.dataOut(b[:], scsi.UnmapHeaderBytes+i*scsi.UnmapDescriptorBytes)
	lba, blocks, _ = scsi.ParseUnmapDescriptor(b[:])
	return lba, blocks
}

// writeSame is WRITE SAME (10) and (16); SBC-3 5.47. Zeros are zeroed, and released as
// well if UNMAP permits it; any other pattern is written repeatedly.
func (u *Unit) writeSame(t *Task, mayBlock bool) (done bool) {
	long := scsi.Opcode(t.CDB[0]) == scsi.OpWriteSame16
	flags := t.CDB[1]
	unmap, anchor := flags&scsi.CDBSameUnmap != 0, flags&scsi.CDBSameAnchor != 0
	noData := long && flags&scsi.CDBSameNDOB != 0
	if u.config.ReadOnly {
		u.writeProtected(t)
		return true
	}
	if flags&(scsi.CDBProtectMask|scsi.CDBSameObsolete) != 0 || !long && flags&scsi.CDBSameNDOB != 0 ||
		unmap && !u.thin || anchor && (!unmap || !u.anchor) {
		u.invalidCDB(t, 1)
		return true
	}
	lba, blocks, _ := scsi.BlockRange(&t.CDB)
	if !u.inRange(t, lba, uint64(blocks)) {
		return true
	}
	n := scsi.CDBBytes(scsi.Opcode(t.CDB[0]))
	if blocks == 0 || uint64(blocks)<<u.shift > maxWriteSameBytes {
		u.invalidCDB(t, transferLengthField(n))
		return true
	}
	blockBytes := 1 << u.shift
	if !noData && (t.Direction != DataOut || t.DataBytes < blockBytes) {
		u.invalidData(t)
		return true
	}
	length := int64(blocks) << u.shift
	if !u.mayRun(mayBlock, length) {
		return false
	}
	s := getScratch()
	defer putScratch(s)
	if noData {
		clear(s[:])
	} else {
		t.fillPattern(s[:], blockBytes)
		t.TransferredBytes = blockBytes
	}
	if err := u.fill(s[:], int64(lba<<u.shift), length, unmap, anchor); err != nil {
		u.mediumFailed(t, err, scsi.WriteError, lba)
		return true
	}
	if u.writeThrough.Load() {
		u.flushFor(t)
	}
	return true
}

var zeroScratch scratch

// fill writes pattern over n bytes from off, by zeroing if it is all zeros.
func (u *Unit) fill(pattern []byte, off, n int64, unmap, anchor bool) error {
	if bytes.Equal(pattern, zeroScratch[:]) {
		switch {
		case unmap && !anchor:
			return u.can.Discard.Discard(off, n)
		case u.can.Zero != nil:
			return u.can.Zero.Zero(off, n, true)
		}
	}
	for n > 0 {
		p := pattern[:min(int64(len(pattern)), n)]
		if _, err := u.medium.WriteAt(p, off); err != nil {
			return err
		}
		off += int64(len(p))
		n -= int64(len(p))
	}
	return nil
}

// getLBAStatus is GET LBA STATUS; SBC-3 5.5. Neighbouring runs of one status are mostly
// reported as one. A medium that does not know its holes has none. The answer ends where
// there is no more room, or when enough has been examined for one command.
func (u *Unit) getLBAStatus(t *Task, mayBlock bool) (done bool) {
	n, _ := scsi.AllocationBytes(&t.CDB)
	lba := binary.BigEndian.Uint64(t.CDB[2:])
	total := u.blocks.Load()
	if lba >= total {
		u.outOfRange(t)
		return true
	}
	if u.can.Extents != nil && !u.mayRun(mayBlock, 0) {
		return false
	}
	s := getScratch()
	defer putScratch(s)
	in := t.dataIn(n)
	used := scsi.LBAStatusHeaderBytes
	descriptors := 0
	for budget := int64(statusScanBytes); lba < total && budget > 0; {
		run, err := u.statusFrom(lba, total, &budget)
		if err != nil {
			u.rangeFailed(t, err, scsi.UnrecoveredReadError, lba, lba, total-lba)
			return true
		}
		scsi.PutLBAStatusDescriptor(s[used:], run)
		used += scsi.LBAStatusDescriptorBytes
		descriptors++
		lba += uint64(run.Blocks)
		if used >= in.left || used+scsi.LBAStatusDescriptorBytes > len(s) {
			break
		}
	}
	scsi.PutLBAStatusHeader(s[:], descriptors)
	in.put(s[:used])
	return true
}

// statusFrom returns a run of blocks from lba that have one provisioning status. A block
// that is only partly a hole is mapped. What was examined is deducted from the budget,
// and the run ends when that is used up.
func (u *Unit) statusFrom(lba, total uint64, budget *int64) (scsi.LBAStatus, error) {
	run := scsi.LBAStatus{LBA: lba, Status: scsi.StatusMapped}
	end := min(total, lba+1<<32-1)
	if u.can.Extents == nil {
		run.Blocks = uint32(end - lba)
		return run, nil
	}
	at := lba
	for at < end && (at == lba || *budget > 0) {
		e, err := u.can.Extents.ExtentAt(int64(at << u.shift))
		if err != nil {
			return run, err
		}
		status, next := u.statusOf(e)
		if at == lba {
			run.Status = status
		} else if status != run.Status {
			break
		}
		at = next
		if e.Data {
			*budget -= e.LengthBytes
		} else {
			*budget -= e.LengthBytes >> statusHoleShift
		}
	}
	run.Blocks = uint32(min(at, end) - lba)
	return run, nil
}

// statusOf turns an extent that begins on a block into a status and the block
// behind it.
func (u *Unit) statusOf(e media.Extent) (status scsi.ProvisioningStatus, next uint64) {
	first := uint64(e.OffsetBytes) >> u.shift
	if e.Data {
		return scsi.StatusMapped, max(uint64(e.End()+1<<u.shift-1)>>u.shift, first+1)
	}
	if next = uint64(e.End()) >> u.shift; next == first {
		return scsi.StatusMapped, first + 1
	}
	return scsi.StatusDeallocated, next
}
