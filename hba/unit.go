package hba

import "sync/atomic"

// Direction is which way a command's data goes.
type Direction uint8

// Directions.
const (
	NoData Direction = iota
	DataIn
	DataOut
)

// A Task is one SCSI command in execution.
type Task struct {
	CDB              [16]byte
	CDBBytes         int
	Direction        Direction
	Segments         [][]byte
	DataBytes        int
	Status           uint8
	Sense            [CompletionSenseBytes]byte
	SenseBytes       int
	TransferredBytes int
}

// A Unit executes SCSI commands.
type Unit interface {
	// Execute runs t, or reports false: it would block and must not.
	Execute(t *Task, mayBlock bool) (done bool)
	// Reset tells the unit that it has been reset.
	Reset()
}

// A unitTable holds the units of one target address.
type unitTable struct{ units [MaxLuns]atomic.Pointer[Unit] }

// Unit returns the unit at lun, or nil.
func (t *unitTable) Unit(lun uint8) Unit {
	if int(lun) >= len(t.units) {
		return nil
	}
	if u := t.units[lun].Load(); u != nil {
		return *u
	}
	return nil
}

func (t *unitTable) AddUnit(lun uint8, u Unit) error {
	t.units[lun].Store(&u)
	return nil
}

func (t *unitTable) RemoveUnit(lun uint8) error {
	t.units[lun].Store(nil)
	return nil
}
