package hba_test

import (
	"encoding/binary"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/media"
)

// stubUnit executes READ (16), WRITE (16), SYNCHRONIZE CACHE (16) and TEST UNIT READY.
type stubUnit struct {
	m     media.Media
	never bool
}

func newUnit(m media.Media) (hba.Unit, error) {
	n, ok := m.(media.NeverBlocker)
	return &stubUnit{m, ok && n.NeverBlocks()}, nil
}

func (u *stubUnit) Reset() {}

func (u *stubUnit) Execute(t *hba.Task, mayBlock bool) bool {
	t.SenseBytes, t.Status, t.TransferredBytes = 0, 0, 0
	if t.CDB[0] == 0 {
		return true
	}
	if !mayBlock && !u.never {
		return false
	}
	off := int64(binary.BigEndian.Uint64(t.CDB[2:])) * 512
	var err error
	switch t.CDB[0] {
	case 0x88, 0x8a:
		for _, s := range t.Segments {
			if t.CDB[0] == 0x88 {
				_, err = u.m.ReadAt(s, off)
			} else {
				_, err = u.m.WriteAt(s, off)
			}
			if err != nil {
				break
			}
			off += int64(len(s))
			t.TransferredBytes += len(s)
		}
	case 0x91:
		err = u.m.Flush()
	}
	if err != nil {
		t.Status, t.SenseBytes = 2, 18
		t.Sense[0], t.Sense[2] = 0x70, 3
	}
	return true
}
