package fault

import (
	"math"

	"github.com/vhbad/vhbad/internal/scsi"
)

// A Command is what a rule can know of a command.
type Command struct {
	Op Op
	// LBA and Blocks are its range, if it is Ranged.
	LBA, Blocks uint64
	Ranged      bool
	// Trimmed is how many blocks an UNMAP names: fewer than Blocks if its list has gaps.
	Trimmed uint64
	FUA     bool
	// Connection is the GROUP NUMBER of its CDB, or zero.
	Connection uint8
	// Tag is the device's name for the command. It is not matched, only reported.
	Tag uint32
	// Mark is the text of a mark, for OpMark, and Timer the rule whose time has come,
	// for OpTime.
	Mark  string
	Timer *Fault
}

// Describe describes a CDB. The range of an UNMAP is in its data: see AddUnmap. A PRE-FETCH
// of 0 blocks, which stands for all up to the end, comes out as that.
func Describe(cdb *[scsi.CDBMaxBytes]byte) Command {
	c := Command{Op: OpOf(cdb)}
	if c.Op&opsRanged != 0 && c.Op != OpTrim {
		lba, blocks, ok := scsi.BlockRange(cdb)
		c.LBA, c.Blocks, c.Ranged = lba, uint64(blocks), ok
	}
	if c.Op&(OpRead|OpWrite|OpCompareWrite) != 0 && scsi.CDBBytes(scsi.Opcode(cdb[0])) > 6 {
		c.FUA = cdb[1]&scsi.CDBFUA != 0
	}
	c.Connection = scsi.Group(cdb)
	return c
}

// Describe is Describe for a command to the plan's unit, which knows how far one goes that
// goes up to the end.
func (p *Plan) Describe(cdb *[scsi.CDBMaxBytes]byte) Command {
	c := Describe(cdb)
	if c.Op == OpCache && c.Blocks == 0 && c.LBA < p.unit.Blocks {
		c.Blocks = p.unit.Blocks - c.LBA
	}
	return c
}

// AddUnmap takes the parameter list of an UNMAP, or its beginning: the command's
// range is from the first to the last of its blocks.
func (c *Command) AddUnmap(list []byte) {
	n, ok := scsi.ParseUnmapHeader(list)
	if !ok {
		return
	}
	first, end := uint64(math.MaxUint64), uint64(0)
	for list = list[scsi.UnmapHeaderBytes:]; n >= scsi.UnmapDescriptorBytes; n -= scsi.UnmapDescriptorBytes {
		lba, blocks, ok := scsi.ParseUnmapDescriptor(list)
		if !ok {
			break
		}
		count := min(uint64(blocks), math.MaxUint64-lba) // of blocks that no unit has
		first, end = min(first, lba), max(end, lba+count)
		c.Trimmed += count
		list = list[scsi.UnmapDescriptorBytes:]
	}
	if first < end {
		c.LBA, c.Blocks, c.Ranged = first, end-first, true
	}
}

func (c *Command) span() span { return span{c.LBA, c.LBA + c.Blocks} }
