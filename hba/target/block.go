package target

import "github.com/vhbad/vhbad/internal/scsi"

// capacity is what READ CAPACITY tells.
func (u *Unit) capacity() *scsi.Capacity {
	exponent := uint8(0)
	for u.config.BlockBytes<<exponent < u.config.PhysicalBlockBytes {
		exponent++
	}
	return &scsi.Capacity{
		Blocks: u.blocks.Load(), BlockBytes: u.config.BlockBytes, PhysicalExponent: exponent,
		Provisioned: u.provisioned, ReadZeros: u.provisioned,
	}
}

// readCapacity10 is READ CAPACITY(10); SBC-3 5.15.
func (u *Unit) readCapacity10(t *Task) {
	if t.CDB[8]&1 == 0 && [4]byte(t.CDB[2:6]) != [4]byte{} { // an address only with PMI, which is obsolete
		u.invalidCDB(t, 2)
		return
	}
	var b [scsi.ReadCapacity10Bytes]byte
	scsi.PutReadCapacity10Data(b[:], u.capacity())
	in := t.dataIn(scsi.ReadCapacity10Bytes)
	in.put(b[:])
}

// serviceActionIn is READ CAPACITY(16) and GET LBA STATUS.
func (u *Unit) serviceActionIn(t *Task, mayBlock bool) (done bool) {
	switch scsi.ServiceAction(t.CDB[1] & 0x1f) {
	case scsi.ActionReadCapacity16:
		if t.CDB[14]&1 == 0 && [8]byte(t.CDB[2:10]) != [8]byte{} { // as in READ CAPACITY(10)
			u.invalidCDB(t, 2)
			return true
		}
		n, _ := scsi.AllocationBytes(&t.CDB)
		var b [scsi.ReadCapacity16Bytes]byte
		scsi.PutReadCapacity16Data(b[:], u.capacity())
		in := t.dataIn(n)
		in.put(b[:])
	case scsi.ActionGetLBAStatus:
		return u.getLBAStatus(t, mayBlock)
	default:
		u.invalidCDB(t, 1)
	}
	return true
}

// rangeToEnd returns the range of a command in which 0 blocks mean everything up to the
// end. It ends t if the range is not on the unit.
func (u *Unit) rangeToEnd(t *Task) (lba, blocks uint64, ok bool) {
	lba, n, _ := scsi.BlockRange(&t.CDB)
	if !u.inRange(t, lba, uint64(n)) {
		return 0, 0, false
	}
	blocks = uint64(n)
	if blocks == 0 {
		blocks = u.blocks.Load() - lba
	}
	return lba, blocks, true
}

// synchronizeCache is SYNCHRONIZE CACHE (10) and (16); SBC-3 5.26. The medium flushes as
// a whole, so the range is only checked. IMMED permits an answer before the flush has
// ended; we do not make use of that, so that GOOD always means durable.
func (u *Unit) synchronizeCache(t *Task, mayBlock bool) (done bool) {
	if _, _, ok := u.rangeToEnd(t); !ok {
		return true
	}
	if !u.mayRun(mayBlock, 0) {
		return false
	}
	if err := u.synchronized(t, u.medium.Flush()); err != nil {
		u.flushFailed(t, err)
	}
	return true
}

// preFetch is PRE-FETCH (10) and (16); SBC-3 5.8. CONDITION MET says that the
// blocks fit into the cache; a medium without one to fill gets GOOD.
func (u *Unit) preFetch(t *Task, mayBlock bool) (done bool) {
	lba, blocks, ok := u.rangeToEnd(t)
	if !ok {
		return true
	}
	switch {
	case u.can.Prefetch != nil:
		if !u.mayRun(mayBlock, 0) {
			return false
		}
		if err := u.can.Prefetch.Prefetch(int64(lba<<u.shift), int64(blocks<<u.shift)); err != nil {
			u.rangeFailed(t, err, scsi.UnrecoveredReadError, lba, lba, blocks)
			return true
		}
	case !u.neverBlocks:
		return true
	}
	t.Status = scsi.StatusConditionMet
	return true
}

// verify is VERIFY (10), (12) and (16); SBC-3 5.31. The address of a block that differs
// is reported in the information field.
func (u *Unit) verify(t *Task, mayBlock bool) (done bool) {
	n := scsi.CDBBytes(scsi.Opcode(t.CDB[0]))
	check := scsi.Bytchk(t.CDB[1] & scsi.CDBBytchkMask >> 1)
	if t.CDB[1]&scsi.CDBProtectMask != 0 || check == 2 {
		u.invalidCDB(t, 1)
		return true
	}
	lba, blocks, _ := scsi.BlockRange(&t.CDB)
	if !u.inRange(t, lba, uint64(blocks)) {
		return true
	}
	if blocks > u.maxBlocks {
		u.invalidCDB(t, transferLengthField(n))
		return true
	}
	length := int(blocks) << u.shift
	dataOut := 0
	switch check {
	case scsi.BytchkNone:
	case scsi.BytchkAll:
		dataOut = length
	case scsi.BytchkSingle:
		dataOut = min(length, 1<<u.shift)
	}
	if dataOut > 0 && (t.Direction != DataOut || t.DataBytes < dataOut) {
		u.invalidData(t)
		return true
	}
	if !u.mayRun(mayBlock, int64(length)) {
		return false
	}
	found, wanted := getScratch(), getScratch()
	defer putScratch(found)
	defer putScratch(wanted)
	for at := 0; at < length; {
		p := found[:min(length-at, scratchBytes)]
		if _, err := u.medium.ReadAt(p, int64(lba<<u.shift)+int64(at)); err != nil {
			u.mediumFailed(t, err, scsi.UnrecoveredReadError, lba+uint64(at)>>u.shift)
			return true
		}
		if dataOut > 0 {
			w := wanted[:len(p)]
			if check == scsi.BytchkSingle {
				t.fillPattern(w, 1<<u.shift)
			} else {
				t.dataOut(w, at)
			}
			if i := firstDifference(p, w); i >= 0 {
				u.fail(t, scsi.Sense{
					Key: scsi.KeyMiscompare, Additional: scsi.MiscompareDuringVerify,
					Information: lba + uint64(at+i)>>u.shift, InformationValid: true,
				})
				return true
			}
		}
		at += len(p)
	}
	t.TransferredBytes = dataOut
	return true
}

// fillPattern fills dst with copies of the first blockBytes of data-out.
func (t *Task) fillPattern(dst []byte, blockBytes int) {
	t.dataOut(dst[:blockBytes], 0)
	for n := blockBytes; n < len(dst); n *= 2 {
		copy(dst[n:], dst[:n])
	}
}

// firstDifference is the index of the first byte that differs, or -1.
func firstDifference(a, b []byte) int {
	if string(a) == string(b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// compareAndWrite is COMPARE AND WRITE; SBC-3 5.2. The offset of the first byte
// that differs is in the information field.
func (u *Unit) compareAndWrite(t *Task, mayBlock bool) (done bool) {
	switch {
	case u.config.ReadOnly:
		u.writeProtected(t)
		return true
	case u.can.CompareAndWrite == nil:
		u.failCode(t, scsi.KeyIllegalRequest, scsi.InvalidCommandOperationCode)
		return true
	case t.CDB[1]&scsi.CDBProtectMask != 0:
		u.invalidCDB(t, 1)
		return true
	}
	lba, blocks, _ := scsi.BlockRange(&t.CDB)
	if !u.inRange(t, lba, uint64(blocks)) {
		return true
	}
	if blocks > uint32(u.maxCompare) {
		u.invalidCDB(t, 13)
		return true
	}
	length := int(blocks) << u.shift
	if length > 0 && (t.Direction != DataOut || t.DataBytes < 2*length) {
		u.invalidData(t)
		return true
	}
	if !u.mayRun(mayBlock, int64(length)) {
		return false
	}
	s := getScratch()
	defer putScratch(s)
	t.dataOut(s[:2*length], 0)
	different, err := u.can.CompareAndWrite.CompareAndWriteAt(s[:length], s[length:2*length], int64(lba<<u.shift))
	switch {
	case err != nil:
		u.mediumFailed(t, err, scsi.WriteError, lba)
		return true
	case different >= 0:
		t.TransferredBytes = 2 * length
		u.fail(t, scsi.Sense{
			Key: scsi.KeyMiscompare, Additional: scsi.MiscompareDuringVerify,
			Information: uint64(different), InformationValid: true,
		})
		return true
	}
	t.TransferredBytes = 2 * length
	if t.CDB[1]&scsi.CDBFUA != 0 || u.writeThrough.Load() {
		u.flushFor(t)
	}
	return true
}
