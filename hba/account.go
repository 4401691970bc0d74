package hba

import (
	"bytes"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

// Account. A medium that is to prove what a power cut left has to know what rules, in
// its place, have told hosts, and what became of writes on their way to it. See
// media.Promiser.

// promiserOf is the medium of a unit, which may be nil, if it keeps account of promises,
// or nil.
func promiserOf(unit *target.Unit) media.Promiser {
	if unit == nil {
		return nil
	}
	m, _ := unit.Medium().(media.Promiser)
	return m
}

// tellBroken tells the medium which hostile rules a command has met, except those about
// writes and flushes, which are reported when the command is answered. A unit without
// power does nothing that rules could spoil, nor does it for a lost nexus; they are
// checked in this order.
func (d *Device) tellBroken(u fault.Unit, nexus uint8, dec *fault.Decision) {
	unit := d.unitAt(u)
	if unit == nil || unit.IsOff() || unit.HasLost(nexus) {
		return
	}
	for _, f := range dec.Fired() {
		if !f.Hostile() {
			continue
		}
		kind := f.Rule().Action.Kind
		// The others are told here.
		//exhaustive:ignore
		switch kind {
		case fault.KindLostWrite, fault.KindMisdirected, fault.KindIgnoreFUA, fault.KindLieAboutFlush:
			continue
		}
		if m := promiserOf(unit); m != nil {
			m.Broke(string(kind))
		}
	}
}

// neverDone answers a command as done without executing it. A unit without power gives
// no such answer, nor does it to a command from before it lost its power.
func (x *executor) neverDone(d *Device, rec *record, out *Completion) {
	h, c := rec.hold, &rec.cmd
	unit := d.unitAt(h.unit) // once: it may be plugged in or out meanwhile
	if unit != nil && (unit.IsOff() || isForgotten(rec.powerCycle, unit) || unit.HasLost(c.Nexus)) {
		d.setNoPower(out, c.Tag, h.unit)
		return
	}
	out.DataBytes = c.DataBytes
	m := promiserOf(unit)
	if m == nil {
		return
	}
	if h.command.Op == fault.OpFlush {
		m.PromisedAll()
		return
	}
	m.Broke(string(fault.KindLostWrite))
	if x.gather(d.iommu, c, dma.Read) == CodeExecuted {
		x.lostWrite(m, h, c, h.command.FUA || !unit.WriteCache())
	}
}

// lostWrite tells m what the blocks that a lost command changes were to hold.
func (x *executor) lostWrite(m media.Promiser, h *hold, c *Command, durable bool) {
	size := int64(h.unit.BlockBytes)
	lba, blocks, _ := scsi.BlockRange(&c.CDB)
	off, n := int64(lba)*size, int64(blocks)*size
	// No other command is lost this way.
	//exhaustive:ignore
	switch h.command.Op {
	case fault.OpWrite:
		if int64(c.DataBytes) >= n {
			m.LostWrite(off, n, x.segments, durable)
		}
	case fault.OpCompareWrite:
		if int64(c.DataBytes) >= 2*n {
			m.LostWrite(off, n, behind(x.segments, int(n)), durable)
		}
	case fault.OpZero:
		// Nothing is known of blocks other than zeros; no client's command writes such
		// blocks this way.
		if len(bytes.Trim(x.front(int(size)), "\x00")) == 0 {
			m.LostWrite(off, n, nil, durable)
		}
	case fault.OpTrim:
		list := x.unmapList()
		left, ok := scsi.ParseUnmapHeader(list)
		if !ok {
			return
		}
		for list = list[scsi.UnmapHeaderBytes:]; left >= scsi.UnmapDescriptorBytes; left -= scsi.UnmapDescriptorBytes {
			lba, blocks, ok := scsi.ParseUnmapDescriptor(list)
			if !ok {
				return
			}
			m.LostWrite(int64(lba)*size, int64(blocks)*size, nil, durable)
			list = list[scsi.UnmapDescriptorBytes:]
		}
	}
}

// behind returns the segments without their first n bytes.
func behind(segments [][]byte, n int) (rest [][]byte) {
	for _, s := range segments {
		skip := min(n, len(s))
		n -= skip
		if skip < len(s) {
			rest = append(rest, s[skip:])
		}
	}
	return rest
}

// actIgnoredFUA is what reports call a FUA that was ignored.
const actIgnoredFUA = "ignored-fua"

// ignoredByRead tells the medium of a READ with FUA that was executed as one without: it
// may have brought what is not durable.
func (d *Device) ignoredByRead(h *hold) {
	if m := promiserOf(d.unitAt(h.unit)); m != nil {
		m.Broke(actIgnoredFUA)
	}
}

// doneOtherwise tells the medium of a write, executed as c says, that went elsewhere
// than intended or was made less durable.
func (d *Device) doneOtherwise(h *hold, c *Command, ignored bool) {
	lba, blocks, ok := scsi.BlockRange(&c.CDB)
	m := promiserOf(d.unitAt(h.unit))
	if !ok || m == nil {
		return
	}
	size := int64(h.unit.BlockBytes)
	if h.decision.Redirect {
		m.Broke(string(fault.KindMisdirected))
		m.Misdirected(int64(lba)*size, int64(h.command.LBA)*size, int64(blocks)*size, ignored)
		return
	}
	m.PromisedRange(int64(lba)*size, int64(blocks)*size)
}

// putSense makes c end with CHECK CONDITION, in the format that the unit uses.
func (d *Device) putSense(c *Completion, u fault.Unit, s *scsi.Sense) {
	c.ScsiStatus = uint8(scsi.StatusCheckCondition)
	put := scsi.PutFixedSense
	if unit := d.unitAt(u); unit != nil && unit.DescriptorSense() {
		put = scsi.PutDescriptorSense
	}
	c.SenseBytes = uint8(put(c.Sense[:], s))
}

// setNoPower makes c the completion of a command of a unit that has lost its power.
func (d *Device) setNoPower(c *Completion, tag uint32, u fault.Unit) {
	c.set(tag, CodeExecuted)
	c.Flags = CompletionInjected
	d.putSense(c, u, &scsi.Sense{Key: scsi.KeyNotReady, Additional: scsi.NotReadyCauseNotReportable})
}
