package target

import "github.com/vhbad/vhbad/internal/scsi"

// mode is what the mode pages say, with WCE as given.
func (u *Unit) mode(writeCache bool) scsi.Mode {
	return scsi.Mode{
		WriteProtected: u.config.ReadOnly, DPOFUA: true, WriteCache: writeCache, DescriptorSense: u.DescriptorSense(),
	}
}

// WriteCache returns the current WCE, which hosts can change.
func (u *Unit) WriteCache() bool { return !u.writeThrough.Load() }

// modeSense is MODE SENSE (6) and (10); SPC-4 6.13, 6.14.
func (u *Unit) modeSense(t *Task, ten bool) {
	n, _ := scsi.AllocationBytes(&t.CDB)
	r := scsi.ModeRequest{
		Ten:        ten,
		Page:       scsi.ModePage(t.CDB[2] & 0x3f),
		Control:    scsi.PageControl(t.CDB[2] >> 6),
		Descriptor: t.CDB[1]&scsi.CDBDBD == 0,
		LongLBA:    ten && t.CDB[1]&scsi.CDBLLBAA != 0,
		Blocks:     u.blocks.Load(),
		BlockBytes: u.config.BlockBytes,
		FixedWCE:   u.config.NoCache,
	}
	if r.Control == scsi.PageControlSaved {
		u.failCode(t, scsi.KeyIllegalRequest, scsi.SavingParametersNotSupported)
		return
	}
	if sub := t.CDB[3]; sub != 0 && sub != 0xff { // no page has sub-pages
		u.invalidCDB(t, 3)
		return
	}
	m := u.mode(u.WriteCache())
	if r.Control == scsi.PageControlDefault {
		m.WriteCache = u.config.WriteCache
	}
	var b [scsi.ModeSenseMaxBytes]byte
	length, ok := scsi.PutModeSenseData(b[:], &m, &r)
	if !ok {
		u.invalidCDB(t, 2)
		return
	}
	in := t.dataIn(n)
	in.put(b[:length])
}

// modeSelect is MODE SELECT (6) and (10); SPC-4 6.11, 6.12. WCE is all that it can
// change. When WCE is cleared, first everything in the cache becomes durable, and every
// write from then on becomes durable before it is done.
func (u *Unit) modeSelect(t *Task, ten, mayBlock bool) (done bool) {
	if t.CDB[1]&scsi.CDBSP != 0 || t.CDB[1]&scsi.CDBPF == 0 {
		u.invalidCDB(t, 1)
		return true
	}
	n, _ := scsi.AllocationBytes(&t.CDB)
	if n == 0 {
		return true
	}
	if t.Direction != DataOut || t.DataBytes < int(n) {
		u.invalidData(t)
		return true
	}
	if n > scsi.ModeSenseMaxBytes { // more than all pages there are, once each
		u.failCode(t, scsi.KeyIllegalRequest, scsi.ParameterListLengthError)
		return true
	}
	var b [scsi.ModeSenseMaxBytes]byte
	t.dataOut(b[:n], 0)
	m, wrong, field := scsi.ParseModeSelect(b[:n], u.mode(u.WriteCache()), &scsi.ModeRequest{
		Ten: ten, Blocks: u.blocks.Load(), BlockBytes: u.config.BlockBytes, FixedWCE: u.config.NoCache,
	})
	switch wrong {
	case scsi.ModeSelectTruncated:
		u.failCode(t, scsi.KeyIllegalRequest, scsi.ParameterListLengthError)
		return true
	case scsi.ModeSelectField:
		u.invalidList(t, field)
		return true
	case scsi.ModeSelectOK:
	}
	if !m.WriteCache && u.WriteCache() {
		if !u.mayRun(mayBlock, 0) {
			return false
		}
		u.setWriteThrough(t, true) // before the flush, so that no write is between the two
		if !u.flushFor(t) {
			u.setWriteThrough(t, false)
			return true
		}
	}
	u.setWriteThrough(t, !m.WriteCache)
	t.TransferredBytes = int(n)
	return true
}

// setWriteThrough sets writeThrough on behalf of t, unless the power has gone since t
// came.
func (u *Unit) setWriteThrough(t *Task, on bool) {
	u.cycleMu.Lock()
	defer u.cycleMu.Unlock()
	if u.powerCycles.Load() == t.cycle {
		u.writeThrough.Store(on)
	}
}
