package target_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// address is a place in a target.
type address struct {
	target *target.Target
	lun    uint8
}

func (a address) Execute(t *target.Task, mayBlock bool) bool {
	return a.target.Execute(a.lun, t, mayBlock)
}

func reportLUNs(t *testing.T, at executor) []uint8 {
	t.Helper()
	b := make([]byte, 8+8*256)
	task := wantGood(t, at, func(c *[16]byte) int { return scsi.PutReportLUNs(c, uint32(len(b))) }, target.DataIn, b)
	var luns [256]bool
	n, ok := scsi.ParseReportLUNs(b[:task.TransferredBytes], &luns)
	if !ok || task.TransferredBytes != 8+8*n {
		t.Fatalf("%d units in %d bytes", n, task.TransferredBytes)
	}
	var list []uint8
	for lun, there := range luns {
		if there {
			list = append(list, uint8(lun))
		}
	}
	return list
}

func equal(a, b []uint8) bool { return string(a) == string(b) }

func TestTarget_Units(t *testing.T) {
	tgt := target.NewTarget()
	a, _ := newMemoryUnit(t, 1<<20, target.Config{Serial: "A"})
	b, _ := newMemoryUnit(t, 1<<20, target.Config{Serial: "B"})
	if err := tgt.AddUnit(0, a); err != nil {
		t.Fatal(err)
	}
	if err := tgt.AddUnit(0, b); err == nil {
		t.Error("two units at one address")
	}
	if err := tgt.AddUnit(1, a); err == nil {
		t.Error("one unit at two addresses")
	}
	if err := tgt.AddUnit(255, b); err != nil {
		t.Fatal(err)
	}
	if tgt.Unit(0) != a || tgt.Unit(255) != b || tgt.Unit(1) != nil {
		t.Error("units are not where they were put")
	}
	// Nobody had seen the list, so its change was no news.
	wantGood(t, address{tgt, 0}, scsi.PutTestUnitReady, target.NoData)
	for _, at := range []address{{tgt, 0}, {tgt, 255}, {tgt, 7}} {
		if got := reportLUNs(t, at); !equal(got, []uint8{0, 255}) {
			t.Errorf("units at %d: %v", at.lun, got)
		}
	}
	if err := tgt.RemoveUnit(255); err != nil {
		t.Fatal(err)
	}
	if err := tgt.RemoveUnit(255); err == nil {
		t.Error("removed twice")
	}
	changed := scsi.Sense{Key: scsi.KeyUnitAttention, Additional: scsi.ReportedLUNsDataHasChanged}
	buf := make([]byte, 36)
	wantGood(t, address{tgt, 0}, func(c *[16]byte) int { return scsi.PutInquiry(c, 36) }, target.DataIn, buf)
	wantSense(t, run(t, address{tgt, 0}, read16(0, 1), target.DataIn, make([]byte, 512)), changed)
	wantGood(t, address{tgt, 0}, read16(0, 1), target.DataIn, make([]byte, 512))
	if err := tgt.AddUnit(3, b); err != nil {
		t.Fatal(err)
	}
	wantGood(t, address{tgt, 3}, scsi.PutTestUnitReady, target.NoData) // the new one has none
	if got := reportLUNs(t, address{tgt, 3}); !equal(got, []uint8{0, 3}) {
		t.Errorf("units: %v", got)
	}
	wantGood(t, address{tgt, 0}, scsi.PutTestUnitReady, target.NoData) // reading the list clears it everywhere
}

func TestTarget_NoUnit(t *testing.T) {
	tgt := target.NewTarget()
	at := address{tgt, 0}
	buf := make([]byte, 96)
	wantGood(t, at, func(c *[16]byte) int { return scsi.PutInquiry(c, 96) }, target.DataIn, buf)
	if q, ok := scsi.ParseInquiryData(buf); !ok || q.Present() || q.Peripheral != scsi.PeripheralAbsent {
		t.Errorf("inquiry data %+v", q)
	}
	if got := reportLUNs(t, at); len(got) != 0 {
		t.Errorf("units: %v", got)
	}
	task := wantGood(t, at, func(c *[16]byte) int { return scsi.PutRequestSense(c, false, 96) }, target.DataIn, buf)
	if s, ok := scsi.ParseSense(buf[:task.TransferredBytes]); !ok || s != illegal(scsi.LogicalUnitNotSupported) {
		t.Errorf("sense %+v", s)
	}
	notSupported := illegal(scsi.LogicalUnitNotSupported)
	wantSense(t, run(t, at, read16(0, 1), target.DataIn, make([]byte, 512)), notSupported)
	wantSense(t, run(t, at, scsi.PutTestUnitReady, target.NoData), notSupported)
	wantSense(t, run(t, at, raw(0x12), target.DataIn, buf), notSupported)
	wantSense(t, run(t, at, raw(0x12, 1, 0, 0, 96, 0), target.DataIn, buf), field(1))
}

func TestReportLUNs_Refused(t *testing.T) {
	tgt := target.NewTarget()
	u, _ := newMemoryUnit(t, 1<<20, target.Config{})
	if got := reportLUNs(t, u); !equal(got, []uint8{0}) {
		t.Errorf("a unit by itself: %v", got)
	}
	if err := tgt.AddUnit(5, u); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	for _, at := range []executor{u, address{tgt, 0}} {
		wantSense(t, run(t, at, raw(0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0), target.DataIn, buf), field(6))
		wantSense(t, run(t, at, raw(0xa0, 0, 3, 0, 0, 0, 0, 0, 0, 64, 0, 0), target.DataIn, buf), field(2))
		task := wantGood(t, at, raw(0xa0, 0, 1, 0, 0, 0, 0, 0, 0, 64, 0, 0), target.DataIn, buf)
		if task.TransferredBytes != 8 {
			t.Errorf("well known units: %d bytes", task.TransferredBytes)
		}
	}
}

func TestAttentions(t *testing.T) {
	u, m := newMemoryUnit(t, 1<<20, target.Config{})
	tgt := target.NewTarget()
	if err := tgt.AddUnit(0, u); err != nil {
		t.Fatal(err)
	}
	reportLUNs(t, u)
	other, _ := newMemoryUnit(t, 1<<20, target.Config{Serial: "B"})
	if err := tgt.AddUnit(1, other); err != nil {
		t.Fatal(err)
	}
	if err := u.Resize(2 << 20); err != nil {
		t.Fatal(err)
	}
	u.Reset()
	// One at a time, in order of priority.
	for _, want := range []scsi.Additional{
		scsi.BusDeviceResetFunctionOccurred, scsi.ReportedLUNsDataHasChanged, scsi.CapacityDataHasChanged,
	} {
		wantSense(t, run(t, u, write16(0, 1), target.DataOut, filled(512, 1)),
			scsi.Sense{Key: scsi.KeyUnitAttention, Additional: want})
	}
	if m.AllocatedBytes() != 0 {
		t.Error("a command ended by a unit attention wrote")
	}
	wantGood(t, u, write16(0, 1), target.DataOut, filled(512, 1))
}

// TestReportLUNs_WhileItChanges: who has read a list that is out of date by now is told. It
// takes some thousand rounds to meet the moment.
func TestReportLUNs_WhileItChanges(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{})
	other, _ := newMemoryUnit(t, 1<<20, target.Config{Serial: "B"})
	for round := range 50_000 {
		tgt := target.NewTarget()
		if err := tgt.AddUnit(0, u); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		group.Go(func() {
			if err := tgt.AddUnit(1, other); err != nil {
				t.Error(err)
			}
		})
		b := make([]byte, 64)
		task := wantGood(t, u, func(c *[16]byte) int { return scsi.PutReportLUNs(c, 64) }, target.DataIn, b)
		group.Wait()
		var luns [256]bool
		n, _ := scsi.ParseReportLUNs(b[:task.TransferredBytes], &luns)
		ready := run(t, u, scsi.PutTestUnitReady, target.NoData)
		if n == 1 && ready.Status == scsi.StatusGood {
			t.Fatalf("round %d: the list lacks a unit, and nobody is told", round)
		}
		if err := errors.Join(tgt.RemoveUnit(0), tgt.RemoveUnit(1)); err != nil {
			t.Fatal(err)
		}
		run(t, u, scsi.PutTestUnitReady, target.NoData)
		run(t, other, scsi.PutTestUnitReady, target.NoData)
	}
}

func TestResize(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{})
	changed := scsi.Sense{Key: scsi.KeyUnitAttention, Additional: scsi.CapacityDataHasChanged}
	wantGood(t, u, write16(2047, 1), target.DataOut, filled(512, 9))
	for _, n := range []int64{1<<20 + 1, 0, -512} {
		if err := u.Resize(n); err == nil {
			t.Errorf("resized to %d bytes", n)
		}
	}
	if err := u.Resize(1 << 20); err != nil {
		t.Fatal(err)
	}
	wantGood(t, u, scsi.PutTestUnitReady, target.NoData) // no change, no attention
	if err := u.Resize(512 << 10); err != nil {
		t.Fatal(err)
	}
	wantSense(t, run(t, u, scsi.PutTestUnitReady, target.NoData), changed)
	wantSense(t, run(t, u, read16(2047, 1), target.DataIn, make([]byte, 512)), illegal(scsi.LBAOutOfRange))
	if c := capacity16(t, u); c.Blocks != 1024 || u.Blocks() != 1024 {
		t.Errorf("%d blocks, want 1024", c.Blocks)
	}
	if err := u.Resize(1 << 20); err != nil {
		t.Fatal(err)
	}
	wantSense(t, run(t, u, scsi.PutTestUnitReady, target.NoData), changed)
	if b := mustRead(t, u, 2047, 1); b[0] != 0 {
		t.Error("what was cut off came back")
	}
}
