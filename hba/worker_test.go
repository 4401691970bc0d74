package hba

import (
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
)

// Commands come in order of arrival, but what is no transfer never gets the last
// workers.
func TestNextInLine(t *testing.T) {
	for _, tt := range []struct{ workers, others int }{{1, 1}, {2, 1}, {3, 2}, {4, 3}, {16, 12}, {1024, 768}} {
		if got := maxOthers(tt.workers); got != tt.others {
			t.Errorf("%d workers: %d for others, want %d", tt.workers, got, tt.others)
		}
	}
	const flush, read = scsi.OpSynchronizeCache16, scsi.OpRead16
	d := &Device{workers: 4}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.nextInLineLocked(); ok {
		t.Error("something in line, where there is nothing")
	}
	for i, op := range []scsi.Opcode{flush, read, flush, flush, flush, read} {
		rec := &record{arrival: uint64(i)}
		rec.cmd.CDB[0] = uint8(op)
		rec.line = lineOf(&rec.cmd)
		d.lines[rec.line].push(rec)
	}
	want := []uint64{0, 1, 2, 3, 5} // 4 is one flush too many
	for _, arrival := range want {
		l, ok := d.nextInLineLocked()
		if !ok {
			t.Fatalf("nothing in line, want %d", arrival)
		}
		if rec := d.lines[l].pop(); rec.arrival != arrival {
			t.Errorf("%d is next, want %d", rec.arrival, arrival)
		}
		if l == lineOthers {
			d.othersBusy++
		}
	}
	if _, ok := d.nextInLineLocked(); ok {
		t.Error("flushes get all workers")
	}
	d.othersBusy--
	if l, ok := d.nextInLineLocked(); !ok || d.lines[l].first.arrival != 4 {
		t.Error("the last flush was forgotten")
	}
}
