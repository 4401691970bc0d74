package target

import (
	"fmt"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

// A Direction says which way a command's data go.
type Direction uint8

// Directions.
const (
	NoData  Direction = iota
	DataIn            // the unit fills the buffers
	DataOut           // the unit reads the buffers
)

// SenseMaxBytes is the room for sense data in a Task.
const SenseMaxBytes = 40

// A Task is one command being executed. The device makes it once, sets the upper fields
// anew for each command and reads the lower ones when Execute reports that it is done.
// The unit keeps nothing of it.
type Task struct {
	CDB      [scsi.CDBMaxBytes]byte
	CDBBytes int
	// Direction is that of the data buffers, according to the transport.
	Direction Direction
	// Segments are the data buffers in order. They hold DataBytes bytes.
	Segments  [][]byte
	DataBytes int
	// Pages may be filled with the DataBytes bytes instead of Segments, by a unit whose
	// data are on pages that it can lend.
	Pages dma.Pages
	// PowerCycle is Unit.PowerCycle as it was when the command came, if it has waited
	// since; zero otherwise.
	PowerCycle uint32
	// Nexus is the number of the I_T nexus that the command belongs to, or zero.
	Nexus uint8

	Status scsi.Status
	// TransferredBytes is how much of the buffers was filled or read.
	TransferredBytes int
	// SenseBytes of Sense are sense data if the status is CHECK CONDITION.
	SenseBytes int
	Sense      [SenseMaxBytes]byte
	// NoPower: the command failed because the unit's power, or its nexus, was taken
	// away.
	NoPower bool

	// cycle is Unit.powerCycles as execution began, and losses Unit.losses.
	cycle, losses uint32
}

// String describes the command and its outcome.
func (t *Task) String() string {
	return fmt.Sprintf("%v % x, %d data bytes: %v, %d transferred",
		scsi.Opcode(t.CDB[0]), t.CDB[:min(max(t.CDBBytes, 0), len(t.CDB))], t.DataBytes, t.Status, t.TransferredBytes)
}

// fail ends the command with CHECK CONDITION.
func (t *Task) fail(s scsi.Sense, descriptor bool) {
	t.Status = scsi.StatusCheckCondition
	if descriptor {
		t.SenseBytes = scsi.PutDescriptorSense(t.Sense[:], &s)
	} else {
		t.SenseBytes = scsi.PutFixedSense(t.Sense[:], &s)
	}
}

// A dataIn puts parameter data into a task's buffers, piece by piece, up to the
// allocation length.
type dataIn struct {
	t       *Task
	segment int // index of the buffer that is being filled
	at      int // bytes of it that are full
	left    int // bytes that may still be put
}

// dataIn returns a writer for as much as both the allocation length and the buffers can
// hold.
func (t *Task) dataIn(allocationBytes uint32) dataIn {
	d := dataIn{t: t}
	if t.Direction == DataIn {
		d.left = int(min(int64(allocationBytes), int64(t.DataBytes)))
	}
	return d
}

// put adds b, or what there is room for.
func (d *dataIn) put(b []byte) {
	b = b[:min(len(b), d.left)]
	d.left -= len(b)
	d.t.TransferredBytes += len(b)
	for len(b) > 0 {
		s := d.t.Segments[d.segment]
		n := copy(s[d.at:], b)
		b = b[n:]
		d.at += n
		if d.at == len(s) {
			d.segment, d.at = d.segment+1, 0
		}
	}
}

// dataOut copies data-out from offset off into dst, which must be within it.
func (t *Task) dataOut(dst []byte, off int) {
	for _, s := range t.Segments {
		if off >= len(s) {
			off -= len(s)
			continue
		}
		n := copy(dst, s[off:])
		dst, off = dst[n:], 0
		if len(dst) == 0 {
			return
		}
	}
	if len(dst) != 0 {
		panic(fmt.Sprintf("target: %d bytes short of DataBytes in the segments of %v", len(dst), t))
	}
}
