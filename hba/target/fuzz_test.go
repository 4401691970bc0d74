package target_test

import (
	"bytes"
	"testing"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// FuzzExecute gives a unit any CDB with any buffers: no panic, nothing written
// outside the buffers, and a status that goes with its sense data.
func FuzzExecute(f *testing.F) {
	for _, p := range []put{
		read16(0, 2), write16(3, 1), scsi.PutTestUnitReady, scsi.PutReadCapacity10,
		func(c *[16]byte) int { return scsi.PutInquiryVPD(c, scsi.VPDBlockLimits, 64) },
		func(c *[16]byte) int { return scsi.PutModeSense10(c, scsi.ModePageAll, false, 200) },
		func(c *[16]byte) int { return scsi.PutGetLBAStatus(c, 0, 4096) },
		func(c *[16]byte) int { return scsi.PutReportLUNs(c, 64) },
		func(c *[16]byte) int { return scsi.PutUnmap(c, true, 24) },
		func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 8, true, false, true) },
		func(c *[16]byte) int { return scsi.PutCompareAndWrite(c, 1, 1, true, false) },
		func(c *[16]byte) int { return scsi.PutVerify16(c, 1, 1, scsi.BytchkSingle) },
		func(c *[16]byte) int { return scsi.PutStartStopUnit(c, false, false) },
	} {
		var cdb [scsi.CDBMaxBytes]byte
		n := p(&cdb)
		f.Add(cdb[:n], uint8(target.DataIn), uint16(700), uint16(300), []byte{1})
		f.Add(cdb[:n], uint8(target.DataOut), uint16(1024), uint16(7), unmapList(1, 5))
	}
	var cdb [scsi.CDBMaxBytes]byte
	f.Add(cdb[:scsi.PutModeSelect6(&cdb, 24)], uint8(target.DataOut), uint16(24), uint16(7), []byte("\x00\x00\x00\x00\x08\x12\x00\x00\x00\x00\x00\x00"))
	f.Add(cdb[:scsi.PutModeSelect10(&cdb, 36)], uint8(target.DataOut), uint16(36), uint16(9), []byte("\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, cdb []byte, direction uint8, dataBytes, cut uint16, pattern []byte) {
		m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 256 << 10, LimitBytes: 128 << 10})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}()
		u := newUnit(t, m, target.Config{})
		tgt := target.NewTarget()
		if err := tgt.AddUnit(1, u); err != nil {
			t.Fatal(err)
		}
		n := int(dataBytes)
		whole := filled(n+16, 0xa5)
		buf := whole[8 : 8+n : 8+n]
		for i := range buf {
			if len(pattern) > 0 {
				buf[i] = pattern[i%len(pattern)]
			}
		}
		before := bytes.Clone(buf)
		at := min(int(cut), n)
		for lun := range uint8(2) {
			task := &target.Task{
				CDBBytes: min(len(cdb), scsi.CDBMaxBytes), Direction: target.Direction(direction % 3),
				Segments: [][]byte{buf[:at:at], buf[at:]}, DataBytes: n,
			}
			copy(task.CDB[:], cdb)
			if !tgt.Execute(lun, task, true) {
				t.Fatalf("%v: not done though it may block", task)
			}
			switch {
			case task.TransferredBytes < 0 || task.TransferredBytes > n:
				t.Errorf("%v: of %d bytes", task, n)
			case (task.Status == scsi.StatusCheckCondition) != (task.SenseBytes > 0):
				t.Errorf("%v: %d bytes of sense data", task, task.SenseBytes)
			case task.Direction != target.DataIn && !bytes.Equal(buf, before):
				t.Errorf("%v: wrote to buffers that are not its own", task)
			}
			if s, ok := scsi.ParseSense(task.Sense[:task.SenseBytes]); task.SenseBytes > 0 && (!ok || s.Key == scsi.KeyNoSense) {
				t.Errorf("%v: sense %+v", task, s)
			}
		}
		if !bytes.Equal(whole[:8], filled(8, 0xa5)) || !bytes.Equal(whole[8+n:], filled(8, 0xa5)) {
			t.Error("wrote beside the buffers")
		}
	})
}
